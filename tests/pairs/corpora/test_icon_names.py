"""What icons are called: one of each name, whatever its style, and what else it goes by."""

import pytest

from truepair.pairs.corpora.icon_names import read_icons
from truepair.pairs.corpora.iconify import parse_icon_set


def named(icons: list[str], **more: object) -> dict[str, tuple[str, ...]]:
    """The icons of a set with these icons, and their captions."""
    bodies = {name: {"body": f'<path d="M0 0h{i}v1z"/>'} for i, name in enumerate(icons, start=1)}
    found, _ = read_icons(parse_icon_set({"icons": bodies, **more}))
    return {icon.name: icon.captions for icon in found}


@pytest.mark.parametrize(
    ("icons", "left", "caption"),
    [
        (["home-filled", "home", "home-outline"], "home", "home"),
        (["alarm-clock-solid", "alarm-clock-duotone"], "alarm-clock-solid", "alarm clock"),
        (["wallet-02", "wallet-01"], "wallet-01", "wallet"),
        (["wallet-01-two-tone"], "wallet-01-two-tone", "wallet"),
        (["filter-6"], "filter-6", "filter 6"),
        (["fill"], "fill", "fill"),
        (["landfill"], "landfill", "landfill"),
    ],
)
def test_words_that_name_a_style_are_no_part_of_the_name(icons: list[str], left: str, caption: str) -> None:
    assert named(icons) == {left: (caption,)}


def test_styles_that_a_set_declares_count_and_the_first_declared_is_kept() -> None:
    icons = ["bell-20-sharp", "bell-16-round", "traffic-light"]
    assert named(icons, suffixes={"16-round": "Round", "20-sharp": "Sharp"}) == {
        "bell-16-round": ("bell",),
        "traffic-light": ("traffic light",),
    }
    assert named(["twotone-bell", "sharp-bell", "bell"], prefixes={"twotone": "Two-Tone", "sharp": "Sharp"}) == {
        "bell": ("bell",)
    }


def test_an_alias_is_a_further_caption_unless_an_icon_bears_that_name() -> None:
    aliases = {
        "house-filled": {"parent": "home-filled"},
        "dwelling": {"parent": "house-filled"},
        "star": {"parent": "home"},
        "old": {"parent": "home", "hidden": True},
        "lost": {"parent": "nowhere"},
        "loop": {"parent": "loop"},
    }
    assert named(["home", "home-filled", "star"], aliases=aliases) == {
        "home": ("home", "house", "dwelling"),
        "star": ("star",),
    }


def test_an_alias_that_turns_its_parent_is_an_icon_of_its_own() -> None:
    aliases = {
        "arrow-left": {"parent": "arrow-right", "hFlip": True},
        "back": {"parent": "arrow-left"},
    }
    assert named(["arrow-right"], aliases=aliases) == {
        "arrow-right": ("arrow right",),
        "arrow-left": ("arrow left", "back"),
    }


def test_no_icon_has_more_than_four_captions() -> None:
    aliases = {f"alias{letter}": {"parent": "home"} for letter in "abcdef"}
    assert named(["home"], aliases=aliases) == {"home": ("home", "aliasa", "aliasb", "aliasc")}


@pytest.mark.parametrize("name", ["../evil", "a.b", "a b", "a_b", "-a", "a--b", "", "Ä"])
def test_what_is_no_icon_name_is_left_out(name: str) -> None:
    assert named([name, "home"], aliases={f"x{name}!": {"parent": "home"}}) == {"home": ("home",)}


def test_styles_and_variants_left_out_are_counted() -> None:
    icons = {name: {"body": "<g/>"} for name in ("home", "home-fill", "home-outline", "key-01", "key-02")}
    assert read_icons(parse_icon_set({"icons": icons}))[1] == 3
