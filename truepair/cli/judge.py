"""The verbs that judge with a model: `audit` the pairs of a table, `eval` the model itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from truepair.cli.output import console, counting
from truepair.cli.settings import Flag, checked_batch_size, checked_workers, loaded_model
from truepair.errors import UserError

UNLEARNT = 0.95  # share of the pairs doubted by an ITM that has learnt little: it meets two mismatches a match (ours)


@dataclass
class Audit:
    """Score every pair of a table with a model: how well it matches, how probably it is noise. Worst pairs first.

    A RUN with a fusion encoder (--method never) is also asked how probably each caption describes its image (itm),
    unless --no-itm is given.

    Examples:
      truepair audit table --model run --out audit
      truepair audit table --model open_clip:ViT-B-32:openai --worst 50 --out audit
      truepair audit table --model run --out audit --to doubted
    """

    table: tyro.conf.Positional[Path]  # a pair table
    model: str  # RUN, open_clip:NAME[:TAG] or local-dir:DIR
    out: Path  # directory for audit.parquet
    to: Path | None = None  # write a new table too: this one with the column p_noise (1 for pairs not scored)
    no_itm: Flag = False  # leave a RUN's fusion encoder out: a pass less for every caption
    worst: int = 10  # pairs to print
    batch_size: int = 256
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


@dataclass
class Eval:
    """Evaluate a model: zero-shot classification, retrieval, noise detection, captioning.

    Examples:
      truepair eval run --zeroshot imagenet/val --retrieval coco-table
      truepair eval open_clip:ViT-B-32:openai --noise noisy --json
      truepair eval run --retrieval coco-table --rerank 128
      truepair eval run --captioning coco-table --captions-out captions.json
      truepair eval hf:Salesforce/blip2-opt-2.7b --captioning coco-table --clipscore open_clip:ViT-B-32:openai
      truepair eval --captioning captioned --candidates synthetic --references caption
      truepair eval --captioning captions_val2014.json --candidates results.json --meteor
    """

    model: tyro.conf.Positional[str] = ""  # RUN, open_clip:NAME[:TAG], local-dir:DIR; of captions also hf:NAME, or none
    zeroshot: tuple[Path, ...] = ()  # image folders or CLIP_benchmark datasets
    retrieval: tuple[Path, ...] = ()  # pair tables
    rerank: int | None = None  # so many of the nearest are put in order by the run's fusion encoder, beside the plain
    noise: tuple[Path, ...] = ()  # pair tables with a truth column is_noise
    no_itm: Flag = False  # leave a RUN's fusion encoder out of --noise
    captioning: tuple[Path, ...] = ()  # pair tables; with --candidates also Karpathy's or COCO's JSON
    candidates: str = ""  # a column, or COCO's result JSON: score these captions; else MODEL writes some
    references: str = ""  # the column to compare with; default: the captions in force
    clipscore: str = ""  # the model of CLIPScore; default: MODEL, where it is no hf:NAME
    meteor: Flag = False  # also METEOR, by pycocoevalcap and Java
    captions_out: Path | None = None  # write the captions here, as COCO's result JSON
    beams: int = 3  # of captions; 1: greedy
    min_tokens: int = 0  # of captions
    max_tokens: int = 20  # of captions
    prompt: str = ""  # what captions go on from, or the question to a model that chats
    batch_size: int = 256
    workers: int = -1  # decoding processes; -1: by the number of cores
    device: str = "auto"
    json: Flag = False  # print one JSON object as the last line


def audit(args: Audit) -> dict[str, Any]:
    import numpy as np

    from truepair.evaluate import audit
    from truepair.pairs.table import PairTable

    if args.worst < 0:
        raise UserError(f"--worst {args.worst} makes no sense; 0 prints none")
    table = PairTable.open(args.table)
    if args.to is not None and args.to.exists():
        raise UserError(f"{args.to} exists already; choose another --to")
    matcher = None if args.no_itm else found_matcher(args.model, args.device)
    model: Any = matcher or loaded_model(args.model, args.device)
    with counting("scoring", len(table)) as advance:
        result = audit(
            model,
            table,
            args.out,
            batch_size=checked_batch_size(args.batch_size),
            workers=checked_workers(args.workers),
            progress=advance,
        )
    console.print(f"{result.n:,} pairs scored, of which {result.expected_noise:,.0f} are expected to be mismatched")
    if result.scores.mixture.degenerate:
        console.print(f"no noise model: {result.scores.mixture.degenerate}; p_noise is 0", style="yellow")
    if result.figures:
        console.print(f"against is_noise: AUROC {result.figures.auroc:.3f}, AP {result.figures.average_precision:.3f}")
    if result.itm_figures:
        figures = result.itm_figures
        console.print(f"  of 1 - itm: AUROC {figures.auroc:.3f}, AP {figures.average_precision:.3f}")
    if result.agreement:
        agreed = result.agreement
        console.print(
            f"p_noise and 1 - itm: rank correlation {agreed.rank_correlation:+.3f}; doubted (at least 1/2) by both "
            f"{agreed.both:,}, by p_noise alone {agreed.first:,}, by itm alone {agreed.second:,}, "
            f"by neither {agreed.neither:,}"
        )
        if agreed.both + agreed.second >= UNLEARNT * agreed.n:
            console.print(
                "ITM doubts nearly every pair: it has hardly learnt to match (itm_accuracy in the run's log near 0.67);"
                " trust its order, if at all, and not its probabilities",
                style="yellow",
            )
    captions = table.captions()
    for row in result.worst(args.worst):
        texts = " | ".join(captions[row])
        p_noise, cosine = result.scores.p_noise[row], result.scores.cosine[row]
        itm = "" if result.scores.itm is None else f"  itm {result.scores.itm[row]:.2f}"
        console.print(f"  p {p_noise:.2f}  cos {cosine:+.3f}{itm}  row {row}  {texts[:90]!r}")
    for reason, count in result.skipped.items():
        console.print(f"  not scored {count:,}: {reason}")
    console.print(f"all rows: {result.file}")
    if args.to is not None:
        p_noise = np.nan_to_num(result.scores.p_noise, nan=1.0)
        table.derive(args.to).add_column("p_noise", p_noise, {"by": "truepair audit", "model": args.model})
        console.print(f"with the column p_noise: {args.to}")
    return result.to_json()


def evaluate(args: Eval) -> dict[str, Any]:
    from truepair.evaluate import ImageClasses, noise_detection, retrieval, zero_shot
    from truepair.models.matcher import advice
    from truepair.pairs.table import PairTable

    seen = args.zeroshot or args.retrieval or args.noise
    if not (seen or args.captioning):
        raise UserError("say what to evaluate on: --zeroshot DIR, --retrieval TABLE, --noise TABLE, --captioning TABLE")
    if seen and not args.model:
        raise UserError("say which MODEL to evaluate: RUN, open_clip:NAME[:TAG] or local-dir:DIR")
    if args.rerank is not None and not args.retrieval:
        raise UserError("--rerank K puts what --retrieval finds in another order; give --retrieval TABLE too")
    if args.rerank is not None and args.rerank < 1:
        raise UserError(f"--rerank {args.rerank} makes no sense; re-rank at least 1")
    if args.no_itm and not args.noise:
        raise UserError("--no-itm leaves the fusion encoder out of what --noise finds; give --noise TABLE too")
    asked = args.rerank or (args.noise and not args.no_itm)
    matcher = found_matcher(args.model, args.device, needed=bool(args.rerank)) if asked else None
    if args.rerank and matcher is None:
        raise UserError(f"--rerank needs a fusion encoder with ITM, {args.model} has none; {advice(args.model)}")
    model: Any = matcher.towers if matcher else loaded_model(args.model, args.device) if seen else None
    how: dict[str, Any] = {"batch_size": checked_batch_size(args.batch_size), "workers": checked_workers(args.workers)}
    results = [zero_shot(model, ImageClasses.open(path), **how).to_json() for path in args.zeroshot]
    for path in args.retrieval:
        plain = retrieval(matcher or model, PairTable.open(path), candidates=args.rerank or 0, counting=counting, **how)
        results += [result.to_json() for result in (plain, plain.reranked) if result]
        if plain.reranked and plain.reranked.both(1) < plain.both(1):
            console.print(
                f"on {plain.dataset} re-ranking does harm: the mean recall@1 of both directions falls from "
                f"{plain.both(1):.4f} to {plain.reranked.both(1):.4f}; the fusion encoder knows less than the towers",
                style="yellow",
            )
    judge = model if args.no_itm else matcher or model
    results += [noise_detection(judge, PairTable.open(path), **how).to_json() for path in args.noise]
    for result in results:
        named = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
        among = f", the {result['candidates']} nearest" if "candidates" in result else ""
        console.print(f"{result['task']} on {result['dataset']}{among}: {named}")
    return {"results": results + (captions_judged(args, how) if args.captioning else [])}


def found_matcher(name: str, device: str, *, needed: bool = False) -> Any:
    """The model with its fusion encoder; None if it has none, or, unless it is `needed`, a damaged one."""
    from truepair.models.matcher import DamagedFusion, find_matcher
    from truepair.train.devices import device_of

    try:
        return find_matcher(name, device=device_of(device))
    except DamagedFusion as error:
        if needed:
            raise
        console.print(f"without ITM: {error}", style="yellow")
        return None


def captions_judged(args: Eval, how: dict[str, Any]) -> list[dict[str, Any]]:
    """What `--captioning` asks for: a result for each table or file."""
    from truepair.evaluate.captioning import captioning, written_by
    from truepair.evaluate.described import candidates_in_column, candidates_in_file, write_results
    from truepair.models.image_to_text import SCHEME, Decoding

    external = args.model.startswith(SCHEME)
    decoding = Decoding(
        "beam" if args.beams > 1 else "greedy", 1, 0.9, 1.0, args.beams, args.min_tokens, args.max_tokens
    )
    if not (args.candidates or args.model):
        raise UserError("say whose captions: MODEL (RUN or hf:NAME) writes them, or --candidates COLUMN|RESULTS.json")
    if not args.candidates and (file := next((path for path in args.captioning if path.suffix == ".json"), None)):
        raise UserError(f"{file} brings no images to caption; index it: truepair index, or give --candidates")
    if args.captions_out and len(args.captioning) > 1:
        raise UserError("--captions-out is one file; give one --captioning at a time")
    sources = [_described(path, args.references) for path in args.captioning]
    if args.captions_out:
        sources[0].number_of()  # before the work: the file needs an id an image
    judge_name = args.clipscore or ("" if external else args.model)
    judge = loaded_model(judge_name, args.device) if judge_name else None
    captioner = None if args.candidates else _captioner(args)
    results = []
    for images in sources:
        if captioner is not None:
            with counting("captioning", len(images)) as advance:
                candidates = written_by(captioner, images, decoding=decoding, **how, progress=advance)
        elif args.candidates.endswith(".json"):
            candidates = candidates_in_file(images, Path(args.candidates))
        else:
            candidates = candidates_in_column(images, args.candidates)
        if args.captions_out:
            write_results(args.captions_out, images, candidates)
        results.append(captioning(images, candidates, judge=judge, meteor=args.meteor, **how))
    console.print(_captioning_table(results))
    for result in results:
        for reason, count in result.skipped.items():
            console.print(f"  left out of {result.dataset} {count:,}: {reason}")
    return [result.to_json() for result in results]


def _described(path: Path, references: str) -> Any:
    from truepair.evaluate.described import described_json, described_table
    from truepair.pairs.table import PairTable

    if path.suffix != ".json":
        return described_table(PairTable.open(path), references)
    if references:
        raise UserError(f"{path} has no columns, so --references {references} cannot be chosen")
    return described_json(path)


def _captioner(args: Eval) -> Any:
    from truepair.models.image_to_text import SCHEME, open_captioner
    from truepair.models.run_captioner import open_run_captioner
    from truepair.train.devices import device_of

    device = device_of(args.device)
    if args.model.startswith(SCHEME):
        return open_captioner(args.model, device=device, prompt=args.prompt)
    if args.model.startswith(("open_clip:", "local-dir:")):
        raise UserError(f"{args.model} writes no captions; give RUN, hf:NAME, or --candidates COLUMN|RESULTS.json")
    if args.prompt:
        raise UserError("--prompt is for captioners hf:NAME; a run's own reads no text")
    return open_run_captioner(args.model, device=device)


def _captioning_table(results: list[Any]) -> Any:
    """A column for each table or file, a row for each figure."""
    from rich.table import Table

    judge = f"; CLIPScore by {results[0].judge}" if results[0].judge else ""
    table = Table(title=f"captioning, 100 x, as papers print it{judge}", title_justify="left", box=None)
    table.add_column("")
    for result in results:
        table.add_column(result.dataset, justify="right", overflow="fold")
    table.add_row("captions by", *(result.captions for result in results))
    table.add_row("images", *(f"{result.n_images:,} of {result.n_described:,}" for result in results))
    table.add_row("references", *(f"{result.n_references:,} {result.references}".strip() for result in results))
    for name in results[0].metrics:
        table.add_row(name, *(f"{100 * result.metrics[name]:.1f}" + _beside(name, result) for result in results))
    return table


def _beside(name: str, result: Any) -> str:
    """Leaving out an image may raise any figure: the one that is quoted most says of how many images it is."""
    return f" (on {100 * result.coverage:.1f} % of the images)" if name == "CIDEr" and result.coverage < 1 else ""
