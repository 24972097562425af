"""What corpora wrote, read back with the standard library and Pillow alone."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pairs_of(part: Path) -> list[tuple[dict, np.ndarray]]:
    """(KEY.json, pixels) of every pair, in the order of the tars."""
    found = []
    for shard in sorted((part / "shards").glob("*.tar")):
        content = members(shard)
        for name in content:
            if name.endswith(".json"):
                picture = Image.open(io.BytesIO(content[name.removesuffix("json") + "png"]))
                assert (picture.format, picture.mode) == ("PNG", "RGB")
                found.append((json.loads(content[name]), np.asarray(picture)))
    return found
