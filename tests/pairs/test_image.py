"""Probing and decoding: hostile bytes have named reasons, pixels equal those of open_clip and torchvision."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import ToTensor

from truepair.pairs import image as module
from truepair.pairs.header import image_size
from truepair.pairs.image import (
    Crop,
    ImageError,
    decode_centre,
    decode_crop,
    decode_regions,
    decode_whole,
    probe,
    random_crop,
)

RANDOM = np.random.default_rng(0)


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    coarse = Image.fromarray(RANDOM.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reason(data: bytes, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        image_size(data, **options)
    return caught.value.reason


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([16, 32, 65]),
    st.sampled_from(["PNG", "JPEG"]),
    st.booleans(),
)
def test_the_centre_equals_open_clips_validation_transform_pixel_for_pixel(
    width: int, height: int, size: int, form: str, squash: bool
) -> None:
    data = encoded(picture(width, height), form)
    mode = "squash" if squash else "shortest"
    steps = [
        step
        for step in image_transform(size, is_train=False, resize_mode=mode).transforms
        if not isinstance(step, ToTensor)
    ]
    steps = [step for step in steps if type(step).__name__ != "Normalize"]
    expected = Image.open(io.BytesIO(data))
    for step in steps:
        expected = step(expected)
    np.testing.assert_array_equal(decode_centre(data, size, squash=squash), np.asarray(expected))


@pytest.mark.parametrize("squash", [False, True])
def test_regions_are_the_centre_and_then_the_crops_one_by_one(squash: bool) -> None:
    data = encoded(picture(90, 61), "PNG")
    crops = [Crop(0, 0, 1, 1), Crop(0.25, 0.5, 0.5, 0.4), Crop(0.999, 0, 0.001, 1)]
    expected = [decode_centre(data, 16, squash=squash), *(decode_crop(data, 16, crop) for crop in crops)]
    np.testing.assert_array_equal(decode_regions(data, 16, crops, squash=squash), expected)
    assert decode_regions(data, 16, [], squash=squash).shape == (1, 16, 16, 3)


def test_the_centre_of_a_whole_image_survives_unchanged() -> None:
    image = picture(32, 32)
    np.testing.assert_array_equal(decode_centre(encoded(image, "PNG"), 32), np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(1, 400), (400, 1), (3, 250), (250, 7), (60, 190), (190, 60), (40, 41)])
@pytest.mark.parametrize("size", [16, 65])
def test_a_centre_cut_before_resizing_differs_by_rounding_only(
    width: int, height: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(picture(width, height), "PNG")
    expected = decode_centre(data, size).astype(int)
    monkeypatch.setattr(module, "MAX_RESIZED", 0)
    assert np.abs(decode_centre(data, size) - expected).max() <= 3  # of 255, where colours are cut off


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (1, 3_000_000), (5, 100_000)])
def test_no_aspect_makes_an_image_large(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    resize = Image.Image.resize

    def counted(self: Image.Image, size: tuple[int, int], *more: object) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(self, size, *more)

    data = encoded(Image.new("RGB", shape, "teal"), "PNG")
    monkeypatch.setattr(Image.Image, "resize", counted)
    assert (decode_centre(data, 224) == np.array([0, 128, 128])).all()
    assert made and max(made) <= 1 << 24


def test_images_handed_over_whole_have_a_bounded_aspect() -> None:
    assert decode_whole(encoded(Image.new("RGB", (200, 1)), "PNG")).size == (200, 1)
    for shape in ((201, 1), (3, 700)):
        with pytest.raises(ImageError) as caught:
            decode_whole(encoded(Image.new("RGB", shape), "PNG"))
        assert caught.value.reason == "extreme aspect ratio"


def test_transparent_pixels_are_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode_centre(encoded(image, "PNG"), 8) == 255).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "I;16"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    image = picture(20, 30, "RGB")
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    data = encoded(image, "PNG")
    assert decode_centre(data, 16).shape == (16, 16, 3)
    assert decode_crop(data, 16, Crop(0.1, 0.1, 0.5, 0.5)).dtype == np.uint8


def test_a_whole_crop_is_the_resized_image() -> None:
    image = picture(40, 40)
    expected = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC), np.int16)
    difference = decode_crop(encoded(image, "PNG"), 20, Crop(0, 0, 1, 1)) - expected
    assert np.abs(difference).max() <= 1  # Pillow rounds between its two passes


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**31))
def test_random_crops_lie_inside_and_their_area_is_in_scale(width: int, height: int, seed: int) -> None:
    uniform = np.random.default_rng(seed).random((64, 4))
    crops = random_crop(np.full(64, width), np.full(64, height), uniform, (0.5, 0.9))
    for crop in crops:
        assert 0 <= crop.left <= crop.left + crop.width <= 1 + 1e-12
        assert 0 <= crop.top <= crop.top + crop.height <= 1 + 1e-12
        clipped = crop.width > 1 - 1e-9 or crop.height > 1 - 1e-9
        assert clipped or 0.5 - 1e-9 <= crop.width * crop.height <= 0.9 + 1e-9


VARIANTS = [
    ("JPEG", "RGB", {}),
    ("JPEG", "RGB", {"progressive": True, "exif": b"Exif\0\0" + bytes(300)}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}),
    ("PNG", "P", {}),
    ("PNG", "1", {}),
    ("WEBP", "RGB", {}),
    ("WEBP", "RGBA", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGB", {"exif": b"Exif\0\0" + bytes(30)}),
    ("GIF", "P", {}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {}),
]


@pytest.mark.parametrize(("form", "mode", "options"), VARIANTS)
@pytest.mark.parametrize("size", [(1, 1), (17, 300), (256, 255)])
def test_sizes_from_the_header_equal_pillows(
    form: str, mode: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    data = encoded(picture(*size, mode=mode), form, **options)
    assert image_size(data) == size == probe(data) == image_size(data, verify=True)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_an_image_that_ends_early_is_unreadable(form: str, share: float) -> None:
    data = encoded(picture(200, 200), form)
    assert reason(data[: int(len(data) * share)]) == "unreadable image"


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_bytes_after_the_end_do_no_harm(form: str) -> None:
    assert image_size(encoded(picture(30, 20), form) + b"\0\0trailer") == (30, 20)


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"\xff\xd8\xff", b"RIFF....WEBP", bytes(500), b"%!PS-Adobe-3.0 EPSF"]
)
def test_what_is_no_image_is_unreadable(data: bytes) -> None:
    assert reason(data) == "unreadable image"


def test_no_bytes_are_an_empty_image() -> None:
    assert reason(b"") == "empty image"


def png_of_claimed_size(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [20_000, 60_000, 2**31 - 1])
def test_a_bomb_is_named_before_a_pixel_is_decoded(side: int) -> None:
    assert reason(png_of_claimed_size(side, side)) == "bomb-sized image"


def test_the_bound_on_pixels_is_the_callers() -> None:
    data = encoded(picture(30, 30), "PNG")
    assert reason(data, max_pixels=899) == "bomb-sized image"
    assert image_size(data, max_pixels=900) == (30, 30)


def test_verify_finds_damage_in_the_middle() -> None:
    data = bytearray(encoded(picture(200, 200), "PNG"))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    assert image_size(bytes(data)) == (200, 200)
    assert reason(bytes(data), verify=True) == "unreadable image"


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.integers(0, 60), st.binary(min_size=1, max_size=8))
def test_damaged_headers_never_raise_anything_but_image_errors(form: str, at: int, junk: bytes) -> None:
    data = bytearray(encoded(Image.new("RGB", (9, 7), "teal"), form))
    data[at : at + len(junk)] = junk
    try:
        width, height = image_size(bytes(data))
    except ImageError:
        return
    assert width > 0 and height > 0
