"""NEVER is what METHODS.md §1 writes: figures, gradients, the split, what ITM is asked, what MLM hides."""

import math
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden import ALPHA, STUDENT, TAU, TWIN
from torch import Tensor
from torch.nn import functional as F

from truepair.errors import UserError
from truepair.losses import drawn_negatives, weighted_mean
from truepair.losses.random import OTHER_IMAGE, OTHER_TEXT, SPLIT, uniform
from truepair.methods import METHODS
from truepair.methods.base import Features, Inputs, Loss, Pairs
from truepair.methods.itm import match_probability, matching_loss
from truepair.methods.mlm import Gaps, fill_gaps, masked_losses, with_gaps
from truepair.methods.never import Never, NeverOptions, contrast, split
from truepair.methods.never_itc import NeverItc
from truepair.methods.parts import averaged, local_loss
from truepair.models import DualEncoder, create
from truepair.models.masked_text import reserve_mask
from truepair.models.queue import Queue
from truepair.models.tokens import (
    attended,
    encode_image_with_tokens,
    encode_text_with_tokens,
    project_image_tokens,
    project_text_tokens,
    words,
)
from truepair.train.step import Trainee, forward_backward, joined

POSITIVE = [0.11550544425204311, 0.07061142732344391, 2.378749667336979, 0.034746296132885]
NEGATIVE = [0.018050791329618798, 0.014180921985493915, 1.484260421799782, 0.02016968358010615]


def double(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def golden(queries: Tensor, alpha: float = ALPHA) -> tuple[Tensor, Tensor, Tensor | None]:
    keys, scale = torch.eye(6, dtype=torch.float64), torch.tensor(1 / TAU, dtype=torch.float64)
    return contrast(queries, double(TWIN), keys[:4], keys[4:], scale, alpha, negative=True)


# -- the contrastive loss ----------------------------------------------------------------------------------------------


def test_positive_and_negative_learning_have_the_golden_values() -> None:
    positive, own, negative = golden(double(STUDENT))
    assert negative is not None
    assert positive.tolist() == pytest.approx(POSITIVE, rel=1e-9)
    assert negative.tolist() == pytest.approx(NEGATIVE, rel=1e-9)
    assert own.tolist() == pytest.approx(F.cross_entropy(double(STUDENT) / TAU, torch.arange(4), reduction="none"))


def test_the_loss_is_a_mean_over_each_subset_or_over_the_batch() -> None:
    positive, _, negative = golden(double(STUDENT))
    noisy = torch.tensor([False, False, True, False])
    subset, batch = (
        Never(NeverOptions(reduction=reduction))._reduced(positive, negative, noisy).item()
        for reduction in ("subset", "batch")
    )
    assert subset == pytest.approx(1.5578814777025727, rel=1e-9)
    assert batch == pytest.approx((POSITIVE[0] + POSITIVE[1] + NEGATIVE[2] + POSITIVE[3]) / 4, rel=1e-9)
    everyone = torch.ones(4, dtype=torch.bool)
    never = Never(NeverOptions())
    assert never._reduced(positive, negative, everyone).item() == pytest.approx(sum(NEGATIVE) / 4, rel=1e-9)
    assert never._reduced(positive, negative, ~everyone).item() == pytest.approx(sum(POSITIVE) / 4, rel=1e-9)


def test_a_pair_learnt_negatively_is_not_pulled_together() -> None:
    """∂NL/∂s_ii = -p_ii Σ_{j≠i} w_ij p_ij/(1-p_ij), w = 1-q̃; for a mismatched pair next to nothing."""
    queries = double(STUDENT).requires_grad_()
    _, own, negative = golden(queries)
    assert negative is not None
    (slope,) = torch.autograd.grad(negative.sum(), queries, retain_graph=True)
    (pull,) = torch.autograd.grad(own.sum(), queries)
    p = (double(STUDENT) / TAU).softmax(dim=1)
    q = ALPHA * (double(TWIN) / TAU).softmax(dim=1) + (1 - ALPHA) * torch.eye(4, 6)
    w = 1 - q**2 / (q**2).sum(dim=1, keepdim=True)
    odds = (w * p / (1 - p)).masked_fill(torch.eye(4, 6, dtype=torch.bool), 0.0).sum(dim=1)
    torch.testing.assert_close(slope[:, :4].diagonal() * TAU, -p.diagonal() * odds, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(pull[:, :4].diagonal() * TAU, p.diagonal() - 1, rtol=1e-7, atol=1e-12)
    assert abs(slope[2, 2]) < abs(pull[2, 2]) / 8  # the third pair is the mismatched one, p_ii = 0.03


def test_without_the_twins_share_positive_learning_is_infonce() -> None:
    positive, own, _ = golden(double(STUDENT), alpha=0.0)
    torch.testing.assert_close(positive, own)


def test_the_temperature_learns_from_the_logits_and_not_from_the_targets() -> None:
    scale = torch.tensor(1 / TAU, dtype=torch.float64, requires_grad=True)
    keys = torch.eye(6, dtype=torch.float64)
    positive, _, _ = contrast(double(STUDENT), double(TWIN), keys[:4], keys[4:], scale, ALPHA, negative=False)
    (ours,) = torch.autograd.grad(positive.sum(), scale)
    q = ALPHA * (double(TWIN) * scale.detach()).softmax(dim=1) + (1 - ALPHA) * torch.eye(4, 6)
    theirs = torch.autograd.grad(-(q * (double(STUDENT) * scale).log_softmax(dim=1)).sum(), scale)[0]
    torch.testing.assert_close(ours, theirs)


def test_the_local_loss_is_one_own_part_against_the_parts_of_all_others() -> None:
    draw = torch.Generator().manual_seed(0)
    whole = F.normalize(torch.randn(5, 8, generator=draw, dtype=torch.float64), dim=1).requires_grad_()
    parts = F.normalize(torch.randn(5, 3, 8, generator=draw, dtype=torch.float64), dim=2)
    parts[1, 2] = parts[4, 1] = parts[4, 2] = 0  # padding
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    ours = local_loss(whole, parts, scale)
    losses = []
    for i in range(5):
        others = [scale * whole[i] @ q for j in range(5) for q in parts[j] if j != i and q.any()]
        for p in parts[i]:
            if p.any():
                logits = torch.stack([scale * whole[i] @ p, *others])
                losses.append(-logits.log_softmax(dim=0)[0])
    theirs = torch.stack(losses).mean()
    torch.testing.assert_close(ours, theirs)
    leaves = [whole, scale]
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


# -- the split ---------------------------------------------------------------------------------------------------------


def test_the_split_calls_the_least_believed_noisy_with_the_probability_of_the_formula() -> None:
    """4,000 seeded draws: of 20 pairs the 7 least believed are candidates (ratio 0.39), each with probability 1-c."""
    c = torch.linspace(0.95, 0.02, 20)[torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    draw = torch.Generator().manual_seed(2)
    called = torch.stack([split(c, torch.rand(20, generator=draw), 0.39) for _ in range(4000)]).float().mean(dim=0)
    wanted = torch.where(c <= c.sort().values[6], 1 - c, 0.0)
    assert (wanted > 0).sum() == 7
    spread = (wanted * (1 - wanted) / 4000).sqrt()
    assert ((called - wanted).abs() <= 4 * spread).all()


@pytest.mark.parametrize(("ratio", "most"), [(0.0, 0), (0.04, 0), (0.05, 1), (0.5, 10), (1.0, 20)])
def test_the_split_calls_at_most_the_ratio_noisy(ratio: float, most: int) -> None:
    assert split(torch.zeros(20), torch.full((20,), 0.5), ratio).sum() == most


def test_a_pair_that_is_believed_for_certain_is_never_noisy() -> None:
    assert not split(torch.ones(20), torch.zeros(20), 1.0).any()


@pytest.mark.parametrize(
    ("epoch", "epochs", "ratio"), [(0.99, 5, 0.0), (1.0, 5, 0.125), (3.4, 5, 0.375), (4.9, 5, 0.5)]
)
def test_the_ratio_rises_by_epochs_to_its_cap(epoch: float, epochs: int, ratio: float) -> None:
    found = loss_of(Never(NeverOptions(itm=0, mlm=0, confidence="itc", queue=0)), epoch=epoch, epochs=epochs)
    assert found.logs["ratio"].item() == pytest.approx(ratio)


# -- the whole ---------------------------------------------------------------------------------------------------------


def unit(rows: int, seed: int) -> Tensor:
    drawn = torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(drawn, dim=1)


def loss_of(method: Never, epoch: float = 2.0, epochs: int = 4, batch: int = 12, **extra: Tensor) -> Loss:
    """The loss of random features, after a step that has filled the queue."""
    method.queue = Queue(method.options.queue, 8).double()
    ids = torch.arange(batch)
    pairs = Pairs(ids, torch.zeros(batch), {}, epoch, epochs, ids, ids, ids * 7919)
    locals_ = {"f_l": unit(batch, 5)[:, None], "g_l": unit(batch, 6)[:, None]}
    for step in range(2):
        f, g = unit(batch, 10 * step + 1), unit(batch, 10 * step + 2)
        twin = {"f_m": unit(batch, 10 * step + 3), "g_m": unit(batch, 10 * step + 4)}
        found = method.loss(Features(f, g, twin | locals_ | extra), torch.tensor(8.0, dtype=torch.float64), None, pairs)
    return found


def test_the_contrastive_loss_is_the_mean_of_its_six_parts() -> None:
    values = {}
    for intra, local in [(True, True), (True, False), (False, True), (False, False)]:
        options = NeverOptions(itm=0, mlm=0, ratio=0, queue=5, intra=intra, local=local)
        values[intra, local] = loss_of(Never(options)).total.item()
    cross = 2 * values[False, False]
    intra, local = 4 * values[True, False] - cross, 4 * values[False, True] - cross
    assert values[True, True] == pytest.approx((cross + intra + local) / 6)
    f, f_m = unit(12, 11), unit(12, 13)
    g, g_m = unit(12, 12), unit(12, 14)
    own = torch.arange(12)
    assert intra == pytest.approx(sum(F.cross_entropy(8 * a @ b.T, own).item() for a, b in ((f, f_m), (g, g_m))))


def test_the_pair_of_high_loss_is_clips_among_the_same_negatives() -> None:
    """½(-log p_i2t - log p_t2i), student against twin, batch and queue; less the log of how many batches they are."""
    found = loss_of(Never(NeverOptions(itm=0, mlm=0, ratio=0.5, confidence="itc", queue=12)))
    f, g, f_m, g_m = (unit(12, 11 + i) for i in range(4))
    texts, images = torch.cat([g_m, unit(12, 4)]), torch.cat([f_m, unit(12, 3)])
    own = torch.arange(12)
    wanted = sum(F.cross_entropy(8 * a @ b.T, own, reduction="none") for a, b in ((f, texts), (g, images))) / 2
    torch.testing.assert_close(found.per_pair, wanted - math.log(2))
    p = [(8 * a @ b.T).softmax(dim=1).diagonal() for a, b in ((f, texts), (g, images))]
    assert found.confidence is not None
    torch.testing.assert_close(found.confidence, (p[0] + p[1]) / 2)


def test_the_batchs_own_rows_and_captions_can_be_kept_out_of_the_queue() -> None:
    """The pairs of `loss_of` come twice: held apart, the second step sees an empty queue."""
    apart = loss_of(Never(NeverOptions(itm=0, mlm=0, ratio=0, queue=12, queue_apart=True)))
    without = loss_of(Never(NeverOptions(itm=0, mlm=0, ratio=0, queue=0)))
    beside = loss_of(Never(NeverOptions(itm=0, mlm=0, ratio=0, queue=12)))
    torch.testing.assert_close(apart.total, without.total)
    assert beside.total > without.total


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ratio": 1.2}, "ratio is 1.2; it is a share"),
        ({"mlm": -1.0}, "mlm is -1.0; it must be 0 or more"),
        ({"itm": 0.0}, "asks ITM how far to believe a pair"),
        ({"masked": 0.0}, "masked 0 hides no word"),
        ({"itm": 0.0, "mlm": 0.0, "confidence": "itc", "layers": 2}, "are of a fusion encoder"),
        ({"itc": 0.0, "itm": 0.0, "mlm": 0.0, "ratio": 0.0}, "are all 0"),
        ({"queue": -1}, "queue is -1"),
        ({"itm": 0.0, "mlm": 0.0, "ratio": 0.0, "start": "run"}, "brings a fusion encoder"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        NeverOptions(**options)


# -- with towers -------------------------------------------------------------------------------------------------------

B = 12


def trainee(kind: str = "never", model: str = "truepair-fusion-test", **options: Any) -> Trainee:
    torch.manual_seed(0)
    towers = create(model)
    method = METHODS[kind](METHODS[kind].Options(**({"queue": 16} | options)))
    method.bind(towers, None, None)  # type: ignore[arg-type]
    return Trainee(towers, method)


def batch(model: DualEncoder, size: int = B, epoch: float = 3.0) -> tuple[Inputs, Pairs]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, size, 3, 32, 32), dtype=torch.uint8, generator=draw)
    tokens = model.tokenize([f"{word} and {i} {word}s of {3 * i}" for i, word in enumerate(WORDS[:size])])
    ids = torch.arange(size)
    pairs = Pairs(ids, torch.zeros(size), {}, epoch, 5, ids, ids, ids * 7919)
    return Inputs(images, tokens, {}, pairs.seeds), pairs


WORDS = [
    f"{a} {b}"
    for a in ("red", "old", "tall", "wet", "thin", "odd", "big", "shy")
    for b in ["cat", "dog", "car", "sun", "tree", "cup", "hat", "key"]
]


def test_gradients_reach_the_student_and_its_heads_and_no_twin() -> None:
    of = trainee()
    loss = forward_backward(of, *batch(of.model), micro_batches=1, precision=nullcontext())
    assert loss.total.isfinite()
    for name, parameter in of.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith(("method.twin.", "method.queue."))), name
    assert {"itc", "itm", "mlm", "noisy", "itm_accuracy", "mlm_accuracy", "ratio"} == set(loss.logs)


@pytest.mark.parametrize("options", [{}, {"mlm": 0.0}, {"itm": 0.0, "ratio": 0.0}])
def test_micro_batches_have_the_negatives_and_the_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # towers that compute in float64 to their ends
    losses, gradients = [], []
    for parts in (1, 3):
        of = trainee(**options).double()
        losses.append(forward_backward(of, *batch(of.model), micro_batches=parts, precision=nullcontext()))
        gradients.append({name: p.grad for name, p in of.named_parameters() if p.requires_grad})
    assert losses[0].total.item() == pytest.approx(losses[1].total.item(), rel=1e-6)
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-5, atol=1e-7), name


def test_half_precision_at_the_highest_scale_gives_numbers() -> None:
    of = trainee(ratio=1.0)
    of.model.clip.logit_scale.data.fill_(math.log(100.0))
    inputs, pairs = batch(of.model)
    for _ in range(3):
        loss = forward_backward(of, inputs, pairs, 1, torch.autocast("cpu", torch.bfloat16))
        assert loss.noisy is not None and loss.noisy.any()
        assert loss.total.isfinite() and loss.per_pair.isfinite().all()
        assert all(p.grad.isfinite().all() for p in of.parameters() if p.grad is not None)
        of.method.after_step(of.model)


def test_the_twin_follows_towers_and_fusion_encoder_from_one_start() -> None:
    of = trainee(momentum=0.9)
    method: Any = of.method
    before = method.twin.heads.itm.weight.clone()
    with torch.no_grad():
        for parameter in of.parameters():
            parameter += parameter.requires_grad
    method.after_step(of.model)
    torch.testing.assert_close(method.twin.heads.itm.weight, before + 0.1)
    torch.testing.assert_close(
        method.twin.towers.clip.visual.conv1.weight, of.model.clip.visual.conv1.weight - 0.9, rtol=1e-5, atol=1e-6
    )


def test_a_plain_dual_encoder_is_enough_for_never_itc() -> None:
    of = trainee("never-itc", "truepair-test")
    assert isinstance(of.method, NeverItc) and not hasattr(of.method, "fusion") and of.method.twin.heads is None
    loss = forward_backward(of, *batch(of.model), micro_batches=1, precision=nullcontext())
    assert set(loss.logs) == {"itc", "noisy", "ratio"} and loss.noisy is not None and loss.noisy.any()
    of.method.after_step(of.model)


STEPS = 240


def test_never_learns_a_plain_small_set_by_heart() -> None:
    """64 clean pairs: ITM tells them from their hardest negatives, and each image finds its caption."""
    of = trainee(queue=0, momentum=0.9, mlm=0.0)
    inputs, pairs = batch(of.model, 64)
    twice = inputs.images[:1].expand(2, -1, -1, -1, -1)  # two equal views
    optimizer = torch.optim.AdamW([p for p in of.parameters() if p.requires_grad], 2e-3)
    right = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / STEPS)
        seeds = pairs.seeds + step
        known = replace(pairs, epoch=5 * step / STEPS, seeds=seeds)
        loss = forward_backward(of, Inputs(twice, inputs.tokens, {}, seeds), known, 1, nullcontext())
        optimizer.step()
        optimizer.zero_grad()
        of.model.clamp_scale(*of.method.needs.scale_bounds)
        of.method.after_step(of.model)
        right.append(loss.logs["itm_accuracy"].item())
    assert sum(right[-20:]) / 20 > 0.97
    with torch.no_grad():
        f, g = of.model.eval().encode_image(inputs.images[0]), of.model.encode_text(inputs.tokens)
    assert ((f @ g.T).argmax(dim=1) == torch.arange(64)).float().mean() > 0.97
    assert loss.confidence is not None and loss.confidence.mean() > 0.9


def test_a_text_tower_that_reads_from_left_to_right_cannot_learn_to_fill_gaps() -> None:
    with pytest.raises(UserError, match=r"reads from left to right.*truepair-fusion-tiny"):
        trainee(model="truepair-test")
    trainee(model="truepair-test", mlm=0.0)


@pytest.mark.parametrize(("epoch", "alpha"), [(0.25, 0.1), (2.0, 0.4)])
def test_a_step_is_the_weighted_sum_of_its_parts_of_the_right_views(epoch: float, alpha: float) -> None:
    """Written once more in plain matrices: student on the first view, twin on the second, of another start."""
    of = trainee(queue=0, ratio=1.0, itc=2.0, itm=0.7, mlm=0.3, masked=0.5)
    method: Any = of.method
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.twin.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=draw)
    inputs, pairs = batch(of.model, epoch=epoch)
    with torch.no_grad():
        ours = of(inputs, pairs)
        total, noisy = plainly(of, inputs, pairs, alpha)
    torch.testing.assert_close(ours.total, total, rtol=1e-4, atol=1e-4)
    assert torch.equal(ours.noisy, noisy) and noisy.any() == (epoch > 1)


def plainly(of: Trainee, inputs: Inputs, pairs: Pairs, alpha: float) -> tuple[Tensor, Tensor]:
    """METHODS.md §1 of B pairs without queue, in matrices: the loss and the split."""
    method: Any = of.method
    model, twin, options = of.model, method.twin.towers, method.options
    scale, own = model.scale, torch.eye(B)
    f, cells = encode_image_with_tokens(model, inputs.images[0], prefix=True)
    g, hidden = encode_text_with_tokens(model, inputs.tokens)
    f_m, cells_m = encode_image_with_tokens(twin, inputs.images[1], prefix=True)
    g_m, hidden_m = encode_text_with_tokens(twin, inputs.tokens)
    mask = attended(model, inputs.tokens)

    drawn = [
        drawn_negatives(query, keys, scale, [(pairs.images, pairs.images)], (pairs.seeds, pairs.seeds), stream)
        for query, keys, stream in ((g, f_m, OTHER_IMAGE), (f, g_m, OTHER_TEXT))
    ]
    asked = [(hidden, mask, cells), (hidden, mask, cells[drawn[0]]), (hidden[drawn[1]], mask[drawn[1]], cells)]
    logits = torch.cat([method.fusion.match(method.fusion(*one)) for one in asked])
    l_itm = F.cross_entropy(logits, torch.tensor([1] * B + [0] * 2 * B))
    c = logits[:B].softmax(dim=1)[:, 1]

    t = options.ratio * math.floor(pairs.epoch) / (pairs.epochs - 1)
    candidates = c.argsort()[: int(B * t)]
    noisy = torch.zeros(B, dtype=torch.bool)
    noisy[candidates] = uniform(pairs.seeds, SPLIT)[candidates] < 1 - c[candidates]

    terms = []
    for query, teacher, keys in ((f, f_m, g_m), (g, g_m, f_m)):
        log_p = (scale * query @ keys.T).log_softmax(dim=1)
        q = alpha * (scale * teacher @ keys.T).softmax(dim=1) + (1 - alpha) * own
        sharp = (q**2 / (q**2).sum(dim=1, keepdim=True)).masked_fill(own.bool(), 1.0)
        positive, negative = -(q * log_p).sum(dim=1), -((1 - sharp) * torch.log1p(-log_p.exp())).sum(dim=1)
        terms.append(sum(x[who].mean() for x, who in ((positive, ~noisy), (negative, noisy)) if who.any()))
        terms.append(F.cross_entropy(scale * query @ teacher.T, torch.arange(B)))
    words_m = project_text_tokens(twin, hidden_m) * words(twin, inputs.tokens)[..., None]
    terms.append(local_loss(f, project_image_tokens(twin, cells_m[:, 1:]), scale))  # 4 x 4 patches: nothing to average
    terms.append(local_loss(g, words_m, scale))
    l_ita = torch.stack(terms).mean()

    how = {"share": 0.5, "mask": method.mask, "vocabulary": method.vocabulary}
    gaps = with_gaps(model, inputs.tokens, inputs.seeds, whole=True, **how)
    log_q = fill_gaps(model, method.fusion, gaps, cells, None).log_softmax(dim=1)
    taught = fill_gaps(twin, method.twin.heads, gaps, cells_m, None).softmax(dim=1)
    l_mlm = (1 - alpha) * F.nll_loss(log_q, gaps.answers) - alpha * (taught * log_q).sum(dim=1).mean()
    return 2.0 * l_ita + 0.7 * l_itm + 0.3 * l_mlm, noisy


def test_parts_of_a_picture_are_the_means_of_four_by_four() -> None:
    cells = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0))
    found = averaged(cells)
    assert found.shape == (2, 16, 5)
    grid = cells.view(2, 8, 8, 5)
    torch.testing.assert_close(found[:, 6], grid[:, 2:4, 4:6].mean(dim=(1, 2)))  # the second row's third
    for other in (9, 16, 15, 1):
        assert averaged(cells[:, :other]).equal(cells[:, :other])


# -- image-text matching -----------------------------------------------------------------------------------------------


def asked(of: Trainee, **ids: Tensor) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """What ITM's heads answer for a batch, and which texts met which images (as numbers of the batch)."""
    inputs, pairs = batch(of.model)
    pairs = Pairs(**(vars(pairs) | ids))
    with torch.no_grad():
        of.observe(inputs)
        features = joined(of.method.embed(of.model, inputs), inputs.observed)
    met = []
    fusion = of.method.fusion

    def noted(text: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        def numbers(values: Tensor, known: Tensor) -> Tensor:
            same = (values.flatten(1)[:, None] == known.flatten(1)[None]).all(dim=2)
            return same.float().argmax(dim=1)

        met.append(
            (numbers(text, features.extra["hidden"][:, : text.shape[1]]), numbers(image, features.extra["cells"]))
        )
        return type(fusion).forward(fusion, text, mask, image)

    fusion.forward = noted
    with torch.no_grad():
        answers = of.method.fuse(features, torch.tensor(20.0), pairs)
    return answers, met


def test_itm_is_asked_of_the_pairs_of_hard_images_and_of_hard_texts_of_other_groups() -> None:
    of = trainee()
    images, captions = torch.arange(B) % 4, torch.arange(B) // 6
    answers, ((texts, seen),) = asked(of, images=images, captions=captions)
    own = torch.arange(B)
    assert torch.equal(texts[: 2 * B], own.repeat(2)) and torch.equal(seen[:B], own) and torch.equal(seen[2 * B :], own)
    for text, image in zip(texts[B:].tolist(), seen[B:].tolist(), strict=True):
        assert images[text] != images[image] and captions[text] != captions[image]
    assert answers["itm_image_found"].all() and answers["itm_text_found"].all()


def test_pairs_without_another_group_are_asked_of_themselves_only() -> None:
    of = trainee()
    answers, _ = asked(of, images=torch.zeros(B, dtype=torch.int64))
    assert not answers["itm_image_found"].any() and not answers["itm_text_found"].any()
    loss, right = matching_loss(answers)
    wanted = F.cross_entropy(answers["itm"], torch.ones(B, dtype=torch.int64))
    torch.testing.assert_close(loss, wanted)
    assert right.item() == pytest.approx((answers["itm"].argmax(dim=1) == 1).float().mean().item())


def test_matching_is_two_way_cross_entropy_over_all_three_kinds() -> None:
    draw = torch.Generator().manual_seed(0)
    names = ("itm", "itm_image", "itm_text")
    extra = {name: torch.randn(4, 2, generator=draw) for name in names}
    extra |= {"itm_image_found": torch.tensor([True, True, False, True]), "itm_text_found": torch.ones(4) > 0}
    loss, right = matching_loss(extra)
    kept = torch.cat([extra["itm"], extra["itm_image"][[0, 1, 3]], extra["itm_text"]])
    answers = torch.tensor([1] * 4 + [0] * 7)
    torch.testing.assert_close(loss, F.cross_entropy(kept, answers))
    torch.testing.assert_close(right, (kept.argmax(dim=1) == answers).float().mean())
    torch.testing.assert_close(match_probability(extra["itm"]), extra["itm"].softmax(dim=1)[:, 1])


# -- masked language modelling -----------------------------------------------------------------------------------------


def test_gaps_are_fifteen_words_in_a_hundred_and_eight_in_ten_of_them_show_the_mask() -> None:
    model = create("truepair-fusion-test")
    mask = reserve_mask(model)
    tokens = model.tokenize([" ".join(WORDS[i % 64] for i in range(j, j + 9)) for j in range(64)]).repeat(50, 1)
    vocabulary = tokens.unique()
    vocabulary = vocabulary[(vocabulary > 0) & (vocabulary < 49_406)]
    seeds = torch.arange(len(tokens)) * 7919
    gaps = with_gaps(model, tokens, seeds, share=0.15, mask=mask, vocabulary=vocabulary, whole=False)
    words = torch.isin(tokens, vocabulary)
    n = int(gaps.at.sum())
    assert not (gaps.at & ~words).any() and torch.equal(gaps.tokens[~gaps.at], tokens[~gaps.at])
    assert n / int(words.sum()) == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / int(words.sum())))
    assert torch.equal(vocabulary[gaps.answers], tokens[gaps.at])
    shown, kept = gaps.tokens[gaps.at], gaps.tokens[gaps.at] == tokens[gaps.at]
    other = ~kept & (shown != mask)
    assert (shown == mask).float().mean() == pytest.approx(0.8, abs=0.02)
    assert other.float().mean() == pytest.approx(0.1 * (1 - 1 / len(vocabulary)), abs=0.015)
    assert torch.isin(shown[other], vocabulary).all()
    again = with_gaps(model, tokens[5:9], seeds[5:9], share=0.15, mask=mask, vocabulary=vocabulary, whole=False)
    assert torch.equal(again.tokens, gaps.tokens[5:9])
    rare = with_gaps(model, tokens, seeds, share=1.0, mask=mask, vocabulary=vocabulary[:3], whole=True)
    assert (
        torch.isin(tokens[rare.at], vocabulary[:3]).all() and torch.isin(tokens, vocabulary[:3]).sum() == rare.at.sum()
    )


def test_masked_losses_are_cross_entropy_with_the_word_and_with_the_twins_softmax() -> None:
    at = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).bool()
    draw = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(3, 7, generator=draw) for _ in range(2))
    gaps = Gaps(at.long(), at, torch.tensor([4, 0, 6]))
    found = masked_losses(logits, taught, gaps)
    nll = F.cross_entropy(logits, gaps.answers, reduction="none")
    soft = -(taught.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)
    for name, values in (("mlm", nll), ("mlm_taught", soft)):
        torch.testing.assert_close(found[name], torch.stack([values[:2].mean(), torch.zeros(()), values[2]]))
        torch.testing.assert_close(weighted_mean(found[name], found["gaps"]), values.mean())
    assert found["gaps"].tolist() == [2, 0, 1]
    nothing = masked_losses(logits[:0], taught[:0], Gaps(at.long(), at & False, gaps.answers[:0]))
    assert nothing["mlm"].tolist() == [0, 0, 0] and nothing["hits"].tolist() == [0, 0, 0]
