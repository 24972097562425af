"""A web site on loopback as careless as the web: pictures in many formats, dead links, answers that are no pictures."""

import io
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Literal

from PIL import Image, ImageDraw

HANG = 30.0  # seconds a hanging answer keeps silent, unless the site is closed before
FORMATS: tuple[tuple[str, str, str, dict[str, object]], ...] = (  # suffix, Pillow's format, mode, options
    ("jpg", "JPEG", "RGB", {"quality": 90}),
    ("png", "PNG", "RGB", {}),
    ("webp", "WEBP", "RGB", {"quality": 90}),
    ("jpeg", "JPEG", "RGB", {"progressive": True}),
    ("png", "PNG", "RGBA", {}),
    ("jpg", "JPEG", "L", {}),
    ("png", "PNG", "P", {}),
    ("webp", "WEBP", "RGBA", {"lossless": True}),
    ("bmp", "BMP", "RGB", {}),
)
DEAD = (  # paths from which nothing comes that could be taken for a picture
    "missing.jpg",
    "error.png",
    "reset.jpg",
    "hang.jpg",
    "loop.jpg",
    "short.jpg",
    "forbidden.jpg",
)
DAMAGED = {  # answered in order as pictures, which they are not: path -> why `truepair index` skips the bytes
    "page.jpg": "unreadable image",
    "empty.jpg": "empty image",
    "random.png": "unreadable image",
    "magic.jpg": "unreadable image",
    "drawing.svg": "unreadable image",
    "cut.jpg": "unreadable image",
    "cut.png": "unreadable image",
}


@dataclass(frozen=True)
class Drawing:
    """A picture of one colour inside a frame."""

    path: str
    data: bytes
    colour: tuple[int, int, int]  # of its middle


@dataclass(frozen=True)
class Answer:
    """What the site says to a request; `length` is stated, where it is not that of the body."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    instead: Literal["", "reset", "hang"] = ""


def drawings(count: int) -> list[Drawing]:
    """`count` distinct drawings of every format in turn; then a GIF, a single pixel, a strip and 96 megapixels."""
    colours = list(product((25, 95, 165, 235), repeat=3))[1 : count + 1]
    made = []
    for i, colour in enumerate(colours):
        suffix, kind, mode, options = FORMATS[i % len(FORMATS)]
        if mode == "L":
            colour = (sum(colour) // 3,) * 3
        made.append(_drawn(f"{i:02d}.{suffix}", (40 + 7 * i, 48 + 5 * (i * 7 % 40)), colour, kind, mode, options))
    made.append(_drawn("moving.gif", (50, 60), (210, 60, 120), "GIF", "P", {}))
    made.append(_drawn("pixel.png", (1, 1), (60, 210, 120), "PNG", "RGB", {}))
    made.append(_drawn("strip.png", (600, 2), (60, 120, 210), "PNG", "RGB", {}))
    made.append(_drawn("huge.png", (12_000, 8_000), (255, 255, 255), "PNG", "1", {}))
    return made


def _drawn(
    path: str, size: tuple[int, int], colour: tuple[int, int, int], kind: str, mode: str, options: dict[str, object]
) -> Drawing:
    if mode == "1":
        image = Image.new("1", size, 1)
    else:
        image = Image.new("RGB", size, colour)
        if min(size) > 8:
            ImageDraw.Draw(image).rectangle((0, 0, size[0] - 1, size[1] - 1), outline="black", width=3)
        if mode == "RGBA":
            opaque = Image.new("L", size, 0)
            ImageDraw.Draw(opaque).rectangle((3, 3, size[0] - 4, size[1] - 4), fill=255)
            image.putalpha(opaque)
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Drawing(path, file.getvalue(), colour)


def site(pictures: list[Drawing]) -> dict[str, Answer]:
    """path -> answer: the drawings, `DEAD`, `DAMAGED`, and "moved.jpg", which leads to the first drawing."""
    jpeg, png = pictures[0].data, pictures[1].data
    return {picture.path: Answer(picture.data, headers=_image(picture.path)) for picture in pictures} | {
        "moved.jpg": Answer(status=302, headers=(("Location", f"/{pictures[0].path}"),)),
        "missing.jpg": Answer(b"<h1>404</h1>", 404, (("Content-Type", "text/html"),)),
        "error.png": Answer(b"", 500),
        "reset.jpg": Answer(instead="reset"),
        "hang.jpg": Answer(instead="hang"),
        "loop.jpg": Answer(status=302, headers=(("Location", "/loop.jpg"),)),
        "short.jpg": Answer(jpeg[: len(jpeg) // 2], headers=_image("short.jpg"), length=len(jpeg)),
        "forbidden.jpg": Answer(jpeg, headers=(("X-Robots-Tag", "noai"), *_image("forbidden.jpg"))),
        "page.jpg": Answer(b"<!doctype html><title>Not found</title><p>Sorry.", headers=_image("page.jpg")),
        "empty.jpg": Answer(b"", headers=_image("empty.jpg")),
        "random.png": Answer(bytes((i * i) % 251 for i in range(4000)), headers=_image("random.png")),
        "magic.jpg": Answer(b"\xff\xd8\xff\xe0", headers=_image("magic.jpg")),
        "drawing.svg": Answer(
            b'<svg xmlns="http://www.w3.org/2000/svg"/>', headers=(("Content-Type", "image/svg+xml"),)
        ),
        "cut.jpg": Answer(jpeg[: len(jpeg) // 2], headers=_image("cut.jpg")),
        "cut.png": Answer(png[: len(png) * 2 // 3], headers=_image("cut.png")),
    }


def _image(path: str) -> tuple[tuple[str, str], ...]:
    suffix = path.rpartition(".")[2]
    return (("Content-Type", f"image/{'jpeg' if suffix == 'jpg' else suffix}"),)


class _Site(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.answers = answers
        self.closing = threading.Event()


class _Visit(BaseHTTPRequestHandler):
    server: _Site

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path.lstrip("/"), Answer(status=404))
        if answer.instead == "hang":
            self.server.closing.wait(HANG)
        elif answer.instead == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.send_response(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
            self.end_headers()
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(answers: Mapping[str, Answer]) -> Iterator[str]:
    """The site's address, http://127.0.0.1:PORT, while the block lasts."""
    with _Site(answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
