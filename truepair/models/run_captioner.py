"""A run's own captioner: its towers, concepts and decoder together write captions and say how well these fit."""

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from truepair.config import from_toml
from truepair.errors import UserError, reason
from truepair.models.captioner import MOST_CONCEPTS, ConceptCaptioner
from truepair.models.concepts import ConceptBank, stored_names
from truepair.models.dual import DualEncoder, create, newest_checkpoint
from truepair.models.image_to_text import Decoding
from truepair.models.likeness import PIXELS, Judge, Precision, at_rest
from truepair.models.saved import DAMAGE, STATE, method_state, part
from truepair.models.tokens import encode_image_with_tokens
from truepair.pairs.table import PairTable

CONCEPTS = 10  # shown with an image where a run does not say; NLIP's, recalled


@dataclass(frozen=True)
class Written:
    """Captions of B images. texts: of each. concepts: shown with each, best first. images: (B, D) float32 unit rows."""

    texts: list[list[str]]
    concepts: list[list[str]]
    images: Tensor


class RunCaptioner:
    """A `ConceptCaptioner` with the towers and the concepts it was trained with; it can stand for a `Captioner`.

    The modules may be those of a run that trains on: their state, torch's randomness and autocast are left as they
    were. Attributes:
        name, precision in use, version of transformers, prompt (none: it reads concepts).
        step: of the run, -1: unknown. concepts_per_image: k, 0: none.
        model: a module that holds all weights. judge: its towers. preparer: for worker processes.
    """

    prompt = ""

    def __init__(
        self,
        model: DualEncoder,
        captioner: ConceptCaptioner,
        bank: ConceptBank,
        concepts_per_image: int,
        *,
        column: str = "",
        name: str = "the run's own",
        step: int = -1,
        precision: Precision = "auto",
    ) -> None:
        import transformers

        self.name, self.step, self.version = name, step, transformers.__version__
        self.towers, self.captioner, self.bank = model, captioner, bank
        self.concepts_per_image, self.column = min(concepts_per_image, len(bank.names)), column
        self._stored: npt.NDArray[Any] | None = None  # (n, k') concept ids of the rows of a table
        self.model = nn.ModuleDict({"towers": model, "captioner": captioner, "bank": bank})
        self.judge = Judge(model, precision)
        self.precision, self.preparer = self.judge.precision, self.judge.preparer

    def at(self, table: PairTable) -> "RunCaptioner":
        """This captioner, for images of `table`: with the concepts stored there, if it was trained with stored ones.

        Otherwise its own are embedded by the towers as they are now; those it was trained with are some steps older.
        Raises UserError if the table does not hold them.
        """
        if not self.column:
            self.bank.refresh(self.towers)
            return self
        if self.column not in table.column_names:
            raise UserError(
                f"captioner {self.name} was trained with the concepts of a column {self.column!r}, which {table.path} "
                "has not; truepair concepts makes it, with the same model and --list"
            )
        if stored_names(table, self.column) != self.bank.names:
            raise UserError(f"column {self.column!r} of {table.path} has another list of concepts than {self.name}")
        found = copy(self)
        found._stored = table.numbers(self.column)
        return found

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.towers.device

    def write(self, inputs: dict[str, Tensor], rows: npt.NDArray[np.int64], decoding: Decoding, seed: int) -> Written:
        """Up to `decoding.n` captions of each of B images prepared by `preparer`, encoded once.

        A sampled caption is a function of the image, `seed` and the row's number (up to rounding, which depends on the
        other images of the batch). Raises UserError if the device's memory is too small.
        """
        try:
            with at_rest(self.model, self.device, self.precision):
                images, tokens = encode_image_with_tokens(self.towers, self._pixels(inputs))
                concepts = self._nearest(images, rows)
                texts = self.captioner.generate(tokens, concepts, rows, decoding, seed)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{len(rows)} images at once are too many for the device's memory; lower --batch-size"
            ) from None
        return Written(texts, self._named(concepts), images)

    def generate(
        self, inputs: dict[str, Tensor], rows: npt.NDArray[np.int64], decoding: Decoding, seed: int
    ) -> list[list[str]]:
        """The captions of `write` alone."""
        return self.write(inputs, rows, decoding, seed).texts

    def _pixels(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs[PIXELS].to(self.device, non_blocking=True)

    def _nearest(self, images: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        """(B, k) ids of the concepts stored for `rows`, or nearest to (B, D) image features; -1: none."""
        if self._stored is not None:
            stored = np.asarray(self._stored[rows], np.int64)[:, : self.concepts_per_image]
            return torch.from_numpy(stored).to(images.device)
        if not self.concepts_per_image:
            return torch.empty(len(images), 0, dtype=torch.int64, device=images.device)
        return self.bank.nearest(images, self.concepts_per_image)[1]

    def _named(self, concepts: Tensor) -> list[list[str]]:
        return [[self.bank.names[i] for i in row if i >= 0] for row in concepts.tolist()]


def open_run_captioner(
    run: str | Path, *, device: torch.device | str = "cpu", precision: Precision = "auto"
) -> RunCaptioner:
    """The captioner of a run's newest checkpoint, as it is.

    Raises UserError if `run` is no run, has no checkpoint or no captioner, or if its files are damaged.
    """
    folder = Path(run)
    if not (folder / "run.toml").is_file():
        raise UserError(f"captioner {str(run)!r} is neither a run (no run.toml there) nor hf:NAME or hf:DIR")
    saved, step = newest_checkpoint(folder)
    k, column = _shown(folder / "run.toml")
    model = create(f"local-dir:{saved}")
    state = method_state(saved / STATE)
    parts = {name: part(state, name) for name in ("captioner", "bank")}
    if not all(parts.values()):
        raise UserError(f"run {run} has no captioner; train one: truepair train --method nlip")
    try:
        captioner = ConceptCaptioner.from_state(model, parts["captioner"])
        bank = ConceptBank.from_state(parts["bank"])
    except (UserError, *DAMAGE) as error:
        raise UserError(f"the captioner of {saved} does not fit its towers: {reason(error)}") from error
    width, dim = bank.features.shape[1], model.config["embed_dim"]
    if width != dim:
        raise UserError(f"the captioner of {saved} does not fit its towers: concepts of {width} numbers, not {dim}")
    if bank.names != captioner.concepts:
        raise UserError(f"{saved / STATE} holds other concepts than its captioner knows")
    where = torch.device(device)
    opened = RunCaptioner(
        model.to(where),
        captioner.to(where),
        bank.to(where),
        k,
        column=column,
        name=str(run),
        step=step,
        precision=precision,
    )
    opened.model.eval()
    return opened


def _shown(file: Path) -> tuple[int, str]:
    """How many concepts a run shows with an image, and from what column of a table; "": those its towers find."""
    options = from_toml(file).options
    k, column = options.get("concepts_per_image", CONCEPTS), options.get("concept_column", "")
    if not isinstance(k, int) or not 0 <= k <= MOST_CONCEPTS or not isinstance(column, str):
        raise UserError(f"{file}: concepts_per_image {k!r} of column {column!r} make no sense")
    return k, column
