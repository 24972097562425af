"""Labelled images are found in both layouts, and what does not fit is named."""

import io
import tarfile

import open_clip
import pytest

from truepair.errors import UserError
from truepair.evaluate.classes import ImageClasses


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)


@pytest.fixture
def benchmark(tmp_path, square):
    """Eleven shards of two samples, as CLIP_benchmark's exporter writes them."""
    root = tmp_path / "wds_colours"
    for shard in range(11):
        colours = [("red", 0), ("blue", 1)]
        members = []
        for i, (colour, label) in enumerate(colours):
            key = f"s{2 * shard + i:07d}"
            members += [(f"{key}.cls", str(label).encode()), (f"{key}.webp", square(colour, shift=shard))]
        write_shard(root / "test" / f"{shard}.tar", members)
    (root / "classnames.txt").write_text("red\nblue\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of {c}.\n{c}\n")
    (root / "test" / "nshards.txt").write_text("11\n")
    return root


def test_clip_benchmarks_layout_is_read_in_the_order_of_its_shards(benchmark, square):
    data = ImageClasses.open(benchmark)
    assert data.name == "wds_colours" and data.class_names == ("red", "blue")
    assert data.templates == ("a photo of {c}.", "{c}")
    assert data.labels.tolist() == [0, 1] * 11
    assert data.read(5) == square("blue", shift=2) and data.read(20) == square("red", shift=10)
    (benchmark / "test" / "nshards.txt").unlink()
    assert ImageClasses.open(benchmark).read(20) == square("red", shift=10)


def test_samples_without_image_or_usable_label_are_named(benchmark, square):
    members = [
        ("a.png", square("red")),  # no label
        ("b.cls", b"0"),  # no image
        ("c.png", square("red")),
        ("c.cls", b"2"),  # outside classnames.txt
        ("d.png", square("red")),
        ("d.cls", b"red"),
        ("e.x.png", square("red")),  # extension "x.png": not an image of ours
        ("../f.jpg", square("blue")),  # nothing is unpacked, so the name does no harm
        ("../f.cls", b" 1\n"),
    ]
    write_shard(benchmark / "test" / "11.tar", members)
    (benchmark / "test" / "nshards.txt").write_text("12")
    data = ImageClasses.open(benchmark)
    assert len(data) == 23 and data.labels[22] == 1 and data.read(22) == square("blue")
    assert [reason for _, reason in data.skipped] == [
        "missing or unreadable label",
        "missing or oversized image",
        "label outside classnames.txt",
        "missing or unreadable label",
    ]


def break_templates(root):
    (root / "zeroshot_classification_templates.txt").write_text("no place\n")


def break_tar(root):
    (root / "test" / "3.tar").write_bytes(b"x" * 2000)


def break_type(root):
    (root / "dataset_type.txt").write_text("multilabel\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "classnames.txt").unlink(), "classnames.txt is missing"),
        (lambda root: (root / "test" / "3.tar").unlink(), r"3\.tar is missing"),
        (lambda root: (root / "test" / "nshards.txt").write_text("many"), "must hold the number of shards"),
        (lambda root: (root / "classnames.txt").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (break_templates, "has no {c}"),
        (break_tar, "not a readable tar"),
        (break_type, "multilabel"),
        (lambda root: (root / "dataset_type.txt").write_bytes(b"\xff\xfe"), "dataset_type.txt is not UTF-8"),
        (lambda root: (root / "dataset_type.txt").write_text("one\ntwo\n"), "'one two'"),
        (lambda root: (root / "test" / "nshards.txt").write_bytes(b"\xff\xfe"), "nshards.txt is not UTF-8"),
        (lambda root: (root / "test" / "nshards.txt").write_text("9" * 5000), "must hold the number of shards"),
        (lambda root: (root / "test" / "nshards.txt").write_text("9999999999"), r"11\.tar is missing"),
    ],
)
def test_a_broken_data_set_gives_one_clear_line(benchmark, harm, message):
    harm(benchmark)
    with pytest.raises(UserError, match=message) as error:
        ImageClasses.open(benchmark)
    assert "\n" not in str(error.value)


def make_folders(root, names, data=b"x"):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "1.JPEG").write_bytes(data)
    return root


def test_an_image_folder_has_a_class_a_sub_folder(tmp_path, square):
    root = make_folders(tmp_path / "data", ["sports_car", "apple"], square("red"))
    (root / "apple" / "deep").mkdir()
    (root / "apple" / "deep" / "2.png").write_bytes(square("blue"))
    (root / "apple" / "notes.txt").write_text("no image")
    data = ImageClasses.open(root)
    assert data.class_names == ("apple", "sports car")
    assert data.labels.tolist() == [0, 0, 1] and data.read(1) == square("blue")
    assert data.templates == ("a photo of a {c}.",)
    (root / "classnames.txt").write_text("fruit\nvehicle\n")
    assert ImageClasses.open(root).class_names == ("fruit", "vehicle")
    (root / "classnames.txt").write_text("fruit\n")
    with pytest.raises(UserError, match="names 1 classes"):
        ImageClasses.open(root)


@pytest.mark.parametrize("names", [[f"n{i:08d}" for i in range(1000)], [str(i) for i in range(1000)]])
def test_imagenets_thousand_folders_get_open_clips_names_and_templates(tmp_path, names):
    data = ImageClasses.open(make_folders(tmp_path, names))
    assert list(data.class_names) == list(open_clip.IMAGENET_CLASSNAMES)
    filled = [template.replace("{c}", "cat") for template in data.templates]
    assert filled == [template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert data.read.args[0][10].parent.name == names[10]  # folder "10" is class 10, not the third


def test_a_part_of_imagenet_must_be_named(tmp_path):
    with pytest.raises(UserError, match="name them in"):
        ImageClasses.open(make_folders(tmp_path, ["n01443537", "n01484850"]))


def test_an_empty_or_missing_folder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="holds neither shards"):
        ImageClasses.open(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        ImageClasses.open(tmp_path / "nothing")
