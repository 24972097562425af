"""Pairs of a WebDataset tar: consecutive members of one key are a sample; images stay where they lie."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truepair.pairs.sources.sample import (
    IMAGE_SUFFIXES,
    KEPT,
    MAX_IMAGE,
    MAX_TEXT,
    Options,
    Sample,
    Skip,
    Unusable,
    clean_captions,
    label_of,
    many,
    parse_json,
    scalar,
)
from truepair.pairs.table import Source
from truepair.pairs.tar import Member, TarError, TarFile


def read_tar(path: Path, options: Options) -> Iterator[Sample | Skip]:
    """Every pair of a tar in WebDataset's or img2dataset's layout.

    The key is a member's path up to the first dot of its file name. Captions: the field `options.caption_field` of
    KEY.json if set; else its list `captions`; else KEY.txt, as a whole or, in a retrieval set of CLIP_benchmark, by
    lines; else its `caption`. Label: KEY.cls, else the JSON's `label`.
    """
    source = Source(str(path.absolute()), "tar")
    words = [f'"{name}"'.encode() for name in ("captions", "label", *options.extra_columns)]
    by_line = _one_caption_a_line(path)
    try:
        with TarFile(path) as tar:
            try:
                for key, members in _groups(tar.members()):
                    notes: list[Skip] = []
                    try:
                        sample = _sample(tar, key, members, source, options, words, by_line, notes)
                    except Unusable as unusable:
                        yield Skip(source.path, key, unusable.reason, unusable.detail, len(members))
                    else:
                        yield from notes
                        yield sample
            except TarError as error:
                yield Skip(source.path, "", error.reason, error.detail, 0)
    except OSError as error:
        yield Skip(source.path, "", "unreadable tar", str(error), 0)


def _groups(members: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, suffix -> member) of runs of one key; a suffix that comes again begins a new sample.

    The last sample before a damage is given too, then the TarError raised: its members may be incomplete, never wrong.
    """
    current, group = "", dict[str, Member]()
    try:
        for member in members:
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            stem, dot, suffix = base.partition(".")
            if not stem or not dot:
                continue
            key, suffix = folder + slash + stem, suffix.lower()
            if key != current or suffix in group:
                if group:
                    yield current, group
                current, group = key, {}
            group[suffix] = member
    except TarError:
        if group:
            yield current, group
        raise
    if group:
        yield current, group


def _sample(
    tar: TarFile,
    key: str,
    members: dict[str, Member],
    source: Source,
    options: Options,
    words: list[bytes],
    by_line: bool,
    notes: list[Skip],
) -> Sample:
    image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
    if image is None:
        raise Unusable("missing image", "has " + ", ".join(members))
    if image.size > MAX_IMAGE:
        raise Unusable("image file too large", f"{image.size} bytes")
    content = tar.read(image.offset, image.size)
    text = _text(tar, members.get("txt"), "caption too long")
    facts: dict[str, Any] = {}
    if (data := _text(tar, members.get("json"), "unreadable json")) is not None:
        needed = text is None or options.caption_field
        if needed or any(word in data for word in words):
            try:
                facts = parse_json(data)
            except Unusable as unusable:
                if needed:
                    raise
                notes.append(Skip(source.path, key, unusable.reason + KEPT, unusable.detail, 0))

    if options.caption_field:
        values = many(facts.get(options.caption_field))
    elif isinstance(facts.get("captions"), list):
        values = facts["captions"] or [text]
    elif text is None:
        values = many(facts.get("caption"))
    else:
        values = [*text.splitlines()] if by_line else [text]
    captions, dropped = clean_captions(values)
    notes += [Skip(source.path, key, bad.reason + KEPT, bad.detail, 0) for bad in dropped]

    label = -1
    try:
        cls = _text(tar, members.get("cls"), "unreadable label")
        label = label_of(facts.get("label") if cls is None else cls.strip())
    except Unusable as unusable:
        notes.append(Skip(source.path, key, unusable.reason + KEPT, unusable.detail, 0))
    extra = {name: scalar(facts.get(name)) for name in options.extra_columns}
    return Sample(key, source, image.offset, image.name, content, captions, label, extra, len(members))


def _one_caption_a_line(shard: Path) -> bool:
    """Whether a tar belongs to a retrieval set of CLIP_benchmark: SET/test/0.tar beside SET/dataset_type.txt."""
    note = shard.absolute().parent.parent / "dataset_type.txt"
    return note.is_file() and note.read_bytes()[:32].strip().lower() == b"retrieval"


def _text(tar: TarFile, member: Member | None, too_large: str) -> bytes | None:
    if member is None:
        return None
    if member.size > MAX_TEXT:
        raise Unusable(too_large, f"{member.size} bytes")
    return tar.read(member.offset, member.size)
