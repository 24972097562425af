"""The verbs. Each parses its flags, calls one function, says what came of it."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from truepair.errors import UserError

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)  # paths and captions are no markup


@dataclass
class Demo:
    """Make a noisy corpus, train CLIP and a robust method on it, compare them on artwork by an unseen artist."""

    out: Path = Path("demo")  # directory for the corpus, the runs and report.html
    seed: int = 0
    corpus: Literal["emoji", "scenes"] = "emoji"  # scenes need no download; emoji fall back to them offline
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Data:
    """Make a demo corpus as ready pair tables: OUT/train and OUT/test, and a zero-shot set, OUT/zeroshot."""

    corpus: tyro.conf.Positional[Literal["emoji", "scenes"]]
    out: Path
    n: int = 2000  # scenes: training pairs
    seed: int = 0
    size: int = 64  # pixels
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Index:
    """Index tars, manifests, image folders or Karpathy JSON into a pair table; nothing is unpacked or copied."""

    sources: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")
    ]  # files or directories; globs and {000..120} expand
    out: Path  # directory of the new table
    caption_field: str = ""  # tars: the field of KEY.json with the caption(s), instead of KEY.txt
    caption_columns: tuple[str, ...] = ()  # manifests: column(s) of captions, if their names do not tell
    image_column: str = ""  # manifests: column of image paths or bytes
    extra_columns: tuple[str, ...] = ()  # further fields or columns to keep
    root: Path | None = None  # folder that image paths of manifests and Karpathy JSONs are below
    verify: Flag = False  # decode every image in full
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Corrupt:
    """Inject noise whose truth is known into the captions of a pair table; images stay where they are."""

    table: tyro.conf.Positional[Path]
    out: Path  # directory of the new table
    kind: Literal["shuffle", "near", "truncate", "boilerplate", "foreign"] = "shuffle"
    rate: float = 0.4  # share of the pairs
    seed: int = 0
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Audit:
    """Score every pair of a table with a model: how well it matches, how probably it is noise. Worst pairs first."""

    table: tyro.conf.Positional[Path]
    model: str  # RUN, open_clip:NAME[:TAG] or local-dir:DIR
    out: Path  # directory for audit.parquet
    worst: int = 10  # pairs to print
    batch_size: int = 256
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Eval:
    """Evaluate a model: zero-shot classification, retrieval, noise detection."""

    model: tyro.conf.Positional[str]  # RUN, open_clip:NAME[:TAG] or local-dir:DIR
    zeroshot: tuple[Path, ...] = ()  # image folders or CLIP_benchmark datasets
    retrieval: tuple[Path, ...] = ()  # pair tables
    noise: tuple[Path, ...] = ()  # pair tables with a truth column is_noise
    batch_size: int = 256
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Export:
    """Write a run's model as an open_clip local-dir (safetensors), which open_clip loads without truepair."""

    run: tyro.conf.Positional[Path]
    out: Path
    json: Flag = False  # print one JSON object as the last line


def demo(args: Demo) -> dict[str, Any]:
    from truepair.demo import run_demo, table_of

    result = run_demo(args.out, seed=args.seed, corpus=args.corpus, console=console)
    console.print(table_of(result))
    console.print(f"report: {args.out / 'report.html'}")
    return result


def data(args: Data) -> dict[str, Any]:
    from truepair.pairs.corpora.tables import make_tables

    made = make_tables(args.corpus, args.out, n=args.n, seed=args.seed, size=args.size)
    console.print(f"{made.train:,} pairs in {args.out / 'train'}, {made.test:,} in {args.out / 'test'}")
    console.print(f"{made.classes:,} classes in {args.out / 'zeroshot'} (CLIP_benchmark's layout)")
    if made.styles:
        console.print(f"licences of the {len(made.styles)} sets: {args.out / 'LICENSES.md'}")
    return {"train": made.train, "test": made.test, "classes": made.classes, "skipped": len(made.skipped)}


def index(args: Index) -> dict[str, Any]:
    from truepair.pairs.index import index

    if not args.sources:
        raise UserError("say what to index: truepair index SOURCE... --out TABLE")
    with console.status("indexing") as status:
        summary = index(
            args.sources,
            args.out,
            caption_field=args.caption_field,
            caption_columns=args.caption_columns,
            image_column=args.image_column,
            extra_columns=args.extra_columns,
            root=args.root,
            verify=args.verify,
            progress=lambda pairs: status.update(f"indexing: {pairs:,} pairs"),
        )
    rate = summary.members / max(summary.seconds, 1e-9)
    console.print(f"{summary.rows:,} pairs in {args.out} ({summary.seconds:.1f} s, {rate:,.0f} members/s)")
    for reason, count in summary.skipped.items():
        console.print(f"  skipped {count:,}: {reason} (named in {args.out / 'skipped.jsonl'})")
    return dataclasses.asdict(summary)


def corrupt(args: Corrupt) -> dict[str, Any]:
    from truepair.noise.tables import corrupt_table
    from truepair.pairs.table import PairTable

    made = corrupt_table(PairTable.open(args.table), args.out, args.kind, args.rate, args.seed)
    console.print(
        f"{made.rows:,} pairs in {made.table}: noise nominal {made.nominal:.2%}, effective {made.effective:.2%} "
        f"(captions in column {made.caption_column}, truth in is_noise)"
    )
    return dataclasses.asdict(made)


def train(config: Any, options: dict[str, Any], resume: bool) -> Any:
    from truepair.report import run_report
    from truepair.train import train

    result = train(dataclasses.replace(config, options=options), resume=resume)
    if _first_rank():
        page = run_report([result.run], result.run / "report.html")
        console.print(f"{result.step:,} of {result.steps:,} steps done; page: {page}")
    return result


def audit(args: Audit) -> dict[str, Any]:
    from truepair.evaluate import audit
    from truepair.pairs.table import PairTable

    if args.worst < 0:
        raise UserError(f"--worst {args.worst} makes no sense; 0 prints none")
    table = PairTable.open(args.table)
    with _counting("scoring", len(table)) as advance:
        result = audit(
            _model(args.model, args.device),
            table,
            args.out,
            batch_size=_positive(args.batch_size),
            workers=_workers(args.workers),
            progress=advance,
        )
    console.print(f"{result.n:,} pairs scored, of which {result.expected_noise:,.0f} are expected to be mismatched")
    if result.scores.mixture.degenerate:
        console.print(f"no noise model: {result.scores.mixture.degenerate}; p_noise is 0", style="yellow")
    if result.figures:
        console.print(f"against is_noise: AUROC {result.figures.auroc:.3f}, AP {result.figures.average_precision:.3f}")
    captions = table.captions()
    for row in result.worst(args.worst):
        texts = " | ".join(captions[row])
        p_noise, cosine = result.scores.p_noise[row], result.scores.cosine[row]
        console.print(f"  p {p_noise:.2f}  cos {cosine:+.3f}  row {row}  {texts[:90]!r}")
    for reason, count in result.skipped.items():
        console.print(f"  not scored {count:,}: {reason}")
    console.print(f"all rows: {result.file}")
    return result.to_json()


def evaluate(args: Eval) -> dict[str, Any]:
    from truepair.evaluate import ImageClasses, noise_detection, retrieval, zero_shot
    from truepair.pairs.table import PairTable

    if not (args.zeroshot or args.retrieval or args.noise):
        raise UserError("say what to evaluate on: --zeroshot DIR, --retrieval TABLE, --noise TABLE")
    model = _model(args.model, args.device)
    how: dict[str, Any] = {"batch_size": _positive(args.batch_size), "workers": _workers(args.workers)}
    results = [zero_shot(model, ImageClasses.open(path), **how).to_json() for path in args.zeroshot]
    results += [retrieval(model, PairTable.open(path), **how).to_json() for path in args.retrieval]
    results += [noise_detection(model, PairTable.open(path), **how).to_json() for path in args.noise]
    for result in results:
        named = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
        console.print(f"{result['task']} on {result['dataset']}: {named}")
    return {"results": results}


def export(args: Export) -> dict[str, Any]:
    from safetensors import SafetensorError

    from truepair.models import open_model, save_local_dir

    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out} exists and is not empty; choose another --out")
    model = open_model(str(args.run))
    partial = args.out.with_name(f".{args.out.name}.partial")
    try:
        save_local_dir(model, partial)
    except SafetensorError as error:
        raise UserError(f"{args.out} cannot be written: {error}") from None
    if args.out.exists():
        args.out.rmdir()
    partial.rename(args.out)
    console.print(f'{args.out}: open_clip.create_model_and_transforms("local-dir:{args.out}")')
    return {"out": str(args.out), "parameters": sum(p.numel() for p in model.parameters())}


VERBS: dict[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "demo": (Demo, demo),
    "data": (Data, data),
    "index": (Index, index),
    "corrupt": (Corrupt, corrupt),
    "audit": (Audit, audit),
    "eval": (Eval, evaluate),
    "export": (Export, export),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb. Exit 0: done; 2: bad usage or input, said in one line; 130: interrupted, with everything saved."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0 if argv else 2)
    verb, rest = argv[0], argv[1:]
    try:
        if verb == "train":
            _train(rest)
        elif verb in VERBS:
            kind, call = VERBS[verb]
            args = tyro.cli(kind, args=rest, prog=f"truepair {verb}", description=kind.__doc__)
            _finish(call(args), args.json)
        elif verb == "--version":
            from truepair import __version__

            print(__version__)
        else:
            raise UserError(f"no verb {verb!r}; verbs are {', '.join(['train', *VERBS])}")
    except UserError as error:
        _fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written, a file where a folder should be
        _fail(f"{error.strerror or error}: {error.filename or 'while writing'}; what was saved before is whole")
    except KeyboardInterrupt:
        print("truepair: interrupted", file=sys.stderr)
        sys.exit(130)


def _train(argv: list[str]) -> None:
    """`train` takes its flags from the run's configuration and from the options of the method that is named."""
    from truepair.config import RunConfig, filled, from_toml
    from truepair.methods import method_class

    resumed = Path(_value_of("--out", argv)) / "run.toml" if "--resume" in argv else None
    base = RunConfig()
    if given := _value_of("--config", argv):
        base = from_toml(given)
    elif resumed and resumed.exists():
        base = from_toml(resumed)
    method = _value_of("--method", argv) or base.method
    kind = method_class(method).Options
    options = filled(kind, base.options if method == base.method else {}, f"method {method}")
    base.method = method

    flat = tyro.conf.arg(name="")
    fields: list[tuple[str, Any, Any]] = [
        ("run", Annotated[RunConfig, flat], dataclasses.field(default_factory=RunConfig)),
        ("options", kind, dataclasses.field(default_factory=kind)),
        ("more", Annotated[TrainFlags, flat], dataclasses.field(default_factory=TrainFlags)),
    ]
    kinds = dataclasses.make_dataclass("Train", fields)
    default = kinds(base, options, TrainFlags())
    args = tyro.cli(kinds, args=argv, default=default, prog="truepair train", description=TRAIN.format(method=method))
    result = train(args.run, dataclasses.asdict(args.options), args.more.resume)
    _finish(dataclasses.asdict(result), args.more.json)
    sys.exit(130 if result.interrupted else 0)


@dataclass
class TrainFlags:
    """How the configuration above is used."""

    config: Path | None = None  # a TOML recipe; flags override it
    resume: Flag = False  # go on from the newest checkpoint in --out, with the run's own configuration
    json: Flag = False  # print one JSON object as the last line


TRAIN = """Train two towers on a pair table. The options shown are those of --method {method}.

Several GPUs: torchrun --nproc-per-node N -m truepair train ..., with the same flags; --batch-size is that of all GPUs
together."""


def _value_of(flag: str, argv: Sequence[str]) -> str:
    """The value of a flag among raw arguments, "" if it is not there."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return ""


def _overview() -> str:
    described = {verb: (kind.__doc__ or "").splitlines()[0] for verb, (kind, _) in VERBS.items()}
    described["train"] = "Train two towers on a pair table, by any of the methods; on one CPU or many GPUs."
    order = ["demo", "data", "index", "corrupt", "train", "audit", "eval", "export"]
    lines = [f"  {verb:8} {described[verb]}" for verb in order]
    head = "truepair: train vision-language models on image-text pairs nobody has checked"
    return "\n".join([head, "", "usage: truepair VERB ... (truepair VERB --help tells its flags)", "", *lines])


def _model(name: str, device: str) -> Any:
    from truepair.models import open_model
    from truepair.train.devices import device_of

    return open_model(name).to(device_of(device))


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size} makes no sense")
    return batch_size


def _workers(wanted: int) -> int:
    from truepair.train.devices import workers_of

    if wanted < -1:
        raise UserError(f"--workers {wanted} makes no sense; -1 chooses by the number of cores")
    return workers_of(wanted)


def _counting(what: str, total: int) -> Any:
    from truepair.train.logs import counting

    return counting(console, what, total)


def _finish(result: dict[str, Any], as_json: bool) -> None:
    if as_json and _first_rank():
        print(json.dumps(_plain(result), allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    """A result in JSON's own types: paths as text, what is not a finite number as null."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _first_rank() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _fail(text: str) -> None:
    rank = "" if _first_rank() else f" rank {os.environ['RANK']}:"
    print(f"truepair:{rank} {text}", file=sys.stderr)
    sys.exit(2)
