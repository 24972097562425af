"""Images a second and core from JPEG bytes to a training crop: ours against open_clip's own training transform.

Both decode the same generated photographs (gradients, shapes, grain; quality 90) in one process with one thread, in
turns; each draws crops of 90-100 % of the area at random. Ours ends in uint8, as batches do here (normalising is the
device's work); open_clip's ends in normalised float32. Then both cut the same boxes, and the pixels are compared.

    python benchmarks/loader.py --out benchmarks/results/loader.json
"""

import argparse
import io
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image, ImageDraw, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from truepair.pairs.image import Crop, decode_crop, random_crop

SIZES = ((640, 480), (256, 256), (512, 512), (1024, 1024), (1024, 768))
CROP = 224
SCALE = (0.9, 1.0)


def photograph(width: int, height: int, seed: int) -> bytes:
    """JPEG of soft light, some forty shapes at many scales, lens blur and grain: about 1.5 bits a pixel."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    light = random.uniform(40, 215, 3) + 60 * (np.stack([x, y, x * y], axis=-1) - 0.5) @ random.uniform(-1, 1, (3, 3))
    picture = Image.fromarray(light.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for _ in range(40):
        cx, cy = random.uniform(0, width), random.uniform(0, height)
        r = min(width, height) * 10 ** random.uniform(-2, -0.6)
        pen.regular_polygon(
            (cx, cy, r), int(random.integers(3, 9)), random.uniform(0, 360), tuple(random.integers(0, 256, 3))
        )
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    grain = random.normal(0, 4, pixels.shape)
    file = io.BytesIO()
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def crops_of(files: Sequence[bytes], width: int, height: int, seed: int) -> list[Crop]:
    uniform = np.random.default_rng(seed).random((len(files), 4))
    return random_crop(np.full(len(files), width), np.full(len(files), height), uniform, SCALE)


def theirs(files: Sequence[bytes], transform: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    return torch.stack([transform(Image.open(io.BytesIO(data))) for data in files])


def ours(files: Sequence[bytes], crops: Sequence[Crop]) -> torch.Tensor:
    return torch.from_numpy(np.stack([decode_crop(d, CROP, crop) for d, crop in zip(files, crops, strict=True)]))


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def likeness(files: Sequence[bytes], crops: Sequence[Crop], width: int, height: int) -> list[float]:
    """PSNR in dB of our crop against torchvision's of the same box (rounded to whole pixels) at full decode."""
    found = []
    for data, crop in zip(files, crops, strict=True):
        left, top = round(crop.left * width), round(crop.top * height)
        w, h = round(crop.width * width), round(crop.height * height)
        box = Crop(left / width, top / height, w / width, h / height)
        full = Image.open(io.BytesIO(data)).convert("RGB")
        reference = resized_crop(full, top, left, h, w, [CROP, CROP], InterpolationMode.BICUBIC)
        error = np.square(decode_crop(data, CROP, box).astype(np.float64) - np.asarray(reference)).mean()
        found.append(float(10 * np.log10(255**2 / max(error, 1e-9))))
    return found


def measure(width: int, height: int, images: int, rounds: int) -> dict[str, Any]:
    files = [photograph(width, height, seed) for seed in range(images)]
    transform = open_clip.image_transform(CROP, is_train=True, aug_cfg=None)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(-1, rounds):  # the first turn warms up
        crops = crops_of(files, width, height, turn + 1)
        taken = {"ours": seconds(lambda c=crops: ours(files, c)), "theirs": seconds(lambda: theirs(files, transform))}
        if turn >= 0:
            for name, value in taken.items():
                times[name].append(value)
    likenesses = likeness(files, crops_of(files, width, height, 0), width, height)
    rate = {name: images / float(np.median(values)) for name, values in times.items()}
    return {
        "size": f"{width}x{height}",
        "kilobytes": round(sum(map(len, files)) / images / 1000, 1),
        "ours": round(rate["ours"], 1),
        "open_clip": round(rate["theirs"], 1),
        "ratio": round(rate["ours"] / rate["theirs"], 2),
        "psnr_mean": round(float(np.mean(likenesses)), 1),
        "psnr_least": round(min(likenesses), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="photographs of each size")
    parser.add_argument("--rounds", type=int, default=7, help="turns of both; the median counts")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'pixels':>10}{'kB':>7}{'ours/s':>9}{'open_clip/s':>13}{'ratio':>7}{'PSNR dB':>9}{'least':>7}")
    rows = []
    for width, height in SIZES:
        row = measure(width, height, given.images, given.rounds)
        rows.append(row)
        print(
            f"{row['size']:>10}{row['kilobytes']:>7.0f}{row['ours']:>9.0f}{row['open_clip']:>13.0f}{row['ratio']:>7.2f}"
            f"{row['psnr_mean']:>9.1f}{row['psnr_least']:>7.1f}"
        )
    packages = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy")
    result = {
        "images_per_core_second": rows,
        "crop": CROP,
        "scale": SCALE,
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(result))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n")


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
