"""Times the noise model on many losses against scikit-learn's mixture on the same losses, in one process.

scikit-learn runs with the settings of the noisy-correspondence literature (10 iterations, tolerance 1e-2, 5e-4 added to
the variances); ours runs to convergence. Prints a table, then one line of JSON.

    python benchmarks/mixture.py --n 10000000 --peer-n 1000000
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from sklearn.mixture import GaussianMixture

from truepair.noise import finite_range, fit, histogram


def losses_of(n: int, rate: float = 0.4, seed: int = 0) -> np.ndarray:
    """Losses (n,) float32 of a training in its early epochs: a skewed clean mode and a noisy one that overlap."""
    random = np.random.default_rng(seed)
    clean = random.gamma(3.0, 0.8, n)
    noisy = random.normal(6.0, 1.2, n)
    return np.where(random.random(n) < rate, noisy, clean).astype(np.float32)


def ours(losses: np.ndarray) -> dict[str, Any]:
    start = time.perf_counter()
    binned = histogram(losses, *finite_range(losses))
    bins_done = time.perf_counter()
    mixture = fit(binned)
    fit_done = time.perf_counter()
    mixture.posterior(losses)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "histogram": bins_done - start,
        "fit": fit_done - bins_done,
        "posterior": end - fit_done,
        "iterations": mixture.iterations,
        "log_likelihood": mixture.log_likelihood,
    }


def scikit_learn(losses: np.ndarray) -> dict[str, Any]:
    start = time.perf_counter()
    low, high = finite_range(losses)
    scaled = ((losses - low) / (high - low)).reshape(-1, 1)
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    fit_done = time.perf_counter()
    mixture.predict_proba(scaled)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "fit": fit_done - start,
        "posterior": end - fit_done,
        "iterations": int(mixture.n_iter_),
        "log_likelihood": float(mixture.score(scaled)) - float(np.log(high - low)),
    }


def hardware() -> str:
    """The processor's name where the system says it, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000_000, help="losses for ours")
    parser.add_argument("--peer-n", type=int, default=1_000_000, help="losses for both (0: skip scikit-learn)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; the fastest counts")
    options = parser.parse_args()

    def best(run: Callable[[np.ndarray], dict[str, Any]], losses: np.ndarray) -> dict[str, Any]:
        return min((run(losses) for _ in range(options.repeat)), key=lambda row: float(row["seconds"]))

    rows = [{"name": "truepair", "n": options.n, **best(ours, losses_of(options.n))}]
    result: dict[str, Any] = {"rows": rows}
    if options.peer_n:
        losses = losses_of(options.peer_n)
        mine, theirs = best(ours, losses), best(scikit_learn, losses)
        rows += [{"name": "truepair", "n": len(losses), **mine}, {"name": "scikit-learn", "n": len(losses), **theirs}]
        result["ratio"] = theirs["seconds"] / mine["seconds"]

    print(f"{'':14}{'losses':>12}{'seconds':>10}{'fit':>9}{'posterior':>11}{'iterations':>12}{'log-lik.':>10}")
    for row in rows:
        print(
            f"{row['name']:14}{row['n']:>12,}{row['seconds']:>10.3f}{row['fit']:>9.3f}{row['posterior']:>11.3f}"
            f"{row['iterations']:>12}{row['log_likelihood']:>10.4f}"
        )
    result["versions"] = {name: version(name) for name in ("numpy", "scikit-learn")} | {
        "python": platform.python_version()
    }
    result["hardware"] = hardware()
    result["threads"] = os.environ.get("OMP_NUM_THREADS", "not limited")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
