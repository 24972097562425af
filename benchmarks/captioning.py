"""Captioning figures: ours and pycocoevalcap's on the same captions in one process, words and all: times, differences.

    OMP_NUM_THREADS=1 python benchmarks/captioning.py --images 5000

Needs pycocoevalcap and Java. The captions are sentences of COCO's kind from a small grammar, five references an image.
"""

import argparse
import resource
import time

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from truepair.evaluate.captioning import caption_figures

WHO = ["a man", "two women", "a boy's dog", "some people", "a black-and-white cat", "the 5-year-old girl", "it"]
DOES = ["is riding", "doesn't see", "are sitting next to", "stands on", "holds", "can't reach", "walks past"]
WHAT = ["a wave", "the red/blue kite", "a fire hydrant", "its owner", "a table with 3 plates", "a T-shirt"]
WHERE = [" in the park.", " on a beach", " near St. Mary's", " at 10:30 a.m.", ", outdoors", " (left).", ""]


def sentences(images: int, each: int, seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    parts = [np.array(words)[rng.integers(len(words), size=(images, each))] for words in (WHO, DOES, WHAT, WHERE)]
    return [[f"{a} {b} {c}{d}" for a, b, c, d in zip(*row, strict=True)] for row in zip(*parts, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--ours-only", action="store_true")
    args = parser.parse_args()
    references, candidates = sentences(args.images, 5, 0), [texts[0] for texts in sentences(args.images, 1, 1)]

    start = time.perf_counter()
    ours = caption_figures(candidates, references)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"ours: {seconds:.2f} s for {args.images:,} images with 5 references, {peak:,.0f} MiB at most")
    if args.ours_only:
        return

    start = time.perf_counter()
    tokenizer = PTBTokenizer()
    theirs = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(candidates)})
    known = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    bleu, cider = Bleu(4).compute_score(known, theirs, verbose=0)[0], Cider().compute_score(known, theirs)[1]
    rouge = Rouge().compute_score(known, theirs)[1]
    other = time.perf_counter() - start
    print(f"pycocoevalcap: {other:.2f} s, {other / seconds:.1f} times as long")
    print(f"largest difference: BLEU {np.abs(bleu - ours.bleu).max():.1e}, CIDEr-D of an image", end=" ")
    print(f"{np.abs(cider - ours.cider).max():.1e}, ROUGE-L {np.abs(rouge - ours.rouge_l).max():.1e}")


if __name__ == "__main__":
    main()
