"""What the values of a pass depend on, as digests, so that a pass is not gone on with over other inputs."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from truepair.pairs.columns import Column, StringLists, Strings
from truepair.pairs.table import PairTable

DIGITS = 16  # of a SHA-256 in hexadecimal, 64 bits: inputs differ by accident, not by an attack


def digest(*arrays: npt.NDArray[Any]) -> str:
    """Of the types, shapes and bytes of arrays; mapped ones are read as they lie."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:DIGITS]


def content(column: Column) -> str:
    """Of all values of a column, the same however its file is laid out. About 2 GB/s."""
    match column:
        case StringLists():
            return digest(column.strings.blob, column.strings.ends, column.ends)
        case Strings():
            return digest(column.blob, column.ends)
        case _:
            return digest(column)


def images(table: PairTable) -> str:
    """Of the hashes of all rows' images: the same wherever the table and its images lie."""
    return content(table.strings("sha"))


def weights(model: object) -> str:
    """Of every parameter and buffer of a model, by name; "" for what is no `torch.nn.Module`.

    All bytes are read: about a second for each GB, more where they come from a GPU one tensor at a time.
    """
    if not isinstance(model, nn.Module):
        return ""
    found = hashlib.sha256()
    tensors: dict[str, Any] = dict(model.state_dict()) | dict(model.named_buffers())  # also those not saved: means, …
    for name in sorted(tensors):
        tensor = tensors[name]
        if isinstance(tensor, Tensor):
            found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:DIGITS]


def difference(begun: dict[str, Any], wanted: dict[str, Any]) -> str:
    """In words, where two identities differ; "" if they do not."""
    flat_begun, flat_wanted = _flat(begun), _flat(wanted)
    names = [name for name in {**flat_begun, **flat_wanted} if flat_begun.get(name) != flat_wanted.get(name)]
    return ", ".join(f"{name} {flat_begun.get(name)!r} (now {flat_wanted.get(name)!r})" for name in names)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        path = f"{prefix}.{name}" if prefix else name
        flat |= _flat(entry, path) if isinstance(entry, dict) and entry else {path: entry}
    return {name.removeprefix("columns."): entry for name, entry in flat.items()}
