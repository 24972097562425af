"""From the bytes of an image file to uint8 pixels: probing, decoding, cropping; never a float."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # Pillow's own warning level for decompression bombs
MAX_RESIZED = 1 << 24  # pixels of an image resized before its centre is cut; Pillow holds four bytes for each
MAX_ASPECT = 200  # of images handed over whole; Qwen2-VL's own preparation refuses beyond it (its code, recalled)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # an allow-list: Pillow reads others through external programs


class ImageError(Exception):
    """The bytes are no usable image; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Crop:
    """Where to cut, as fractions of the image: left, top, width, height in [0, 1]."""

    left: float
    top: float
    width: float
    height: float


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """An opened, not yet decoded image; whatever Pillow raises becomes an ImageError with a named reason."""
    if not data:
        raise ImageError("empty image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError("bomb-sized image", f"{image.width}x{image.height} > {max_pixels} pixels")
                yield image
    except Image.DecompressionBombError as error:
        raise ImageError("bomb-sized image", str(error)) from None
    except UnidentifiedImageError:  # its own text is a memory address
        raise ImageError("unreadable image", f"none of {', '.join(FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, OverflowError, EOFError, KeyError, IndexError, MemoryError) as error:
        raise ImageError("unreadable image", str(error)[:200]) from None


def probe(data: bytes, *, full: bool = False, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) of an encoded image, from its header; `full` decodes every pixel to find truncated files too.

    Raises:
        ImageError: "empty image", "unreadable image" or "bomb-sized image" (more than `max_pixels`).
    """
    with _opened(data, max_pixels) as image:
        if full:
            image.load()
        return image.width, image.height


def _rgb(image: Image.Image) -> Image.Image:
    """RGB, transparency over white (as browsers show it on a page) instead of Pillow's arbitrary hidden colours."""
    if image.mode == "RGB":
        return image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def decode_crop(data: bytes, size: int, crop: Crop, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode, cut `crop` and resize it to (size, size, 3) uint8, for training.

    A JPEG is decoded at the smallest of its 1/1, 1/2, 1/4, 1/8 scales that still covers the wanted resolution. The cut,
    in whole pixels, is resized by PyTorch: bicubic with antialiasing as Pillow's, on uint8 too, three times as fast
    (benchmarks/loader.py). Raises ImageError.
    """
    with _opened(data, max_pixels) as image:
        if image.format == "JPEG":
            image.draft("RGB", (math.ceil(size / crop.width), math.ceil(size / crop.height)))
        pixels = np.array(_rgb(image))
    return _resized(pixels, size, crop)


def _resized(pixels: npt.NDArray[np.uint8], size: int, crop: Crop) -> npt.NDArray[np.uint8]:
    """A part of (H, W, 3) pixels as (size, size, 3)."""
    import torch  # here, as indexing and opening tables do without its second and half a gigabyte

    left, right = _span(crop.left, crop.width, pixels.shape[1])
    top, bottom = _span(crop.top, crop.height, pixels.shape[0])
    cut = torch.from_numpy(pixels)[top:bottom, left:right].permute(2, 0, 1)[None]  # channels last: the fast way
    resized = torch.nn.functional.interpolate(cut, (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _span(start: float, length: float, pixels: int) -> tuple[int, int]:
    """A part of a side of `pixels`, given as fractions: its first pixel and one past its last (at least one)."""
    first = min(round(start * pixels), pixels - 1)
    return first, min(max(round((start + length) * pixels), first + 1), pixels)


def decode_centre(
    data: bytes, size: int, *, squash: bool = False, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """Decode, resize the shorter side to `size` (bicubic) and cut the centre: (size, size, 3) uint8, for evaluation.

    `squash` resizes both sides instead and cuts nothing. Pixels equal those of open_clip's validation transform of
    the same resize_mode ("shortest" or "squash") before its conversion to float. Raises ImageError.
    """
    with _opened(data, max_pixels) as image:
        return centre(_rgb(image), size, squash)


def decode_regions(
    data: bytes, size: int, crops: Sequence[Crop], *, squash: bool = False, max_pixels: int = MAX_PIXELS
) -> npt.NDArray[np.uint8]:
    """The whole image as `decode_centre` gives it, then each crop resized to a square: (1 + R, size, size, 3) uint8.

    Decodes once, at full resolution. Raises ImageError.
    """
    with _opened(data, max_pixels) as image:
        rgb = _rgb(image)
        whole = centre(rgb, size, squash)
        pixels = np.array(rgb) if crops else whole
    return np.stack([whole, *(_resized(pixels, size, crop) for crop in crops)])


def centre(pixels: Image.Image, size: int, squash: bool) -> npt.NDArray[np.uint8]:
    if squash:
        return np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC))
    width, height = pixels.size
    if width <= height:  # torchvision's Resize truncates the longer side
        new_width, new_height = size, max(int(size * height / width), size)
    else:
        new_width, new_height = max(int(size * width / height), size), size
    left, top = round((new_width - size) / 2.0), round((new_height - size) / 2.0)
    if new_width * new_height > MAX_RESIZED:
        return _cut_first(pixels, size, (left, new_width), (top, new_height))
    if (new_width, new_height) != (width, height):
        pixels = pixels.resize((new_width, new_height), Image.Resampling.BICUBIC)
    return np.asarray(pixels.crop((left, top, left + size, top + size)))


def _cut_first(pixels: Image.Image, size: int, across: tuple[int, int], down: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """What `centre` gives, but for rounding; along each axis: where the centre begins, of how many resized pixels."""
    (x, right), (x0, x1) = _reach(pixels.width, size, *across)
    (y, bottom), (y0, y1) = _reach(pixels.height, size, *down)
    near = pixels.crop((x, y, right, bottom))
    return np.asarray(near.resize((size, size), Image.Resampling.BICUBIC, (x0 - x, y0 - y, x1 - x, y1 - y)))


def _reach(pixels: int, size: int, start: int, resized: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Of a side of `pixels`: the span that the centre takes something from, in whole pixels, and the centre itself."""
    scale = pixels / resized
    margin = 2 * math.ceil(max(1, scale)) + 1  # as far as a bicubic kernel reaches
    begin, end = start * scale, min((start + size) * scale, pixels)
    return (max(0, math.floor(begin) - margin), min(pixels, math.ceil(end) + margin)), (begin, end)


def decode_whole(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to an RGB image of its own size, for models that bring their own preparation.

    Raises ImageError, also ("extreme aspect ratio") where one side is over 200 times the other: many a preparation
    resizes the shorter side to the model's, and a file of some hundred bytes would take gigabytes.
    """
    with _opened(data, max_pixels) as image:
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ImageError("extreme aspect ratio", f"{image.width}x{image.height}")
        pixels = _rgb(image)
        pixels.load()
        return pixels


def random_crop(
    width: npt.NDArray[np.integer],
    height: npt.NDArray[np.integer],
    uniform: npt.NDArray[np.float64],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> list[Crop]:
    """The crops of torchvision's RandomResizedCrop (area in `scale`, aspect in `ratio`), vectorised over B images.

    `uniform` (B, 4) in [0, 1) is all the randomness: area, log-aspect, left, top. Where torchvision would try again
    because a side sticks out, the side is clipped to the image.
    """
    area = width * height * (scale[0] + uniform[:, 0] * (scale[1] - scale[0]))
    aspect = np.exp(np.log(ratio[0]) + uniform[:, 1] * (np.log(ratio[1]) - np.log(ratio[0])))
    cut_width = np.minimum(np.sqrt(area * aspect), width) / width
    cut_height = np.minimum(np.sqrt(area / aspect), height) / height
    left, top = uniform[:, 2] * (1 - cut_width), uniform[:, 3] * (1 - cut_height)
    return [Crop(*map(float, row)) for row in np.stack([left, top, cut_width, cut_height], axis=1)]
