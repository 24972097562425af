"""How many false negatives of a batch FFF's conditions find, and how many of those they find are true.

    python benchmarks/mining.py work/cells/fff-shuffle-40-0 work/tables/shuffle-40-0        # of truepair bench

Batches of 512 rows with one random caption each, embedded by the run's model; a pair is true if the image shows the
concept that the caption names (columns label and caption_from of the emoji corpus). Captions of the same text, which
are positives anyway, are left out. One line for each similarity and quantile.
"""

import argparse

import numpy as np
import torch

from truepair.evaluate.features import image_features, text_features
from truepair.models import open_model
from truepair.pairs.table import PairTable

ROWS, BATCH = 4_096, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("table")
    args = parser.parse_args()
    model, table = open_model(args.run), PairTable.open(args.table)
    captions, drawn = table.captions(), np.random.default_rng(0)
    texts = [captions[row][drawn.integers(len(captions[row]))] for row in range(ROWS)]
    x, t = image_features(model, table.image_bytes, ROWS).features, text_features(model, texts)
    source = "label@caption_from" if "caption_from" in table.column_names else "label"
    shows, says = (torch.from_numpy(np.array(table.numbers(name)[:ROWS])) for name in ("label", source))
    same_text = torch.from_numpy(np.unique(texts, return_inverse=True)[1])

    own = torch.eye(BATCH, dtype=torch.bool)
    print("| condition | quantile | found a row | precision | recall |\n|---|--:|--:|--:|--:|")
    for name, one, other in (("S_it", x, t), ("S_ii", x, x), ("S_tt", t, t)):
        for quantile in (0.999, 0.9995, 0.9999):
            found = true = there = 0
            for start in range(0, ROWS, BATCH):
                b = slice(start, start + BATCH)
                similarity = one[b] @ other[b].T
                new = same_text[b][:, None] != same_text[b]
                match = (shows[b][:, None] == says[b]) & (shows[b][:, None] >= 0) & new
                similar = (similarity > similarity[~own].quantile(quantile)) & new
                found, true, there = found + similar.sum(), true + (similar & match).sum(), there + match.sum()
            shares = f"{true / max(found, 1):.1%} | {true / max(there, 1):.1%}"
            print(f"| {name} | {quantile} | {found / ROWS:.3f} | {shares} |")
    print(f"to find: {there / ROWS:.3f} a row")


if __name__ == "__main__":
    main()
