"""What runs wrote themselves: how well they knew the noisy pairs, how good the captions are, with the truth at hand.

    python benchmarks/completion.py RUN ... --test work/emoji/test --sentences sentence-transformers:NAME

RUN: of `truepair train --method nlip --completion.start N` on corrupted tables. For each: AUROC of ε when captions were
written; doubted pairs, and how many of these are noisy; captions kept; of the noisy pairs that got one, how often its
meaning is nearer to the true caption than the noisy one's (cosine of a sentence encoder), how often it is the very
caption; CIDEr-D and BLEU-1 on held-out pictures.
"""

import argparse
from pathlib import Path

import numpy as np

from truepair.annotate.reading import encode_texts
from truepair.evaluate.captioning import captioning, written_by
from truepair.evaluate.described import described_table
from truepair.models.encoders import TextEncoder, open_encoder
from truepair.models.run_captioner import open_run_captioner
from truepair.noise import detection
from truepair.pairs.table import PairTable

HEAD = (
    "| run | AUROC of ε | doubted, of these noisy | kept of noisy / of clean | nearer | the same | CIDEr-D | BLEU-1 |"
)


def plain(text: str) -> str:
    """Letters and digits alone: what differs otherwise is the tokenizer's spelling."""
    return "".join(filter(str.isalnum, text.lower()))


def meanings(encoder: TextEncoder, texts: list[str]) -> np.ndarray:
    return np.concatenate([encode_texts(encoder, texts[i : i + 256]) for i in range(0, len(texts), 256)])


def completed(run: Path, encoder: TextEncoder) -> list[str]:
    """The figures of a run's own captions."""
    table = PairTable.open(run / "completed")
    noisy, p_noise = table.numbers("is_noise").astype(bool), np.asarray(table.numbers("p_noise"))
    doubted = p_noise >= 0.5
    kept = table.captions("synthetic").counts > 0
    rows = np.flatnonzero(kept & noisy)
    true, raw, written = (
        [table.captions(name)[row][0] for row in rows.tolist()]
        for name in ("caption", table.caption_column, "synthetic")
    )
    truth = meanings(encoder, true)
    nearer = (truth * meanings(encoder, written)).sum(axis=1) > (truth * meanings(encoder, raw)).sum(axis=1)
    same = [plain(one) == plain(other) for one, other in zip(true, written, strict=True)]
    return [
        f"{detection(p_noise, noisy).auroc:.3f}",
        f"{doubted.mean():.0%}, {noisy[doubted].mean():.0%}",
        f"{kept[doubted & noisy].mean():.0%} / {kept[doubted & ~noisy].mean():.0%}",
        f"{nearer.mean():.0%}",
        f"{np.mean(same):.0%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--test", type=Path, required=True, help="pair table of held-out pictures")
    parser.add_argument("--sentences", required=True, help="a sentence encoder, as truepair embed takes it")
    args = parser.parse_args()
    encoder, images = open_encoder(args.sentences), described_table(PairTable.open(args.test))
    assert isinstance(encoder, TextEncoder)
    print(f"{HEAD}\n|---|{'--:|' * 7}")
    for run in args.runs:
        metrics = captioning(images, written_by(open_run_captioner(run), images)).metrics
        own = completed(run, encoder) if (run / "completed").is_dir() else [""] * 5
        print(f"| {run.name} | {' | '.join(own)} | {100 * metrics['CIDEr']:.1f} | {100 * metrics['Bleu_1']:.1f} |")


if __name__ == "__main__":
    main()
