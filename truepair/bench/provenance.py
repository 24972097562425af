"""Where, when and by what figures were made: hardware, versions, commit."""

import os
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from truepair import __version__

PACKAGES = ("torch", "open_clip_torch", "timm", "numpy", "pyarrow", "pillow", "transformers")
ROOT = Path(__file__).parents[2]  # of the checkout, if this is one


def provenance() -> dict[str, Any]:
    """truepair's version and commit, Python's and the packages' versions, the machine; all in words."""
    return {"truepair": __version__, "commit": commit(), "versions": versions(), "hardware": hardware()}


def now() -> str:
    """The time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def commit() -> str:
    """The commit of the checkout that this package lies in, "+changes" if the package differs from it; "" if none."""
    if not _git("ls-files", "truepair/__init__.py"):
        return ""
    changed = _git("status", "--porcelain", "--", "truepair")
    return _git("rev-parse", "--short=12", "HEAD") + "+changes" * bool(changed)


def versions() -> dict[str, str]:
    """Name -> version, of Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, GPUs by name; looked up once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {"system": f"{platform.system()} {platform.machine()}", "processor": processor(), "cores": cores} | {
        "memory_gib": round(pages / 2**30, 1),
        "gpus": [
            line.strip() for line in _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
        ],
    }


def processor() -> str:
    """The processor's own name for itself."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*words: str) -> str:
    return _said("git", "-C", str(ROOT), *words)


def _said(*command: str) -> str:
    """What a command prints; "" where it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
