"""Which verbs there are, and what the command does with one: parse its flags, call it, say what came of it."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from truepair.cli.audit import Audit, audit
from truepair.cli.bench import Bench, bench
from truepair.cli.caption import Caption, caption
from truepair.cli.concepts import Concepts, concepts
from truepair.cli.corpora import Corrupt, Data, Index, corrupt, data, index
from truepair.cli.demo import Demo, demo
from truepair.cli.embed import Embed, embed
from truepair.cli.export import Export, export
from truepair.cli.judge import Eval, evaluate
from truepair.cli.output import fail, finish
from truepair.cli.parsing import parsed
from truepair.cli.report import Report, report
from truepair.cli.train import Train, parse_train, train
from truepair.errors import UserError

VERBS: dict[str, tuple[type[Any], Callable[[Any], dict[str, Any]]]] = {
    "demo": (Demo, demo),
    "data": (Data, data),
    "index": (Index, index),
    "corrupt": (Corrupt, corrupt),
    "embed": (Embed, embed),
    "concepts": (Concepts, concepts),
    "caption": (Caption, caption),
    "train": (Train, train),
    "audit": (Audit, audit),
    "eval": (Eval, evaluate),
    "bench": (Bench, bench),
    "report": (Report, report),
    "export": (Export, export),
}


SPINS = "1000"  # turns for which a thread of torch's waits busily, then it sleeps (benchmarks/threads.py)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb. Exit 0: done; 2: bad usage or input, said in one line; 130: interrupted, with everything saved."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS  # before torch is loaded; else its threads hold cores that others need
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        sys.exit(0 if argv else 2)
    verb, rest = argv[0], argv[1:]
    try:
        if verb == "--version":
            from truepair import __version__

            print(__version__)
        elif verb in VERBS:
            kind, call = VERBS[verb]
            args = parse_train(rest) if verb == "train" else parsed(kind, verb, rest)
            result = call(args)
            finish(result, args.json)
            sys.exit(130 if result.get("interrupted") else 0)
        else:
            meant = "".join(f"; perhaps {name} was meant" for name in get_close_matches(verb, VERBS, n=1, cutoff=0.7))
            raise UserError(f"no verb {verb!r}{meant}; verbs are {', '.join(VERBS)}")
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read the output has enough (truepair train --help | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a full disk, a folder that may not be written, a file where a folder should be
        kept = "; what was saved before is whole" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else ""
        fail(f"{error.strerror or error}: {error.filename or 'while writing'}{kept}")
    except KeyboardInterrupt:
        kept = "; what is done is kept, the same command goes on" if verb in ("embed", "concepts", "caption") else ""
        print(f"truepair: interrupted{kept}", file=sys.stderr)
        sys.exit(130)


def _overview() -> str:
    lines = [f"  {verb:8} {(kind.__doc__ or '').splitlines()[0]}" for verb, (kind, _) in VERBS.items()]
    head = "truepair: train vision-language models on image-text pairs nobody has checked"
    return "\n".join([head, "", "usage: truepair VERB ... (truepair VERB --help tells its flags)", "", *lines])
