"""Augmentation: a function of seed and step, for every row the same on any number of ranks."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as tv

from truepair.config import AugmentConfig
from truepair.train.augment import augment

ALL = AugmentConfig(flip=0.5, jitter=0.4, grey=0.3)


def images(views: int = 2, count: int = 12) -> Tensor:
    return torch.randint(0, 256, (views, count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def changed(config: AugmentConfig, pixels: Tensor, seed: int = 1, step: int = 5) -> Tensor:
    return augment(pixels, config, seed=seed, step=step, first=0, total=pixels.shape[1])


def test_off_means_untouched() -> None:
    pixels = images()
    assert changed(AugmentConfig(), pixels) is pixels


def test_the_result_is_uint8_of_the_same_shape() -> None:
    out = changed(ALL, images())
    assert out.dtype == torch.uint8 and out.shape == images().shape and not torch.equal(out, images())


def test_the_same_step_does_the_same_and_another_step_or_seed_does_not() -> None:
    first = changed(ALL, images())
    assert torch.equal(first, changed(ALL, images()))
    assert not torch.equal(first, changed(ALL, images(), step=6))
    assert not torch.equal(first, changed(ALL, images(), seed=2))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    changed(ALL, images())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_change_their_rows_as_one_process_would(world: int) -> None:
    whole, share = changed(ALL, images()), 12 // world
    parts = [
        augment(part, ALL, seed=1, step=5, first=rank * share, total=12)
        for rank, part in enumerate(images().split(share, dim=1))
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_views_draw_their_own_changes() -> None:
    pixels = images(1).expand(2, -1, -1, -1, -1)
    assert not torch.equal(*changed(ALL, pixels))


def test_a_flip_mirrors_its_share_of_images() -> None:
    pixels = images(1, 2000)
    out = changed(AugmentConfig(flip=0.3), pixels)
    mirrored = (out == pixels.flip(-1)).flatten(2).all(-1)
    assert ((out == pixels).flatten(2).all(-1) | mirrored).all() and abs(mirrored.float().mean() - 0.3) < 0.05


def test_grey_is_torchvisions_luma() -> None:
    pixels = images(1)
    out = changed(AugmentConfig(grey=1.0), pixels)
    assert (out[0].int() - tv.rgb_to_grayscale(pixels[0], 3).int()).abs().max() <= 1


def test_jitter_stays_within_its_strength() -> None:
    pixels = torch.full((1, 3000, 3, 4, 4), 100, dtype=torch.uint8)
    brightness = changed(AugmentConfig(jitter=0.2), pixels).float().mean(dim=(2, 3, 4)) / 100
    assert 0.8 <= brightness.min() < 0.82 and 1.18 < brightness.max() <= 1.2 and abs(brightness.mean() - 1) < 0.01


def test_bright_and_dark_pixels_do_not_wrap_around() -> None:
    white, black = (torch.full((1, 50, 3, 4, 4), value, dtype=torch.uint8) for value in (255, 0))
    assert changed(AugmentConfig(jitter=0.9), white).min() >= 255 * 0.09
    assert (changed(AugmentConfig(jitter=0.9), black) == 0).all()
