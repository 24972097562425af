"""Ranks, device and precision of a run: what torchrun and the hardware decide."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from truepair.errors import UserError, reason
from truepair.losses.distributed import world_size

_GROUPS = count()  # process groups made by this process, the same on every rank

PATIENCE = timedelta(hours=4)  # of ranks that wait while the first one evaluates


@contextmanager
def ranks(device: str) -> Iterator[torch.device]:
    """Join the ranks that torchrun started (NCCL on GPUs, gloo on CPUs), or be the only one; yields the device."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    chosen = device_of(device, local)
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    store, number, world = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    # A prefix of its own: else a second run in these processes would meet the addresses of the first one's group.
    own = dist.PrefixStore(f"truepair-{next(_GROUPS)}", store)  # type: ignore[attr-defined]
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=own, rank=number, world_size=world, timeout=PATIENCE)
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def device_of(name: str, local: int = 0) -> torch.device:
    """The device of a name ("auto", "cpu", "cuda", "cuda:1", "mps"); raises UserError if it cannot be used."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used: {reason(error)}") from None
    return torch.device("cuda", local) if device.type == "cuda" and device.index is None else device


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of `precision`: "auto" is bf16 where the hardware computes in it, else fp32."""
    wide = precision == "bf16" or (precision == "auto" and _has_bf16(device))
    kind = _PlainAttention if wide and device.type == "cpu" else torch.autocast
    return kind(device.type, torch.bfloat16, enabled=wide)


class _PlainAttention(torch.autocast):
    """Autocast, and attention by plain products: of up to 77 tokens, as captions have, two to five times as fast in
    bf16 on a CPU as torch's flash attention there (benchmarks/attention.py)."""

    def __enter__(self) -> Any:
        self._flash: bool = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call] # of all devices
        torch.backends.cuda.enable_flash_sdp(False)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *ended: Any) -> Any:
        torch.backends.cuda.enable_flash_sdp(self._flash)
        return super().__exit__(*ended)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def workers_of(wanted: int) -> int:
    """Decoding processes of a rank: as wanted; -1: a rank's cores less one for the training itself, at most 8."""
    if wanted >= 0:
        return wanted
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // here - 1))


def peak_memory(device: torch.device) -> int:
    """Bytes this process used at most: those torch allocated on its GPU, else those it held resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def agree(flags: list[bool], device: torch.device) -> list[bool]:
    """Each flag true on every rank if it is true on any."""
    if world_size() == 1:
        return flags
    votes = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(votes, dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]
