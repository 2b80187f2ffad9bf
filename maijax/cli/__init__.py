"""The command line: verbs only. Each parses, calls one function and prints; nothing here imports jax."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from maijax import __version__
from maijax.cli import start
from maijax.errors import RunError, UserError

_ABOUT = """\
Language-model research in JAX: an experiment is a value, and every size goes through the same door.

  maijax list                              what there is
  maijax show phi_tiny                     every value, and where it comes from
  maijax run phi_tiny                      train it, evaluate it, tell a story
  maijax run phi_tiny --set optim.lr=3e-3  the same with one value changed
  maijax generate phi_tiny --prompt "Once upon a time"
  maijax sweep phi_test --set optim.lr=log:1e-4..1e-1:8   many trials, those of one shape in one program
  maijax diff phi_tiny mai_500b            what differs between small and large, and why
  maijax compare phi_tiny mai_500b         both side by side; runs and whole ladders, too
  maijax coordcheck phi_tiny               do rates tuned small hold at other widths and depths?
  maijax plan mai_70b --topology v5p:8x8x8 compile it for a machine that is not here: memory, time, cost
  maijax fit runs/ladder_[2-5]             a scaling law of finished runs, and what it foretells
"""
_CODES = "Exit codes: 0 done, 1 failed, 2 bad input, 75 stopped and saved (the same command goes on), 130 interrupted."
_SETTINGS = """\
Values are set with --set PATH=VALUE, as often as you like; `maijax show NAME` prints every path.

  --set train.steps=2e3                  a number            --set optim.clip_norm=none   off
  --set data.sources=a.jsonl,b.txt@0.3   your own corpora, the second at weight 0.3
  --set data.sources[0].field=story      one of several
  --set model.moe.top_k=2                inside a block
"""
_SPACES = """\
A value set to a range or to several values is varied, every other is fixed:

  --set optim.lr=log:1e-4..1e-1:7       7 points, even in the logarithm (without :7 drawn at random)
  --set optim.weight_decay=lin:0..0.3:4 4 points, even
  --set model.num_layers=2,4,8          these three       --set train.seed=0,1,2   three seeds

Every trial is a run, RUNS_DIR/SWEEP/trial-0007. Ctrl-C saves; the same command goes on, however it was stopped.
Trials that differ only in rates, decay, betas, warm-up and seed are trained together in one compiled program.

Example: maijax sweep phi_test --set optim.lr=log:1e-3..1e-1:8
Example: maijax sweep phi_tiny --set optim.lr=log:1e-3..3e-2 --trials 30 --sampler tpe --prune median
Example: maijax sweep phi_tiny_rates --workers 8 --launcher slurm:partition=gpu,gpus_per_node=1,timeout_min=120
"""
_KINDS = """\
Each number says how it is known: exact (arithmetic on sizes), compiler (read from the compiled program), or
model (a few constants fitted to published runs, see docs/plan.md). Compiles are kept in the cache folder.
"""
_FIT = """\
RUNS are names, folders or patterns of runs, sweeps, or .csv and .json files of points with
columns params, tokens, loss. The law is the fullest that they can tell; budgets run at 4 sizes or
more get IsoFLOP parabolas as well. Predictions are kept in the runs folder's ledger.jsonl.

Examples:
  maijax fit runs/ladder_[2-5]                      coefficients, intervals, and each run's miss
  maijax fit runs/ladder_[2-5] --predict ladder_6   foretell a run's loss, and keep it
  maijax run ladder_6 && maijax fit --ledger        make the run, and score what was foretold
  maijax fit published.csv --json --html fit.html   points of your own, for programs and as a page
"""


_COMPARING = """\
Experiments are compared by arithmetic, in a blink: size, FLOPs, state, what laws expect, what moves each value.
Runs are compared by what they measured, at equal tokens, FLOPs and seconds; seeds of one experiment count as one.

  maijax compare phi_tiny mai_500b                            small beside large
  maijax compare mai_70b mai_500b --topology v5p:16x16x32     and what each takes there, by the planner's model
  maijax compare runs/phi_tiny runs/phi_tiny-optim.lr-3e-3    two runs, the gain of the second over the first
  maijax compare muon-s0 muon-s1 adamw-s0 adamw-s1 --html c.html
  maijax compare --ladder "plain-*" "mup-*"                   does the gain grow, hold or fade with scale?

A sweep stands for its best run. Example: maijax compare phi_tiny mai_500b --html small_large.html
"""
_COORDS = """\
A shrunk copy of the experiment's structure is trained for a few large steps, in its parametrisation (completep where
it is standard) and in the standard one. The exit code is 1 if a slope of log2 mean |x| leaves [-0.75, +0.15].
"""


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line, with the way out."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """As ever, but what a verb does not know it tells itself, since its own help lists what it does."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}; values are set with --set PATH=VALUE")
        return found, unknown


def parser() -> argparse.ArgumentParser:
    """Every verb with its flags; a test pins them, since a value of an experiment is set with --set."""
    top = _Parser(
        prog="maijax", description=_ABOUT, epilog=_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"maijax {__version__}")
    verbs = top.add_subparsers(title="verbs", dest="verb", metavar="VERB", parser_class=_Parser)

    def verb(name: str, target: str, about: str, epilog: str = "") -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + ".", epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )
        made.set_defaults(target=target)
        return made

    _reading_verbs(verb)
    _running_verbs(verb)
    _fit(verb)
    return top


def _reading_verbs(verb) -> None:
    lists = verb("list", "show:list_", "name the experiments, smallest first", 'Example: maijax list "phi_*"')
    lists.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of a name, or with * and ?")
    shows = verb("show", "show:show", "print an experiment's values and where each comes from", _SETTINGS)
    _experiment(shows)
    diffs = verb("diff", "show:diff", "print what differs between two experiments, and why",
                 "Example: maijax diff phi_tiny mai_500b")
    diffs.add_argument("a", metavar="A", help="an experiment")
    diffs.add_argument("b", metavar="B", help="another")
    doctor = verb("doctor", "doctor:doctor", "look at this machine, and whether an experiment fits it",
                  "Example: maijax doctor phi_30m\nExample: maijax doctor mai_70b --topology v5p:8x8x8")
    _experiment(doctor, optional=True)
    _topology(doctor, required=False)
    plans = verb("plan", "plan:plan", "compile an experiment for machines that are not here: memory, time, cost",
                 "Example: maijax plan mai_70b --topology v5p:8x8x8 --mesh FSDP\n\n" + _KINDS + "\n" + _SETTINGS)
    _experiment(plans)
    _topology(plans, required=True)
    plans.add_argument("--search", action="store_true", help="look for the fastest layout, and compile the best few")
    plans.add_argument("--compile", type=_above_zero, metavar="N",
                       help="the N best of a search, more if none fits (default: 3)")
    coords = verb("coordcheck", "coordcheck:coordcheck",
                  "train small copies at many widths and depths, to see whether activations keep their size",
                  "Example: maijax coordcheck phi_tiny\n"
                  "Example: maijax coordcheck mai_500b_moe --set optim.name=muon --html check.html\n\n" + _COORDS)
    _experiment(coords)
    coords.add_argument("--html", metavar="FILE", help="write the picture there, one page that needs nothing else")
    compares = _compare(verb)
    for one in (lists, diffs, compares):
        _module(one)
    for one in (lists, shows, diffs, doctor, plans, compares, coords):
        _json(one)


def _compare(verb) -> argparse.ArgumentParser:
    made = verb("compare", "compare:compare", "put experiments, runs or whole ladders side by side", _COMPARING)
    made.add_argument("names", metavar="A", nargs="+", help="an experiment; a run's name or folder; a sweep")
    _topology(made, required=False)
    made.add_argument("--ladder", action="store_true",
                      help="does the gain of the others over the first grow with scale? needs runs of 3 sizes or more")
    made.add_argument("--html", metavar="FILE", help="write it as one page that needs no network")
    made.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs are kept (default: ./runs)")
    return made


def _running_verbs(verb) -> None:
    runs = verb("run", "run:run", "train an experiment, evaluate it, sample from it; resumes what was stopped",
                _SETTINGS)
    _experiment(runs)
    runs.add_argument("--name", dest="run_name", metavar="RUN",
                      help="of the run's folder; default: the experiment's, and what is set")
    runs.add_argument("--dry-run", action="store_true", help="say what would happen, and write nothing")
    _sweep(verb)
    evals = verb("eval", "run:evaluate", "measure a run's held-out loss, or its loss on any corpus",
                 "Example: maijax eval phi_tiny --source my_stories.jsonl")
    evals.add_argument("run", metavar="RUN", help="a run's name or folder")
    evals.add_argument("--source", metavar="URI", help="a file, a folder or tfds:NAME; default: what was held out")
    evals.add_argument("--field", default="text", metavar="FIELD", help="of the source's JSON lines (default: text)")
    _json(evals)
    generates = verb("generate", "run:generate", "continue a prompt with a trained run",
                     'Example: maijax generate phi_tiny --prompt "Once upon a time" --temperature 0.7 --num 3')
    generates.add_argument("run", metavar="RUN", help="a run's name or folder")
    generates.add_argument("--prompt", required=True, metavar="TEXT", help="what to continue")
    generates.add_argument("--max-tokens", type=_above_zero, default=200, metavar="N", help="at most (default: 200)")
    generates.add_argument("--temperature", type=_not_below_zero, default=0.8, metavar="T",
                           help="0: always the likeliest token (default: 0.8)")
    generates.add_argument("--top-k", type=_above_zero, metavar="K", help="only among the K likeliest tokens")
    generates.add_argument("--top-p", type=_share, metavar="P", help="only among the likeliest that sum to P")
    generates.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed, the same text (default: 0)")
    generates.add_argument("--num", type=_above_zero, default=1, metavar="N", help="so many texts (default: 1)")
    for one in (runs, evals, generates):
        _runs_dir(one)


def _fit(verb) -> None:
    fits = verb("fit", "fit:fit", "fit a scaling law to runs, foretell a run's loss, score what was foretold",
                _FIT + "\n" + _SETTINGS)
    fits.add_argument("runs", nargs="*", metavar="RUNS", help="runs, sweeps, patterns, or files of points")
    fits.add_argument("--params", choices=("active", "total", "matmul", "non-embedding"), default="active",
                      help="which parameters N counts; the exponents depend on it (default: active)")
    fits.add_argument("--bits", action="store_true",
                      help="fit bits per byte, which may be compared over tokenizers; default: nats per token")
    fits.add_argument("--predict", dest="name", metavar="NAME", help="foretell an experiment's loss, and keep it")
    fits.add_argument("--set", action="append", default=[], metavar="PATH=VALUE",
                      help="change a value of it; repeatable")
    fits.add_argument("--ledger", action="store_true", help="print what was foretold, and what came of it")
    fits.add_argument("--dry-run", action="store_true", help="foretell, and keep nothing")
    fits.add_argument("--html", metavar="FILE", help="write a page with pictures, which needs no network")
    _runs_dir(fits)
    _module(fits)
    _json(fits)


def _sweep(verb) -> None:
    one = verb("sweep", "sweep:sweep", "run many trials of an experiment; resumes what was stopped", _SPACES)
    _experiment(one, what="an experiment or a sweep")
    one.add_argument("--sampler", choices=["grid", "random", "tpe"],
                     help="how points are chosen (default: grid, or random where a range has no number of points)")
    one.add_argument("--trials", type=_above_zero, metavar="N", help="of random and tpe (default: 20); may grow later")
    one.add_argument("--prune", choices=["none", "median", "halving"], help="stop losers early (default: none)")
    one.add_argument("--workers", type=_above_zero, default=1, metavar="N", help="processes at once (default: 1)")
    one.add_argument("--together", type=_above_zero, default=16, metavar="K",
                     help="at most so many trials in one program; 1: each alone (default: 16)")
    one.add_argument("--launcher", default="local", metavar="WHERE",
                     help="local, slurm or ray, with options: slurm:partition=gpu,gpus_per_node=1 (default: local)")
    one.add_argument("--name", dest="run_name", metavar="SWEEP", help="of the folder; default: NAME, and what is set")
    one.add_argument("--dry-run", action="store_true", help="say what would happen, and write nothing")
    one.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs are kept (default: ./runs)")
    _json(one)


def _experiment(one: argparse.ArgumentParser, *, optional: bool = False, what: str = "an experiment") -> None:
    one.add_argument("name", metavar="NAME", help=f"{what}, see maijax list", nargs="?" if optional else None)
    one.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a value; repeatable")
    one.add_argument("--mesh", metavar="M", help="a preset of configs/meshes.py, e.g. FSDP")
    _module(one)


def _topology(one: argparse.ArgumentParser, *, required: bool) -> None:
    one.add_argument("--topology", required=required, metavar="T",
                     help="chips and their shape: v5p:8x8x8, h100:64x8 (64 nodes of 8); see configs/chips.py")
    one.add_argument("--slices", type=_above_zero, default=1, metavar="N", help="so many TPU slices (default: 1)")


def _runs_dir(one: argparse.ArgumentParser) -> None:
    one.add_argument("--runs-dir", default="runs", metavar="DIR", help="where runs are kept (default: ./runs)")


def _module(one: argparse.ArgumentParser) -> None:
    one.add_argument("--module", metavar="MODULE", help="import this first: your own experiments, e.g. my_lab.runs")


def _json(one: argparse.ArgumentParser) -> None:
    one.add_argument("--json", action="store_true", help="print JSON for programs")


def _above_zero(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def _not_below_zero(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number, 0 or more")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0 and at most 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")  # fails every comparison


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code; what a person can mend is told in one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    before = start.leave_at_once()
    start.skip_absent_tpu()
    try:
        top = parser()
        _known_verb(top, words)
        args = top.parse_args(words)
        if args.verb is None:
            top.print_help()
            return 2
        module, _, function = args.target.partition(":")
        code = getattr(importlib.import_module(f"maijax.cli.{module}"), function)(args)
        sys.stdout.flush()  # here, where a reader that left can still be caught
        return code or 0
    except UserError as error:
        return _tell(error, 2)
    except RunError as error:
        return _tell(error, 1)
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _tell(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _tell("interrupted", 130)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _known_verb(top: argparse.ArgumentParser, words: list[str]) -> None:
    """Raises UserError with the nearest verb, before argparse answers with the whole list."""
    verbs = next(a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction))
    if words and not words[0].startswith("-") and words[0] not in verbs:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(verbs)}"
        raise UserError(f"no verb {words[0]!r}; {hint}")


def _tell(message: object, code: int) -> int:
    print("maijax:", " ".join(str(message).split()), file=sys.stderr)
    return code
