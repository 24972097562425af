"""A pair table with trouble planted in it, for a model that sees colours."""

import io

import numpy as np
from PIL import Image

COLOURS = {
    "red": (200, 50, 50),
    "green": (50, 190, 60),
    "blue": (50, 60, 210),
    "yellow": (215, 205, 40),
    "cyan": (40, 205, 205),
    "black": (40, 40, 40),
}


def picture(colour: str, seed: int, side: int = 96) -> Image.Image:
    """A textured picture of about that colour, unlike any other of its colour."""
    generator = np.random.default_rng(seed)
    cells = generator.integers(-40, 41, (6, 6, 1)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(cells[..., 0]).resize((side, side), Image.Resampling.BICUBIC))[..., None]
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + smooth, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **how: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **how)
    return file.getvalue()


def planted() -> tuple[list[tuple[bytes, list[str]]], dict[str, set[int]]]:
    """Pairs, and which rows have which issue; of the first 120 every fourth is mismatched, the others are sound."""
    names = list(COLOURS)
    pairs: list[tuple[bytes, list[str]]] = []
    rows: dict[str, set[int]] = {}
    for i in range(120):
        said = names[(i + 2 * (i % 4 == 0)) % 6]
        caption = f"this is a {said} picture of number {'i' * (i % 7 + 1)}"
        pairs.append((encoded(picture(names[i % 6], i)), [caption]))
    rows["mismatched_pair"] = set(range(0, 120, 4))

    def plant(issue: str, image: bytes, caption: str) -> None:
        rows.setdefault(issue, set()).add(len(pairs))
        pairs.append((image, [caption]))

    original = picture("red", 6)
    plant("near_duplicate_image", encoded(original, "JPEG", quality=60), "again the red picture of a wall")
    plant("near_duplicate_image", encoded(original.resize((64, 64))), "a small red picture of that wall")
    rows["near_duplicate_image"].add(6)
    for i in range(11):
        plant("boilerplate_caption", encoded(picture(names[i % 6], 200 + i)), f"shop number {i} of our red shops")
    plant("incomplete_caption", encoded(picture("blue", 300)), "IMG_1234.jpg")
    plant("wrong_language", encoded(picture("green", 301)), "das ist ein Bild und es ist green mit der Wand")
    plant("wrong_language", encoded(picture("green", 302)), "это картина green и не одна")
    plant("broken_image", b"broken", "this is a red car")
    plant("broken_image", encoded(Image.new("RGB", (96, 96), COLOURS["red"])), "this is a red picture of nothing")
    plant("leaked_image", encoded(picture("cyan", 303)), "this is a cyan picture of the sea")
    return pairs, rows
