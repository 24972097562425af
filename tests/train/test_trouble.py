"""Trouble is named when it shows, once."""

import math

from truepair.models.dual import SCALE_BOUND
from truepair.train.trouble import STUCK_STEPS, Trouble

CHANCE = math.log(64)


def watch(trouble: Trouble, losses: list[float], scale: float = 14.0, repeated: int = 0) -> list[tuple[int, str]]:
    return [
        (step, sentence)
        for step, loss in enumerate(losses, 1)
        for sentence in trouble.watch(step, loss, scale, repeated, 64)
    ]


def test_a_healthy_run_hears_nothing() -> None:
    falling = [CHANCE * 0.99**step for step in range(400)]
    assert watch(Trouble(CHANCE, 10), falling, repeated=12) == []


def test_a_loss_at_chance_is_named_once_after_warm_up() -> None:
    said = watch(Trouble(CHANCE, 50), [CHANCE + 0.01] * 600)
    assert [step for step, _ in said] == [50 + STUCK_STEPS + 1]
    assert "4.159, that of guessing" in said[0][1] and "learning rate" in said[0][1]


def test_a_loss_that_leaves_chance_is_not_stuck() -> None:
    assert watch(Trouble(CHANCE, 0), [CHANCE - 0.03] * 300) == []
    assert watch(Trouble(CHANCE, 0), [CHANCE] * 80 + [CHANCE - 0.5] * 300) == []


def test_a_method_without_a_chance_level_is_never_stuck() -> None:
    assert watch(Trouble(None, 0), [CHANCE] * 300) == []


def test_a_scale_at_its_bound_is_named_once() -> None:
    said = watch(Trouble(CHANCE, 0), [1.0] * 5, scale=SCALE_BOUND)
    assert len(said) == 1 and "logit scale is at its bound of 100" in said[0][1]
    assert watch(Trouble(CHANCE, 0), [1.0] * 5, scale=0.99 * SCALE_BOUND) == []
    assert watch(Trouble(CHANCE, 0, bound=1000.0), [1.0] * 5, scale=SCALE_BOUND) == []


def test_repeated_captions_are_counted_out_once() -> None:
    said = watch(Trouble(CHANCE, 0), [1.0] * 5, repeated=13)
    assert len(said) == 1 and said[0][1].startswith("13 of 64 captions of a batch are repeated")
    assert "--pairs.unique caption" in said[0][1]


def test_one_trouble_does_not_hide_another() -> None:
    trouble = Trouble(CHANCE, 0)
    assert len(trouble.watch(1, 1.0, SCALE_BOUND, 0, 64)) == 1
    assert len(trouble.watch(2, 1.0, SCALE_BOUND, 60, 64)) == 1
    assert trouble.watch(3, 1.0, SCALE_BOUND, 60, 64) == []
