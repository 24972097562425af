"""Debian packages as files: fetched through apt, read in place with the standard library, nothing unpacked."""

import bz2
import gzip
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from truepair.errors import UserError
from truepair.pairs.corpora.packages import CorpusUnavailable
from truepair.pairs.corpora.strange_tars import Readable, has_content, read_members

FETCH_SECONDS = 600  # for all packages together; about 160 MB
LARGEST_FILE = 64 * 2**20  # bytes of one file in a package; the largest drawing is 9 MB
LARGEST_PACKAGE = 2 * 2**30  # bytes of a tar, decompressed; the largest package is 0.2 GB
OPENERS: dict[str, Callable[[Any], Any]] = {"": lambda file: file, ".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def fetch_debs(names: Sequence[str], cache: Path) -> list[Path]:
    """The newest .deb of each named package, in `cache/debian`; apt-get runs only for those that are not there.

    Raises CorpusUnavailable, which says what to do by hand, if there is no apt-get or it brings nothing.
    """
    folder = cache / "debian"
    found = {name: sorted(folder.glob(f"{name}_*.deb")) for name in names}
    missing = [name for name in names if not found[name]]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
            _apt_download(missing, Path(temporary))
            for name in missing:
                brought = next(Path(temporary).glob(f"{name}_*.deb"), None)
                if brought is None:
                    raise CorpusUnavailable(f"apt-get brought no {name}; {_by_hand(missing)}")
                os.replace(brought, folder / brought.name)
                found[name] = [folder / brought.name]
    return [found[name][-1] for name in names]


def read_control(deb: Path) -> dict[str, str]:
    """The fields of a package's control file: Package, Version, ... Raises UserError if there is none to read."""
    for path, data in read_files(deb, "control.tar", "", ""):
        if path == PurePosixPath("control") and isinstance(data, bytes):
            lines = [line.partition(":") for line in data.decode("utf-8", "replace").splitlines() if line[:1].strip()]
            return {name: value.strip() for name, _, value in lines}
    raise UserError(f"{deb}: no Debian package, for it has no control file")


def read_files(deb: Path, part: str, below: str, suffix: str) -> Iterator[tuple[PurePosixPath, bytes | str]]:
    """The files of `part` ("data.tar") under folder `below` whose names end in `suffix`, in the package's order.

    Yields paths relative to `below`, and the bytes or the reason why the file is not to be used. Nothing is written.
    Raises UserError on what is no Debian package, is damaged or unpacks to more than LARGEST_PACKAGE.
    """
    try:
        with _open_part(deb, part) as file:
            for member in read_members(file, LARGEST_PACKAGE):
                path = PurePosixPath(member.name)
                if member.isdir() or not path.is_relative_to(below) or not path.name.endswith(suffix):
                    continue
                yield path.relative_to(below), _content(file, member)
    except (OSError, EOFError, ValueError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{deb}: cannot be read as a Debian package ({error})") from error


def _content(file: Readable, member: tarfile.TarInfo) -> bytes | str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        return "a path that leaves the package"
    if member.issym() or member.islnk():
        return "a link to another file"
    if not has_content(member):
        return "no regular file"
    if member.size > LARGEST_FILE:
        return f"over {LARGEST_FILE:,} bytes"
    data = file.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError(f"{path} ends early")
    return data


@contextmanager
def _open_part(deb: Path, part: str) -> Iterator[Readable]:
    """The tar `part` of a .deb, decompressed as it is read. A .deb is an ar archive: a magic, then headers and data."""
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise UserError(f"{deb} is no Debian package")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii", "replace").rstrip(" /"), int(header[48:58])
            if size < 0:
                raise UserError(f"{deb}: damaged, a member has {size} bytes")
            if name.startswith(part):
                compression = name.removeprefix(part)
                if compression not in OPENERS:
                    raise UserError(f"{deb}: compressed as {compression}, only {', '.join(OPENERS)[2:]} can be read")
                with OPENERS[compression](_Part(file, size)) as opened:
                    yield opened
                return
            file.seek(size + size % 2, os.SEEK_CUR)
    raise UserError(f"{deb}: no Debian package, for it has no {part}")


class _Part:
    """`size` bytes of a file from where it stands, as a file that can be read forward."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._start, self._size = file, file.tell(), size

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._start + self._size - self._file.tell())
        return self._file.read(left if count < 0 else min(count, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise OSError("only positions from the start")
        return self._file.seek(self._start + offset) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: object) -> None:
        """The file stays open: it is the caller's."""


def _apt_download(names: Sequence[str], folder: Path) -> None:
    if not shutil.which("apt-get"):
        raise CorpusUnavailable(f"no apt-get here to fetch Debian packages; {_by_hand(names)}")
    command = ["apt-get", "download", "--quiet=2", *names]  # needs no root
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise CorpusUnavailable(f"apt-get brought no packages in {FETCH_SECONDS} s; {_by_hand(names)}") from error
    except (subprocess.CalledProcessError, OSError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        last = said[-1][:200] if said else "no reason given"
        hint = "run `apt-get update` and try again, or " if "locate" in last else ""
        raise CorpusUnavailable(f"apt-get cannot fetch {names[0]} ({last}); {hint}{_by_hand(names)}") from error


def _by_hand(names: Sequence[str]) -> str:
    given = " ".join(f"{name}.deb" for name in names)
    return f"download the Debian packages {' and '.join(names)} yourself and give them: --from {given}"
