"""What commands on other codes' files share: their options, and what they print."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from edm_jax.ema.combine import OnProgress
from edm_jax.ema.grammar import AnyProfile
from edm_jax.ema.solver import Solution
from edm_jax.files import human, printable
from edm_jax.foreign import rebuild, series
from edm_jax.foreign.packages import PACKAGES, Settings
from edm_jax.foreign.rebuild import Job


def add_series(parser: argparse.ArgumentParser) -> None:
    """The options that say what the files of --snapshots are."""
    group = parser.add_argument_group(
        "files of other codes",
        "What their files do not say: here, or by the same names in averages.json beside "
        "them. Times are in the files' own unit, which is most often optimizer steps.",
    )
    group.add_argument(
        "--snapshots",
        default="",
        metavar="DIR",
        help="a directory of files, or a pattern such as 'run/checkpoint-*/model.safetensors'",
    )
    group.add_argument(
        "--format",
        default="",
        choices=["", *PACKAGES],
        metavar="FORMAT",
        help=f"{', '.join(PACKAGES)} (told by the files)",
    )
    group.add_argument(
        "--time",
        metavar="PATTERN",
        help="where names hold the time, such as 'ckpt-{time}.pt' (the only number in them)",
    )
    group.add_argument(
        "--key", help="the part of a checkpoint to average, such as model"
    )
    group.add_argument(
        "--tracked",
        type=_numbers,
        metavar="SIGMA_RELS",
        help="lengths that were tracked",
    )
    group.add_argument("--update_every", type=int, metavar="STEPS")
    group.add_argument("--update_after", type=int, metavar="STEPS")
    group.add_argument("--updates_per_epoch", type=int, metavar="STEPS")
    for name in ("decay", "min_decay", "inv_gamma", "power"):
        group.add_argument(f"--{name}", type=float, help=argparse.SUPPRESS)
    group.add_argument("--warmup", help=argparse.SUPPRESS)
    group.add_argument(
        "--to",
        default="same",
        choices=["same", "safetensors"],
        help="the outputs' format: the files' own, or float32 safetensors (%(default)s)",
    )


def settings(options: argparse.Namespace) -> Settings:
    """The settings among a command's options."""
    found: dict[str, Any] = {
        f.name: getattr(options, f.name, None) for f in fields(Settings)
    }
    return Settings(**found)


def prepare(
    options: argparse.Namespace, targets: Sequence[tuple[int | None, AnyProfile]]
) -> Job:
    """Reads and solves, and prints what was found and left out."""
    found = series.open_series(options.snapshots, settings(options))
    limit = options.max_error or rebuild.MAX_ERROR
    limit = math.inf if options.force else limit
    say(described(found))
    job = rebuild.prepare(found, targets, limit)
    for reason in (*found.left_out, *job.plan.refused):
        say(f"Left out: {reason}", sys.stderr)
    if options.strict and found.left_out:
        raise found.left_out[0]
    if options.dry_run:
        for path, solution in zip(
            job.paths(out_of(options, job), options.to == "safetensors"),
            job.plan.solutions,
            strict=True,
        ):
            say(f"{path}: {errors(solution)}")
        print("coefficients:")
        for each, row in zip(job.inputs, job.plan.coefficients, strict=True):
            say(f"  {each.path.name:40}" + "".join(f"{x:13.4e}" for x in row))
    return job


def write(job: Job, options: argparse.Namespace, on_progress: OnProgress) -> None:
    """Writes every target and prints its errors."""
    paths = rebuild.run(
        job, out_of(options, job), on_progress, plain=options.to == "safetensors"
    )
    for path, solution in zip(paths, job.plan.solutions, strict=True):
        say(f"{path}: {errors(solution)}")


def out_of(options: argparse.Namespace, job: Job) -> Path:
    """The directory of the outputs."""
    return Path(options.out) if options.out else job.series.place / "reconstructed"


def described(found: series.Series) -> str:
    """One line on a series."""
    stored = found.stored
    kinds = list(dict.fromkeys(each.kernel.label for each in stored))
    total = sum(rebuild.size_of(each.path) for each in stored)
    names = len(stored[0].source.layout.averaged)
    return (
        f"{len(stored)} files of {found.format}, {human(total)}, at "
        f"{stored[0].time} to {stored[-1].time}; each holds {names} arrays of "
        f"{', '.join(sorted(stored[0].source.codes))}: {'; '.join(kinds)}."
    )


def errors(solution: Solution) -> str:
    """The errors of one target."""
    return (
        f"fit {solution.fit_error:.1e}, rounding {solution.rounding_error:.1e}, "
        f"sum |x| {solution.sum_abs:.3g}"
    )


def say(text: str, file: TextIO | None = None) -> None:
    """Prints one line, in which names of files act on no terminal."""
    print(printable(text), file=file or sys.stdout, flush=True)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None
