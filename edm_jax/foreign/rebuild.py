"""Averages of another code's files, written in the format of these files."""

import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax.ema import combine, snapshots
from edm_jax.ema.combine import OnProgress, Plan
from edm_jax.ema.grammar import AnyProfile, to_fields
from edm_jax.files import human, write_json
from edm_jax.foreign import solving
from edm_jax.foreign.layout import PlainWriter
from edm_jax.foreign.layout import writer as start_writer
from edm_jax.foreign.series import Series, Stored

MAX_ERROR = 0.25  # targets with a larger error are refused unless forced [choice]
METHOD = "least squares over averages of a random walk (edm_jax.foreign.solving)"


@dataclass(frozen=True)
class Job:
    """A plan for files, with the file whose copy each output is."""

    plan: Plan
    inputs: Sequence[Stored]  # those that the plan uses
    templates: Sequence[Stored]  # of each target: the last file up to its time
    series: Series

    def paths(self, out: Path, plain: bool = False) -> list[Path]:
        """Such as power-0.130-000000010000.pt."""
        found = []
        for solution, template in zip(self.plan.solutions, self.templates, strict=True):
            name = f"{solution.profile.label}-{int(solution.nimg):012d}"
            path = template.path
            if plain:
                found.append(out / f"{name}.safetensors")
            elif (
                path.parent / "config.json"
            ).is_file():  # a folder that is loaded whole
                found.append(out / name / path.name)
            else:
                found.append(out / f"{name}{_suffix(path)}")
        return found

    @property
    def bytes_to_write(self) -> int:
        return sum(size_of(template.path) for template in self.templates)


def prepare(
    series: Series,
    targets: Sequence[tuple[int | None, AnyProfile]],
    max_error: float = MAX_ERROR,
) -> Job:
    """Solves for targets (time, profile); None is the time of the last file.

    Raises:
        ValueError: no target can be made, or two would have the same name.
    """
    stored, refused = series.stored, []
    first, last = stored[0].time, stored[-1].time
    rows = np.zeros((len(stored), len(targets)))
    solutions: list[Any] = [None] * len(targets)
    for time in dict.fromkeys(last if t is None else t for t, _ in targets):
        columns = [
            k for k, (t, _) in enumerate(targets) if (last if t is None else t) == time
        ]
        used = [i for i, each in enumerate(stored) if each.time <= time]
        if not used or time > last:
            refused.append(
                f"There is no file at {time} or before it: ask for {first} to {last}."
                if not used
                else f"The last file is at {last}: ask for no later time than that."
            )
            continue
        basis = [(float(stored[i].time), stored[i].kernel) for i in used]
        roundoff = [stored[i].source.unit_roundoff for i in used]
        wanted = [(float(time), targets[k][1]) for k in columns]
        for k, solution in zip(
            columns, solving.solve(basis, wanted, roundoff), strict=True
        ):
            if solution.error <= max_error:
                rows[used, k], solutions[k] = solution.coefficients, solution
            else:
                refused.append(_refusal(solution, max_error))
    kept = [k for k, solution in enumerate(solutions) if solution]
    if not kept:
        raise ValueError(refused[0])
    rows = rows[:, kept]
    used = np.flatnonzero(rows.any(axis=1)).tolist()
    inputs = [stored[i] for i in used]
    plan = Plan(
        [each.source for each in inputs],
        [solutions[k] for k in kept],
        rows[used],
        refused,
    )
    templates = [
        max((s for s in stored if s.time <= solution.nimg), key=lambda s: s.time)
        for solution in plan.solutions
    ]
    job = Job(plan, inputs, templates, series)
    (name, count), *_ = Counter(job.paths(Path())).most_common(1)
    if count > 1:
        raise ValueError(
            f"Two of the targets would be stored as {name}: make them apart."
        )
    return job


def _refusal(solution: Any, max_error: float) -> str:
    return (
        f"These files cannot express {solution.profile.label} at {solution.nimg:.0f}: its "
        f"error would be {min(solution.error, 9.99):.2g} of its distance to the last weights, but at "
        f"most {max_error:g} is allowed. Ask for a longer average, or use --force."
    )


def run(
    job: Job, out: Path, on_progress: OnProgress = lambda *_: None, plain: bool = False
) -> list[Path]:
    """Writes every target, and beside it a JSON file of how it was made.

    Args:
        job: from `prepare`.
        out: the directory.
        on_progress: called with the bytes read so far and in total.
        plain: write safetensors files of float32 instead of the format of the inputs.

    Raises:
        ValueError: `out` is where the inputs are, the disk is too full, or as `combine`.
    """
    paths = job.paths(out, plain)
    if out.resolve() in {each.path.parent.resolve() for each in job.series.stored}:
        raise ValueError(
            f"{out} holds the files themselves, to which outputs would be added: choose "
            "another --out."
        )
    _check_space(job, out)
    writers: list[Any] = []
    double = any(source.dtype.itemsize > 4 for source in job.plan.sources)
    try:
        for path, template in zip(paths, job.templates, strict=True):
            start = PlainWriter if plain else start_writer
            writers.append(start(path, template.source.layout))

        def store(start: int, values: np.ndarray) -> None:
            for writer, row in zip(writers, values, strict=True):
                writer.write(start, row)

        chunks = range(math.ceil(job.plan.size / snapshots.CHUNK))
        dtype = np.dtype(np.float64 if double else np.float32)
        for _ in combine.combine(job.plan, chunks, store, on_progress, dtype):
            pass
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    for k, (writer, path) in enumerate(zip(writers, paths, strict=True)):
        writer.finish()
        template = job.templates[k].path
        if (
            path.parent.parent == out
            and (config := template.parent / "config.json").is_file()
        ):
            shutil.copyfile(config, path.parent / "config.json")
        write_json(path.with_name(f"{path.name}.json"), ancestry(job, k))
    return paths


def ancestry(job: Job, column: int) -> dict[str, Any]:
    """How a target was made: its profile, errors, inputs and coefficients."""
    solution = job.plan.solutions[column]
    return {
        "method": METHOD,
        "format": job.series.format,
        "profile": to_fields(solution.profile),
        "time": int(solution.nimg),
        "fit_error": solution.fit_error,
        "rounding_error": solution.rounding_error,
        "sum_abs": solution.sum_abs,
        "rest_from": os.fspath(job.templates[column].path),
        "left_out": [os.fspath(error.path) for error in job.series.left_out],
        "inputs": [
            {
                "file": os.fspath(each.path),
                "time": each.time,
                "average": each.kernel.label,
                "coefficient": float(x),
            }
            for each, x in zip(
                job.inputs, job.plan.coefficients[:, column], strict=True
            )
            if x
        ],
    }


def _suffix(path: Path) -> str:
    """Such as .pt or .pth.tar; none for a directory."""
    if path.is_dir():
        return ""
    return ".pth.tar" if path.name.endswith(".pth.tar") else path.suffix


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's files."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _check_space(job: Job, out: Path) -> None:
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not place.is_dir():
        raise ValueError(f"{place} is a file: choose a directory for the outputs.")
    free = shutil.disk_usage(place).free
    if job.bytes_to_write > free:
        raise ValueError(
            f"The outputs need {human(job.bytes_to_write)}, but {place} has {human(free)} "
            "free: make room, or choose fewer targets."
        )
