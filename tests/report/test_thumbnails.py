"""The worst pairs are those most doubted, shown whole and small, with their captions cut to size."""

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from truepair.noise import fit_losses
from truepair.pairs.table import PairTable
from truepair.report.record import NoiseFit, PairLosses, read_run
from truepair.report.thumbnails import LONGEST_CAPTION, clipped, doubted_pairs, worst


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 10)), max_size=30), st.integers(0, 40))
def test_worst_pairs_have_the_highest_p_noise_then_the_highest_loss(pairs: list[tuple[float, float]], n: int) -> None:
    p_noise, loss = np.array(pairs, np.float64).reshape(-1, 2).T
    fit = NoiseFit(1, fit_losses(loss), 0.0, 0.0, 0.0)
    found = worst(PairLosses(fit, np.arange(len(pairs)), loss, p_noise, None, 0), n)
    assert [pairs[place] for place in found] == sorted(pairs, reverse=True)[:n]


def test_picture_is_the_whole_image_in_its_own_proportion(make_run: Callable[..., Path], table: PairTable) -> None:
    losses = read_run(make_run()).losses
    assert losses is not None
    [pair] = doubted_pairs(table, losses, 1)
    assert (pair.picture.width, pair.picture.height) == (128, 64)
    kind, data = pair.picture.uri.split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg;base64" and picture.size == (40, 40)
    assert np.abs(np.asarray(picture).astype(int)[20, 20] - [4 * pair.row, 80, 160]).max() < 6


def test_captions_beyond_the_third_are_counted(make_run: Callable[..., Path], table: PairTable) -> None:
    table.add_column("many", [["a", "b", "c", "d", "e"]] * len(table), {})
    losses = read_run(make_run()).losses
    assert losses is not None
    [pair] = doubted_pairs(table, losses, 1, "many")
    assert (pair.captions, pair.more, pair.before) == (["a", "b", "c"], 2, [f"caption number {pair.row}"])
    [untold] = doubted_pairs(table, replace(losses, truth=None), 1)
    assert (untold.truth, untold.before) == (None, [])


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=400))
def test_clipped_text_is_one_short_printable_line(text: str) -> None:
    short = clipped(text)
    assert len(short) <= LONGEST_CAPTION and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in short)
    assert short.isspace() is False
    assert clipped(short) == short or short.endswith("…")
