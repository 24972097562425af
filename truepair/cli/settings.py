"""Flags that several verbs share, and what is made of their values."""

from typing import Annotated, Any

import tyro

from truepair.cli.output import console
from truepair.errors import UserError

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]  # --json, without --no-json


def loaded_model(name: str, device: str) -> Any:
    from truepair.models import open_model
    from truepair.train.devices import device_of

    return open_model(name).to(device_of(device))


def found_matcher(name: str, device: str, *, needed: bool = False) -> Any:
    """The model with its fusion encoder; None if it has none, or, unless it is `needed`, a damaged one."""
    from truepair.models.matcher import DamagedFusion, find_matcher
    from truepair.train.devices import device_of

    try:
        return find_matcher(name, device=device_of(device))
    except DamagedFusion as error:
        if needed:
            raise
        console.print(f"without ITM: {error}", style="yellow")
        return None


def checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} makes no sense")
    return batch_size


def checked_workers(wanted: int) -> int:
    from truepair.train.devices import workers_of

    if wanted < -1:
        raise UserError(f"--workers {wanted} makes no sense; -1 chooses by the number of cores")
    return workers_of(wanted)
