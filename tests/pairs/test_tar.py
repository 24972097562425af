"""The tar walker finds what tarfile finds, and stops with a name at what is damaged."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truepair.pairs import tar as tar_module
from truepair.pairs.tar import Member, TarError, TarFile

NAME_PART = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=90)
NAMES = st.lists(NAME_PART, min_size=1, max_size=6).map("/".join)
FILES = st.lists(st.tuples(NAMES, st.integers(0, 1600)), max_size=6)


def archive(files: list[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT, **fields: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, **fields) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def walk(path: Path) -> list[tuple[Member, bytes]]:
    with TarFile(path) as tar:
        return [(member, tar.read(member.offset, member.size)) for member in tar.members()]


def walked(path: Path, content: bytes) -> list[tuple[Member, bytes]]:
    path.write_bytes(content)
    return walk(path)


def until_error(path: Path) -> tuple[list[str], str]:
    names = []
    with TarFile(path) as tar, pytest.raises(TarError) as caught:
        for member in tar.members():
            names.append(member.name)  # noqa: PERF401 (the names before the error are wanted)
    return names, caught.value.reason


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=FILES)
def test_names_offsets_and_contents_equal_those_of_tarfile(
    tmp_path: Path, form: int, files: list[tuple[str, int]]
) -> None:
    contents = []
    for number, (name, size) in enumerate(files):
        try:
            archive([(name, b"")], form)
        except ValueError:  # ustar cannot hold every long name
            continue
        contents.append((name, bytes([number + 1]) * size))
    data = archive(contents, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isfile()]
        texts = [tar.extractfile(info).read() for info in tar if info.isfile()]
    found = walked(tmp_path / "a.tar", data)
    assert [tuple(member) for member, _ in found] == expected
    assert [content for _, content in found] == texts


def test_members_larger_than_the_window_and_across_its_edge_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_module, "WINDOW", 2048)
    files = [(f"{n}.jpg", bytes([n % 251]) * size) for n, size in enumerate([10, 5000, 0, 1500, 2048, 513, 700])]
    assert [content for _, content in walked(tmp_path / "a.tar", archive(files))] == [data for _, data in files]


def test_members_can_be_read_again_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "WINDOW", 2048)
    files = [(f"{n}.jpg", bytes([n]) * 700) for n in range(9)]
    (tmp_path / "a.tar").write_bytes(archive(files))
    with TarFile(tmp_path / "a.tar") as tar:
        found = list(tar.members())
        assert [tar.read(m.offset, m.size) for m in reversed(found)] == [data for _, data in reversed(files)]


def test_a_flipped_byte_in_a_header_is_named_and_a_signed_checksum_accepted(tmp_path: Path) -> None:
    data = bytearray(archive([("é.jpg", b"x")]))
    signed = sum(byte - 256 * (byte > 127) for byte in data[:148] + b" " * 8 + data[156:512])
    data[148:156] = f"{signed:06o}\0 ".encode()
    assert [member.name for member, _ in walked(tmp_path / "s.tar", bytes(data))] == ["é.jpg"]
    data[3] ^= 1
    (tmp_path / "f.tar").write_bytes(data)
    assert until_error(tmp_path / "f.tar") == ([], "damaged tar")


def test_directories_links_devices_and_pipes_are_passed_over(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("odd.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("real.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    found = walked(tmp_path / "a.tar", buffer.getvalue())
    assert [(member.name, content) for member, content in found] == [("real.jpg", b"abc")]


def test_a_base_256_size_is_read(tmp_path: Path) -> None:
    data = bytearray(archive([("a.jpg", b"xyz")]))
    data[124:136] = b"\x80" + (3).to_bytes(11, "big")
    _sign(data, 0)
    assert walked(tmp_path / "a.tar", bytes(data)) == [(Member("a.jpg", 512, 3), b"xyz")]


def test_pax_path_and_size_hold_for_the_next_member_only_global_ones_for_all(tmp_path: Path) -> None:
    data = archive([("a.jpg", b"x"), ("b.jpg", b"y")], tarfile.PAX_FORMAT, pax_headers={"comment": "hello"})
    assert [member.name for member, _ in walked(tmp_path / "g.tar", data)] == ["a.jpg", "b.jpg"]
    long = archive([("é" * 120 + ".jpg", b"x"), ("b.jpg", b"y")], tarfile.PAX_FORMAT)
    assert [member.name for member, _ in walked(tmp_path / "x.tar", long)] == ["é" * 120 + ".jpg", "b.jpg"]


def test_names_that_are_not_utf8_stay_distinct(tmp_path: Path) -> None:
    data = bytearray(archive([("Xa", b""), ("Xb", b"")]))
    data[0], data[512] = 0xFF, 0xFF
    _sign(data, 0)
    _sign(data, 512)
    assert [member.name for member, _ in walked(tmp_path / "a.tar", bytes(data))] == ["\\xffa", "\\xffb"]


def test_a_member_cut_short_is_not_given_and_named(tmp_path: Path) -> None:
    data = archive([("a.jpg", b"x" * 600), ("b.jpg", b"y" * 600)])
    (tmp_path / "a.tar").write_bytes(data[: 512 + 1024 + 512 + 599])
    assert until_error(tmp_path / "a.tar") == (["a.jpg"], "truncated tar")


def test_a_header_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive([("a.jpg", b"x")])[: 1024 + 100])
    assert until_error(tmp_path / "a.tar") == (["a.jpg"], "truncated tar")


def test_an_end_without_zero_blocks_is_an_end(tmp_path: Path) -> None:
    found = walked(tmp_path / "a.tar", archive([("a.jpg", b"x")])[:1024])
    assert [member.name for member, _ in found] == ["a.jpg"]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b" + b"gzip" * 300, b"not a tar" * 100, b"\xff" * 2000])
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    assert until_error(tmp_path / "a.tar")[1] == ("damaged tar" if content else "truncated tar")


def test_garbage_after_good_members_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive([("a.jpg", b"x")])[:1024] + b"\x07" * 1024)
    assert until_error(tmp_path / "a.tar") == (["a.jpg"], "damaged tar")


@pytest.mark.parametrize("size", [b"-0000000001\0", b"\x80" + b"\xff" * 11, b"77777777777\0"])
def test_a_lying_size_is_never_followed(tmp_path: Path, size: bytes) -> None:
    data = bytearray(archive([("a.jpg", b"x"), ("b.jpg", b"y")]))
    data[124:136] = size
    _sign(data, 0)
    (tmp_path / "a.tar").write_bytes(data)
    names, reason = until_error(tmp_path / "a.tar")
    assert names == []
    assert reason in ("damaged tar", "truncated tar")


@pytest.mark.parametrize("record", [b"99999999 path=a\n", b"0 path=a\n", b"path=a\n", b"9 size=-4\n", b"5 ab\n"])
def test_a_lying_pax_record_is_named(tmp_path: Path, record: bytes) -> None:
    data = bytearray(archive([("h", record), ("a.jpg", b"x")]))
    data[156:157] = b"x"
    _sign(data, 0)
    (tmp_path / "a.tar").write_bytes(data)
    assert until_error(tmp_path / "a.tar") == ([], "damaged tar")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=30)), max_size=4))
def test_damage_anywhere_gives_a_tar_error_or_members_inside_the_file(
    tmp_path: Path, cuts: list[tuple[int, bytes]]
) -> None:
    data = bytearray(archive([("a" * 150 + ".jpg", b"x" * 100), ("b.jpg", b"y" * 600)]))[:4096]
    for at, junk in cuts:
        data[at : at + len(junk)] = junk
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    try:
        found = walk(path)
    except TarError:
        return
    assert all(member.offset + member.size <= len(data) and len(content) == member.size for member, content in found)


def _sign(data: bytearray, at: int) -> None:
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()
