"""An image and its copies look alike, different images do not."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from truepair.noise.issues.alike import FLAT, NEAR_COLOUR
from truepair.noise.issues.looks import look


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


def test_different_images_differ_in_many_bits():
    hashed = look(torch.stack([pixels(photo(seed)) for seed in range(40)]))[0]
    apart = [np.bitwise_count(a ^ b) for i, a in enumerate(hashed) for b in hashed[:i]]
    assert min(apart) > 12 and 30 < np.mean(apart) < 34


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([32, 64, 96]))
def test_the_hash_is_the_signs_of_the_lowest_frequencies_against_their_median(seed, side):
    image = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, side, side), np.uint8))
    small = image.double().numpy().reshape(3, 32, side // 32, 32, side // 32).mean(axis=(2, 4))
    spectrum = dctn(np.tensordot([0.299, 0.587, 0.114], small, 1), norm="ortho")
    places = sorted(((u, v) for u in range(11) for v in range(11)), key=lambda p: sum(p))[1:65]
    wanted = [spectrum[place] for place in places]
    bits = np.array(wanted) > sorted(wanted)[31]
    hashed, colours, spread = look(image[None])
    assert hashed[0] == sum(1 << k for k in np.flatnonzero(bits).tolist())
    quarters = small.reshape(3, 2, 16, 2, 16).mean(axis=(2, 4)).reshape(-1)
    np.testing.assert_allclose(colours[0], quarters, atol=0.51)
    assert spread[0] == pytest.approx(max(channel.std() for channel in small), rel=1e-4)


def test_blank_images_hardly_vary_and_drawings_do():
    noisy = np.random.default_rng(0).integers(126, 130, (64, 64, 3), np.uint8)
    line = np.full((64, 64, 3), 255, np.uint8)
    line[30] = 0
    spread = look(torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in (noisy, line)]))[2]
    assert spread[0] < FLAT < spread[1] / 5


def test_images_smaller_than_the_small_picture_are_looked_at_too():
    hashed, colours, spread = look(torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8))
    assert hashed.shape == spread.shape == (3,) and colours.shape == (3, 12)
