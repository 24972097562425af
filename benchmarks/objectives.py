"""What noise does to ITC, ITM and MLM, alone and together, and whether fine-tuning on clean pairs repairs it.

    python benchmarks/objectives.py --out work --jobs 2 [--rows ITC ITM MLM together never clip] [--seeds 0]

NEVER's two observations on emoji, by the demo's recipe. First table: a model pre-trained by each objective on clean and
on shuffled pairs, asked what that objective teaches: zero-shot top-1 of the dual encoder; which of 200 captions fits a
picture, by ITM's probability alone (R@1; guessing: 0.5 %); which word is hidden in a caption, with its picture and with
another; and, the same question to all, how often the nearest training picture, by the mean of the image tower's tokens,
has the caption of the unseen artist's. Second table: each of them fine-tuned by plain CLIP on the same tenth of the
pairs, all clean, beside that tenth alone from random weights.

ITC has no intra-modal and no local part here, and nothing is split (ratio 0), but in the row `never`. Where ITC is not
trained, ITM's negatives are drawn by embeddings that know nothing, so they are not hard.
A cell whose result is there is not run again; one that was killed goes on.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import Cell, Row, prepared, shown, table_of, trained
from torch import Tensor
from torch.nn import functional as F

from truepair.models import DualEncoder, create, open_model
from truepair.models.captioner import used_tokens
from truepair.models.dual import newest_checkpoint
from truepair.models.fusion import Fusion
from truepair.models.masked_text import mask_token, word_embedding
from truepair.models.matcher import open_fusion
from truepair.models.tokens import attended, encode_image_with_tokens, encode_text_with_tokens, words
from truepair.pairs.image import decode_centre
from truepair.pairs.subset import write_subset
from truepair.pairs.table import PairTable

FUSION = "truepair-fusion-tiny"  # towers with tokens, and a text tower that reads both ways
PLAIN = ("--options.queue", "2048", "--options.momentum-ramp")  # NEVER at this scale: 1,500 steps, 10,000 pairs
FUSED = (*PLAIN, "--options.vocabulary", "used")
MLM = 0.1  # its weight beside the others; with 1 the fusion encoder does not learn to match in so few steps
AMONG = 200  # pairs that ITM sorts
CLEAN = 0.1  # share of the pairs that fine-tuning sees
TUNING = ("--method", "clip", "--epochs", "20", "--batch-size", "128", "--lr", "3e-4")
SCRATCH = ("--method", "clip", "--epochs", "60", "--batch-size", "128", "--lr", "1e-3")
CHUNK = 512  # images or texts encoded at once

JUDGED = {
    "ITM R@1 i→t": "itm_image_to_text",
    "ITM R@1 t→i": "itm_text_to_image",
    "hidden word": "word",
    "… with another picture": "word_other_picture",
    "nearest picture": "nearest",
}
TUNED = {"top-1": "top1", "R@1 t→i": "text_to_image_r1", "nearest picture": "nearest"}


def objective(itc: float, itm: float, mlm: float) -> tuple[str, ...]:
    """Flags of NEVER's parts with their weights, without the split."""
    weights = ("--options.itc", str(itc), "--options.itm", str(itm), "--options.mlm", str(mlm))
    plain = ("--options.ratio", "0", "--options.no-intra", "--options.no-local")
    return (*(FUSED if itm or mlm else PLAIN), *weights, *plain, *(() if itm else ("--options.confidence", "itc")))


ROWS: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> method, its flags
    "clip": ("clip", ()),
    "ITC": ("never", objective(1, 0, 0)),
    "ITM": ("never", objective(0, 1, 0)),
    "MLM": ("never", objective(0, 0, 1)),
    "together": ("never", objective(1, 1, MLM)),
    "never": ("never", (*FUSED, "--options.mlm", str(MLM))),
}
ASKS = {"ITM": {"itm"}, "MLM": {"mlm"}, "together": {"itm", "mlm"}, "never": {"itm", "mlm"}}  # heads that a row trains


@cache
def pictures(table: Path, size: int) -> Tensor:
    """(n, 3, S, S) uint8, all images of a table."""
    read = PairTable.open(table)
    return torch.from_numpy(np.stack([decode_centre(read.image_bytes(row), size) for row in range(len(read))])).permute(
        0, 3, 1, 2
    )


@cache
def names(table: Path) -> list[str]:
    """The first caption of each row."""
    captions = PairTable.open(table).captions()
    return [captions[row][0] for row in range(len(captions))]


def in_chunks(encode: Callable[[Any], Tensor], items: Any) -> Tensor:
    return torch.cat([encode(items[start : start + CHUNK]) for start in range(0, len(items), CHUNK)])


def nearest_picture(model: DualEncoder, train: Path, test: Path) -> float:
    """Share of the test pictures whose nearest training picture has the same name; of names that training has."""

    def mean_token(images: Tensor) -> Tensor:
        return F.normalize(encode_image_with_tokens(model, images)[1].mean(dim=1), dim=1)

    known = names(train)
    asked = [row for row, name in enumerate(names(test)) if name in set(known)]
    seen = in_chunks(mean_token, pictures(train, model.image_size))
    new = in_chunks(mean_token, pictures(test, model.image_size)[asked])
    nearest = in_chunks(lambda some: (some @ seen.T).argmax(dim=1), new).tolist()
    return float(np.mean([known[there] == names(test)[row] for row, there in zip(asked, nearest, strict=True)]))


def matching(model: DualEncoder, fusion: Fusion, test: Path) -> dict[str, float]:
    """R@1 both ways among `AMONG` test pairs of different names, the same for every model, by the ITM head alone."""
    rows = np.sort(np.random.default_rng(0).permutation(np.unique(names(test), return_index=True)[1])[:AMONG])
    cells = encode_image_with_tokens(model, pictures(test, model.image_size)[rows], prefix=True)[1]
    tokens = model.tokenize([names(test)[row] for row in rows.tolist()])
    hidden, mask = encode_text_with_tokens(model, tokens)[1], attended(model, tokens)
    found = [fusion.match(fusion(hidden, mask, one.expand(len(rows), -1, -1))) for one in cells]
    score = torch.stack(found).diff(dim=2)[..., 0]  # (image, text) log P(match)/P(mismatch)
    own = torch.arange(len(rows))
    return {
        "itm_image_to_text": float((score.argmax(dim=1) == own).float().mean()),
        "itm_text_to_image": float((score.argmax(dim=0) == own).float().mean()),
    }


def hidden_words(model: DualEncoder, fusion: Fusion, train: Path, test: Path) -> dict[str, float]:
    """Share of test captions whose hidden word, one of each, the MLM head names among all words of the training table.

    With the caption's own picture, and with that of the caption half a table away: what the picture adds.
    """
    vocabulary, mask = used_tokens(model.tokenizer, PairTable.open(train).captions()), mask_token(model)
    assert mask is not None
    tokens = model.tokenize(names(test))
    chance = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0))
    at = (words(model, tokens) * chance).argmax(dim=1)  # (n,)
    row, half = torch.arange(len(tokens)), len(tokens) // 2
    shown_ = tokens.clone()
    shown_[row, at] = mask
    images = pictures(test, model.image_size)
    cells = in_chunks(lambda some: encode_image_with_tokens(model, some, prefix=True)[1], images)

    def right(others: Tensor) -> float:
        def said(some: Tensor) -> Tensor:
            hidden = encode_text_with_tokens(model, shown_[some])[1]
            fused = fusion(hidden, attended(model, tokens[some]), cells[others[some]])
            gaps = fused[torch.arange(len(some)), at[some]]
            return vocabulary[fusion.fill(gaps, word_embedding(model), vocabulary).argmax(dim=1)]

        return float((in_chunks(said, row) == tokens[row, at]).float().mean())

    return {"word": right(row), "word_other_picture": right(row.roll(half))}


@torch.inference_mode()
def judged(run: Path, work: Path, asks: set[str]) -> dict[str, float]:
    """What a run's newest checkpoint knows; kept beside the run's result."""
    kept = run.parent / f"{run.name}.judged.json"
    if not kept.exists():
        model, train, test = open_model(str(run)), work / "emoji" / "train", work / "emoji" / "test"
        figures = {"nearest": nearest_picture(model, train, test)}
        if asks:
            fusion = open_fusion(run).eval()
            figures |= matching(model, fusion, test) if "itm" in asks else {}
            figures |= hidden_words(model, fusion, train, test) if "mlm" in asks else {}
        kept.write_text(json.dumps(figures))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


@torch.inference_mode()
def untrained(model: str, work: Path, seed: int) -> dict[str, float]:
    """What random weights know already: pictures of one thing are alike in their pixels."""
    torch.manual_seed(seed)
    towers = create(model).eval()
    return {"nearest": nearest_picture(towers, work / "emoji" / "train", work / "emoji" / "test")}


def clean_rows(work: Path, tables: list[Path], seed: int) -> Path:
    """A tenth of the pairs, drawn among those that are clean in every one of the tables."""
    kept = work / f"clean-{seed}.parquet"
    if not kept.exists():
        noisy = [table.numbers("is_noise") for table in map(PairTable.open, tables) if "is_noise" in table.column_names]
        clean = PairTable.open(work / "emoji" / "train")
        rows = np.flatnonzero(~np.any(noisy, axis=0)) if noisy else np.arange(len(clean))
        drawn = np.random.default_rng(seed).permutation(rows)[: round(CLEAN * len(clean))]
        write_subset(clean, drawn, kept)
    return kept


def tuned(name: str, work: Path, seed: int, how: tuple[str, ...], model: str, keep: Path) -> dict[str, float]:
    """Figures of CLIP on the clean tenth, from `model`'s weights."""
    fixed = ("--seed", str(seed), "--model", model, "--keep", keep)
    found = trained(name, work, work / "emoji" / "train", *how, *fixed)
    return found["figures"] | judged(work / "cells" / name, work, set())


def run(cell: Cell, work: Path, table: Path, keep: Path) -> dict[str, Any]:
    """Pre-train a cell, ask it, fine-tune it, ask again."""
    found, out = trained(cell.name, work, table, *cell.flags), work / "cells" / cell.name
    before = found["figures"] | judged(out, work, ASKS.get(cell.row.name, set()))
    weights = f"local-dir:{newest_checkpoint(out)[0]}"
    after = tuned(f"{cell.name}-tuned", work, cell.seed, TUNING, weights, keep)
    print(f"{cell.name}: top-1 {before['top1']:.1%}, tuned {after['top1']:.1%}", file=sys.stderr, flush=True)
    return {"row": cell.row.name, "rate": cell.rate, "seed": cell.seed, "before": before, "after": after}


def printed(results: list[dict[str, Any]], nothing: list[dict[str, Any]]) -> list[str]:
    """The two tables; nothing: the figures of random weights before and after the clean tenth, of each seed."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for r in results:
        groups.setdefault((r["row"], r["rate"]), []).append(r)

    def figures(mine: list[dict[str, Any]], when: str, keys: list[str]) -> str:
        return " | ".join(shown([r[when][key] for r in mine if key in r[when]]) for key in keys)

    asked, kept = ["top1", *JUDGED.values()], list(TUNED.values())
    lines = [f"| objective | noise | zero-shot top-1 | {' | '.join(JUDGED)} |", f"|---|--:|--:|{'--:|' * len(JUDGED)}"]
    lines += [f"| {name} | {rate:.0%} | {figures(mine, 'before', asked)} |" for (name, rate), mine in groups.items()]
    lines.append(f"| nothing |  | {figures(nothing, 'before', asked)} |")
    heads = [f"{head}{when}" for when in ("", ", tuned") for head in TUNED]
    lines += ["", f"| pre-trained by | noise | {' | '.join(heads)} |", f"|---|--:|{'--:|' * len(heads)}"]
    lines += [
        f"| {name} | {rate:.0%} | {figures(mine, 'before', kept)} | {figures(mine, 'after', kept)} |"
        for (name, rate), mine in groups.items()
    ]
    return [*lines, f"| nothing |  | {figures(nothing, 'before', kept)} | {figures(nothing, 'after', kept)} |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, one thread each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0, 0.4])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--model", default=FUSION, help="towers of every row")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work = prepared(args.out)
    tables = {(rate, seed): table_of(work, rate, seed) for seed in args.seeds for rate in args.rates}
    keeps = {seed: clean_rows(work, [tables[rate, seed] for rate in args.rates], seed) for seed in args.seeds}
    rows = [Row(name, *ROWS[name], args.model) for name in ROWS if name in args.rows]
    cells = [Cell(row, rate, seed) for seed, row, rate in itertools.product(args.seeds, rows, args.rates)]
    with ThreadPoolExecutor(args.jobs) as pool:
        after = [
            pool.submit(tuned, f"scratch-{seed}-{args.model}", work, seed, SCRATCH, args.model, keeps[seed])
            for seed in args.seeds
        ]
        results = list(pool.map(lambda cell: run(cell, work, tables[cell.rate, cell.seed], keeps[cell.seed]), cells))
        before = list(pool.map(lambda seed: untrained(args.model, work, seed), args.seeds))
    nothing = [{"before": one, "after": two.result()} for one, two in zip(before, after, strict=True)]
    (work / "objectives.json").write_text(json.dumps({"results": results, "nothing": nothing}, indent=1))
    print("\n".join(printed(results, nothing)))


if __name__ == "__main__":
    main()
