"""Tars from elsewhere: what a hostile header could do to their reader, and that it does not."""

import gzip
import io
import lzma
import signal
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_debs import ar, made_tar

from truepair.errors import UserError
from truepair.pairs.corpora import strange_tars
from truepair.pairs.corpora.debian import read_files
from truepair.pairs.corpora.packages import CorpusUnavailable, Package, unpack
from truepair.pairs.corpora.strange_tars import read_members

NAME = "package/a.svg"
MOST = 10**6
END = bytes(1024)


def header(size: int = 0, kind: bytes = tarfile.REGTYPE, name: str = NAME) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def summed(block: bytes) -> bytes:
    """A header with the checksum that POSIX asks for: of its bytes, those of the checksum as spaces."""
    spaced = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(spaced) + block[156:]


def sparse(stored: int, shown: int) -> bytes:
    """A header of a sparse file of `shown` bytes, of which the tar holds `stored`."""
    block = header(stored, tarfile.GNUTYPE_SPARSE)
    return summed(block[:483] + b"%011o\0" % shown + block[495:])


def pax(record: bytes) -> bytes:
    return header(len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")


HOSTILE = {
    "a negative size that leads to its own header": header() + header(-512),
    "a negative size that leads to the beginning": header(-512),
    "a negative size in a pax header": pax(b"14 size=-1536\n") + header(),
    "a sparse file that leads to its own header": header() + sparse(-512, 1),
    "a gap beyond all bounds": sparse(2**60, 1),
    "a size beyond all bounds": header(2**60),
    "a pax header of gigabytes": header(2**32, tarfile.XHDTYPE),
    "a pax header of minus one byte": header(-1, tarfile.XHDTYPE),
    "headers of headers of headers": pax(b"9 a=b\n") * 3000 + header(),
    "half a header": header()[:100],
    "a file that ends early": header(5000),
}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fails what takes longer, even if it catches all that is an Exception."""

    def late(*_: object) -> None:
        pytest.fail(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def deb(folder: Path, tar: bytes, ending: str = ".xz") -> Path:
    packed = lzma.compress(tar, preset=0) if ending == ".xz" else tar
    (folder / "x.deb").write_bytes(ar({f"data.tar{ending}": packed}))
    return folder / "x.deb"


@pytest.mark.parametrize("ending", ["", ".xz"])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_debian_package_is_refused(tmp_path: Path, what: str, ending: str) -> None:
    with at_most(60), pytest.raises(UserError, match="cannot be read as a Debian package"):
        list(islice(read_files(deb(tmp_path, HOSTILE[what] + END, ending), "data.tar", "package", ".svg"), 1000))


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_npm_package_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "t.tgz").write_bytes(gzip.compress(HOSTILE[what] + END, 1))
    with at_most(60), pytest.raises(CorpusUnavailable, match="cannot be unpacked"):
        unpack(tmp_path / "t.tgz", Package("thing", "1", ("a.svg",)), tmp_path / "thing")
    assert [path.name for path in tmp_path.iterdir()] == ["t.tgz"]


def test_a_file_whose_compression_breaks_off_is_said_in_one_line(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(wbits=31)  # gzip
    packed = squeeze.compress(made_tar({NAME: bytes(100_000)})[:50_000]) + squeeze.flush(zlib.Z_FULL_FLUSH)
    packed += b"\xff" * 50  # no kind of block of RFC 1951
    (tmp_path / "x.deb").write_bytes(ar({"data.tar.gz": packed}))
    with pytest.raises(UserError, match="cannot be read as a Debian package"):
        list(read_files(tmp_path / "x.deb", "data.tar", "package", ".svg"))
    (tmp_path / "t.tgz").write_bytes(packed)
    with pytest.raises(CorpusUnavailable, match="cannot be unpacked"):
        unpack(tmp_path / "t.tgz", Package("thing", "1", ("a.svg",)), tmp_path / "thing")


def test_headers_are_limited_in_all_even_if_their_files_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strange_tars, "MOST_HEADERS", 20 * 512)
    tar = made_tar({f"{i}": b"" for i in range(19)})
    assert len(list(read_members(io.BytesIO(tar), MOST))) == 19
    with pytest.raises(tarfile.ReadError, match="headers of over 10,240 bytes in all"):
        list(read_members(io.BytesIO(made_tar({f"{i}": b"" for i in range(21)})), MOST))


def test_two_hundred_thousand_empty_files_are_soon_refused(tmp_path: Path) -> None:
    with at_most(120), pytest.raises(UserError, match="headers of over"):
        list(read_files(deb(tmp_path, header() * 200_000 + END), "data.tar", "package", ".png"))


def test_members_come_with_the_file_at_their_contents() -> None:
    files = {"a": b"1" * 700, "l" * 300: b"22", "empty": b"", "block": b"3" * 512}
    tar = io.BytesIO(made_tar(files, {"link": "a"}))
    found = {member.name: tar.read(member.size) for member in read_members(tar, MOST)}
    assert found == files | {"link": b""}
    unread = [member.name for member in read_members(io.BytesIO(made_tar(files)), MOST)]
    assert unread == list(files)


def test_a_sparse_file_is_no_file_to_use(tmp_path: Path) -> None:
    tar = sparse(512, 2**32) + bytes(512) + made_tar({"package/b.svg": b"x"})
    found = read_files(deb(tmp_path, tar), "data.tar", "package", ".svg")
    assert {str(path): data for path, data in found} == {"a.svg": "no regular file", "b.svg": b"x"}


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([header(5), sparse(512, 9), pax(b"9 a=b\n"), header(5, tarfile.GNUTYPE_LONGNAME)]),
    st.dictionaries(st.integers(0, 511), st.integers(0, 255), max_size=20),
    st.binary(max_size=60),
)
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: bytes, by: dict[int, int], content: bytes
) -> None:
    changed = summed(bytes(by.get(i, byte) for i, byte in enumerate(at[:512])))
    tar = header() + changed + content.ljust(512, b"\0") + made_tar({"package/b.svg": b"x"})
    try:
        list(islice(read_files(deb(tmp_path_factory.mktemp("deb"), tar, ""), "data.tar", "", ""), 1000))
    except UserError as error:
        assert "\n" not in str(error)
