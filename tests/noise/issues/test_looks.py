"""An image and its copies look alike, different images do not."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.fft import dctn

from truepair.noise.issues.alike import NEAR_COLOUR, comparable, near_pairs
from truepair.noise.issues.broken import FLAT
from truepair.noise.issues.looks import Looks, look


def photo(seed: int, side: int = 256) -> Image.Image:
    """Smooth shapes and some texture, about as busy as a photograph."""
    generator = np.random.default_rng(seed)
    layers = [
        np.asarray(
            Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8)).resize((side, side), 3), float
        )
        for cells in (3, 9, 30)
    ]
    return Image.fromarray((0.5 * layers[0] + 0.35 * layers[1] + 0.15 * layers[2]).astype(np.uint8))


def drawing(kind: str, colour: tuple[int, int, int], reach: float, side: int = 256) -> Image.Image:
    """A plain shape in the middle of white, alike on the left and on the right."""
    image = Image.new("RGB", (4 * side, 4 * side), "white")
    draw, middle, r = ImageDraw.Draw(image), 2 * side, 4 * side * reach
    low, high = middle - r, middle + r
    if kind == "disk":
        draw.ellipse((low, low, high, high), fill=colour)
    elif kind == "ring":
        draw.ellipse((low, low, high, high), outline=colour, width=int(r / 4))
    elif kind == "square":
        draw.rectangle((low, low, high, high), fill=colour)
    elif kind == "cross":
        draw.rectangle((low, middle - r / 3, high, middle + r / 3), fill=colour)
        draw.rectangle((middle - r / 3, low, middle + r / 3, high), fill=colour)
    else:
        draw.polygon([(middle, low), (high, high), (low, high)], fill=colour)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def mirrored(seed: int, side: int = 240) -> Image.Image:
    """Random black shapes on white, alike on the left and on the right, above and below."""
    generator = np.random.default_rng(seed)
    corner = generator.random((cells := generator.integers(3, 8), cells))
    whole = np.block([[corner, corner[:, ::-1]], [corner[::-1], corner[::-1, ::-1]]])
    smooth = np.asarray(Image.fromarray((255 * whole).astype(np.uint8)).resize((side, side), 3))
    return Image.fromarray(np.where(smooth < 120, 0, 255).astype(np.uint8))


def looks_at(images: list[Image.Image]) -> Looks:
    looks = Looks.unseen(len(images))
    looks.put(list(range(len(images))), torch.stack([pixels(image) for image in images]))
    return looks


def pixels(image: Image.Image, side: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB").resize((side, side), 3)).copy()).permute(2, 0, 1)


def recoded(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("seed", range(8))
def test_a_copy_re_encoded_and_resized_differs_in_few_bits_and_hardly_in_colour(seed):
    image = photo(seed)
    small = recoded(image.resize((97, 97), 3), 60)
    hashed, colours, _ = look(torch.stack([pixels(image), pixels(recoded(image, 40)), pixels(small)]))
    assert max(np.bitwise_count(hashed[0] ^ hashed[1:])) <= 4
    assert np.abs(colours[1:].astype(int) - colours[0]).max() <= NEAR_COLOUR / 2


def test_nearly_every_copy_of_a_symmetric_drawing_is_near_it():
    found = []
    for kind in ("disk", "ring", "square", "cross", "triangle"):
        for colour, reach in (((200, 30, 30), 0.25), ((0, 0, 0), 0.3), ((60, 120, 220), 0.4)):
            image = drawing(kind, colour, reach)
            small = image.resize((97, 97), 3)
            copies = [recoded(image, 90), recoded(image, 60), image.resize((200, 200), 2), small, recoded(small, 90)]
            low, _, _ = near_pairs(looks_at([image, *copies]), 4)
            found.append((low == 0).sum())
    assert sum(found) >= 0.97 * 5 * len(found)


def test_different_symmetric_drawings_are_seldom_near_each_other():
    n = 120
    low, _, _ = near_pairs(looks_at([mirrored(seed) for seed in range(n)]), 4)
    assert len(low) <= 0.004 * n * (n - 1) / 2


def test_what_a_hash_cannot_see_is_not_compared():
    grain = np.random.default_rng(0).integers(122, 134, (64, 64, 1), np.uint8).repeat(3, 2)
    board = (255 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8)[:, :, None].repeat(3, 2)
    looks = looks_at([Image.fromarray(image) for image in (grain, board)] + [Image.new("RGB", (64, 64), "white")])
    assert not comparable(looks).any()


def test_different_images_differ_in_many_bits():
    hashed = look(torch.stack([pixels(photo(seed)) for seed in range(40)]))[0]
    apart = [np.bitwise_count(a ^ b) for i, a in enumerate(hashed) for b in hashed[:i]]
    assert min(apart) > 12 and 30 < np.mean(apart) < 34


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([32, 64, 96]))
def test_the_hash_is_which_of_the_lowest_frequencies_stand_out_above_their_median(seed, side):
    image = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, side, side), np.uint8))
    small = image.double().numpy().reshape(3, 32, side // 32, 32, side // 32).mean(axis=(2, 4))
    spectrum = dctn(np.tensordot([0.299, 0.587, 0.114], small, 1), norm="ortho")
    places = sorted(((u, v) for u in range(11) for v in range(11)), key=lambda p: sum(p))[1:65]
    wanted = [spectrum[place] for place in places]
    bits = np.array(wanted) > sorted(wanted)[31] + max(4, 0.03 * np.sqrt(np.mean(np.square(wanted))))
    hashed, colours, spread = look(image[None])
    assert hashed[0] == sum(1 << k for k in np.flatnonzero(bits).tolist())
    quarters = small.reshape(3, 2, 16, 2, 16).mean(axis=(2, 4)).reshape(-1)
    np.testing.assert_allclose(colours[0], quarters, atol=0.51)
    assert spread[0] == pytest.approx(max(channel.std() for channel in image.double().numpy()), rel=1e-4)


def test_blank_images_hardly_vary_and_drawings_do():
    noisy = np.random.default_rng(0).integers(126, 130, (64, 64, 3), np.uint8)
    board = (255 * (np.indices((64, 64)).sum(0) % 2)).astype(np.uint8)[:, :, None].repeat(3, 2)
    line = np.full((64, 64, 3), 255, np.uint8)
    line[30] = 0
    spread = look(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in (noisy, line, board)]))[2]
    assert spread[0] < FLAT < spread[1] / 5 and spread[2] == pytest.approx(127.5)


def test_images_smaller_than_the_small_picture_are_looked_at_too():
    hashed, colours, spread = look(torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8))
    assert hashed.shape == spread.shape == (3,) and colours.shape == (3, 12)
