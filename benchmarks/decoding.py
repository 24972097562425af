"""Captions a second of the captioner with and without its key/value cache, at captions of exactly 20 tokens.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py                     # CPU, one thread: 6 layers of width 512
    OMP_NUM_THREADS=1 python benchmarks/decoding.py --layers 1 --width 128 --heads 2 --patches 1 --vocabulary 3000
    python benchmarks/decoding.py --device cuda

Both sides are the same weights under the same `generate` of transformers; only `use_cache` differs, and both must
write the same captions. The cache holds the keys and values of the concepts and the words, and in every layer those of
the image tokens. The work that it saves is counted first: positions of concepts and words that pass the layers for one
caption, and image tokens of which keys and values are made. Sides take turns; each row is the best of `--repeats`.
On a CPU the seconds are the process's own, so that others on the machine count for little.
"""

import argparse
import platform
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers

from truepair.models import create
from truepair.models.captioner import CONCEPT_TOKENS, SPECIAL, ConceptCaptioner
from truepair.models.image_to_text import Decoding, decode

LENGTH = 20
GREEDY = Decoding("greedy", min_tokens=LENGTH, max_tokens=LENGTH)


def captioner_of(asked: argparse.Namespace) -> ConceptCaptioner:
    """Random weights; concepts of CONCEPT_TOKENS tokens each, so that the prefix has the same length in every row."""
    torch.manual_seed(0)
    towers = create("truepair-tiny")
    names = [" ".join("abcdefgh"[int(digit)] for digit in f"{number:0{CONCEPT_TOKENS}o}") for number in range(512)]
    made = ConceptCaptioner(
        towers.tokenizer,
        torch.arange(asked.vocabulary - SPECIAL),
        names,
        image_width=asked.image_width,
        longest=76,
        layers=asked.layers,
        width=asked.width,
        heads=asked.heads,
    )
    return made.to(asked.device).eval()


@torch.inference_mode()
def timed(captioner: ConceptCaptioner, batch: int, asked: argparse.Namespace, cache: bool) -> tuple[float, list[Any]]:
    """Seconds (CPU time on a CPU) for the captions of `batch` images, and their ids."""
    random = torch.Generator().manual_seed(batch)
    seen = torch.randn(batch, asked.patches, asked.image_width, generator=random).to(asked.device)
    concepts = torch.rand(batch, len(captioner.concepts), generator=random).topk(asked.concepts).indices
    concepts = concepts.to(asked.device)
    clock = time.perf_counter if asked.device == "cuda" else time.process_time
    began = clock()
    given = captioner.given(seen, concepts)
    written = decode(captioner.decoder, given, np.arange(batch), GREEDY, 0, use_cache=cache).tolist()
    return clock() - began, written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--patches", type=int, default=50, help="image tokens")
    parser.add_argument("--image-width", type=int, default=768)
    parser.add_argument("--concepts", type=int, default=6, help="an image's; each takes 5 positions")
    parser.add_argument("--vocabulary", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    captioner = captioner_of(asked)
    prefix = asked.concepts * (CONCEPT_TOKENS + 1) + 1
    once, again = prefix + LENGTH - 1, sum(prefix + step for step in range(LENGTH))
    where = torch.cuda.get_device_name() if asked.device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"`python {' '.join(sys.argv)}`\n\n{versions}, {where}")
    print(
        f"{asked.layers} layers x {asked.width}, {asked.patches} image tokens, prefix {prefix}, {LENGTH} new tokens, "
        f"vocabulary {asked.vocabulary:,}, greedy"
    )
    print(
        f"a caption's positions: {once} with the cache, {again} without ({again / once:.1f}x); "
        f"image tokens: {asked.patches} and {asked.patches * LENGTH} ({LENGTH}x)\n"
    )
    print("| batch | captions/s, `use_cache=True` | captions/s, `use_cache=False` | ratio |\n|---|---|---|---|")
    for batch in asked.batches:
        best = {True: float("inf"), False: float("inf")}
        for _ in range(asked.repeats):
            (fast, cached), (slow, plain) = (timed(captioner, batch, asked, cache) for cache in (True, False))
            if cached != plain:
                raise SystemExit(f"batch {batch}: the two sides wrote different captions")
            best = {True: min(best[True], fast), False: min(best[False], slow)}
        fast, slow = batch / best[True], batch / best[False]
        print(f"| {batch} | {fast:.2f} | {slow:.2f} | {fast / slow:.1f} |", flush=True)


if __name__ == "__main__":
    main()
