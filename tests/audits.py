"""Writes audit.json and audit.parquet as `truepair audit` does, from numbers drawn at random; and tables for them."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from truepair.evaluate.remembered import write_columns
from truepair.noise import fit_losses, reliability
from truepair.pairs.table import PAIRS, SCHEMA, PairTable

Bools = np.ndarray[Any, np.dtype[np.bool_]]

SINGLE = {
    "boilerplate_caption": ("recaption", 0.905),
    "broken_image": ("drop", 0.5),
    "incomplete_caption": ("recaption", 0.5),
}
GROUPED = {"near_duplicate_image": ("merge", 0.75), "false_negative_group": ("keep", 0.5)}


def write_audit(
    out: Path,
    table: PairTable,
    noisy: Bools,
    *,
    truth: bool = True,
    itm: bool = True,
    issues: Sequence[str] = ("mismatched_pair", *SINGLE, *GROUPED),
    unscored: Sequence[int] = (),
    degenerate: bool = False,
    calibration: dict[str, Any] | None = None,
    against: Sequence[dict[str, Any]] = (),
    to_label: int = 40,
    sources: Sequence[tuple[str, str, int]] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Write the files for pairs of which `noisy` are mismatched, and return audit.json and all columns as one dict.

    unscored: rows without scores. issues: those looked for; the others are named as skipped.
    sources: (kind, name, pairs), of each kind one after the other from the first row on. against: second tables.
    """
    n, random = len(table), np.random.default_rng(seed)
    loss = np.where(noisy, random.normal(0.16, 0.03, n), random.normal(0.05, 0.02, n)).astype(np.float32)
    loss[list(unscored)] = np.nan
    seen = ~np.isnan(loss)
    mixture = fit_losses(np.full(n, 0.1) if degenerate else loss)
    p_noise = np.where(seen, mixture.posterior(loss), np.nan).astype(np.float32)
    cosine = (0.3 - loss + random.normal(0, 0.02, n)).astype(np.float32)
    columns: dict[str, Any] = {
        "row": np.arange(n),
        "key": pa.array([table.strings("key")[row] for row in range(n)]),
        "caption": pa.array([table.captions()[row] for row in range(n)], pa.list_(pa.string())),
        "cosine": _nullable(cosine),
        "neg_clip_loss": _nullable(-loss),
        "p_noise": _nullable(p_noise),
        "problem": ["" if known else "unreadable image" for known in seen],
    }
    if itm:
        columns["itm"] = _nullable((1 - p_noise * 0.9).astype(np.float32))
    if truth:
        columns["is_noise"] = noisy
    in_force = p_noise
    if calibration:
        in_force = np.clip(p_noise**2, 0, 1)
        columns["p_noise_recalibrated"] = _nullable(in_force)
    entries = []
    for name, (action, threshold) in {
        "mismatched_pair": ("drop", 0.5),
        **SINGLE,
        **GROUPED,
        "leaked_image": ("drop", 0.75),
    }.items():
        if name not in issues:
            entries.append(_entry(name, action, threshold, skipped="no second table was given (--against TABLE)"))
            continue
        score = np.where(random.random(n) < 0.25, random.random(n), 0.0) if name != "mismatched_pair" else p_noise
        score = np.where(seen, score, np.nan).astype(np.float32)
        group = None
        if name in GROUPED:
            group = np.where(score >= threshold, random.integers(0, max(n // 50, 1), n), -1)
            columns[f"{name}_group"] = pa.array(group, mask=group < 0)
        columns[name] = _nullable(score)
        columns[f"{name}_flag"] = score >= threshold
        entries.append(
            _entry(
                name,
                action,
                threshold,
                grouped=group is not None,
                judged=int(seen.sum()),
                flagged=int(columns[f"{name}_flag"].sum()),
                group_column=None if group is None else f"{name}_group",
            )
        )
    columns["action"] = ["keep"] * n
    drawn = np.sort(random.choice(np.flatnonzero(seen), min(to_label, int(seen.sum())), replace=False))
    diagram = reliability(in_force[seen], noisy[seen]) if truth and seen.any() else None
    about = {
        "truepair": "0.6",
        "dataset": "web",
        "table": str(table.path),
        "model": "run",
        "id": f"audit {seed}",
        "settings": {"scores": {"images": "1a", "captions": "2b"}},
        "n": n,
        "scored": int(seen.sum()),
        "expected_noise": float(p_noise[seen].sum()),
        "skipped": {"unreadable image": len(unscored)} if len(unscored) else {},
        "mixture": mixture.to_dict(),
        "figures": {
            "auroc": 0.987,
            "average_precision": 0.95,
            "ece": 0.02,
            "precision_at_rate": 0.9,
            "rate": 0.2,
            "n": n,
        }
        if truth
        else None,
        "truth": truth,
        "issues": entries,
        "against": list(against),
        "reliability": None if diagram is None else _diagram(diagram),
        "sources": _rates(sources, in_force),
        "actions": {"keep": n},
        "to_label": {
            "rows": drawn.tolist(),
            "stratum": np.clip(np.nan_to_num(p_noise[drawn]) * 10, 0, 9).astype(int).tolist(),
            "strata": [],
        },
        "calibration": calibration,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_columns(out / "audit.parquet", columns, about["id"])
    (out / "audit.json").write_text(json.dumps(about))
    return {**columns, "about": about, "loss": loss, "p": p_noise}


def make_table(path: Path, captions: list[list[str]], keys: list[str], *, side: int = 8, grain: int = 0) -> PairTable:
    """A table of little pictures, of noise if `grain` is 255."""
    random = np.random.default_rng(0)
    (path / "images").mkdir(parents=True)
    n = len(captions)
    for row in range(n):
        colour = np.array([row * 37 % 256, row * 91 % 256, row // 2 % 256], np.uint8)
        pixels = colour ^ random.integers(0, grain + 1, (side, side, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path / "images" / f"{row}.png")
    files = [(path / "images" / f"{row}.png").read_bytes() for row in range(n)]
    values: dict[str, list[Any]] = {
        "row": list(range(n)),
        "key": keys,
        "source": [0] * n,
        "offset": [-1] * n,
        "size": [len(file) for file in files],
        "path": [f"{row}.png" for row in range(n)],
        "caption": captions,
        "width": [side] * n,
        "height": [side] * n,
        "sha": [sha256(file).hexdigest()[:32] for file in files],
    }
    pq.write_table(pa.table(values, schema=SCHEMA), path / PAIRS)
    source = {"path": "images", "kind": "folder", "column": ""}
    about = {"version": 1, "caption_column": "caption", "sources": [source], "made": {}}
    (path / "table.json").write_text(json.dumps(about))
    return PairTable.open(path)


def _rates(sources: Sequence[tuple[str, str, int]], p_noise: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    told, start = [], dict.fromkeys((kind for kind, _, _ in sources), 0)
    for kind, name, pairs in sources:
        p = p_noise[start[kind] : start[kind] + pairs]
        p = p[~np.isnan(p)].astype(np.float64)
        start[kind] += pairs
        rate = float(p.mean()) if len(p) else 0.0
        told.append({"kind": kind, "name": name, "n": len(p), "doubted": int((p >= 0.5).sum()), "rate": rate})
    return told


def _nullable(values: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def _entry(name: str, action: str, threshold: float, **found: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.replace("_", " ").capitalize() + "s",
        "explanation": f"Pairs with a {name.replace('_', ' ')}. What that means is said here, and what it cannot tell.",
        "score_says": "1 for the worst",
        "threshold": threshold,
        "action": action,
        "grouped": False,
        "judged": 0,
        "flagged": 0,
        "column": name,
        "flag_column": f"{name}_flag",
        "group_column": None,
        "skipped": None,
        **found,
    }


def _diagram(diagram: Any) -> dict[str, Any]:
    def plain(values: Any) -> list[float | None]:
        return [None if value != value else float(value) for value in values]

    return {
        "edges": plain(diagram.edges),
        "counts": diagram.counts.tolist(),
        "confidence": plain(diagram.confidence),
        "accuracy": plain(diagram.accuracy),
    }
