"""The run's account of every pair: its latest loss, and how noisy the noise model holds it to be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from truepair.config import NoiseConfig
from truepair.losses.distributed import all_gather, rank, total, world_size
from truepair.noise import Mixture, finite_range, fit, histogram
from truepair.pairs.columns import write_parquet


class Ledger:
    """Columns over the table's n rows, alike on every rank; NaN marks a pair no step has seen.

    Losses are collected on the device and written here every few steps (`flush`), so recording costs no waiting.
    """

    def __init__(self, rows: int, config: NoiseConfig) -> None:
        self.config = config
        self.losses: npt.NDArray[np.float32] = np.full(rows, np.nan, np.float32)  # (n,)
        self.p_noise: npt.NDArray[np.float32] = np.zeros(rows, np.float32)  # (n,)
        self.mixture: Mixture | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []

    def believe(self, rows: Tensor) -> Tensor:
        """p_noise (B,) float32 of rows (B,), on the CPU."""
        return torch.from_numpy(self.p_noise[rows.numpy()])

    def record(self, rows: Tensor, per_pair: Tensor, raw: Tensor | None = None) -> None:
        """Note the losses (B,) of rows (B,) of this step and rank.

        raw: (B,) bool, whether a raw caption was among the row's; None: always. A loss of synthetic captions alone says
        nothing of the pair, which keeps the last one of its raw captions (and the p_noise that each fit makes of it);
        it is only looked at for numbers that are not finite.
        """
        self._pending.append((rows if raw is None else torch.where(raw, rows, ~rows), per_pair))  # ~row: negative

    def flush(self) -> npt.NDArray[np.int64]:
        """Write what is pending, of all ranks, in step order; returns the rows whose loss is not finite."""
        if not self._pending:
            return np.zeros(0, np.int64)
        device = self._pending[0][1].device
        rows = all_gather(torch.stack([rows for rows, _ in self._pending], dim=1).to(device))  # (W·B, steps)
        losses = all_gather(torch.stack([loss.float() for _, loss in self._pending], dim=1))
        self._pending.clear()
        if self.config.loss_source == "epoch":
            for row, loss in zip(rows.T.cpu().numpy(), losses.T.cpu().numpy(), strict=True):
                self.measured(row[row >= 0], loss[row >= 0])
        flat, values = rows.flatten().cpu().numpy(), losses.flatten().cpu().numpy()
        broken = flat[~np.isfinite(values)]
        return np.unique(np.where(broken < 0, ~broken, broken))

    def measured(self, rows: npt.NDArray[np.int64], losses: npt.NDArray[np.float32]) -> None:
        """Take in the losses (m,) of rows (m,), alike on every rank."""
        former = self.losses[rows]
        keep = np.where(np.isfinite(former), self.config.average, 0.0).astype(np.float32)
        self.losses[rows] = np.where(keep > 0, keep * former, 0) + (1 - keep) * losses

    def refit(self) -> Mixture:
        """Fit the mixture to the losses and set every pair's p_noise. Each rank bins its share; only sums travel."""
        low, high = finite_range(self.losses)
        mine = histogram(self.losses[rank() :: world_size()], low, high)
        sums = total(torch.from_numpy(mine.sums()).to(_collective_device()))
        self.mixture = fit(mine.with_sums(sums.cpu().numpy()))
        self.p_noise = self.mixture.posterior(self.losses)
        return self.mixture

    def write_columns(self, path: Path, rows: npt.NDArray[np.int64]) -> None:
        """The columns of the rows in use as Parquet: row, loss, p_noise."""
        write_parquet(path, {"row": rows, "loss": self.losses[rows], "p_noise": self.p_noise[rows]})

    def save(self, path: Path) -> None:
        """Everything needed to go on, as one .npz."""
        mixture = json.dumps(None if self.mixture is None else self.mixture.to_dict())
        np.savez(path, losses=self.losses, p_noise=self.p_noise, mixture=np.array(mixture))

    def load(self, path: Path) -> None:
        """Back to the state `save` wrote. Raises ValueError if it is of a table with another number of rows."""
        with np.load(path, allow_pickle=False) as saved:
            losses, p_noise = saved["losses"], saved["p_noise"]
            if losses.shape != self.losses.shape or p_noise.shape != self.p_noise.shape:
                raise ValueError(f"it knows {len(losses)} pairs, the table has {len(self.losses)}")
            self.losses, self.p_noise = losses, p_noise
            mixture: dict[str, Any] | None = json.loads(str(saved["mixture"]))
        self.mixture = None if mixture is None else Mixture.from_dict(mixture)


def _collective_device() -> torch.device:
    """Where tensors must be to travel between ranks."""
    nccl = world_size() > 1 and torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
