"""What commands on other codes' files share: their options, and what they print."""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from edm_jax.ema import grammar
from edm_jax.ema.combine import OnProgress
from edm_jax.ema.grammar import AnyProfile
from edm_jax.ema.profiles import PowerProfile
from edm_jax.ema.solver import Solution
from edm_jax.fields import number_list
from edm_jax.files import human, printable
from edm_jax.foreign import rebuild, series
from edm_jax.foreign.packages import PACKAGES, Settings
from edm_jax.foreign.rebuild import Job

PROFILES = (
    "a profile, or a sum of several; may be given several times: "
    + ", ".join(each.form for each in grammar.PROFILES.values())
    + ", A*PROFILE+B*PROFILE. Times are in images, MIMG in millions of them"
)


def add_series(parser: argparse.ArgumentParser, flag: bool = True) -> None:
    """The options that say what the files of --snapshots are."""
    group = parser.add_argument_group(
        "files of other codes",
        "What their files do not say: here, or by the same names in averages.json beside "
        "them. Times are in the files' own unit, which is most often optimizer steps.",
    )
    if flag:
        group.add_argument(
            "--snapshots",
            default="",
            metavar="DIR",
            help="a directory of files, or a pattern such as "
            "'run/checkpoint-*/model.safetensors'",
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


def add_targets(parser: argparse.ArgumentParser) -> None:
    """The options that name profiles, times and where to write."""
    parser.add_argument(
        "--sigma_rel",
        default="",
        help="relative EMA lengths, such as 0.05,0.13 or 0.010,0.015,...,0.250",
    )
    parser.add_argument("--profile", action="append", default=[], help=PROFILES)
    parser.add_argument(
        "--nimg",
        default="",
        help="times of the averages in images, such as 4096,8192 (the last snapshot's)",
    )
    parser.add_argument(
        "--out",
        type=os.path.expanduser,
        help="output directory (RUN/reconstructed; beside the files of --snapshots)",
    )


def settings(options: argparse.Namespace) -> Settings:
    """The settings among a command's options."""
    found: dict[str, Any] = {
        f.name: getattr(options, f.name, None) for f in fields(Settings)
    }
    return Settings(**found)


def targets(options: argparse.Namespace) -> list[tuple[int | None, AnyProfile]]:
    """The targets (time, profile) that a command names; None is the last time."""
    lengths = number_list("--sigma_rel", options.sigma_rel)
    profiles = [PowerProfile(s) for s in lengths]
    profiles += [parse_profile(text) for text in options.profile]
    if not profiles:
        raise ValueError(
            "No target: add one, such as --sigma_rel=0.05,0.13 or --profile=uniform:4096."
        )
    times = [_whole(t) for t in number_list("--nimg", options.nimg)] or [None]
    found = [(nimg, profile) for nimg in times for profile in profiles]
    return list(dict.fromkeys(found))


def _whole(nimg: float) -> int:
    if nimg != int(nimg) or nimg < 1:
        raise ValueError(f"--nimg={nimg:g}, but must be a whole number of at least 1.")
    return int(nimg)


def parse_profile(text: str) -> AnyProfile:
    """Parses a --profile; raises ValueError, which states the right form."""
    try:
        return grammar.parse(text)
    except ValueError as error:
        raise ValueError(f"--profile={text!r}: {error}") from error


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
