"""Debian packages as files: what is read, what is refused, and what is said where apt cannot help."""

import lzma
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from made_debs import ar, made_deb, made_tar

from truepair.errors import UserError
from truepair.pairs.corpora import debian
from truepair.pairs.corpora.debian import fetch_debs, read_control, read_files
from truepair.pairs.corpora.packages import CorpusUnavailable

FILES = {
    "./usr/share/art/a/one.png": b"1",
    "./usr/share/art/b.png": b"22",
    "./usr/share/art/b.txt": b"3",
    "./c.png": b"4",
}


def contents(deb: Path, below: str = "usr/share/art", suffix: str = ".png") -> dict[str, bytes | str]:
    return {str(path): data for path, data in read_files(deb, "data.tar", below, suffix)}


@pytest.mark.parametrize("compression", ["", ".xz", ".gz", ".bz2"])
def test_files_below_a_folder_are_read_whatever_the_compression(tmp_path: Path, compression: str) -> None:
    deb = made_deb(tmp_path / "x.deb", "art", FILES, compression=compression)
    assert contents(deb) == {"a/one.png": b"1", "b.png": b"22"}
    assert read_control(deb) == {"Package": "art", "Version": "1:2-3", "Description": "some"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.deb"]


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb, the packager of Debian itself")
def test_a_package_built_by_debians_own_tool_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "usr" / "share" / "art"
    folder.mkdir(parents=True)
    (folder / "one.png").write_bytes(b"1" * 1001)
    (tmp_path / "tree" / "DEBIAN").mkdir()
    control = "Package: art\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: art\n"
    (tmp_path / "tree" / "DEBIAN" / "control").write_text(control)
    build = ["dpkg-deb", "-Zxz", "--root-owner-group", "--build", str(tmp_path / "tree"), str(tmp_path / "art.deb")]
    subprocess.run(build, check=True, capture_output=True)
    assert contents(tmp_path / "art.deb") == {"one.png": b"1" * 1001}
    assert read_control(tmp_path / "art.deb")["Version"] == "1.0"


def test_what_could_lead_out_of_the_package_is_given_a_reason_instead_of_bytes(tmp_path: Path) -> None:
    files = {"usr/share/art/../../../evil.png": b"1", "/usr/share/art/root.png": b"2", "usr/share/art/ok.png": b"3"}
    deb = made_deb(tmp_path / "x.deb", "art", files, {"usr/share/art/link.png": "/etc/passwd"})
    assert contents(deb) == {
        "../../../evil.png": "a path that leaves the package",
        "ok.png": b"3",
        "link.png": "a link to another file",
    }
    assert contents(deb, "/usr/share/art") == {"root.png": "a path that leaves the package"}


def test_names_that_are_no_utf_8_are_read(tmp_path: Path) -> None:
    deb = made_deb(tmp_path / "x.deb", "art", {"usr/share/art/caf\udce9.png": b"1"})
    assert contents(deb) == {"caf\udce9.png": b"1"}


def test_a_file_or_a_package_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deb = made_deb(tmp_path / "x.deb", "art", {"usr/share/art/a.png": bytes(20_000), "usr/share/art/b.png": b"1"})
    monkeypatch.setattr(debian, "LARGEST_FILE", 10_000)
    assert contents(deb) == {"a.png": "over 10,000 bytes", "b.png": b"1"}
    monkeypatch.setattr(debian, "LARGEST_PACKAGE", 20_000)
    with pytest.raises(UserError, match="unpacks to over 20,000 bytes"):
        contents(deb)


def test_a_header_that_asks_for_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 4 * 2**30
    tar = info.tobuf(tarfile.USTAR_FORMAT) + bytes(2048)
    (tmp_path / "x.deb").write_bytes(ar({"data.tar.xz": lzma.compress(tar)}))
    with pytest.raises(UserError, match="a header of over"):
        contents(tmp_path / "x.deb")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda deb: b"PK\3\4" + deb, "no Debian package"),
        (lambda deb: b"", "no Debian package"),
        (lambda deb: deb[:8], r"no data\.tar"),
        (lambda deb: deb[: len(deb) * 3 // 4], "cannot be read"),
        (lambda deb: ar({"data.tar.zst": b"x"}), r"compressed as \.zst, only \.xz, \.gz, \.bz2"),
        (lambda deb: ar({"data.tar.xz": b"not xz at all"}), "cannot be read"),
        (lambda deb: ar({"data.tar.gz": b"nor gzip"}), "cannot be read"),
        (lambda deb: ar({"x": b""}).replace(b"0         `", b"many      `"), "cannot be read"),
        (lambda deb: ar({"x": b""}).replace(b"0         `", b"-60       `"), "damaged"),
    ],
)
def test_a_damaged_package_is_said_in_one_line(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    deb = made_deb(tmp_path / "x.deb", "art", {"usr/share/art/a.png": os.urandom(5000)})
    deb.write_bytes(damage(deb.read_bytes()))
    with pytest.raises(UserError, match=said) as raised:
        contents(deb)
    assert "\n" not in str(raised.value) and str(deb) in str(raised.value)


def test_a_tar_without_a_control_file_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(ar({"control.tar.xz": lzma.compress(made_tar({"./md5sums": b""}))}))
    with pytest.raises(UserError, match="no control file"):
        read_control(tmp_path / "x.deb")


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An apt-get on PATH that runs the given shell text."""

    def install(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "apt-get").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")

    return install


def test_apt_brings_each_package_once(tmp_path: Path, fake_apt: Callable[[str], None]) -> None:
    fake_apt(f'echo "$@" >> {tmp_path}/calls; touch art_1%3a2-3_all.deb more_9_all.deb')
    for _ in range(2):
        debs = fetch_debs(["more", "art"], tmp_path / "cache")
        assert [deb.name for deb in debs] == ["more_9_all.deb", "art_1%3a2-3_all.deb"]
        assert all(deb.is_file() for deb in debs)
    assert (tmp_path / "calls").read_text().splitlines() == ["download --quiet=2 more art"]
    assert sorted(path.name for path in (tmp_path / "cache" / "debian").iterdir()) == sorted(deb.name for deb in debs)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'E: Unable to locate package art' >&2; exit 100", "Unable to locate package art.*apt-get update"),
        ("exit 1", "exit status 1"),
        ("exit 0", "brought no art"),
    ],
)
def test_an_apt_that_fails_says_why_and_what_to_do(
    tmp_path: Path, fake_apt: Callable[[str], None], script: str, said: str
) -> None:
    fake_apt(script)
    with pytest.raises(CorpusUnavailable, match=f"{said}.*--from art.deb"):
        fetch_debs(["art"], tmp_path)


def test_without_apt_the_message_names_the_packages_to_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(CorpusUnavailable, match=r"no apt-get.*art and more yourself.*--from art\.deb more\.deb"):
        fetch_debs(["art", "more"], tmp_path)
