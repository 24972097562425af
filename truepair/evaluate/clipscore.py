"""CLIPScore and RefCLIPScore: how well a caption fits its image, by a dual encoder (Hessel et al. 2021)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.errors import UserError
from truepair.evaluate.features import Encoder, Progress, Read, Skipped, image_features, text_features

Floats = npt.NDArray[np.float64]

WEIGHT = 2.5  # arXiv 2104.08718, sec. 3: stretches what ViT-B/32 gives to about [0, 1]
PREFIX = "A photo depicts "  # sec. 3, before candidates and references


def clip_scores(
    model: Encoder,
    read: Read,
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    prefix: str = PREFIX,
    batch_size: int = 256,
    workers: int = 0,
    progress: Progress | None = None,
) -> tuple[Floats, Floats, list[Skipped]]:
    """CLIPScore (n,) and RefCLIPScore (n,) of n captions, NaN where the image cannot be decoded, and why.

    CLIPScore = 2.5·max(cos(image, caption), 0); RefCLIPScore its harmonic mean with max(cos(caption, reference), 0) of
    the caption's best reference. `read` gives the bytes of image i; each has at least one reference.
    Raises UserError if no image can be decoded, or the model's features are not finite.
    """
    found = image_features(model, read, len(candidates), batch_size=batch_size, workers=workers, progress=progress)
    theirs = [reference for several in references for reference in several]
    owner = torch.repeat_interleave(torch.tensor([len(several) for several in references]))
    said, written = _encoded(model, [*candidates, *theirs], prefix)
    rows, seen = torch.from_numpy(found.rows), found.features
    if not bool(seen.isfinite().all() and said.isfinite().all()):
        raise UserError(f"model {model.name} gives features that are not finite; it cannot score captions")
    ours, others = said[written[: len(candidates)]], written[len(candidates) :]
    likeness = torch.zeros(len(candidates))
    for at, text in zip(torch.split(owner, 65_536), torch.split(others, 65_536), strict=True):
        likeness.scatter_reduce_(0, at, torch.linalg.vecdot(ours[at], said[text]), "amax")
    fit = torch.full((len(candidates),), torch.nan)
    fit[rows] = WEIGHT * torch.linalg.vecdot(seen, ours[rows]).clamp(min=0)
    both = fit + likeness
    harmonic = torch.where(both == 0, 0.0, 2 * fit * likeness / both)
    return fit.double().numpy(), harmonic.double().numpy(), found.skipped


def _encoded(model: Encoder, texts: Sequence[str], prefix: str) -> tuple[Tensor, Tensor]:
    """Features (t, D) of the distinct texts, and the (n,) number of each text's."""
    number: dict[str, int] = {}
    which = torch.tensor([number.setdefault(text, len(number)) for text in texts])
    return text_features(model, [prefix + text for text in number]), which
