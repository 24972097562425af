"""What a model finds for single images: the captions it holds nearest, and how far up the right one stands."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.errors import UserError, reason
from truepair.evaluate.ranks import TIE, Positives
from truepair.pairs.columns import whole

Integers = npt.NDArray[np.int64]

FILE = "retrieved.json"  # in a run's directory: those of its last evaluation
COUNT = 128  # images asked about, the same in every evaluation of a table
NEAREST = 3  # captions told of each
LONGEST = 300  # characters of a caption that is told
AT_ONCE = 32  # images


@dataclass(frozen=True)
class Retrieved:
    """One image's search among all captions.

    row: of the table, the image's. rank: place of its first right caption, from 1; behind the wrong ones that tie with
    it, so that a collapsed model finds nothing, and last where there are no numbers. captions: the nearest, nearest
    first, cut to LONGEST characters; right: which of them describe it.
    """

    row: int
    rank: int
    captions: tuple[str, ...]
    right: tuple[bool, ...]


def retrieved(
    images: Tensor, texts: Tensor, right: Positives, rows: Integers, captions: Sequence[str], count: int
) -> list[Retrieved]:
    """What `count` of the images find, drawn once for all and told in row order.

    images (I, D), texts (T, D): float32 unit rows on one device. right: the texts of each image. rows: (I,) of the
    table. captions: the T texts.
    """
    drawn = np.random.Generator(np.random.Philox(0)).permutation(len(images))[:count]
    drawn = drawn[np.argsort(rows[drawn])]
    found = []
    for start in range(0, len(drawn), AT_ONCE):
        chosen = drawn[start : start + AT_ONCE]
        scores = (images[torch.from_numpy(chosen)] @ texts.T).nan_to_num(nan=-torch.inf)
        nearest = scores.topk(min(NEAREST, len(texts)), dim=1).indices.tolist()
        for image, row, best in zip(chosen.tolist(), scores, nearest, strict=True):
            own = right.indices[int(right.indptr[image]) : int(right.indptr[image + 1])].to(row.device)
            ahead = row >= row[own].max() - TIE
            ahead[own] = False
            told = tuple(captions[text][:LONGEST] for text in best)
            ticks = tuple(torch.isin(torch.tensor(best), own.cpu()).tolist())
            found.append(Retrieved(int(rows[image]), 1 + int(ahead.sum()), told, ticks))
    return found


def write_retrieved(run: Path, table: Path, found: Sequence[Retrieved]) -> None:
    """Keep them in a run's directory, whole or not at all."""
    kept = {"table": str(table), "images": [asdict(one) for one in found]}
    with whole(run / FILE) as partial:
        partial.write_text(json.dumps(kept), encoding="utf-8")


def read_retrieved(run: Path) -> tuple[Path, list[Retrieved]] | None:
    """The table that was searched and what was found; None if the run has none. Raises UserError for a damaged file."""
    file = run / FILE
    if not file.is_file():
        return None
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return Path(str(kept["table"])), [_retrieved(one) for one in kept["images"]]
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error


def _retrieved(kept: dict[str, Any]) -> Retrieved:
    captions = tuple(str(caption) for caption in kept["captions"])
    right = tuple(bool(value) for value in kept["right"])
    if len(captions) != len(right):
        raise ValueError("as many captions as verdicts are wanted")
    return Retrieved(int(kept["row"]), int(kept["rank"]), captions, right)
