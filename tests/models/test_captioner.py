"""The captioner's loss is a plain cross-entropy, its decoding what it learnt, and both belong to the row alone."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from truepair.errors import UserError
from truepair.models import DualEncoder, create
from truepair.models.captioner import MOST_CONCEPTS, ConceptCaptioner, used_tokens
from truepair.models.image_to_text import Decoding, decode
from truepair.models.tokens import encode_image_with_tokens, token_width

CONCEPTS = ["dog", "red ball", "sea", "a very long name of a thing", "tree", "house"]
WORDS = ["a", "the", "small", "large", "red", "blue", "green", "dog", "cat", "ball", "tree", "house", "under", "over"]
CAPTIONS = [" ".join(WORDS[(i * 7 + 3 * j + i * j) % len(WORDS)] for j in range(3 + i % 5)) for i in range(32)]
ROWS = np.array([3, 17, 40_000_000_000, 5])
GREEDY = Decoding("greedy", min_tokens=0, max_tokens=12)
NONE = torch.empty(4, 0, dtype=torch.int64)


@pytest.fixture(scope="module")
def towers() -> DualEncoder:
    torch.manual_seed(0)
    return create("kind-custom").eval()


def fresh(towers: DualEncoder, **shape: int) -> ConceptCaptioner:
    """With weights so large that what it writes depends on what it reads."""
    torch.manual_seed(1)
    captioner = ConceptCaptioner.build(
        towers, used_tokens(towers.tokenizer, [[text] for text in CAPTIONS]), CONCEPTS, **shape
    )
    with torch.no_grad():
        for weight in captioner.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return captioner.eval()


@pytest.fixture(scope="module")
def captioner(towers: DualEncoder) -> ConceptCaptioner:
    return fresh(towers, width=32, heads=2, layers=2)


def tokens_of(images: int, patches: int = 5) -> Tensor:
    return torch.randn(images, patches, 16, generator=torch.Generator().manual_seed(2))


def spelt(captioner: ConceptCaptioner, text: str) -> list[int]:
    """Ids of the captioner's own, token by token: 4 is the unknown one."""
    known = {token: 5 + place for place, token in enumerate(captioner.vocabulary.tolist())}
    return [known.get(token, 4) for token in captioner.tokenizer.encode(text)]


def logits_by_hand(captioner: ConceptCaptioner, seen: Tensor, concepts: list[int], words: list[int]) -> Tensor:
    """(words + 1, V) of one row, without padding, mask or cache: what comes after the begin and after each word.

    The best concept stands next to the caption."""
    names = [token for concept in reversed(concepts) for token in [*spelt(captioner, CONCEPTS[concept])[:4], 3]]
    inputs = torch.tensor([[*names, 1, *words]])
    found = captioner.decoder(
        input_ids=inputs,
        position_ids=torch.arange(160 - len(names), 161 + len(words))[None],
        encoder_hidden_states=captioner.project(seen[None]),
        use_cache=False,
    )
    logits: Tensor = found.logits[0, len(names) :]
    return logits


def loss_by_hand(captioner: ConceptCaptioner, seen: Tensor, concepts: list[int], text: str) -> Tensor:
    """The mean of -log p over the words and the end; unknown ones are read only."""
    words = spelt(captioner, text)
    p = logits_by_hand(captioner, seen, concepts, words).double().softmax(dim=-1)
    return torch.stack([-p[place, word].log() for place, word in enumerate([*words, 2]) if word != 4]).mean()


ANY_TEXT = st.lists(st.sampled_from([*WORDS, "zebra", "!", "sun-flower"]), max_size=8).map(" ".join)
ANY_ROW = st.tuples(
    st.lists(ANY_TEXT, min_size=2, max_size=2), st.lists(st.integers(0, len(CONCEPTS) - 1), max_size=4, unique=True)
)


@given(st.lists(ANY_ROW, min_size=1, max_size=4), st.sampled_from([1, 5]), st.booleans(), st.randoms())
@settings(max_examples=25)
def test_a_captions_loss_is_the_cross_entropy_of_its_row_alone_whatever_stands_beside_it(
    captioner: ConceptCaptioner, towers: DualEncoder, rows: list[Any], patches: int, whole: bool, random: Any
) -> None:
    seen = tokens_of(len(rows), patches)
    concepts = torch.full((len(rows), 5), -1)
    for row, (_, known) in enumerate(rows):
        places = sorted(random.sample(range(5), len(known)))
        concepts[row, places] = torch.tensor(known, dtype=torch.int64)
    texts = [text for pair, _ in rows for text in pair]
    captions = towers.tokenizer(texts) if whole else towers.tokenize(texts)
    found = captioner(seen, captions, concepts)
    wanted = [loss_by_hand(captioner, seen[i // 2], rows[i // 2][1], text) for i, text in enumerate(texts)]
    assert found.shape == (2 * len(rows),) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), torch.stack(wanted), rtol=1e-5, atol=1e-5)


class Calls(TorchDispatchMode):
    """The names of torch's operations, in their order, and those for which the host must know a GPU's values."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).split(".")[1]
        places = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
        masked = any(place is not None and place.dtype == torch.bool for place in places)
        if masked or name in ("nonzero", "masked_select", "_local_scalar_dense"):
            self.waits.append(len(self.names))
        self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_the_host_waits_for_a_gpu_before_the_decoders_work_is_queued_and_not_again(
    captioner: ConceptCaptioner, towers: DualEncoder
) -> None:
    captions, concepts = towers.tokenize(CAPTIONS[:4]), torch.tensor([[0], [1], [2], [3]])
    with Calls() as calls:
        captioner(tokens_of(4), captions, concepts).sum().backward()
    first = next(place for place, name in enumerate(calls.names) if name in ("mm", "addmm", "bmm"))
    assert len(calls.waits) <= 3 and max(calls.waits) < first


@torch.no_grad()
def test_concepts_may_be_left_out_of_all_rows(captioner: ConceptCaptioner, towers: DualEncoder) -> None:
    captions = towers.tokenize(CAPTIONS[:4])
    none = captioner(tokens_of(4), captions, NONE)
    torch.testing.assert_close(none, captioner(tokens_of(4), captions, torch.full((4, 3), -1)))
    assert (none - captioner(tokens_of(4), captions, torch.tensor([[0], [1], [2], [3]]))).abs().min() > 1e-3


def test_every_weight_and_the_image_tower_learn_from_the_loss(towers: DualEncoder) -> None:
    model, captioner = create("kind-custom"), fresh(towers).train()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    _, seen = encode_image_with_tokens(model, images)
    concepts = torch.tensor([[0, 1, 2, 3, 4], [-1, -1, -1, -1, -1], [5, -1, -1, -1, -1]])
    captioner(seen, model.tokenize(["a red dog", "", "zebra"]), concepts).sum().backward()
    learnt = [*captioner.parameters(), model.clip.visual.conv1.weight]
    assert all(weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any() for weight in learnt)


@torch.no_grad()
def test_the_loss_is_float32_also_under_autocast(captioner: ConceptCaptioner, towers: DualEncoder) -> None:
    captions, concepts = towers.tokenize(CAPTIONS[:4]), torch.tensor([[0], [1], [2], [3]])
    whole = captioner(tokens_of(4), captions, concepts)
    with torch.autocast("cpu", torch.bfloat16):
        found = captioner(tokens_of(4), captions, concepts)
        assert any(captioner.generate(tokens_of(4), concepts, ROWS, GREEDY, 0))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("most", [4, 12, 1000])
@torch.no_grad()
def test_greedy_captions_are_the_likeliest_token_after_token_without_a_cache(
    captioner: ConceptCaptioner, most: int
) -> None:
    seen, concepts = tokens_of(4), [[4, 1], [], [0], [5, 3, 2]]
    padded = torch.tensor([[4, -1, 1], [-1, -1, -1], [0, -1, -1], [5, 3, 2]])
    made = captioner.generate(seen, padded, ROWS, Decoding("greedy", min_tokens=3, max_tokens=most), 0)
    for row in range(4):
        words: list[int] = []
        while len(words) < min(most, 23):  # of a context of 24, one is the start
            logits = logits_by_hand(captioner, seen[row], concepts[row], words)[-1]
            logits[[0, 1, 3, 4]] = -torch.inf
            if len(words) < 3:
                logits[2] = -torch.inf
            if logits.argmax() == 2:
                break
            words.append(int(logits.argmax()))
        ids = [captioner.vocabulary.tolist()[word - 5] for word in words]
        assert made[row] == [captioner.tokenizer.decode(ids).strip()]


@torch.no_grad()
def test_the_cache_changes_no_beam(captioner: ConceptCaptioner) -> None:
    given = captioner.given(tokens_of(4), torch.tensor([[0, 1], [2, -1], [-1, -1], [5, 4]]))
    decoding = Decoding("beam", n=3, beams=4, max_tokens=9)
    cached, plain = (decode(captioner.decoder, given, ROWS, decoding, 0, use_cache=cache) for cache in (True, False))
    assert cached.shape[0] == 12 and torch.equal(cached, plain)


@pytest.mark.parametrize("decoding", [Decoding("beam", n=3), Decoding("nucleus", n=3, top_p=0.99)])
def test_several_captions_of_an_image_are_distinct_and_of_plain_words(
    captioner: ConceptCaptioner, decoding: Decoding
) -> None:
    made = captioner.generate(tokens_of(4), NONE, ROWS, decoding, 0)
    assert all(len(texts) == len(set(texts)) == 3 for texts in made)
    words = {word for texts in made for text in texts for word in text.split()}
    assert words <= {*WORDS, *" ".join(CONCEPTS).split()}


def test_a_rows_samples_are_its_own_whatever_the_batch(captioner: ConceptCaptioner) -> None:
    seen, concepts = tokens_of(4), torch.tensor([[0, 1, 2, 3], [2, -1, -1, -1], [-1, -1, -1, -1], [5, 4, -1, -1]])
    decoding = Decoding(n=2, top_p=0.99)
    together = captioner.generate(seen, concepts, ROWS, decoding, 0)
    torch.manual_seed(99)
    back = [3, 2, 1]
    assert captioner.generate(seen[back], concepts[back], ROWS[back], decoding, 0) == [together[i] for i in back]
    assert captioner.generate(seen, concepts, ROWS, decoding, 1) != together
    assert captioner.generate(seen, concepts, ROWS + 1, decoding, 0) != together


def test_writing_leaves_the_mode_as_it_was(towers: DualEncoder) -> None:
    captioner = fresh(towers)
    for training in (True, False):
        captioner.train(training)
        captioner.generate(tokens_of(4), NONE, ROWS, GREEDY, 0)
        assert all(module.training is training for module in captioner.modules())


def learn(captioner: ConceptCaptioner, seen: Tensor, captions: Tensor, concepts: Tensor, steps: int) -> float:
    optimiser = torch.optim.AdamW(captioner.train().parameters(), lr=3e-3, weight_decay=0)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = captioner(seen, captions, concepts).mean()
        loss.backward()
        optimiser.step()
    return loss.item()


def untrained(towers: DualEncoder, concepts: list[str]) -> ConceptCaptioner:
    torch.manual_seed(0)
    vocabulary = used_tokens(towers.tokenizer, [[text] for text in CAPTIONS])
    return ConceptCaptioner.build(towers, vocabulary, concepts, width=64, heads=2, layers=2)


def test_captions_learnt_by_heart_from_image_tokens_are_written_again(towers: DualEncoder) -> None:
    captioner = untrained(towers, CONCEPTS)
    seen, concepts = tokens_of(32), torch.arange(32)[:, None] % len(CONCEPTS)
    assert learn(captioner, seen, towers.tokenize(CAPTIONS), concepts, 100) < 0.05
    made = captioner.generate(seen, concepts, np.arange(32), GREEDY, 0)
    assert made == [[text] for text in CAPTIONS]


def test_what_concepts_alone_tell_is_learnt_from_them(towers: DualEncoder) -> None:
    captioner = untrained(towers, WORDS)
    seen, concepts = torch.zeros(12, 1, 16), torch.arange(12)[:, None]
    assert learn(captioner, seen, towers.tokenize(CAPTIONS[:12]), concepts, 100) < 0.05
    turned = captioner.generate(seen, concepts.flip(0), np.arange(12), GREEDY, 0)
    assert turned == [[text] for text in CAPTIONS[11::-1]]


def test_a_captioner_comes_back_from_its_state_alone(towers: DualEncoder, tmp_path: Path) -> None:
    captioner = fresh(towers, width=32, heads=4, layers=1)
    torch.save({f"captioner.{name}": value for name, value in captioner.state_dict().items()}, tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", weights_only=True, mmap=True)
    back = ConceptCaptioner.from_state(towers, {name.removeprefix("captioner."): value for name, value in read.items()})
    assert back.concepts == CONCEPTS and back.shape == {"layers": 1, "width": 32, "heads": 4}
    seen, captions, concepts = tokens_of(4), towers.tokenize(CAPTIONS[:4]), torch.tensor([[0], [3], [-1], [5]])
    assert torch.equal(back.eval()(seen, captions, concepts), captioner(seen, captions, concepts))
    made = [one.generate(seen, concepts, ROWS, Decoding(), 0) for one in (back, captioner)]
    assert made[0] == made[1] and any(made[0])


def test_the_state_of_another_captioner_is_refused(towers: DualEncoder) -> None:
    other = ConceptCaptioner.build(towers, torch.empty(0, dtype=torch.int64), CONCEPTS[::-1])
    with pytest.raises(UserError, match="another shape, or other concepts"):
        other.load_state_dict(fresh(towers).state_dict(), strict=False)


@pytest.mark.parametrize("sample", [2, 3, 100_000])
def test_used_tokens_are_those_of_all_captions_of_evenly_spaced_rows(towers: DualEncoder, sample: int) -> None:
    captions = [["a dog!", "A Dog"], [], ["the sea"], ["red red red", "cat"], ["house"]]
    rows = {2: [0, 4], 3: [0, 2, 4], 100_000: range(5)}[sample]
    wanted = {token for row in rows for text in captions[row] for token in towers.tokenizer.encode(text)}
    assert used_tokens(towers.tokenizer, captions, sample=sample).tolist() == sorted(wanted)
    assert used_tokens(towers.tokenizer, []).tolist() == []


def test_the_vocabulary_is_that_of_the_captions_and_the_concepts(towers: DualEncoder) -> None:
    captioner = ConceptCaptioner.build(towers, used_tokens(towers.tokenizer, [["a dog"]]), ["zebra", "the sea"])
    wanted = {token for text in ("a dog", "zebra", "the sea") for token in towers.tokenizer.encode(text)}
    assert captioner.vocabulary.tolist() == sorted(wanted)
    assert captioner.decoder.lm_head.out_features == len(wanted) + 5
    assert captioner.decoder.lm_head.weight is captioner.decoder.transformer.wte.weight


def test_without_concepts_or_words_a_caption_is_still_read_and_written(towers: DualEncoder) -> None:
    captioner = ConceptCaptioner.build(towers, torch.empty(0, dtype=torch.int64), [])
    captions = towers.tokenize(["a dog", "", "cat", "!"])
    assert captioner(tokens_of(4), captions, NONE).isfinite().all()
    assert captioner.generate(tokens_of(4), torch.full((4, 2), -1), ROWS, GREEDY, 0) == [[], [], [], []]


def test_its_shape_is_the_text_towers_unless_said(towers: DualEncoder) -> None:
    vocabulary = torch.arange(9)
    assert ConceptCaptioner.build(towers, vocabulary, []).shape == {"layers": 2, "width": 16, "heads": 2}
    said = ConceptCaptioner.build(towers, vocabulary, [], layers=1, width=24, heads=3)
    assert said.shape == {"layers": 1, "width": 24, "heads": 3}
    with pytest.raises(UserError, match="width 24 cannot have 5 heads"):
        ConceptCaptioner.build(towers, vocabulary, [], width=24, heads=5)


def test_a_text_tower_of_transformers_gives_words_and_the_usual_shape(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat"]))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    model = create("kind-custom")
    model.tokenizer = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=6)
    model.config = model.config | {"text_cfg": {"hf_model_name": str(tmp_path)}}
    vocabulary = used_tokens(model.tokenizer, [["a dog", "a cat"]])
    assert vocabulary.tolist() == [5, 6, 7]
    assert ConceptCaptioner.build(model, vocabulary, ["dog"]).shape == {"layers": 6, "width": 512, "heads": 8}
    captioner = ConceptCaptioner.build(model, vocabulary, ["dog", "cat"], layers=1, width=32, heads=2)
    seen, captions = tokens_of(2), model.tokenizer(["a cat a dog", "dog"])
    learn(captioner, seen, captions, torch.tensor([[0], [1]]), 40)
    assert captioner.generate(seen, torch.tensor([[0], [1]]), ROWS[:2], GREEDY, 0) == [["a cat a dog"], ["dog"]]


def test_more_concepts_than_there_are_positions_for_are_refused(captioner: ConceptCaptioner) -> None:
    most = torch.zeros(4, MOST_CONCEPTS, dtype=torch.int64) + 3
    assert captioner.generate(tokens_of(4), most, ROWS, Decoding("greedy", max_tokens=1000, min_tokens=1000), 0)
    with pytest.raises(UserError, match="33 concepts an image are too many; ask for at most 32"):
        captioner(tokens_of(1), torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 33, dtype=torch.int64))


def test_without_transformers_the_error_says_what_to_install(
    towers: DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'truepair\[hf\]'"):
        ConceptCaptioner.build(towers, torch.arange(3), [])


def test_the_image_tokens_are_those_of_the_tower(towers: DualEncoder, captioner: ConceptCaptioner) -> None:
    assert captioner.project[0].normalized_shape == (token_width(towers),)
