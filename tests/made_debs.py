"""Debian packages made by hand: an ar archive of three members, the tars compressed as asked."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path

PACK = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": bytes}


def made_tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """A tar; names may hold lone surrogates, which stand for bytes that are no UTF-8."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return held.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    """An ar archive, written after its description (deb(5), ar(5)), not with our reader."""
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        out += data + b"\n" * (len(data) % 2)
    return out


def made_deb(
    path: Path,
    name: str,
    files: Mapping[str, bytes],
    links: Mapping[str, str] | None = None,
    compression: str = ".xz",
) -> Path:
    control = made_tar({"./control": f"Package: {name}\nVersion: 1:2-3\nDescription: some\n more: lines\n".encode()})
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": lzma.compress(control),
        f"data.tar{compression}": PACK[compression](made_tar(files, links)),
    }
    path.write_bytes(ar(members))
    return path
