"""Names what goes wrong in a run, once each, with what to do about it."""

from collections import deque
from dataclasses import dataclass, field

from truepair.models.dual import SCALE_BOUND

STUCK_STEPS = 100  # steps whose mean loss must leave ln(B)
STUCK_MARGIN = 0.02  # nats
REPEATED_SHARE = 0.2  # of a batch's captions


@dataclass
class Trouble:
    """Watches the figures of every step and returns a sentence when one of the known troubles shows."""

    chance: float | None  # loss of a model that tells nothing apart, None if the method has no such level
    warmup: int  # steps of learning-rate warm-up, in which a stuck loss is no trouble
    bound: float = SCALE_BOUND  # the logit scale is kept below it
    said: set[str] = field(default_factory=set)
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=STUCK_STEPS))

    def watch(self, step: int, loss: float, scale: float, repeated: int, captions: int) -> list[str]:
        """Sentences about the step, usually none."""
        self.losses.append(loss)
        mean = sum(self.losses) / len(self.losses)
        full = len(self.losses) == STUCK_STEPS and step > self.warmup + STUCK_STEPS
        found = {}
        if self.chance is not None and full and abs(mean - self.chance) < STUCK_MARGIN:
            found["stuck"] = (
                f"the loss has stayed at {self.chance:.3f}, that of guessing, for {STUCK_STEPS} steps: the model tells "
                "no pair from another. Usual causes: a learning rate too high (try a tenth), or captions that do not "
                "belong to the images (look at a few rows of the table)"
            )
        if scale >= self.bound * 0.999:
            found["scale"] = (
                f"the logit scale is at its bound of {self.bound:.0f}: the model is as sure as it may be. Often "
                "over-fitting (fewer epochs, more augmentation) or a learning rate too high"
            )
        if repeated > REPEATED_SHARE * captions:
            found["repeated"] = (
                f"{repeated} of {captions} captions of a batch are repeated: pairs with the same caption are trained "
                "as each other's negatives. Use --pairs.unique caption, or --method fff, which knows several positives"
            )
        new = [sentence for name, sentence in found.items() if name not in self.said]
        self.said.update(found)
        return new
