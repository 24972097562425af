"""Augmentation on the device: a function of seed and step, the same for a row on any number of ranks."""

import torch
from torch import Tensor

from truepair.config import AugmentConfig

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def augment(images: Tensor, config: AugmentConfig, *, seed: int, step: int, first: int, total: int) -> Tensor:
    """(V, b, 3, S, S) uint8 -> the same, changed.

    The images are numbers first, first+1, … of a global batch of `total`; every view draws its own changes.
    """
    if not (config.flip or config.jitter or config.grey):
        return images
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    views, count = images.shape[:2]
    drawn = torch.rand(views, total, 5, generator=generator)[:, first : first + count].to(images.device)
    flip, grey = drawn[..., 0] < config.flip, drawn[..., 1] < config.grey
    factor = 1 + config.jitter * (2 * drawn[..., 2:, None, None, None] - 1)  # (V, b, 3 kinds, 1, 1, 1)

    pixels = images.float()
    pixels = torch.where(flip[..., None, None, None], pixels.flip(-1), pixels)
    luma = torch.tensor(LUMA, device=pixels.device).view(3, 1, 1)
    if config.jitter:
        pixels = pixels * factor[:, :, 0]  # brightness
        mean = (pixels * luma).sum(dim=2, keepdim=True).mean(dim=(-1, -2), keepdim=True)
        pixels = (pixels - mean) * factor[:, :, 1] + mean  # contrast
        lightness = (pixels * luma).sum(dim=2, keepdim=True)
        pixels = (pixels - lightness) * factor[:, :, 2] + lightness  # saturation
    if config.grey:
        lightness = (pixels * luma).sum(dim=2, keepdim=True)
        pixels = torch.where(grey[..., None, None, None], lightness, pixels)
    return pixels.clamp_(0, 255).round_().to(torch.uint8)
