"""The run's account of every pair: its latest loss, how noisy the noise model holds it to be, what the method says."""

import json
from dataclasses import dataclass
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


@dataclass
class Opinion:
    """What a method itself thinks of the table's n pairs, where it says so (`Loss.confidence`, `Loss.noisy`).

    confidence: (n,) float32 in [0, 1], how far it last believed each pair; NaN: it has said nothing of that pair.
    noisy: (n,) bool, whether it last treated the pair as mismatched. times_noisy: (n,) int32, how often in the run.
    """

    confidence: npt.NDArray[np.float32]
    noisy: npt.NDArray[np.bool_]
    times_noisy: npt.NDArray[np.int32]

    @classmethod
    def of_none(cls, rows: int) -> "Opinion":
        """Nothing said yet."""
        return cls(np.full(rows, np.nan, np.float32), np.zeros(rows, np.bool_), np.zeros(rows, np.int32))

    def take(
        self, rows: npt.NDArray[np.int64], confidence: npt.NDArray[np.float32], noisy: npt.NDArray[np.bool_]
    ) -> None:
        """What was said of rows (m,) in a step; a confidence of NaN says nothing."""
        said = np.isfinite(confidence)
        rows, noisy = rows[said], noisy[said]
        self.confidence[rows], self.noisy[rows] = confidence[said], noisy
        np.add.at(self.times_noisy, rows, noisy)  # a row that stands in for an unreadable one may be there twice


class Ledger:
    """Columns over the table's n rows, alike on every rank; NaN marks a pair no step has seen.

    What steps say is collected on the device and written here every few steps (`flush`): recording costs no waiting.
    `opinion` is None until the method says something of its own.
    """

    def __init__(self, rows: int, config: NoiseConfig) -> None:
        self.config = config
        self.losses: npt.NDArray[np.float32] = np.full(rows, np.nan, np.float32)  # (n,)
        self.p_noise: npt.NDArray[np.float32] = np.zeros(rows, np.float32)  # (n,)
        self.mixture: Mixture | None = None
        self.opinion: Opinion | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []

    def believe(self, rows: Tensor) -> Tensor:
        """p_noise (B,) float32 of rows (B,), on the CPU."""
        return torch.from_numpy(self.p_noise[rows.numpy()])

    def record(
        self,
        rows: Tensor,
        per_pair: Tensor,
        raw: Tensor | None = None,
        confidence: Tensor | None = None,
        noisy: Tensor | None = None,
    ) -> None:
        """Note the losses (B,) of rows (B,) of this step and rank, and what the method says of them; no graph is kept.

        raw: (B,) bool, whether a raw caption was among the row's; None: always. A loss of synthetic captions alone says
        nothing of the pair, which keeps the last one of its raw captions (and the p_noise that each fit makes of it),
        and so does what the method says then; it is only looked at for numbers that are not finite.
        confidence, noisy: (B,) as in `Loss`; None: nothing said, nothing called noisy. All ranks give the same of them.
        Raises ValueError for noisy without confidence.
        """
        if confidence is None and noisy is not None:
            raise ValueError("a method that calls pairs noisy must say how far it believes them: Loss.confidence")
        if confidence is not None and self.opinion is None:
            self.opinion = Opinion.of_none(len(self.losses))
        loss = per_pair.detach().float()
        said = torch.full_like(loss, torch.nan) if confidence is None else confidence.detach().float()
        called = torch.zeros_like(loss) if noisy is None else noisy.float()
        numbers = rows if raw is None else torch.where(raw, rows, ~rows)  # ~row: negative
        self._pending.append((numbers, torch.stack([loss, said, called], dim=1)))

    def flush(self) -> npt.NDArray[np.int64]:
        """Write what is pending, of all ranks, in step order; returns the rows whose loss is not finite."""
        if not self._pending:
            return np.zeros(0, np.int64)
        device = self._pending[0][1].device
        rows = all_gather(torch.stack([rows for rows, _ in self._pending], dim=1).to(device)).cpu().numpy()
        figures = all_gather(torch.stack([figures for _, figures in self._pending], dim=1)).cpu().numpy()
        self._pending.clear()
        for row, (loss, confidence, noisy) in zip(rows.T, figures.transpose(1, 2, 0), strict=True):  # (W·B,) of a step
            raw = row >= 0
            if self.config.loss_source == "epoch":
                self.measured(row[raw], loss[raw])
            if self.opinion is not None:
                self.opinion.take(row[raw], confidence[raw], noisy[raw] > 0)
        broken = rows[~np.isfinite(figures[:, :, 0])]
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
        """The columns of the rows in use as Parquet: row, loss, p_noise, and the opinion's where there is one."""
        known = {"loss": self.losses, "p_noise": self.p_noise, **self._said()}
        write_parquet(path, {"row": rows, **{name: column[rows] for name, column in known.items()}})

    def save(self, path: Path) -> None:
        """Everything needed to go on, as one .npz."""
        mixture = json.dumps(None if self.mixture is None else self.mixture.to_dict())
        columns: dict[str, Any] = {"losses": self.losses, "p_noise": self.p_noise, **self._said()}
        np.savez(path, mixture=np.array(mixture), **columns)

    def load(self, path: Path) -> None:
        """Back to the state `save` wrote, with or without an opinion.

        Raises ValueError if it is of a table with another number of rows, KeyError if a column is missing.
        """
        opinion = Opinion.of_none(len(self.losses))
        with np.load(path, allow_pickle=False) as saved:
            spoken = "confidence" in saved
            known = {"losses": self.losses, "p_noise": self.p_noise, **(vars(opinion) if spoken else {})}
            columns = {name: saved[name] for name in known}
            for name, column in known.items():
                if columns[name].shape != column.shape:
                    raise ValueError(f"it knows {columns[name].size} pairs, the table has {len(column)}")
                if columns[name].dtype != column.dtype:
                    raise ValueError(f"its {name} are {columns[name].dtype}, not {column.dtype}")
            mixture: dict[str, Any] | None = json.loads(str(saved["mixture"]))
        self.losses, self.p_noise = columns.pop("losses"), columns.pop("p_noise")
        self.opinion = Opinion(**columns) if spoken else None
        self.mixture = None if mixture is None else Mixture.from_dict(mixture)

    def _said(self) -> dict[str, Any]:
        """The opinion's columns by name, none without one."""
        return {} if self.opinion is None else vars(self.opinion)


def _collective_device() -> torch.device:
    """Where tensors must be to travel between ranks."""
    nccl = world_size() > 1 and torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
