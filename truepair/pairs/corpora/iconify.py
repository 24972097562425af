"""Iconify icon sets: read one, find an icon behind its aliases, render it to a PNG."""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# How often a drawing may use a part of itself: so few nested uses give some 7,000 copies at most (e^(24/e)), more could
# keep the renderer busy for years. Three in a thousand icons of `@iconify/json` use anything.
MOST_USES = 24
OUTSIDE = re.compile(r"""href\s*=\s*["']\s*(?!#)|url\(\s*["']?\s*(?!#|["'\s])""", re.IGNORECASE)


@dataclass(frozen=True)
class Drawing:
    """One icon as it is to be drawn: SVG text, then a mirror, then clockwise quarter turns."""

    name: str  # of the icon behind the aliases
    svg: str
    mirror: bool
    turns: int

    @property
    def look(self) -> tuple[str, bool, int]:
        """What decides the picture: equal looks are equal pictures."""
        return self.svg, self.mirror, self.turns


@dataclass(frozen=True)
class IconSet:
    """A set in Iconify's JSON format (https://iconify.design/docs/types/iconify-json.html)."""

    icons: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, Mapping[str, Any]]
    box: Mapping[str, float]  # width, height, left, top where an icon says nothing
    name_of_code: Mapping[str, str]  # see `read_codes`
    info: Mapping[str, Any]
    suffixes: Mapping[str, str] = field(default_factory=dict)  # styles by the end of a name: {"": "Outline", "fill": …}
    prefixes: Mapping[str, str] = field(default_factory=dict)  # styles by its beginning

    def names(self) -> list[str]:
        """All names that lead to an icon: its own and its aliases."""
        return [*self.icons, *self.aliases]

    def drawing(self, name: str) -> Drawing | None:
        """The icon of that name, aliases followed and their flips and turns added up; None if there is none to show."""
        mirror, upside_down, turns, seen = False, False, 0, set()
        box = dict[str, float]()
        while name not in self.icons:
            alias = self.aliases.get(name)
            if alias is None or name in seen or alias.get("hidden"):
                return None
            seen.add(name)
            mirror ^= bool(alias.get("hFlip"))
            upside_down ^= bool(alias.get("vFlip"))
            turns += int(alias.get("rotate", 0))
            box = {side: alias[side] for side in self.box if side in alias} | box
            name = alias["parent"]
        icon = self.icons[name]
        if icon.get("hidden"):
            return None
        mirror ^= bool(icon.get("hFlip"))
        upside_down ^= bool(icon.get("vFlip"))
        turns += int(icon.get("rotate", 0))
        box = {side: icon.get(side, default) for side, default in self.box.items()} | box
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
            f'viewBox="{box["left"]} {box["top"]} {box["width"]} {box["height"]}" width="1024" height="1024">'
            f"{icon['body']}</svg>"
        )
        return Drawing(name, svg, mirror ^ upside_down, (turns + 2 * upside_down) % 4)


def read_icon_set(folder: Path) -> IconSet:
    """Read `icons.json`, `chars.json` and `info.json` of an unpacked `@iconify-json` package."""
    data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    return parse_icon_set({**data, "info": info}, read_codes(folder))


def parse_icon_set(data: Mapping[str, Any], name_of_code: Mapping[str, str] | None = None) -> IconSet:
    """A set from its JSON, as it stands in `json/SET.json` of `@iconify/json`."""
    box = {"left": 0, "top": 0, "width": 16, "height": 16}  # Iconify's defaults
    return IconSet(
        icons=data["icons"],
        aliases=data.get("aliases", {}),
        box={side: data.get(side, default) for side, default in box.items()},
        name_of_code=name_of_code or {},
        info=data.get("info", {}),
        suffixes=data.get("suffixes", {}),
        prefixes=data.get("prefixes", {}),
    )


def read_codes(folder: Path) -> dict[str, str]:
    """Plain code point sequence -> icon name, as the set's `chars.json` says; empty where the set has no such table."""
    codes = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    return {plain_code(code): name for code, name in codes.items()}


def plain_code(code: str) -> str:
    """Code points without the joiners and selectors on which sets differ: '1F469-200D-1F680' -> '1f469-1f680'."""
    return "-".join(part for part in code.lower().split("-") if part not in ("200d", "fe0f"))


def render(drawing: Drawing, size: int) -> bytes:
    """PNG of `size` x `size` pixels, RGB on white, the icon centred.

    Raises ValueError on SVG that cannot be drawn, would be drawn for ever or asks for anything outside itself.
    """
    import resvg_py

    if OUTSIDE.search(drawing.svg):
        raise ValueError("it refers to something outside itself")
    if drawing.svg.count("<use") > MOST_USES:
        raise ValueError(f"it uses parts of itself over {MOST_USES} times")
    drawn = resvg_py.svg_to_bytes(
        svg_string=drawing.svg, width=size, height=size, background="white", skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(drawn)).convert("RGB")
    if drawing.mirror:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if drawing.turns:
        image = image.rotate(-90 * drawing.turns)
    if np.asarray(image).min() == 255:
        raise ValueError("the picture is blank")
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()
