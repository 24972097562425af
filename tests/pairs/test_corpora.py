"""Demo corpora: what they promise to write, and what they refuse; nothing here touches the network."""

import dataclasses
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shards_read import members, pairs_of, tree

from truepair.errors import UserError
from truepair.pairs.corpora import emoji, packages, scenes
from truepair.pairs.corpora.concepts import TEXTS, Concept, match_icons, name_concepts, read_concepts, squash
from truepair.pairs.corpora.emoji import Style, make_emoji
from truepair.pairs.corpora.iconify import IconSet, read_icon_set, render
from truepair.pairs.corpora.packages import CorpusUnavailable, Package, cache_folder, fetch_packages, unpack
from truepair.pairs.corpora.scenes import COLOURS, make_scenes
from truepair.pairs.corpora.shards import Pair, write_shards, write_zeroshot

CAPTIONS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=4, unique=True)
HALF = '<path d="M0 0h4v8H0z" fill="currentColor"/>'  # the left half of an 8 x 8 icon
RED = '<path d="M0 0h8v8H0z" fill="red"/>'


class TestShards:
    @settings(deadline=None, max_examples=30)
    @given(texts=st.lists(CAPTIONS, min_size=1, max_size=7), per_shard=st.integers(1, 4))
    def test_every_pair_is_read_back_in_order_with_its_picture_captions_and_note(
        self, tmp_path_factory, texts, per_shard
    ):
        folder = tmp_path_factory.mktemp("shards")
        pairs = [
            Pair(f"k{i}", bytes([i]), tuple(t), i - 1, {"concept": "ü", "style": "s"}) for i, t in enumerate(texts)
        ]
        paths = write_shards(pairs, folder, per_shard)
        assert [path.name for path in paths] == [f"{i:05d}.tar" for i in range(-(-len(texts) // per_shard))]
        content = [item for path in paths for item in members(path).items()]
        expected = []
        for i, text in enumerate(texts):
            note = {"caption": text[0], "captions": text, "label": i - 1, "concept": "ü", "style": "s", "key": f"k{i}"}
            expected += [(f"k{i}.png", bytes([i])), (f"k{i}.txt", text[0].encode()), (f"k{i}.json", note)]
        assert [(name, json.loads(data) if name.endswith("json") else data) for name, data in content] == expected

    def test_bytes_depend_on_the_pairs_alone(self, tmp_path, monkeypatch):
        pairs = [Pair("a", b"x", ("one",)), Pair("b", b"y", ("two", "deux"))]
        write_shards(pairs, tmp_path / "now")
        monkeypatch.setattr("time.time", lambda: 4e9)
        monkeypatch.setattr("os.getuid", lambda: 4321)
        write_shards(pairs, tmp_path / "later")
        assert tree(tmp_path / "now") == tree(tmp_path / "later")

    def test_a_failure_leaves_no_half_written_shard(self, tmp_path, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tarfile.TarFile, "addfile", full)
        with pytest.raises(OSError, match="No space"):
            write_shards([Pair("a", b"x", ("one",))], tmp_path)
        assert tree(tmp_path) == {}

    def test_shards_already_there_are_not_overwritten(self, tmp_path):
        write_shards([Pair("a", b"x", ("one",))], tmp_path)
        before = tree(tmp_path)
        with pytest.raises(UserError, match="already holds shards"):
            write_shards([Pair("b", b"y", ("two",))], tmp_path)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("key", ["", "a.b", "a/b", "seen"])
    def test_an_unusable_or_repeated_key_is_refused(self, tmp_path, key):
        with pytest.raises(ValueError, match="key"):
            write_shards([Pair("seen", b"", ("one",)), Pair(key, b"", ("two",))], tmp_path)

    def test_a_pair_without_captions_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="no caption"):
            write_shards([Pair("a", b"", ())], tmp_path)


class TestZeroshot:
    def test_layout_is_what_clip_benchmark_opens(self, tmp_path):
        pairs = [Pair(f"k{i}", bytes([i]), ("x",), label) for i, label in enumerate((1, 0, 1))]
        write_zeroshot(pairs, ["cat", "red heart"], ["a {c}", "{c}"], tmp_path, per_shard=2)
        assert (tmp_path / "classnames.txt").read_text().splitlines() == ["cat", "red heart"]
        templates = (tmp_path / "zeroshot_classification_templates.txt").read_text().splitlines()
        assert [template.format(c="cat") for template in templates] == ["a cat", "cat"]
        count = int((tmp_path / "test" / "nshards.txt").read_text())
        content = [item for i in range(count) for item in members(tmp_path / "test" / f"{i}.tar").items()]
        assert content == [
            *[("k0.png", b"\0"), ("k0.cls", b"1"), ("k1.png", b"\1"), ("k1.cls", b"0")],
            *[("k2.png", b"\2"), ("k2.cls", b"1")],
        ]

    @pytest.mark.parametrize(
        ("label", "names", "templates"),
        [(-1, ["a"], ["{c}"]), (1, ["a"], ["{c}"]), (0, ["a"], ["c"]), (0, ["a\nb"], ["{c}"])],
    )
    def test_what_cannot_be_read_back_is_refused(self, tmp_path, label, names, templates):
        with pytest.raises(ValueError, match=r"class|template"):
            write_zeroshot([Pair("k", b"", ("x",), label)], names, templates, tmp_path)


THING = Package("@some/thing", "1.2.3", ("icons.json", "en/data.json"))


def tarball(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """An npm on PATH that runs the given shell text; PATH holds nothing else but the shell's own tools."""

    def install(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "npm").chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")

    return install


class TestPackages:
    def test_npm_brings_a_package_once(self, tmp_path, fake_npm):
        made = tarball(
            tmp_path / "t.tgz", {"package/icons.json": b"1", "package/en/data.json": b"2", "package/x.js": b"3"}
        )
        fake_npm(f'echo "$@" >> {tmp_path}/calls; cp {made} some-thing-1.2.3.tgz')
        for _ in range(2):
            folders = fetch_packages([THING], tmp_path / "cache")
            assert tree(folders["@some/thing"]) == {"icons.json": b"1", "en/data.json": b"2"}
        (call,) = (tmp_path / "calls").read_text().splitlines()
        assert call.startswith("pack @some/thing@1.2.3 ")
        assert [path.name for path in (tmp_path / "cache" / "npm").iterdir()] == ["some-thing-1.2.3"]

    def test_a_failing_npm_is_said_in_one_line(self, tmp_path, fake_npm):
        fake_npm("echo 'npm error code ENOTFOUND' >&2; echo more >&2; exit 1")
        with pytest.raises(CorpusUnavailable, match="ENOTFOUND") as raised:
            fetch_packages([THING], tmp_path)
        assert "\n" not in str(raised.value)
        assert list((tmp_path / "npm").iterdir()) == []

    def test_a_hanging_npm_is_given_up(self, tmp_path, fake_npm, monkeypatch):
        fake_npm("exec sleep 30")
        monkeypatch.setattr(packages, "FETCH_SECONDS", 0.1)
        with pytest.raises(CorpusUnavailable, match=r"in 0\.1 s"):
            fetch_packages([THING], tmp_path)

    def test_no_npm_at_all_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.which", lambda _: None)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(CorpusUnavailable, match=r"truepair\[demo\]"):
            fetch_packages([THING], tmp_path)

    @pytest.mark.parametrize("name", ["package/../../evil", "/etc/evil", "package/en/../../../evil"])
    def test_a_path_that_leaves_the_package_is_refused(self, tmp_path, name):
        (tmp_path / "cache").mkdir()
        files = {"package/icons.json": b"1", "package/en/data.json": b"2", name: b"evil"}
        with pytest.raises(CorpusUnavailable, match="leaves the package"):
            unpack(tarball(tmp_path / "t.tgz", files), THING, tmp_path / "cache" / "thing")
        assert tree(tmp_path / "cache") == {}

    def test_a_pattern_brings_all_files_that_fit_and_must_bring_one(self, tmp_path):
        files = {"package/json/a.json": b"1", "package/json/b.json": b"2", "package/x.js": b"3", "json/c.json": b"4"}
        path = tarball(tmp_path / "t.tgz", files)
        unpack(path, Package("thing", "1", ("json/*.json",)), tmp_path / "thing")
        assert tree(tmp_path / "thing") == {"json/a.json": b"1", "json/b.json": b"2"}
        with pytest.raises(CorpusUnavailable, match=r"lacks svg/\*\.svg"):
            unpack(path, Package("thing", "1", ("svg/*.svg",)), tmp_path / "other")

    def test_a_package_that_unpacks_to_too_much_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(packages, "LARGEST_PACKAGE", 10)
        path = tarball(tmp_path / "t.tgz", {"package/icons.json": bytes(11), "package/en/data.json": b"2"})
        with pytest.raises(CorpusUnavailable, match="over 10 bytes"):
            unpack(path, THING, tmp_path / "thing")
        assert not (tmp_path / "thing").exists()

    def test_a_link_is_no_file(self, tmp_path):
        path = tarball(tmp_path / "t.tgz", {"package/en/data.json": b"2"}, {"package/icons.json": "/etc/passwd"})
        with pytest.raises(CorpusUnavailable, match=r"lacks icons\.json"):
            unpack(path, THING, tmp_path / "thing")
        assert not (tmp_path / "thing").exists()

    @pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not a tarball"])
    def test_a_damaged_tarball_is_refused(self, tmp_path, damage):
        path = tarball(tmp_path / "t.tgz", {"package/icons.json": os.urandom(9999), "package/en/data.json": b"2"})
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(CorpusUnavailable, match="cannot be unpacked"):
            unpack(path, THING, tmp_path / "thing")
        assert not (tmp_path / "thing").exists()

    def test_the_cache_lies_where_the_environment_says(self, monkeypatch):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("TRUEPAIR_CACHE", raising=False)
        assert cache_folder() == Path.home() / ".cache" / "truepair"
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        assert cache_folder() == Path("/xdg/truepair")
        monkeypatch.setenv("TRUEPAIR_CACHE", "/mine")
        assert cache_folder() == Path("/mine")


def icon_set(icons: dict, aliases: dict | None = None, codes: dict | None = None) -> IconSet:
    box = {"left": 0, "top": 0, "width": 8, "height": 8}
    return IconSet({k: {"body": v} for k, v in icons.items()}, aliases or {}, box, codes or {}, {})


class TestIcons:
    @pytest.mark.parametrize(
        ("change", "black"),  # the half of the picture that is black: `half` itself blackens the left one
        [
            ({}, np.s_[:, :4]),
            ({"hFlip": True}, np.s_[:, 4:]),
            ({"vFlip": True}, np.s_[:, :4]),
            ({"rotate": 1}, np.s_[:4, :]),
            ({"rotate": 3}, np.s_[4:, :]),
            ({"rotate": 1, "vFlip": True}, np.s_[:4, :]),
            ({"rotate": 1, "hFlip": True}, np.s_[4:, :]),
            ({"rotate": 2, "hFlip": True}, np.s_[:, :4]),
        ],
    )
    def test_an_alias_is_flipped_then_turned_clockwise(self, change, black):
        pytest.importorskip("resvg_py")
        drawing = icon_set({"half": HALF}, {"other": {"parent": "half", **change}}).drawing("other")
        assert drawing is not None
        expected = np.full((8, 8, 3), 255)
        expected[black] = 0
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(render(drawing, 8)))), expected)

    def test_flips_of_an_alias_of_an_alias_cancel(self):
        aliases = {
            "a": {"parent": "half", "hFlip": True, "rotate": 3},
            "b": {"parent": "a", "hFlip": True, "rotate": 1},
        }
        icons = icon_set({"half": HALF}, aliases)
        b, half = icons.drawing("b"), icons.drawing("half")
        assert b is not None and half is not None and b.look == half.look

    def test_hidden_missing_and_circular_names_show_nothing(self):
        icons = IconSet(
            {"gone": {"body": HALF, "hidden": True}, "here": {"body": HALF}},
            {
                "x": {"parent": "y"},
                "y": {"parent": "x"},
                "z": {"parent": "gone"},
                "h": {"parent": "here", "hidden": True},
            },
            {"left": 0, "top": 0, "width": 8, "height": 8},
            {},
            {},
        )
        assert [name for name in ("gone", "nowhere", "x", "z", "h", "here") if icons.drawing(name)] == ["here"]

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ('<image href="file:///etc/passwd" width="8" height="8"/>', "outside itself"),
            ('<image xlink:href="data:image/png;base64,AAAA" width="8" height="8"/>', "outside itself"),
            ('<path fill="url(other.svg#a)" d="M0 0h8v8H0z"/>', "outside itself"),
            ('<g id="a"/>' + '<use href="#a"/>' * 25, "over 24 times"),
            ("<path d=", "SVG|XML|parse|unknown|expected|token"),
            ('<path d="M0 0h8v8H0z" fill="#fff"/>', "blank"),
        ],
    )
    def test_a_drawing_that_is_broken_blank_endless_or_asks_for_files_is_refused(self, body, said):
        pytest.importorskip("resvg_py")
        drawing = icon_set({"it": body}).drawing("it")
        assert drawing is not None
        with pytest.raises(ValueError, match=said):
            render(drawing, 8)

    def test_parts_of_itself_may_be_used(self):
        pytest.importorskip("resvg_py")
        gradient = '<linearGradient id="b"><stop stop-color="red"/></linearGradient>'
        defined = f'<defs><path id="a" d="M0 0h4v8H0z"/>{gradient}</defs>'
        drawing = icon_set({"it": defined + '<use href="#a"/><path fill="url(#b)" d="M4 0h4v8H4z"/>'}).drawing("it")
        assert drawing is not None
        pixels = np.asarray(Image.open(io.BytesIO(render(drawing, 8))))
        assert (pixels[:, :4] == 0).all() and (pixels[:, 4:] == (255, 0, 0)).all()

    def test_a_wide_icon_is_centred_on_white(self):
        pytest.importorskip("resvg_py")
        icons = dataclasses.replace(
            icon_set({"wide": RED.replace("v8", "v4")}), box={"left": 0, "top": 0, "width": 8, "height": 4}
        )
        drawing = icons.drawing("wide")
        assert drawing is not None
        pixels = np.asarray(Image.open(io.BytesIO(render(drawing, 16))))
        assert (pixels[4:12] == (255, 0, 0)).all() and (pixels[:4] == 255).all() and (pixels[12:] == 255).all()


def concept(code: str, label: str, official: tuple[str, ...] = (), shortcodes: tuple[str, ...] = ()) -> Concept:
    return Concept(code, (label,), tuple(tuple(map(squash, names)) for names in ((label,), official, shortcodes)))


class TestConcepts:
    def test_the_most_reliable_source_of_a_name_decides(self):
        concepts = [concept("1", "angry face"), concept("2", "pouting face", shortcodes=("angry_face", "rage"))]
        assert name_concepts(concepts, [{"2": "angry-face", "1": "cross"}, {"9": "unknown"}]) == {
            **{"angryface": 0, "poutingface": 1, "cross": 0},
            "rage": 1,
        }

    def test_a_name_claimed_twice_by_one_source_is_no_name(self):
        concepts = [concept("1", "sun", shortcodes=("star",)), concept("2", "moon", shortcodes=("star",))]
        assert "star" not in name_concepts(concepts, [])

    def test_code_points_win_over_names_and_one_drawing_serves_one_concept(self):
        concepts = [concept("1", "flag: Ceuta & Melilla"), concept("2", "flag: Spain"), concept("3", "dog")]
        icons = icon_set({"es": HALF, "dog": RED, "wolf": RED + HALF}, {}, {"1": "es", "2": "es", "3": "wolf"})
        drawings, shared = match_icons(concepts, icons, {"dog": 2})
        assert ({i: d.name for i, d in drawings.items()}, shared) == ({1: "es", 2: "wolf"}, {0: 1})

    def test_sets_write_names_differently(self):
        assert squash("Piñata") == squash("pinata") and squash("alarm-clock") == squash("alarmclock")


def entry(hexcode: str, label: str, tags: list[str], **more: object) -> dict:
    order = int(hexcode.split("-")[0], 16)
    return {"hexcode": hexcode, "label": label, "tags": tags, "group": 0, "order": order, **more}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds two styles and their texts already, and an npm that must not run."""

    def put(package: Package, content: dict[str, object]) -> None:
        for name, value in content.items():
            path = tmp_path / "cache" / "npm" / package.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))

    def must_not_run(*_: object) -> None:
        raise AssertionError("npm was run")

    monkeypatch.setattr(packages, "_npm_pack", must_not_run)
    entries = [
        entry("1F448", "hand pointing left", ["left"]),
        entry("1F449", "hand pointing right", ["right", "hand pointing right"], skins=[{"hexcode": "1F449-1F3FB"}]),
        entry("2764-FE0F", "red heart", [f"t{i}" for i in range(12)]),
        entry("1F3FB", "light skin tone", [], group=2),
        {"hexcode": "1F1E6", "label": "regional indicator A"},
    ]
    shortcodes = {"1F448": ["point_left", "hand_pointing_left"], "2764-FE0F": "heart", "1F449": "east"}
    texts = {"en/data.json": entries, "meta/unicode-names.json": {"1F449": "WHITE RIGHT POINTING INDEX"}}
    put(
        TEXTS,
        texts
        | {f"en/shortcodes/{s}.json": shortcodes if s == "github" else {} for s in ("emojibase", "github", "cldr")},
    )
    info = {"author": {"name": "A. Artist", "url": "https://example.org"}, "license": {"title": "MIT", "spdx": "MIT"}}
    arrow = '<path d="M0 0h4v8H0z" fill="blue"/>'
    one, two = Style("one", "1.0.0"), Style("two", "2.0.0")
    icons = {"hand-pointing-left": {"body": HALF}, "heart": {"body": RED}, "old": {"body": RED, "hidden": True}}
    aliases = {"hand-pointing-right": {"parent": "hand-pointing-left", "hFlip": True}}
    set_one = {"prefix": "one", "width": 8, "height": 8, "icons": icons, "aliases": aliases}
    put(one.package, {"icons.json": set_one, "chars.json": {"2764": "heart"}, "info.json": info})
    icons = {
        "hand-pointing-left": {"body": arrow},
        "red-heart": {"body": "<path d="},
        "white-right-pointing-index": {"body": RED},
    }
    put(
        two.package,
        {"icons.json": {"prefix": "two", "width": 8, "height": 8, "icons": icons}, "chars.json": {}, "info.json": info},
    )
    return tmp_path / "cache", (one, two)


class TestEmoji:
    @pytest.fixture(autouse=True)
    def renderer(self):
        pytest.importorskip("resvg_py")

    def test_the_held_out_artist_is_the_test_set_and_its_concepts_are_the_classes(self, cache, tmp_path):
        summary = make_emoji(tmp_path / "out", size=8, held_out="two", cache=cache[0], styles=cache[1])
        assert (summary.train, summary.test, summary.classes) == (3, 2, 2)
        train, test = pairs_of(tmp_path / "out" / "train"), pairs_of(tmp_path / "out" / "test")
        assert sorted((note["key"], note["style"], note["label"]) for note, _ in train) == [
            *[("one-1f448", "one", 0), ("one-1f449", "one", 1), ("one-2764", "one", -1)],
        ]
        assert [(note["key"], note["concept"], note["label"]) for note, _ in test] == [
            ("two-1f448", "hand pointing left", 0),
            ("two-1f449", "hand pointing right", 1),
        ]
        zeroshot = members(tmp_path / "out" / "zeroshot" / "test" / "0.tar")
        assert [zeroshot[name] for name in zeroshot if name.endswith(".cls")] == [b"0", b"1"]
        assert (tmp_path / "out" / "zeroshot" / "classnames.txt").read_text().splitlines() == [
            n["concept"] for n, _ in test
        ]

    def test_an_alias_that_is_a_mirror_image_is_drawn_mirrored(self, cache, tmp_path):
        make_emoji(tmp_path / "out", size=16, held_out="two", cache=cache[0], styles=cache[1])
        pixels = {note["key"]: image for note, image in pairs_of(tmp_path / "out" / "train")}
        assert (pixels["one-1f448"][:, :8] == 0).all() and (pixels["one-1f448"][:, 8:] == 255).all()
        assert np.array_equal(pixels["one-1f449"], pixels["one-1f448"][:, ::-1])

    def test_captions_are_label_telling_shortcode_and_tags_without_repetition(self, cache, tmp_path):
        texts = {c.code: c.captions for c in read_concepts(cache[0] / "npm" / TEXTS.folder)}
        assert texts == {
            "1f448": ("hand pointing left", "point left", "left"),
            "1f449": ("hand pointing right", "east", "right, hand pointing right"),
            "2764": ("red heart", "t0, t1, t2, t3, t4, t5, t6, t7"),
        }

    def test_an_icon_that_cannot_be_drawn_is_named_with_its_reason(self, cache, tmp_path):
        summary = make_emoji(tmp_path / "out", size=8, held_out="one", cache=cache[0], styles=cache[1])
        assert [(skipped.key, skipped.reason[:15]) for skipped in summary.skipped] == [("two-2764", "cannot be drawn")]
        assert (summary.train, summary.test) == (2, 3)
        assert json.loads((tmp_path / "out" / "corpus.json").read_text())["skipped"][0]["key"] == "two-2764"

    def test_every_set_is_credited(self, cache, tmp_path):
        summary = make_emoji(tmp_path / "out", size=8, held_out="two", cache=cache[0], styles=cache[1])
        assert [(style.name, style.licence, style.pairs) for style in summary.styles] == [
            ("one", "MIT", 3),
            ("two", "MIT", 2),
        ]
        credits = (tmp_path / "out" / "LICENSES.md").read_text()
        assert all(
            text in credits for text in ("@iconify-json/one@1.0.0", "@iconify-json/two@2.0.0", "A. Artist", "emojibase")
        )

    def test_the_corpus_is_the_same_from_cache_from_workers_and_anew(self, cache, tmp_path, monkeypatch):
        folder, styles = cache
        first = make_emoji(tmp_path / "a", size=8, held_out="two", cache=folder, styles=styles)
        with monkeypatch.context() as patch:
            patch.setattr(emoji, "_build", None)  # neither the kept corpus nor the one in place is built again
            kept = make_emoji(tmp_path / "b", size=8, held_out="two", cache=folder, styles=styles)
            make_emoji(tmp_path / "b", size=8, held_out="two", cache=folder, styles=styles)
        (folder / "corpora").rename(folder / "away")
        make_emoji(tmp_path / "c", size=8, held_out="two", cache=folder, styles=styles, workers=2)
        a, b, c = (tree(tmp_path / name) for name in "abc")
        assert a == b and a | {"corpus.json": b""} == c | {"corpus.json": b""}
        assert dataclasses.replace(first, seconds=0) == dataclasses.replace(kept, seconds=0)

    def test_the_seed_orders_the_train_pairs_and_changes_nothing_else(self, cache, tmp_path):
        orders = set()
        for seed in range(6):
            make_emoji(tmp_path / str(seed), size=8, held_out="two", seed=seed, cache=cache[0], styles=cache[1])
            orders.add(tuple(note["key"] for note, _ in pairs_of(tmp_path / str(seed) / "train")))
        assert len(orders) > 1 and len({frozenset(order) for order in orders}) == 1
        assert tree(tmp_path / "0" / "test") == tree(tmp_path / "5" / "test")

    def test_a_folder_with_another_corpus_is_left_alone(self, cache, tmp_path):
        make_emoji(tmp_path / "out", size=8, held_out="two", cache=cache[0], styles=cache[1])
        before = tree(tmp_path / "out")
        with pytest.raises(UserError, match="another corpus"):
            make_emoji(tmp_path / "out", size=16, held_out="two", cache=cache[0], styles=cache[1])
        with pytest.raises(UserError, match="another corpus"):
            make_scenes(tmp_path / "out", n=5)
        assert tree(tmp_path / "out") == before

    def test_a_style_nobody_drew_is_a_user_error(self, cache, tmp_path):
        with pytest.raises(UserError, match="choose one of one, two"):
            make_emoji(tmp_path / "out", held_out="three", cache=cache[0], styles=cache[1])

    def test_interrupted_making_leaves_nothing_under_a_final_name(self, cache, tmp_path, monkeypatch):
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(emoji, "write_zeroshot", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_emoji(tmp_path / "out", size=8, held_out="two", cache=cache[0], styles=cache[1])
        assert not (tmp_path / "out").exists() and tree(cache[0] / "corpora") == {}

    def test_a_read_set_says_who_drew_it(self, cache):
        assert read_icon_set(cache[0] / "npm" / "iconify-json-one-1.0.0").name_of_code == {"2764": "heart"}


class TestScenes:
    def test_pictures_and_sentences_are_a_function_of_the_seed(self, tmp_path):
        for name, seed in (("a", 3), ("b", 3), ("c", 4)):
            make_scenes(tmp_path / name, n=20, seed=seed, size=32)
        a, b, c = (tree(tmp_path / name / "train") for name in "abc")
        assert a == b and a.keys() == c.keys() and a != c

    def test_a_larger_corpus_begins_with_the_smaller_one_and_no_test_picture_is_a_train_picture(self, tmp_path):
        make_scenes(tmp_path / "small", n=10, size=32)
        make_scenes(tmp_path / "large", n=30, size=32)
        small, large = (members(tmp_path / name / "train" / "shards" / "00000.tar") for name in ("small", "large"))
        assert list(large.items())[: len(small)] == list(small.items())
        test = members(tmp_path / "large" / "test" / "shards" / "00000.tar")
        assert not {data for name, data in test.items() if name.endswith("png")} & set(large.values())

    def test_a_lone_object_has_the_colour_and_the_place_that_its_sentence_says(self, tmp_path):
        make_scenes(tmp_path, n=400, seed=1)
        rows, columns = {"top": 0, "middle": 1, "bottom": 2}, {"left": 0, "middle": 1, "right": 2}
        checked = 0
        for note, pixels in pairs_of(tmp_path / "train"):
            if note["label"] < 0:
                continue
            words = note["caption"].split()
            colour = next(np.array(COLOURS[word]) for word in words if word in COLOURS)
            ys, xs = np.nonzero(np.abs(pixels.astype(int) - colour).max(-1) <= 14)
            assert len(ys) > 20, note
            row = next((rows[word] for word in words if word in rows), 1)
            column = next((columns[word] for word in words if word in columns), 1)
            assert abs(ys.mean() / 64 - (row + 0.5) / 3) < 0.14 and abs(xs.mean() / 64 - (column + 0.5) / 3) < 0.14, (
                note
            )
            assert note["concept"] == scenes.CLASSES[note["label"]] and note["concept"] in note["caption"]
            checked += 1
        assert checked > 100

    def test_every_picture_has_distinct_captions_and_lone_test_objects_are_the_zeroshot_set(self, tmp_path):
        summary = make_scenes(tmp_path, n=100, size=16)
        assert (summary.train, summary.test, summary.classes) == (100, 20, 64)
        test = pairs_of(tmp_path / "test")
        for note, pixels in pairs_of(tmp_path / "train") + test:
            assert 2 <= len(set(note["captions"])) == len(note["captions"]) <= 3 and pixels.shape == (16, 16, 3)
        zeroshot = members(tmp_path / "zeroshot" / "test" / "0.tar")
        labels = [int(data) for name, data in zeroshot.items() if name.endswith(".cls")]
        assert labels == [note["label"] for note, _ in test if note["label"] >= 0]

    @pytest.mark.parametrize("bad", [{"n": 4}, {"size": 8}, {"seed": -1}])
    def test_numbers_out_of_range_are_user_errors(self, tmp_path, bad):
        with pytest.raises(UserError, match="scenes take"):
            make_scenes(tmp_path / "out", **bad)
        assert not (tmp_path / "out").exists()
