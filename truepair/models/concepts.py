"""A bank of concepts: names, their text features by a dual encoder, and the nearest ones of an image."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.models.encoders import TextEncoder, evaluating
from truepair.pairs.table import PairTable

PROMPTS = ("{}", "a photo of a {}")  # ours: as captions name things, and as CLIP was asked for them
CHUNK = 4_096  # concepts compared at once (benchmarks/concepts.py)
BATCH = 256  # prompts encoded at once
ROWS = 1 << 20  # of a column looked at together
LONGEST_NAME, MOST_NAMES = 100, 1_000_000  # characters of a concept, concepts of a list


class ConceptBank(nn.Module):
    """C concepts and their features.

    Attributes: names, C of them. features: (C, D) float32, unit rows; zeros until the first `refresh`. A parameter that
    is not trained, and no buffer, which DDP would send from rank 0 to all others at every step.
    A state_dict holds the names too, as plain strings; loading one takes its names over.
    """

    def __init__(self, names: Sequence[str], dim: int) -> None:
        super().__init__()
        self.names = list(names)
        self.features = nn.Parameter(torch.zeros(len(names), dim), requires_grad=False)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ConceptBank":
        """The bank of a `state_dict`. Raises UserError if that is none."""
        extra, features = state.get("_extra_state"), state.get("features")
        names = extra.get("names") if isinstance(extra, dict) else None
        if not are_names(names) or not isinstance(features, Tensor) or features.shape[:-1] != (len(names),):
            raise UserError("the concepts are no names with a feature each")
        bank = cls(names, features.shape[1])
        bank.load_state_dict(state)
        return bank

    def get_extra_state(self) -> dict[str, list[str]]:
        """The names, for state_dict."""
        return {"names": self.names}

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        """Take over the names of a state_dict."""
        self.names = list(state["names"])

    @torch.no_grad()
    def refresh(self, model: TextEncoder, batch_size: int = BATCH, prompts: Sequence[str] = PROMPTS) -> None:
        """Set the features: each name in each prompt through `model`'s text tower, averaged, normalised again.

        The model is in evaluation state meanwhile; each of its modules gets back the state it had.
        """
        device = model.device
        sums = torch.zeros_like(self.features, device=device)
        order = sorted(range(len(self.names)), key=lambda i: len(self.names[i]))  # like lengths share a batch
        with evaluating(model):
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                for prompt in prompts:
                    tokens = model.tokenize([prompted(prompt, self.names[i]) for i in chosen])
                    sums[chosen] += model.encode_text(tokens.to(device)).float()
        self.features.copy_(F.normalize(sums, dim=1))

    @torch.no_grad()
    def nearest(self, images: Tensor, k: int, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
        """The k concepts of highest cosine with each image, exactly: scores (b, k) float32, ids (b, k) int64.

        images: (b, D) unit rows, on any device, where the answer is too. Best first; of equal scores any may be first.
        With k > C the last k - C ids are -1 and their scores NaN. Memory: b × (chunk + 2k) scores.
        """
        images = images.float()
        scores, ids = nearest_rows(self.features.to(images.device), images, min(k, len(self.names)), chunk)
        missing = k - ids.shape[1]
        return F.pad(scores, (0, missing), value=torch.nan), F.pad(ids, (0, missing), value=-1)


def nearest_rows(features: Tensor, queries: Tensor, k: int, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """(C, D) and (b, D) float32 -> the k <= C largest products of each query (b, k), and their rows (b, k) int64."""
    scores = queries.new_zeros(len(queries), 0)
    ids = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(features), chunk):
        own = queries @ features[start : start + chunk].T
        best, where = own.topk(min(k, own.shape[1]), dim=1)
        scores, ids = torch.cat([scores, best], 1), torch.cat([ids, where + start], 1)
        scores, keep = scores.topk(min(k, scores.shape[1]), dim=1)
        ids = ids.gather(1, keep)
    return scores, ids


def read_concepts(file: str | Path) -> list[str]:
    """The concepts of a text file, one a line (UTF-8): in their order, spaces tidied, empty lines and repeats left out.

    Raises UserError, with the line, for what cannot be a concept's name, and for a file without any.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"list of concepts {file} cannot be read: {error.strerror}") from None
    names: dict[str, None] = {}
    for number, line in enumerate(lines, 1):
        name = " ".join(line.split())
        if len(name) > LONGEST_NAME or not name.isprintable():
            why = f"{len(name):,} characters" if len(name) > LONGEST_NAME else "control characters"
            raise UserError(f"{file}, line {number}: {why}; a concept is a word or two, one a line")
        if name:
            names[name] = None
    if not names:
        raise UserError(f"{file} holds no concept; write one a line")
    if len(names) > MOST_NAMES:
        raise UserError(f"{file} holds {len(names):,} concepts; {MOST_NAMES:,} is the most")
    return list(names)


def stored_names(table: PairTable, column: str) -> list[str]:
    """The names that the ids of a column of `truepair concepts` stand for, -1 for none. All ids are looked at.

    Raises UserError for a column of something else, names that are none, or ids without a name.
    """
    ids, made = table.numbers(column), table.made.get(column)
    names = made.get("names") if isinstance(made, dict) else None
    if not names or not are_names(names) or ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"column {column!r} of {table.path} holds no concepts; truepair concepts makes such a column")
    for start in range(0, len(ids), ROWS):
        some = ids[start : start + ROWS]
        beyond = (some.min(initial=-1) < -1) or (some.max(initial=-1) >= len(names))
        if beyond:
            row = start + int(((some < -1) | (some >= len(names))).any(axis=1).argmax())
            raise UserError(
                f"column {column!r} of {table.path}, row {row}: concepts {ids[row].tolist()}, but there are "
                f"{len(names):,} names; truepair concepts makes such a column"
            )
    return list(names)


def are_names(value: object) -> TypeGuard[list[str]]:
    """Whether this is a list of printable strings, none of them empty."""
    return isinstance(value, list) and all(isinstance(name, str) and name and name.isprintable() for name in value)


def prompted(prompt: str, name: str) -> str:
    """A concept's name in a prompt: "a photo of a {}" and "apple" give "a photo of an apple"."""
    if name[:1].lower() in tuple("aeiou"):
        prompt = re.sub(r"\ba \{\}", "an {}", prompt)
    return prompt.replace("{}", name)
