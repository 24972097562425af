"""Where the members of a tar lie: a header walker that reads front to back and never unpacks."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

BLOCK = 512
WINDOW = 4 << 20
MAX_NAME = 1 << 20  # bytes of a long name or pax header; real ones are below 64 KiB

_ZEROS = bytes(BLOCK)
_REGULAR = b"0\x007"
_NO_PAYLOAD = b"123456"  # links, devices, directories, pipes: whatever their size field says
_UNITS_OF_NAME = b"LKxXg"


class Member(NamedTuple):
    """A regular file in a tar: its name as stored, the byte offset of its content, its size in bytes."""

    name: str
    offset: int
    size: int


class TarError(Exception):
    """The archive ends early or is damaged; `reason` is "truncated tar" or "damaged tar", `detail` says where."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class TarFile:
    """An open tar, read through one sliding window so that headers and small members cost no system call each.

    Reads with pread, not a memory map: a file cut short by another process gives short reads, never a bus error.
    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size
        self._start = 0
        self._window = b""

    def __enter__(self) -> "TarFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer at the end of the file."""
        start = offset - self._start
        if start < 0 or start + size > len(self._window):
            if size > WINDOW:
                return os.pread(self._descriptor, size, offset)
            self._window, self._start, start = os.pread(self._descriptor, WINDOW, offset), offset, 0
        return self._window[start : start + size]

    def members(self) -> Iterator[Member]:
        """Every regular file, in order. Directories, links, devices and sparse files are passed over.

        Understands ustar prefixes, GNU long names, pax `path` and `size` (also global) and base-256 sizes, and checks
        each header's checksum. As GNU tar does, it stops at the first block of zeros or at the end of the file.

        Raises:
            TarError: after the members before the damage have been yielded.
        """
        at = 0
        long_name: bytes | None = None
        shared: dict[bytes, bytes] = {}
        own: dict[bytes, bytes] = {}
        while header := self.read(at, BLOCK):
            if len(header) < BLOCK:
                raise TarError("truncated tar", f"{len(header)} bytes of a header at {at}")
            if header[0] == 0 and header == _ZEROS:
                return
            size = _checked_size(header, at)
            kind = header[156:157]
            at += BLOCK
            if kind in _UNITS_OF_NAME:
                payload = self._name_payload(at, size)
                match kind:
                    case b"L":
                        long_name = payload.partition(b"\0")[0]
                    case b"g":
                        shared |= _pax_records(payload, at)
                    case b"x" | b"X":
                        own = _pax_records(payload, at)
                at += -(-size // BLOCK) * BLOCK
                continue
            if shared or own:
                records = {**shared, **own}
                size = _pax_size(records, size, at)
                sparse = any(name.startswith(b"GNU.sparse.") for name in records)
                name = records.get(b"path") or long_name or _name(header)
            else:
                sparse = False
                name = long_name or _name(header)
            long_name, own = None, {}
            if kind == b"S":
                at = self._after_sparse_map(header, at)
            if kind in _NO_PAYLOAD:
                continue
            if at + size > self.size:
                raise TarError("truncated tar", f"{_text(name)!r} ends at {at + size}, the file at {self.size}")
            if kind in _REGULAR and not sparse and not name.endswith(b"/"):
                yield Member(_text(name), at, size)
            at += -(-size // BLOCK) * BLOCK
        if self.size == 0:
            raise TarError("truncated tar", "the file is empty")

    def _name_payload(self, at: int, size: int) -> bytes:
        if size > MAX_NAME:
            raise TarError("damaged tar", f"a name of {size} bytes at {at}")
        payload = self.read(at, size)
        if len(payload) < size:
            raise TarError("truncated tar", f"a name at {at} needs {size} bytes, {len(payload)} are there")
        return payload

    def _after_sparse_map(self, header: bytes, at: int) -> int:
        more = header[482]
        while more:
            block = self.read(at, BLOCK)
            if len(block) < BLOCK:
                raise TarError("truncated tar", f"a sparse map at {at}")
            more, at = block[504], at + BLOCK
        return at


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _checked_size(header: bytes, at: int) -> int:
    """Size field of a header whose checksum holds (as unsigned or, like some old tars, as signed bytes)."""
    try:
        stored = int(header[148:156].partition(b"\0")[0], 8)
        unsigned = sum(header) - sum(header[148:156]) + 256
        if stored != unsigned and stored != unsigned - 256 * sum(b > 127 for b in header[:148] + header[156:]):
            raise TarError("damaged tar", f"wrong checksum of the header at {at}")
        if header[124] == 0x80:
            return int.from_bytes(header[125:136], "big")
        size = int(header[124:136].partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise TarError("damaged tar", f"no tar header at {at}") from None
    if size < 0:
        raise TarError("damaged tar", f"negative size in the header at {at}")
    return size


def _pax_size(records: dict[bytes, bytes], size: int, at: int) -> int:
    stated = records.get(b"size")
    if stated is None:
        return size
    if not stated.isdigit() or len(stated) > 19:
        raise TarError("damaged tar", f"pax size {stated[:40]!r} at {at}")
    return int(stated)


def _pax_records(payload: bytes, at: int) -> dict[bytes, bytes]:
    """Records "LENGTH NAME=VALUE\\n" of a pax header, LENGTH counting the whole record."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(payload) and payload[start]:
        digits = payload[start : start + 20].partition(b" ")[0]
        end = start + int(digits) if digits.isdigit() else 0
        name, equals, value = payload[start + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or end > len(payload) or payload[end - 1 : end] != b"\n":
            raise TarError("damaged tar", f"a pax record at {at + start}")
        records[name] = value
        start = end
    return records
