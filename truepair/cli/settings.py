"""Flags that several verbs share, and what is made of their values."""

from typing import Annotated, Any

import tyro

from truepair.errors import UserError

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # --json, without --no-json


def loaded_model(name: str, device: str) -> Any:
    from truepair.models import open_model
    from truepair.train.devices import device_of

    return open_model(name).to(device_of(device))


def checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} makes no sense")
    return batch_size


def checked_workers(wanted: int) -> int:
    from truepair.train.devices import workers_of

    if wanted < -1:
        raise UserError(f"--workers {wanted} makes no sense; -1 chooses by the number of cores")
    return workers_of(wanted)
