"""A run's towers and its fusion encoder together say how probably a caption describes an image."""

from pathlib import Path

import torch
from torch import Tensor, nn

from truepair.errors import UserError, reason
from truepair.models.dual import CONFIG, DualEncoder, create, newest_checkpoint
from truepair.models.encoders import evaluating
from truepair.models.fusion import Fusion
from truepair.models.likeness import Precision, at_rest, precision_of
from truepair.models.saved import DAMAGE, STATE, method_state, part
from truepair.models.tokens import (
    attended,
    encode_image_with_tokens,
    encode_text_with_tokens,
    text_width,
    token_width,
)

FUSION = "fusion"  # the name a method gives the sub-module
LOCAL = "local-dir:"  # open_clip's scheme


class DamagedFusion(UserError):
    """The fusion encoder that a run should have cannot be read or does not fit its towers; the towers may be sound."""


class Matcher:
    """P(caption describes image) of a dual encoder and the fusion encoder trained with it (image-text matching).

    The modules may be those of a run that trains on: their state, torch's randomness and autocast are left as they
    were. No result has a graph. The towers compute in the precision of their weights, as evaluation has them compute,
    the fusion encoder in `precision`: float32, because pairs are ranked by small differences.

    Attributes:
        towers, fusion, name; precision in use.
        model: a module that holds all weights.
    """

    def __init__(
        self, towers: DualEncoder, fusion: Fusion, *, name: str = "the run's own", precision: Precision = "fp32"
    ) -> None:
        self.towers, self.fusion, self.name = towers, fusion, name
        self.precision = precision_of(precision, towers.device)
        self.model = nn.ModuleDict({"towers": towers, FUSION: fusion})

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.towers.device

    def see(self, images: Tensor) -> Tensor:
        """(b, 3, S, S) uint8 -> (b, P, v) float32 tokens."""
        return self.see_both(images)[1]

    def see_both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, S, S) uint8 -> (b, D) float32 unit rows as `towers.encode_image`, and (b, P, v) float32 tokens."""
        with evaluating(self.towers), torch.no_grad():
            return encode_image_with_tokens(self.towers, images.to(self.device), prefix=True)

    def read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, L) token ids -> (n, L, w) float32 hidden states, and (n, L) bool, which of them are no padding."""
        tokens = tokens.to(self.device)
        with evaluating(self.towers), torch.no_grad():
            return encode_text_with_tokens(self.towers, tokens)[1], attended(self.towers, tokens)

    def logits(self, text: Tensor, attended: Tensor, image: Tensor) -> Tensor:
        """(n, L, w), (n, L) bool, (n, P, v) -> (n, 2) float32, [mismatch, match]; text i is asked of image i.

        Raises UserError if the device's memory is too small, or the numbers are not finite.
        """
        try:
            with at_rest(self.fusion, self.device, self.precision):
                found = self.fusion.match(self.fusion(text, attended, image)).float()
        except torch.OutOfMemoryError:
            raise UserError(
                f"{len(text)} pairs at once are too many for the device's memory; use --device cpu"
            ) from None
        if not bool(found.isfinite().all()):
            raise UserError(f"the fusion encoder of {self.name} gives numbers that are not finite; it cannot judge")
        return found

    def log_odds(self, text: Tensor, attended: Tensor, image: Tensor) -> Tensor:
        """(n,) float32, log P(match)/P(mismatch): orders as `probability` does and does not saturate."""
        logits = self.logits(text, attended, image)
        return logits[:, 1] - logits[:, 0]

    def probability(self, text: Tensor, attended: Tensor, image: Tensor) -> Tensor:
        """(n,) float32, P(match)."""
        return self.log_odds(text, attended, image).sigmoid()


def open_matcher(run: str | Path, *, device: torch.device | str = "cpu", precision: Precision = "fp32") -> Matcher:
    """Towers and fusion encoder of a run's newest checkpoint, as they are.

    Raises UserError if `run` is no run, has no checkpoint or no fusion encoder with a matching head, or if its files
    are damaged or do not fit each other.
    """
    matcher = find_matcher(run, device=device, precision=precision)
    if matcher is None:
        raise UserError(lack(run, "fusion encoder with ITM"))
    return matcher


def find_matcher(
    model: str | Path, *, device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> Matcher | None:
    """`open_matcher` of what `open_model` takes, None where it is a model without a fusion encoder or without ITM.

    A run's checkpoint (local-dir:RUN/checkpoints/step-N) has what the run has.
    Raises DamagedFusion, a UserError, if that cannot be read or does not fit; UserError as `open_matcher` for towers
    that are damaged, or a run without checkpoint.
    """
    saved = _checkpoint(model)
    fusion = None if saved is None else _fusion_of(saved)
    if saved is None or fusion is None or fusion.itm is None:
        return None
    towers = create(f"local-dir:{saved}")
    widths, wanted = (fusion.shape.width, fusion.shape.image_width), (text_width(towers), token_width(towers))
    if widths != wanted:
        raise DamagedFusion(
            f"the fusion encoder of {saved} does not fit its towers: its text and image tokens have {widths} numbers, "
            f"theirs {wanted}"
        )
    matcher = Matcher(towers.to(device), fusion.to(device), name=str(model), precision=precision)
    matcher.model.eval()
    return matcher


def open_fusion(run: str | Path) -> Fusion:
    """The fusion encoder of a run's newest checkpoint, alone, on the CPU; with the heads it was trained with.

    run: a run, or one of its checkpoints (RUN/checkpoints/step-N).
    Raises UserError if it is neither, has no checkpoint or no fusion encoder, or if its files are damaged.
    """
    saved = _checkpoint(run)
    fusion = None if saved is None else _fusion_of(saved)
    if fusion is None:
        raise UserError(lack(run, "fusion encoder"))
    return fusion


def lack(model: str | Path, what: str) -> str:
    """A sentence about a model without `what`, and what to do: name a run, bring back the file that held it, train."""
    folder, called = _checkpoint(model), f"model {str(model)!r}"
    if folder is None and ":" not in str(model):
        return f"{str(model)!r} is no run (no run.toml there); name a RUN, or local-dir:RUN/checkpoints/step-N"
    if folder is not None:
        called, state = f"{'run' if _is_run(model) else 'checkpoint'} {model}", folder / STATE
        if not state.exists():
            return f"{called} has no {what}; it would be in {state}, which is not there: only the towers were kept"
    return f"{called} has no {what}; train one: truepair train --method never"


def _checkpoint(model: str | Path) -> Path | None:
    """The folder of a run's newest checkpoint, or of the checkpoint that is meant; None if it is neither."""
    folder = Path(str(model).removeprefix(LOCAL))
    return newest_checkpoint(folder)[0] if _is_run(folder) else folder if _is_checkpoint(folder) else None


def _is_run(model: str | Path) -> bool:
    return (Path(model) / "run.toml").is_file()


def _is_checkpoint(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG).is_file() and not _is_run(folder)


def _fusion_of(saved: Path) -> Fusion | None:
    """The fusion encoder of a checkpoint's folder; None if its method has none, or only the towers were kept."""
    file = saved / STATE
    try:
        state = part(method_state(file), FUSION) if file.exists() else {}
    except UserError as error:
        raise DamagedFusion(str(error)) from error
    if not state:
        return None
    try:
        return Fusion.from_state(state)
    except (UserError, *DAMAGE) as error:
        raise DamagedFusion(f"the fusion encoder of {saved} cannot be read: {reason(error)}") from error
