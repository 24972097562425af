"""The openclipart corpus: drawings by the public under the titles the public gave them, wrong as they often are."""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TypeGuard

import numpy as np
from PIL import Image, ImageOps

from truepair.errors import UserError
from truepair.pairs.corpora.clipart_texts import Texts, file_name_text, read_texts
from truepair.pairs.corpora.credits import licence_page
from truepair.pairs.corpora.debian import fetch_debs, read_control, read_files
from truepair.pairs.corpora.keeping import identify, kept_corpus
from truepair.pairs.corpora.packages import cache_folder
from truepair.pairs.corpora.shards import CorpusSummary, Pair, Skipped, StyleNote, write_shards
from truepair.pairs.corpora.spreading import Progress, spreading, untold
from truepair.pairs.image import ImageError, decode_whole

RECIPE = 1  # raise it when the same packages would give other pairs: kept corpora are named by it
PNG, SVG = "openclipart-png", "openclipart-svg"
COLUMNS = ("title", "file_name_text", "folder", "keywords", "description", "author", "file")
TEST_PERCENT = 15
LICENCE = "public domain"


@dataclass(frozen=True)
class _Drawing:
    """One drawing: where it lies in the collection, what is said of it, its picture and the picture's hash."""

    file: str  # without its ending: "animals/birds/crow_01"
    texts: Texts
    picture: bytes  # PNG
    look: str  # see `look_of`

    @property
    def name_text(self) -> str:
        return file_name_text(self.file.rpartition("/")[2], self.texts.author)

    def pair(self, key: str, caption: str) -> Pair:
        extra = {
            "title": self.texts.title,
            "file_name_text": self.name_text,
            "folder": self.file.rpartition("/")[0],
            "keywords": ", ".join(self.texts.keywords),
            "description": self.texts.description,
            "author": self.texts.author,
            "file": self.file,
        }
        return Pair(key, self.picture, (caption,), -1, extra)


def make_openclipart(
    out: Path,
    *,
    size: int = 64,
    seed: int = 0,
    debs: Sequence[Path] = (),
    cache: Path | None = None,
    workers: int = 1,
    progress: Progress = untold,
) -> CorpusSummary:
    """Make `out/train`, captioned by the raw titles, and `out/test`, captioned by the words of the file names.

    debs: the Debian packages openclipart-png and openclipart-svg; apt-get fetches them if none is given. Pictures are
    shown whole on a white square of `size` px. `seed` decides which drawings are held out (15 %, by the hash of the
    picture, so that near-identical ones stay together) and the order of the train pairs. The finished corpus stays in
    `cache`. Raises CorpusUnavailable if the packages cannot be fetched, UserError if they are unusable, `size` is
    under 16 or `out` holds something else.
    """
    if size < 16:
        raise UserError(f"drawings of {size} px cannot be told apart: choose 16 px or more")
    cache = cache or cache_folder()
    png, svg = _packages(debs or fetch_debs((PNG, SVG), cache))
    identity = identify("openclipart", RECIPE, size, seed, _digest(png), _digest(svg), version("pillow"))
    return kept_corpus(
        out,
        cache,
        identity,
        lambda: (png, svg),
        lambda stage, _: _build(stage, png, svg, size, seed, workers, progress),
    )


def look_of(picture: Image.Image) -> str:
    """What near-identical pictures share: of an 8 x 9 grid of greys, which cell is lighter than its left neighbour.

    The difference hash of N. Krawetz (hackerfactor.com, "Kind of Like That"), 64 bits as hexadecimal digits.
    """
    greys = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX))
    return np.packbits(greys[:, 1:] > greys[:, :-1]).tobytes().hex()


def _packages(debs: Sequence[Path]) -> tuple[Path, Path]:
    found = {}
    for deb in debs:
        if not deb.is_file():
            raise UserError(f"{deb} is no file: give the .deb files of {PNG} and {SVG}")
        found[read_control(deb).get("Package", "")] = deb
    if missing := [name for name in (PNG, SVG) if name not in found]:
        raise UserError(f"the Debian package {missing[0]} is missing: {PNG} has the pictures, {SVG} the titles")
    return found[PNG], found[SVG]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _build(out: Path, png: Path, svg: Path, size: int, seed: int, workers: int, progress: Progress) -> CorpusSummary:
    skipped: list[Skipped] = []
    drawings = list(_distinct(_drawings(png, _texts(svg), size, workers, progress, skipped), skipped))
    keys = _keys([drawing.file for drawing in drawings])
    train, test = [], []
    for key, drawing in zip(keys, drawings, strict=True):
        if not _is_held_out(drawing.look, seed):
            train.append(drawing.pair(key, drawing.texts.title))
        elif drawing.name_text:
            test.append(drawing.pair(key, drawing.name_text))
        else:
            skipped.append(Skipped(drawing.file, "held out, but its file name has no word"))
    order = np.random.default_rng(seed).permutation(len(train))
    write_shards((train[i] for i in order), out / "train" / "shards")
    write_shards(test, out / "test" / "shards")
    versions = {read_control(deb).get("Version", "unknown") for deb in (png, svg)}
    note = StyleNote(
        name="openclipart",
        package=f"{PNG}, {SVG}",
        version=" and ".join(sorted(versions)),
        author="see the column author",
        licence=LICENCE,
        url="https://openclipart.org",
        pairs=len(drawings),
    )
    about = "Each picture is a drawing that its author put into the public domain, as its own metadata says."
    closing = "Captions: titles by whoever uploaded the drawing, and file names."
    (out / "LICENSES.md").write_text(licence_page([note], about, closing), encoding="utf-8")
    return CorpusSummary(len(train), len(test), 0, (note,), tuple(skipped), 0.0)


def _texts(svg: Path) -> dict[str, Texts | str]:
    """What each drawing's metadata say, or why they cannot be read, by its file without the ending."""
    texts: dict[str, Texts | str] = {}
    for path, data in read_files(svg, "data.tar", "usr/share/openclipart/svg", ".svg"):
        try:
            texts[_file(path)] = data if isinstance(data, str) else read_texts(data)
        except ValueError as error:
            texts[_file(path)] = f"unreadable metadata: {error}"
    return texts


def _drawings(
    png: Path, texts: dict[str, Texts | str], size: int, workers: int, progress: Progress, skipped: list[Skipped]
) -> list[_Drawing]:
    """The usable drawings by their files' names; the others join `skipped`."""
    usable: dict[str, tuple[Texts, bytes]] = {}
    for path, data in read_files(png, "data.tar", "usr/share/openclipart/png", ".png"):
        file = _file(path)
        said = texts.get(file, "no metadata")
        if isinstance(data, str):
            skipped.append(Skipped(file, data))
        elif isinstance(said, str):
            skipped.append(Skipped(file, said))
        elif not said.public_domain:
            skipped.append(Skipped(file, "not said to be in the public domain"))
        elif not said.title:
            skipped.append(Skipped(file, "no title"))
        else:
            usable[file] = said, data
    files = sorted(usable)
    drawings = []
    with spreading(workers) as spread:
        pictures = spread(partial(_square, size=size), [usable[file][1] for file in files])
        for done, (file, picture) in enumerate(zip(files, pictures, strict=True), start=1):
            if _is_picture(picture):
                drawings.append(_Drawing(file, usable[file][0], *picture))
            else:
                skipped.append(Skipped(file, str(picture)))
            progress(done, len(files))
    return drawings


def _is_picture(drawn: tuple[bytes, str] | str) -> TypeGuard[tuple[bytes, str]]:
    return not isinstance(drawn, str)


def _square(data: bytes, size: int) -> tuple[bytes, str] | str:
    """A drawing shown whole on a white square, as PNG, and its look; or the reason why there is none."""
    try:
        picture = decode_whole(data)
    except ImageError as error:
        return error.reason
    picture = picture.reduce(max(1, max(picture.size) // (4 * size)))  # a fast first step for the large ones
    picture = ImageOps.pad(picture, (size, size), Image.Resampling.LANCZOS, "white")
    pixels = np.asarray(picture)
    if (pixels == pixels[0, 0]).all():
        return "blank image"
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue(), look_of(picture)


def _distinct(drawings: Sequence[_Drawing], skipped: list[Skipped]) -> Iterator[_Drawing]:
    """Of drawings that look alike under the same title, the first."""
    seen = set[tuple[str, str]]()
    for drawing in drawings:
        if (which := (drawing.texts.title, drawing.look)) in seen:
            skipped.append(Skipped(drawing.file, "near-identical to another drawing of the same title"))
        else:
            seen.add(which)
            yield drawing


def _is_held_out(look: str, seed: int) -> bool:
    return int.from_bytes(sha256(f"{seed} {look}".encode()).digest()[:8], "big") % 100 < TEST_PERCENT


def _keys(files: Sequence[str]) -> list[str]:
    """A key a file: letters, digits, hyphens and underscores; numbered where two files would get the same."""
    keys = dict[str, None]()
    for file in files:
        key = plain = re.sub(r"[^A-Za-z0-9-]+", "_", file) or "drawing"
        number = 2
        while key in keys:
            key, number = f"{plain}_no{number}", number + 1
        keys[key] = None
    return list(keys)


def _file(path: PurePosixPath) -> str:
    """A path without its ending, what is no UTF-8 in it replaced."""
    return str(path.with_suffix("")).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
