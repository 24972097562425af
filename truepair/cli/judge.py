"""The verb that evaluates a model, or captions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from truepair.cli.output import console, counting
from truepair.cli.settings import Flag, checked_batch_size, checked_workers, found_matcher, loaded_model
from truepair.errors import UserError


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
    rerank: int | None = None  # K: also with the K nearest (more than 10) put in order by the run's fusion encoder
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


def evaluate(args: Eval) -> dict[str, Any]:
    from truepair.evaluate import ImageClasses, noise_detection, retrieval, zero_shot
    from truepair.models.matcher import lack
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
        raise UserError(f"--rerank: {lack(args.model, 'fusion encoder with ITM')}")
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
