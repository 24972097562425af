"""The openclipart corpus, made of two tiny packages: captions, the split, what is left out and why."""

import io
import json
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_debs import made_deb
from PIL import Image
from shards_read import pairs_of, tree

from truepair.errors import UserError
from truepair.pairs.corpora import openclipart
from truepair.pairs.corpora.clipart_texts import file_name_text, read_texts
from truepair.pairs.corpora.openclipart import PNG, SVG, look_of, make_openclipart

PUBLIC = "http://web.resource.org/cc/PublicDomain"
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:cc="http://web.resource.org/cc/" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
)


def svg(title: str, author: str = "Ann Artist", licence: str = PUBLIC, keywords: tuple[str, ...] = ()) -> bytes:
    bag = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return (
        f"{HEAD}<title>no title of ours</title><metadata><rdf:RDF><cc:Work><dc:title>{title}</dc:title>"
        f"<dc:description>as\n  told</dc:description><dc:subject><rdf:Bag>{bag}</rdf:Bag></dc:subject>"
        f"<dc:publisher><cc:Agent><dc:title>A Library</dc:title></cc:Agent></dc:publisher>"
        f"<dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>"
        f'<cc:license rdf:resource="{licence}"/></cc:Work><cc:License rdf:about="{PUBLIC}"/></rdf:RDF></metadata></svg>'
    ).encode()


def png(seed: int, side: int = 20, mode: str = "RGB") -> bytes:
    """A picture of coarse noise, so that pictures of different seeds look different; other bytes in another mode."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    held = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST).convert(mode).save(held, "PNG")
    return held.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is huge."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    body = b"IDAT" + zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        for chunk in (head, body, b"IEND")
    )


Art = Callable[..., tuple[Path, Path]]


@pytest.fixture
def art(tmp_path: Path) -> Art:
    """Makes the two packages of drawings: file -> (PNG, SVG), either None for none."""

    def make(drawings: dict[str, tuple[bytes | None, bytes | None]], links: dict[str, str] | None = None) -> Any:
        pngs = {f"./usr/share/openclipart/png/{name}.png": d[0] for name, d in drawings.items() if d[0] is not None}
        svgs = {f"./usr/share/openclipart/svg/{name}.svg": d[1] for name, d in drawings.items() if d[1] is not None}
        linked = {f"./usr/share/openclipart/png/{name}.png": target for name, target in (links or {}).items()}
        return made_deb(tmp_path / "p.deb", PNG, pngs, linked), made_deb(tmp_path / "s.deb", SVG, svgs)

    return make


def make(out: Path, debs: tuple[Path, Path], **more: Any) -> Any:
    return make_openclipart(out, debs=debs, cache=out.parent / "cache", size=16, **more)


def many(count: int) -> dict[str, tuple[bytes | None, bytes | None]]:
    return {f"things/thing{i}_ann_artist_01": (png(i), svg(f"Title {i}")) for i in range(count)}


def test_training_reads_titles_and_the_held_out_drawings_read_file_names(art: Art, tmp_path: Path) -> None:
    summary = make(tmp_path / "out", art(many(60)))
    train, test = pairs_of(tmp_path / "out" / "train"), pairs_of(tmp_path / "out" / "test")
    assert (len(train), len(test)) == (summary.train, summary.test) and len(test) > 0 and len(train) + len(test) == 60
    for notes, column in ((train, "title"), (test, "file_name_text")):
        assert all(note["captions"] == [note[column]] for note, _ in notes)
    note = next(note for note, _ in train + test if note["title"] == "Title 7")
    assert {name: note[name] for name in openclipart.COLUMNS} == {
        "title": "Title 7",
        "file_name_text": "thing7",
        "folder": "things",
        "keywords": "",
        "description": "as told",
        "author": "Ann Artist",
        "file": "things/thing7_ann_artist_01",
    }
    assert note["key"] == "things_thing7_ann_artist_01"


def test_a_drawing_is_shown_whole_on_white(art: Art, tmp_path: Path) -> None:
    black = io.BytesIO()
    Image.new("RGBA", (40, 20), (0, 0, 0, 255)).save(black, "PNG")
    make(tmp_path / "out", art({"a": (black.getvalue(), svg("bar"))}), seed=1)
    found = pairs_of(tmp_path / "out" / "train") + pairs_of(tmp_path / "out" / "test")
    (pixels,) = [pixels for _, pixels in found]
    assert (pixels[4:12] == 0).all() and (pixels[:4] == 255).all() and (pixels[12:] == 255).all()


def test_what_cannot_be_used_is_left_out_with_its_reason(art: Art, tmp_path: Path) -> None:
    white, bombs = io.BytesIO(), bomb(20_000, 20_000)
    Image.new("RGB", (9, 9), "white").save(white, "PNG")
    drawings = {
        "good": (png(1), svg("Good")),
        "again": (png(1, mode="RGBA"), svg("Good")),
        "other_title": (png(1), svg("Better")),
        "bomb": (bombs, svg("Bomb")),
        "torn": (png(2)[:-30], svg("Torn")),
        "blank": (white.getvalue(), svg("Blank")),
        "untitled": (png(3), svg(" ")),
        "no_svg": (png(4), None),
        "unfree": (png(5), svg("Unfree", licence="http://creativecommons.org/licenses/GPL/2.0/")),
        "silent": (png(6), svg("Silent", licence="")),
        "broken": (png(7), svg("Broken")[:-9]),
        "coded": (png(9), b'<?xml version="1.0" encoding="foo"?>' + svg("Coded")),
        "deep": (png(10), b"<g>" * 8000 + b"</g>" * 8000),
        "laughs": (png(8), b'<!DOCTYPE svg [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><svg>&b;</svg>'),
    }
    summary = make(tmp_path / "out", art(drawings, {"linked": "good.png"}))
    reasons = {skipped.key: skipped.reason.split(":")[0] for skipped in summary.skipped}
    assert reasons == {
        "linked": "a link to another file",
        "good": "near-identical to another drawing of the same title",  # "again" comes before it
        "bomb": "bomb-sized image",
        "torn": "unreadable image",
        "blank": "blank image",
        "untitled": "no title",
        "no_svg": "no metadata",
        "unfree": "not said to be in the public domain",
        "silent": "not said to be in the public domain",
        "broken": "unreadable metadata",
        "coded": "unreadable metadata",
        "deep": "unreadable metadata",
        "laughs": "unreadable metadata",
    }
    assert summary.train + summary.test == 2
    assert json.loads((tmp_path / "out" / "corpus.json").read_text())["skipped"]


@pytest.mark.parametrize("seed", [0, 1])
def test_pictures_that_look_alike_are_on_one_side_of_the_split(art: Art, tmp_path: Path, seed: int) -> None:
    drawings = {f"{m}/thing{i}": (png(i, mode=m), svg(f"{m} {i}")) for i in range(30) for m in ("RGB", "RGBA")}
    make(tmp_path / "out", art(drawings), seed=seed)
    sides = [{note["file"].partition("/")[2] for note, _ in pairs_of(tmp_path / "out" / p)} for p in ("train", "test")]
    assert not sides[0] & sides[1] and sides[1]


def test_the_seed_decides_what_is_held_out_and_all_else_stays(art: Art, tmp_path: Path) -> None:
    debs = art(many(60))
    held = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_openclipart(tmp_path / name, debs=debs, cache=tmp_path / f"cache-{name}", size=16, seed=seed)
        held.append({note["key"] for note, _ in pairs_of(tmp_path / name / "test")})
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert a | {"corpus.json": b""} == b | {"corpus.json": b""} and held[0] == held[1] != held[2]


def test_workers_change_nothing_and_progress_is_told(art: Art, tmp_path: Path) -> None:
    debs, told = art(many(8)), list[tuple[int, int]]()
    make(tmp_path / "a", debs, progress=lambda done, total: told.append((done, total)))
    make_openclipart(tmp_path / "b", debs=debs, cache=tmp_path / "other", size=16, workers=2)
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert a | {"corpus.json": b""} == b | {"corpus.json": b""} and told == [(i, 8) for i in range(1, 9)]


def test_a_finished_corpus_is_copied_from_the_cache(art: Art, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    debs = art(many(5))
    make(tmp_path / "a", debs)
    monkeypatch.setattr(openclipart, "_build", None)
    make(tmp_path / "b", debs)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_names_that_are_no_utf_8_and_keys_that_clash_are_kept_apart(art: Art, tmp_path: Path) -> None:
    drawings = {name: (png(i), svg(f"T{i}")) for i, name in enumerate(("a/b", "a_b", "caf\udce9", "x.y+z"))}
    make(tmp_path / "out", art(drawings))
    found = pairs_of(tmp_path / "out" / "train") + pairs_of(tmp_path / "out" / "test")
    assert sorted(note["key"] for note, _ in found) == ["a_b", "a_b_no2", "caf_", "x_y_z"]
    assert "caf\ufffd" in {note["file"] for note, _ in found}


def test_packages_that_are_missing_or_others_are_named(art: Art, tmp_path: Path) -> None:
    debs = art(many(2))
    with pytest.raises(UserError, match=f"{SVG} is missing"):
        make_openclipart(tmp_path / "out", debs=debs[:1], cache=tmp_path / "cache")
    other = made_deb(tmp_path / "o.deb", "cowsay", {})
    with pytest.raises(UserError, match=f"{PNG} is missing"):
        make_openclipart(tmp_path / "out", debs=[other, debs[1]], cache=tmp_path / "cache")
    with pytest.raises(UserError, match="is no file"):
        make_openclipart(tmp_path / "out", debs=[tmp_path / "gone.deb"], cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


class TestTexts:
    def test_fields_are_those_of_the_work_itself(self) -> None:
        texts = read_texts(svg("A &amp; B", "Ann", PUBLIC, ("bird", "", "hash(0x8a4d498)", "HASH", "sea  bird")))
        assert (texts.title, texts.author, texts.description) == ("A & B", "Ann", "as told")
        assert texts.keywords == ["bird", "sea bird"] and texts.public_domain

    @pytest.mark.parametrize(
        "doctype",
        [
            '<!ENTITY x SYSTEM "file:///etc/passwd">',
            '<!ENTITY a "ha"><!ENTITY x "&a;&a;&a;">',
            f'<!ENTITY x "{"y" * 20_000}">',
        ],
    )
    def test_entities_that_could_be_bombs_or_read_files_are_refused(self, doctype: str) -> None:
        with pytest.raises(ValueError, match="could be a bomb"):
            read_texts(b"<!DOCTYPE svg [" + doctype.encode() + b"]>" + svg("&x;"))

    def test_plain_entities_are_read_as_drawing_programs_write_them(self) -> None:
        doctype = b'<!DOCTYPE svg [<!ENTITY dc "http://purl.org/dc/elements/1.1/"><!ENTITY name "Ann">]>'
        assert (
            read_texts(doctype + svg("by &name;").replace(b"http://purl.org/dc/elements/1.1/", b"&dc;")).title
            == "by Ann"
        )

    def test_a_title_of_a_megabyte_is_cut(self) -> None:
        assert 9_000 < len(read_texts(svg("long " * 200_000)).title) <= 10_000

    @pytest.mark.parametrize("encoding", ["foo", "hex", "idna", "utf-7", "undefined", "big5", "ISO-8859-1"])
    def test_any_declared_encoding_is_read_or_refused(self, encoding: str) -> None:
        document = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + svg("Plain")
        try:
            assert read_texts(document).title == "Plain"
        except ValueError:
            assert encoding != "ISO-8859-1"

    def test_elements_are_refused_that_are_deeper_in_one_another_than_any_program_draws(self) -> None:
        assert read_texts(b"<g>" * 900 + svg("Deep") + b"</g>" * 900).title == "Deep"
        with pytest.raises(ValueError, match="over 1,000 deep"):
            read_texts(b"<g>" * 1001 + b"</g>" * 1001)

    @settings(deadline=None, max_examples=150)
    @given(st.lists(st.sampled_from(["metadata", "Work", "subject", "creator", "g"]), max_size=8))
    def test_a_field_is_the_first_child_of_a_work_in_metadata_on_the_way_down(self, path: list[str]) -> None:
        fields = [
            below
            for i, (name, below) in enumerate(pairwise([*path, "li"]))
            if name == "Work" and "metadata" in path[:i] and below in ("subject", "creator")
        ]
        document = "".join(f"<{name}>" for name in path) + "<li>word</li>" + "".join(f"</{p}>" for p in path[::-1])
        texts = read_texts(f"<svg>{document}</svg>".encode())
        assert texts.keywords == (["word"] if fields[:1] == ["subject"] else [])

    @settings(deadline=None, max_examples=40)
    @given(st.binary(max_size=200))
    def test_any_bytes_are_read_or_refused(self, data: bytes) -> None:
        for document in (data, HEAD.encode() + data):
            try:
                read_texts(document)
            except ValueError as error:
                assert "\n" not in str(error)

    @pytest.mark.parametrize(
        ("stem", "author", "text"),
        [
            ("crow_01", "kesigomu", "crow"),
            ("glace_2_bw_jean-victor_b_01", "Jean-Victor Balin", "glace 2 bw"),
            ("woman_reading_gerald_g._01", "Gerald G.", "woman reading"),
            ("stop_sign_miguel_s_nchez_", "Miguel Sánchez", "stop sign"),
            ("christmas_balls_mo_01", "Mo", "christmas balls"),
            ("mother_01", "Mo", "mother"),
            ("bordered_d_10", "Nicu Buculei", "bordered d 10"),
            ("Gerald_G._03", "Gerald G.", ""),
            ("12_07", "", ""),
            ("", "", ""),
        ],
    )
    def test_a_file_name_says_what_is_left_without_author_and_number(self, stem: str, author: str, text: str) -> None:
        assert file_name_text(stem, author) == text


def test_a_look_survives_size_and_changes_with_the_picture() -> None:
    small, large, other = (Image.open(io.BytesIO(png(*which))) for which in ((1,), (1, 72), (2,)))
    assert look_of(small.resize((72, 72), Image.Resampling.NEAREST)) == look_of(large) != look_of(other)
    right = Image.fromarray(np.tile(np.arange(0, 90, 10, dtype=np.uint8), (8, 1)))
    assert look_of(right) == "f" * 16 and look_of(right.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == "0" * 16
