"""Tars from elsewhere, read once from front to back: no header can lead back, ask for gigabytes or go on for ever."""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO, Protocol, cast

LARGEST_HEADER = 64 * 2**10  # bytes of a long name or a pax header; real ones are below 4 KiB
MOST_HEADERS = 32 * 2**20  # bytes of all headers together: 65,536 plain ones, some seconds of work


class Readable(Protocol):
    """What is asked of a decompressed tar."""

    def read(self, count: int = ..., /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...

    def tell(self) -> int: ...


def read_members(file: Readable, most: int) -> Iterator[tarfile.TarInfo]:
    """The members of a decompressed tar in its order; when one is yielded, `file` stands at its content.

    Raises tarfile.ReadError on a tar that is damaged, that a header leads back into, whose headers are too many or too
    large, or that has over `most` bytes; gaps that a sparse file leaves out count as they are in the tar.
    """
    try:
        with tarfile.open(fileobj=cast(BinaryIO, _Headers(file, most)), mode="r:") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError(f"a member of {member.size:,} bytes")
                yield member
    except RecursionError:  # tarfile reads a header that belongs to the next one by calling itself
        raise tarfile.ReadError("headers of headers of headers") from None


def has_content(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file whose content stands in the tar as it is: no link, no device, no sparse file."""
    return member.isreg() and not member.issparse()


class _Headers:
    """A tar as tarfile sees it, which reads the headers through it, and skips the contents."""

    def __init__(self, file: Readable, most: int) -> None:
        self._file, self._most, self._read = file, most, 0

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of over {LARGEST_HEADER:,} bytes")
        self._read += count
        if self._read > MOST_HEADERS:
            raise tarfile.ReadError(f"headers of over {MOST_HEADERS:,} bytes in all")
        self._reach(self.tell() + count)
        return self._file.read(count)

    def seek(self, offset: int) -> int:
        if offset < self.tell():
            raise tarfile.ReadError("a header that leads back")
        self._reach(offset)
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()

    def _reach(self, position: int) -> None:
        if position > self._most:
            raise tarfile.ReadError(f"it unpacks to over {self._most:,} bytes")
