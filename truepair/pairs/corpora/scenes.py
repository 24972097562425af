"""The scenes corpus: one to three coloured shapes and sentences that say so, drawn from a seed with nothing fetched."""

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from truepair.errors import UserError
from truepair.pairs.corpora.shards import (
    CorpusSummary,
    Pair,
    read_note,
    staged,
    write_note,
    write_shards,
    write_zeroshot,
)

RECIPE = 1  # raise it when the same seed would draw other pictures
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 140, 60),
    "blue": (31, 90, 200),
    "yellow": (245, 205, 40),
    "orange": (250, 130, 20),
    "purple": (130, 60, 170),
    "pink": (250, 140, 190),
    "black": (25, 25, 25),
}
# Outlines on the unit circle: corner angles in turns and radii.
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "triangle": [(i / 3, 1.0) for i in range(3)],
    "square": [(1 / 8 + i / 4, 1.0) for i in range(4)],
    "diamond": [(0, 1.0), (1 / 4, 0.55), (1 / 2, 1.0), (3 / 4, 0.55)],
    "hexagon": [(i / 6, 1.0) for i in range(6)],
    "star": [(i / 10, 1.0 if i % 2 == 0 else 0.42) for i in range(10)],
    "cross": [
        (i / 4 + turn, radius) for i in range(4) for turn, radius in ((-0.051, 1.0), (0.051, 1.0), (1 / 8, 0.447))
    ],
}
SHAPES = (*POLYGONS, "circle", "ring")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SIZES = {"small": 0.13, "": 0.18, "large": 0.24}  # radius as a share of the picture's side; the middle one goes unsaid
PLACES = {
    (0, 0): "at the top left",
    (0, 1): "at the top",
    (0, 2): "at the top right",
    (1, 0): "on the left",
    (1, 1): "in the middle",
    (1, 2): "on the right",
    (2, 0): "at the bottom left",
    (2, 1): "at the bottom",
    (2, 2): "at the bottom right",
}
GROUNDS = ("plain", "shaded", "striped", "speckled")


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `cell` is its (row, column) on a 3 x 3 grid."""

    colour: str
    shape: str
    size: str
    cell: tuple[int, int]

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


def make_scenes(out: Path, *, n: int = 2000, seed: int = 0, size: int = 64) -> CorpusSummary:
    """Make `out/train` (n pairs), `out/test` (n // 5 others) and `out/zeroshot` (colour and shape of its lone objects).

    Pictures are `size` px squares, RGB. Pair i of a part depends on (seed, part, i, size) alone, not on n. A pair's
    label is its class, -1 with several objects. A call whose corpus is in `out` already does nothing.
    Raises UserError if n < 5, size < 16, seed < 0, or `out` holds something else.
    """
    started = time.perf_counter()
    if n < 5 or size < 16 or seed < 0:
        raise UserError(f"scenes take n >= 5, size >= 16 and seed >= 0, not n={n}, size={size}, seed={seed}")
    identity = f"scenes-{RECIPE}-{n}-{seed}-{size}"
    summary = read_note(out, identity)
    if summary is None:
        with staged(out, identity) as stage:
            write_shards(_pairs("train", n, seed, size), stage / "train" / "shards")
            test = list(_pairs("test", n // 5, seed, size))
            write_shards(test, stage / "test" / "shards")
            write_zeroshot((pair for pair in test if pair.label >= 0), CLASSES, ["a {c}", "{c}"], stage / "zeroshot")
            summary = CorpusSummary(n, len(test), len(CLASSES), (), (), time.perf_counter() - started)
            write_note(stage, summary, identity)
    return summary


def _pairs(part: str, count: int, seed: int, size: int) -> Iterator[Pair]:
    for i in range(count):
        rng = np.random.default_rng((seed, ("train", "test").index(part), i))
        ground = GROUNDS[rng.integers(len(GROUNDS))]
        things = _things(rng)
        image = _draw(things, ground, rng, size)
        label = CLASSES.index(f"{things[0].colour} {things[0].shape}") if len(things) == 1 else -1
        extra = {"concept": " and ".join(f"{thing.colour} {thing.shape}" for thing in things), "style": ground}
        yield Pair(f"{part}-{i:07d}", image, _sentences(things, ground, rng), label, extra)


def _things(rng: Generator) -> list[Thing]:
    cells = rng.permutation(9)[: rng.integers(1, 4)]
    return [
        Thing(
            colour=str(rng.choice(list(COLOURS))),
            shape=str(rng.choice(SHAPES)),
            size=str(rng.choice(list(SIZES))),
            cell=(int(cell) // 3, int(cell) % 3),
        )
        for cell in cells
    ]


def _sentences(things: list[Thing], ground: str, rng: Generator) -> tuple[str, ...]:
    """Two or three distinct sentences, the fullest first."""
    placed = [f"{_a(str(thing))} {PLACES[thing.cell]}" for thing in things]
    bare = [_a(f"{thing.colour} {thing.shape}") for thing in things]
    background = f"{_listing(placed)}, on {_a(ground)} background"
    pictured = rng.choice(["a picture of {}", "{}", "there is {}", "a drawing with {}"]).format(_listing(bare))
    texts = [_listing(placed)]
    if len(things) < 3 and rng.random() < 0.5:
        texts.append(background)
    if len(things) == 2:
        first, second = things
        texts.append(f"{_a(str(first))} {_relation(first.cell, second.cell)} {_a(str(second))}")
    return tuple(dict.fromkeys([*texts, pictured]))[:3]


def _relation(first: tuple[int, int], second: tuple[int, int]) -> str:
    if first[0] != second[0]:
        return "above" if first[0] < second[0] else "below"
    return "to the left of" if first[1] < second[1] else "to the right of"


def _listing(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _draw(things: list[Thing], ground: str, rng: Generator, size: int) -> bytes:
    """PNG of the scene, drawn at twice its size and reduced for smooth edges."""
    side = 2 * size
    image = Image.fromarray(_ground(ground, rng, side))
    pen = ImageDraw.Draw(image)
    for thing in things:
        radius = SIZES[thing.size] * side * rng.uniform(0.9, 1.1)
        y, x = ((cell + 0.5 + rng.uniform(-0.12, 0.12)) * side / 3 for cell in thing.cell)
        x, y = (float(np.clip(centre, radius, side - radius)) for centre in (x, y))
        colour = tuple(int(c) for c in np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3), 0, 255))
        box = (x - radius, y - radius, x + radius, y + radius)
        if thing.shape == "circle":
            pen.ellipse(box, fill=colour)
        elif thing.shape == "ring":
            pen.ellipse(box, outline=colour, width=max(2, round(radius * 0.4)))
        else:
            tilt = rng.uniform(-1 / 24, 1 / 24)  # turns: a tilted square stays a square, no diamond
            corners = [(2 * math.pi * (turn + tilt), radius * reach) for turn, reach in POLYGONS[thing.shape]]
            pen.polygon(
                [(x + reach * math.sin(angle), y - reach * math.cos(angle)) for angle, reach in corners], fill=colour
            )
    png = io.BytesIO()
    image.reduce(2).save(png, "PNG", compress_level=3)
    return png.getvalue()


def _ground(ground: str, rng: Generator, side: int) -> np.ndarray:
    """(side, side, 3) uint8, light."""
    light = rng.integers(205, 256, 3).astype(np.float32)
    ramp = np.arange(side, dtype=np.float32) / side
    textures: dict[str, Callable[[], np.ndarray]] = {
        "plain": lambda: np.zeros((side, side), np.float32),
        "shaded": lambda: ramp[:, None] * rng.uniform(-1, 1) + ramp * rng.uniform(-1, 1),
        "striped": lambda: np.sin(2 * np.pi * rng.integers(4, 8) * (ramp[:, None] * rng.choice([-1, 0, 1]) + ramp)),
        "speckled": lambda: (
            rng.random((side // 4 + 1, side // 4 + 1), np.float32).repeat(4, 0).repeat(4, 1)[:side, :side] * 2 - 1
        ),
    }
    shade = np.broadcast_to(textures[ground](), (side, side))[..., None] * 22.0
    return np.clip(light + shade, 0, 255).astype(np.uint8)
