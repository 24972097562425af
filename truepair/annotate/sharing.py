"""Who may work at a pass: one job alone, whose ranks do as rank 0 says."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from truepair.errors import UserError
from truepair.losses.distributed import rank, world_size

LOCK = "lock"


def locked(folder: Path) -> IO[bytes]:
    """The folder's lock, held while the file is open and this process lives; UserError if another process has it.

    A lock of POSIX, which belongs to the process: one of flock would outlive a killed process in its decoding workers.
    It does not keep two passes of one process apart.
    """
    path = folder / LOCK
    file = path.open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise UserError(f"another process is at work in {folder}; wait until it ends") from None
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        file.close()
        raise UserError(f"another process has just ended its work in {folder}; start again")
    return file


def said_by_rank_0(say: Callable[[], Any]) -> Any:
    """What rank 0 says, on every rank, a UserError too: another rank may look when the folder has changed."""
    said: list[Any] = [None]
    if rank() == 0:
        try:
            said = [say()]
        except UserError as error:
            said = [error]
    if world_size() > 1:
        dist.broadcast_object_list(said)
    if isinstance(said[0], UserError):
        raise said[0]
    return said[0]
