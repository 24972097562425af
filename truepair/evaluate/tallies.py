"""What a page about millions of pairs can hold: histograms, rates of sources, a sample to label."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from truepair.evaluate.agreement import DOUBTED
from truepair.noise import finite_range, reliability
from truepair.pairs.table import PairTable

TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
Floats = npt.NDArray[np.floating[Any]]
LOSS_BINS, P_BINS = 80, 1000
SOURCES = 200  # of each kind: those with most pairs
LONGEST_NAME = 200  # characters of a source's
HOST = r"^(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://)?(?:[^/@\s]*@)?(?:www\.)?(?P<host>[^/:?#\s]+)"


def losses(loss: Floats, truth: npt.NDArray[Any] | None) -> dict[str, Any]:
    """Counts of the loss (n,), NaN left out, in LOSS_BINS bins: of all and, where the truth is known, of each kind."""
    low, high = finite_range(loss)
    if low > high:
        low, high = 0.0, 1.0
    edges = np.linspace(low, high if high > low else low + 1, LOSS_BINS + 1)

    def binned(values: Floats) -> list[int]:
        return np.histogram(values[np.isfinite(values)], edges)[0].tolist()  # type: ignore[no-any-return]

    split = (
        {} if truth is None else {"clean": binned(loss[~truth.astype(bool)]), "noisy": binned(loss[truth.astype(bool)])}
    )
    return {"edges": edges.tolist(), "all": binned(loss), **split}


def probabilities(p_noise: Floats) -> dict[str, Any]:
    """Counts of p_noise (n,), NaN left out, in P_BINS bins of [0, 1]."""
    edges = np.linspace(0, 1, P_BINS + 1)
    counts, _ = np.histogram(p_noise[~np.isnan(p_noise)].astype(np.float64), edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def reliable(p_noise: Floats, truth: npt.NDArray[Any] | None) -> dict[str, Any] | None:
    """The reliability diagram of p_noise (n,), NaN left out; None without truth."""
    if truth is None:
        return None
    seen = ~np.isnan(p_noise)
    found = reliability(p_noise[seen], truth[seen])
    return {
        "edges": found.edges.tolist(),
        "counts": found.counts.tolist(),
        "confidence": found.confidence.tolist(),
        "accuracy": found.accuracy.tolist(),
    }


def plain(value: Any) -> Any:
    """As JSON has it: a number that is not finite is null."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sources(table: PairTable, p_noise: Floats) -> list[dict[str, Any]]:
    """Shards and, if the table has a text column `domain` or `url`, domains: pairs, doubted ones, mean p_noise.

    Of long names the middle is left out, so that what is told stays small.
    """
    shards = [source.path for source in table.sources]
    found = _rates("shard", np.asarray(table.numbers("source"), np.int64), shards, p_noise)
    for column in ("domain", "url"):
        if column in table.column_names and _holds_text(table, column):
            number, names = _domains(table, column)
            return found + _rates("domain", number, names, p_noise)
    return found


def _holds_text(table: PairTable, column: str) -> bool:
    kind = pq.read_schema(table.parquet(column)).field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_text(kind) for is_text in TEXT)


def _domains(table: PairTable, column: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Number (n,) of each row's domain, -1 without one, and the domains; of an address the host, without www.

    Addresses are taken as bytes: not all that stands in a table's strings is UTF-8.
    """
    stored = pq.read_table(table.parquet(column), columns=[column], memory_map=True).column(0)
    hosts = [
        pc.struct_field(pc.extract_regex(chunk.cast(pa.large_binary()), pattern=HOST), "host")
        for chunk in stored.chunks
    ]
    encoded = pa.chunked_array(hosts, pa.large_binary()).dictionary_encode()
    codes = [pc.fill_null(chunk.indices, -1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    spelt = encoded.chunk(0).dictionary.to_pylist() if codes else []
    number_of: dict[str, int] = {}  # of a domain, however it is spelt
    folded = [number_of.setdefault(host.decode("utf-8", "replace").lower(), len(number_of)) for host in spelt]
    number = np.concatenate([np.zeros(0, np.int64), *codes]).astype(np.int64)
    return np.array([*folded, -1], np.int64)[number], list(number_of)


def _rates(kind: str, number: npt.NDArray[np.int64], names: list[str], p_noise: Floats) -> list[dict[str, Any]]:
    known = (number >= 0) & ~np.isnan(p_noise)
    number, p = number[known], p_noise[known].astype(np.float64)
    n = np.bincount(number, minlength=len(names))
    doubted = np.bincount(number[p >= DOUBTED], minlength=len(names))
    total = np.bincount(number, weights=p, minlength=len(names))
    most = np.argsort(-n, kind="stable")[:SOURCES]
    return [
        {
            "kind": kind,
            "name": _shortened(names[i]),
            "n": int(n[i]),
            "doubted": int(doubted[i]),
            "rate": float(total[i] / n[i]),
        }
        for i in most
        if n[i]
    ]


def _shortened(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def sample(p_noise: Floats, rows: npt.NDArray[np.int64], stratum: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The rows to look at, and the strata of p_noise (n,) they were drawn from; stratum (n,), -1 without p_noise."""
    size = np.bincount(stratum + 1)[1:]
    low, high = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    known = stratum >= 0
    np.minimum.at(low, stratum[known], p_noise[known])
    np.maximum.at(high, stratum[known], p_noise[known])
    drawn = np.bincount(stratum[rows], minlength=len(size))
    named = zip(low.tolist(), high.tolist(), size.tolist(), drawn.tolist(), strict=True)
    told = [dict(zip(("low", "high", "n", "drawn"), one, strict=True)) for one in named]
    return {"rows": rows.tolist(), "stratum": stratum[rows].tolist(), "strata": told}
