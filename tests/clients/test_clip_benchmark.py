"""CLIP_benchmark's figures of an exported model are those of `truepair eval`, on the same WebDataset folders."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from programs import foreign, needed, truepair

pytestmark = pytest.mark.slow
SETS = ("drawn", "resized", "transparent", "on-white")
CHANCE = {"acc1": 1 / 64, "acc5": 5 / 64, "mean_per_class_recall": 1 / 64}
METRICS = {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)}
Sample = dict[str, bytes]  # suffix -> content, and "key"
Figures = Mapping[str, Mapping[str, float]]  # data set -> metric -> value


def samples(shards: Path) -> Iterator[Sample]:
    """The samples of a folder's tars, in order."""
    found: dict[str, Sample] = {}
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                found.setdefault(key, {"key": key.encode()})[suffix] = tar.extractfile(member).read()
    yield from found.values()


def write(folder: Path, items: Iterable[Sample], **texts: str) -> None:
    """A WebDataset folder as CLIP_benchmark reads it: two shards, `nshards.txt`, and text files by name."""
    items = list(items)
    (folder / "test").mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for item in items[shard * len(items) // 2 : (shard + 1) * len(items) // 2]:
                for suffix in item.keys() - {"key"}:
                    member = tarfile.TarInfo(f"{item['key'].decode()}.{suffix}")
                    member.size = len(item[suffix])
                    tar.addfile(member, io.BytesIO(item[suffix]))
    (folder / "test" / "nshards.txt").write_text("2\n")
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)


def resized(item: Sample, i: int) -> Sample:
    """The picture as JPEG, WebP or PNG, wider or higher than the model sees."""
    suffix, kind = (("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG"))[i % 3]
    image = Image.open(io.BytesIO(item["png"])).resize((40 + i % 53, 36 + i % 71))
    return {"key": item["key"], suffix: encoded(image, kind), "cls": item["cls"]}


def transparent(item: Sample, on_white: bool) -> Sample:
    """The picture with a transparent quarter, in which other colours lie hidden; or what a page shows of it."""
    image = Image.open(io.BytesIO(item["png"])).convert("RGBA")
    ImageDraw.Draw(image).rectangle((0, 0, 15, 15), fill=(200, 0, 200, 0))
    if on_white:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return {"key": item["key"], "png": encoded(image, "PNG"), "cls": item["cls"]}


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def described(pairs: Iterable[Sample]) -> Iterator[Sample]:
    """Pairs with those of their captions that no pair before has, one a line in KEY.txt."""
    said: set[str] = set()
    for pair in pairs:
        captions = [text for text in json.loads(pair["json"])["captions"] if text not in said]
        said.update(captions)
        if captions:
            yield {"key": pair["key"], "png": pair["png"], "txt": "\n".join(captions).encode()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, trained on 2,000 scenes for 180 steps and exported; in `sets` what to evaluate it on."""
    needed("clip_benchmark")
    folder = tmp_path_factory.mktemp("benchmark")
    scenes, sets = folder / "scenes", folder / "sets"
    truepair("data", "scenes", "--n", "2000", "--size", "32", "--out", str(scenes))
    how = ["--model", "truepair-test", "--epochs", "12", "--batch-size", "128", "--lr", "2e-3", "--workers", "0"]
    run = ["--data", str(scenes / "train"), "--out", str(folder / "run"), "--method", "clip"]
    truepair("train", *run, *how, "--precision", "fp32", "--device", "cpu")
    truepair("export", str(folder / "run"), "--out", str(folder / "model"))

    shutil.copytree(scenes / "zeroshot", sets / "drawn")
    items = list(samples(scenes / "zeroshot" / "test"))
    names = ("classnames", "zeroshot_classification_templates")
    texts = {name: (scenes / "zeroshot" / f"{name}.txt").read_text() for name in names}
    write(sets / "resized", (resized(item, i) for i, item in enumerate(items)), **texts)
    write(sets / "transparent", (transparent(item, False) for item in items), **texts)
    write(sets / "on-white", (transparent(item, True) for item in items), **texts)
    write(sets / "pairs", described(samples(scenes / "test" / "shards")), dataset_type="retrieval\n")
    truepair("index", str(sets / "pairs"), "--out", str(folder / "pairs"))
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Figures:
    """What `clip_benchmark eval` finds, in float32 (--no_amp; its default is bfloat16 on a CPU)."""
    common = ["--model", f"local-dir:{folder / 'model'}", "--pretrained", "", "--no_amp", "--num_workers", "0"]
    common += ["--dataset_root", f"{folder}/sets/{{dataset}}", "--output", f"{folder}/{{dataset}}.json"]
    foreign("clip_benchmark", "eval", "--dataset", *(f"wds/{name}" for name in SETS), *common)
    ranks = ["--task", "zeroshot_retrieval", "--recall_k", "1", "5", "10"]
    foreign("clip_benchmark", "eval", "--dataset", "wds/pairs", *ranks, *common)
    return {name: json.loads((folder / f"{name}.json").read_text())["metrics"] for name in (*SETS, "pairs")}


@pytest.fixture(scope="module")
def ours(folder: Path) -> Figures:
    """What `truepair eval` finds."""
    sets = ["--zeroshot", *(str(folder / "sets" / name) for name in SETS), "--retrieval", str(folder / "pairs")]
    results = truepair("eval", f"local-dir:{folder / 'model'}", *sets, "--workers", "0")["results"]
    return {result["dataset"]: result["metrics"] for result in results}


@pytest.mark.parametrize("name", ["drawn", "resized", "on-white"])
def test_zero_shot_figures_are_equal(theirs: Figures, ours: Figures, name: str) -> None:
    print(f"{name}: clip_benchmark {dict(theirs[name])}, truepair {dict(ours[name])}")
    assert theirs[name].keys() == CHANCE.keys()
    assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
    assert all(ours[name][metric] > 4 * chance for metric, chance in CHANCE.items())


def test_retrieval_figures_are_equal_both_ways(theirs: Figures, ours: Figures) -> None:
    print(f"clip_benchmark {dict(theirs['pairs'])}, truepair {dict(ours['pairs'])}")
    assert theirs["pairs"].keys() == METRICS
    assert ours["pairs"] == pytest.approx(theirs["pairs"], abs=1e-4)
    assert all(ours["pairs"][f"{way}_retrieval_recall@10"] > 0.2 for way in ("image", "text"))


def test_what_is_transparent_is_white_to_us_and_shows_what_it_hides_to_them(theirs: Figures, ours: Figures) -> None:
    print(f"clip_benchmark {dict(theirs['transparent'])}, truepair {dict(ours['transparent'])}")
    assert ours["transparent"] == pytest.approx(theirs["on-white"], abs=1e-4)
    assert theirs["transparent"] != pytest.approx(theirs["on-white"], abs=1e-2)
