"""Averages of weights after the training, of any code's files (docs/averaging.md).

    edm-ema info checkpoints                               what the files are, what they can express
    edm-ema reconstruct checkpoints --sigma_rel=0.1,0.2    averages, in the files' own format
    edm-ema plan 100000 --sigma_rel=0.03,0.2 --propose     what to track and store, beforehand
    edm-ema convert average.pt average.safetensors         weights alone, or in another's format
    edm-ema compare a.pt b.pt                              how far two files are from one another

Needs NumPy alone; nothing in a file is run. `edm-ema COMMAND --help` lists the options.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# These threads are the parallelism; BLAS must not start more in each of them.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from edm_jax.ema import plan as planning
from edm_jax.ema import rebuild as ours
from edm_jax.ema import snapshots
from edm_jax.ema.posthoc import MAX_ERROR
from edm_jax.ema.profiles import PowerProfile
from edm_jax.fields import number_list
from edm_jax.files import Damaged, human, is_full, printable
from edm_jax.foreign import command, packages, rebuild, series, solving
from edm_jax.foreign.command import say
from edm_jax.foreign.layout import (
    FLOATS,
    Layout,
    PlainWriter,
    writer,
)

_LENGTHS = (0.02, 0.03, 0.05, 0.07, 0.10, 0.13, 0.16, 0.20, 0.25)
_LISTED = 40  # files or arrays


def reconstruct(options: argparse.Namespace) -> None:
    """Averages of any profile from a series of files."""
    targets = command.targets(options)
    if place := _own(options.snapshots):
        _reconstruct_own(place, targets, options)
        return
    job = command.prepare(options, targets)
    if not options.dry_run:
        with _progress() as on_progress:
            command.write(job, options, on_progress)


def _reconstruct_own(place: Path, targets: list, options: argparse.Namespace) -> None:
    limit = math.inf if options.force else options.max_error or MAX_ERROR
    request = ours.Request(targets, max_error=limit, strict=options.strict)
    job = ours.prepare(place, request)
    for reason in (*job.left_out, *job.plan.refused):
        say(f"Left out: {reason}", sys.stderr)
    above = place.parent if place.name == "snapshots" else place
    out = Path(options.out or above / "reconstructed")
    paths = [Path(path) for path in job.paths(out)]
    if not options.dry_run:
        ours.check_space(job, out)
        with _progress() as on_progress:
            job, found = ours.run(place, request, out, on_progress, job=job)
            paths = [Path(path) for path in found]
    for path, solution in zip(paths, job.plan.solutions, strict=True):
        say(f"{path}: {command.errors(solution)}")


def info(options: argparse.Namespace) -> None:
    """What a series of files is, and which averages it can express."""
    if place := _own(options.snapshots):
        listing = snapshots.scan(place)
        for each in listing.snapshots[:_LISTED]:
            meta = each.meta
            say(f"{each.path.name}: {meta.profile.label} at {meta.nimg}, {meta.dtype}")
        _more(len(listing.snapshots))
        for error in listing.damaged:
            say(f"Left out: {error}", sys.stderr)
        return
    found = series.open_series(options.snapshots, command.settings(options))
    for error in found.left_out:
        say(f"Left out: {error}", sys.stderr)
    say(command.described(found))
    for each in found.stored[:_LISTED]:
        size = human(rebuild.size_of(each.path))
        say(f"  {each.path}: {each.kernel.label} at {each.time}, {size}")
    _more(len(found.stored))
    last = float(found.stored[-1].time)
    basis = [(float(each.time), each.kernel) for each in found.stored]
    roundoff = [each.source.unit_roundoff for each in found.stored]
    wanted = [(last, PowerProfile(s)) for s in _LENGTHS]
    print(f"Power functions at {last:.0f}:")
    print("  sigma_rel   fit       rounding  sum |x|")
    for s, solution in zip(
        _LENGTHS, solving.solve(basis, wanted, roundoff), strict=True
    ):
        print(
            f"  {s:<10.2f}  {solution.fit_error:<8.1e}  {solution.rounding_error:<8.1e}  "
            f"{solution.sum_abs:.3g}"
        )


def plan(options: argparse.Namespace) -> None:
    """The averages that a run of a given length should track and store, and their errors."""
    steps, every = options.steps, options.update_every
    if steps < 1 or options.files < 1 or every < 1:
        raise ValueError("--files and --update_every and the steps must be 1 or more.")
    lengths = number_list("--sigma_rel", options.sigma_rel)
    if not lengths:
        raise ValueError("No length: add some, such as --sigma_rel=0.03,0.2.")
    planned = planning.Plan(
        tuple(number_list("--tracked", options.tracked)),
        planning.uniform(float(steps), options.files),
        options.dtype,
        float(every),
    )
    if options.propose:
        low, high = min(lengths), max(lengths)
        found = planning.propose(
            steps, low, high, options.max_error, ("float32", "float16")
        )
        if found is None:
            raise ValueError(
                f"Not even 512 averages express sigma_rel {low:g} to {high:g} within "
                f"{options.max_error:g}: raise --max_error, or narrow --sigma_rel."
            )
        planned = planning.Plan(
            found.sigma_rels, found.times, found.dtype, float(every)
        )
    tracked = ", ".join(f"{s:g}" for s in planned.sigma_rels)
    bytes_ = (
        len(planned.times)
        * len(planned.sigma_rels)
        * (2 + 2 * (planned.dtype == "float32"))
    )
    print(
        f"sigma_rel {tracked} stored {len(planned.times)} times in {planned.dtype}: "
        f"{bytes_} bytes for each weight."
    )
    times = [f"{t:.0f}" for t in planned.times]
    shown = times if len(times) <= 6 else [*times[:4], "...", times[-1]]
    print(f"at steps {', '.join(shown)}")
    print("  sigma_rel   fit       walk      rounding  sum |x|")
    for each in planning.predict(planned, lengths):
        print(
            f"  {each.sigma_rel:<10.3f}  {each.fit_error:<8.1e}  {each.walk_error:<8.1e}  "
            f"{each.rounding_error:<8.1e}  {each.sum_abs:.3g}"
        )


def convert(options: argparse.Namespace) -> None:
    """One file's weights as safetensors, or in the format of another file."""
    source = _weights(options.file, options.key)
    out = Path(os.path.expanduser(options.out))
    if out.exists() and out.samefile(source.path):
        raise ValueError(f"{out} is the file itself: choose another name.")
    if not options.like:
        if out.suffix != ".safetensors":
            raise ValueError(
                f"{out} does not end in .safetensors: name such a file, or add "
                "--like=FILE, a file of the format that you want."
            )
        template, start = source, PlainWriter
    else:
        template, start = _weights(options.like, options.key), writer
    values = _named(source)
    names: dict[int, list[str]] = {}  # of each piece, which may have several
    for short, full in _named(template).items():
        names.setdefault(template.arrays[full].offset, []).append(short)
    to = start(out, template)
    try:
        begin = 0
        for name in template.averaged:
            array = template.arrays[name]
            known = [short for short in names[array.offset] if short in values]
            if not known:
                lacks = names[array.offset][0]
                raise ValueError(
                    f"{source.path} has no {lacks!r}, as {template.path} has."
                )
            given = source.read(values[known[0]])
            array = template.arrays[_named(template)[known[0]]]
            if given.shape != array.shape:
                raise ValueError(
                    f"{known[0]} has shape {given.shape} in {source.path}, and "
                    f"{array.shape} in {template.path}."
                )
            piece = np.zeros(
                array.count, np.float64 if array.code == "F64" else np.float32
            )
            array.view(piece)[...] = given
            to.write(begin, piece)
            begin += array.count
        to.finish()
    except BaseException:
        with contextlib.suppress(OSError):
            to.discard()
        raise
    say(f"{out}: {len(names)} arrays, {human(rebuild.size_of(out))}")


def compare(options: argparse.Namespace) -> None:
    """The distance of one file's weights from another's, relative to their size."""
    a, b = (_weights(file, options.key) for file in (options.file, options.other))
    first, second = _named(a), _named(b)
    for name in sorted(first.keys() ^ second.keys())[:5]:
        say(f"Only {(a if name in first else b).path} has {name}.")
    rows, distance, size = [], 0.0, 0.0
    for name in sorted(first.keys() & second.keys()):
        x, y = (
            f.read(n[name]).astype(np.float64) for f, n in ((a, first), (b, second))
        )
        if x.shape != y.shape:
            raise ValueError(f"{name} has the shapes {x.shape} and {y.shape}.")
        squares = float(((x - y) ** 2).sum()), float((y**2).sum())
        distance, size = distance + squares[0], size + squares[1]
        rows.append((_ratio(*squares), name))
    if not rows:
        raise ValueError(f"{a.path} and {b.path} have no array in common.")
    print(f"relative distance {_ratio(distance, size):.3e}, of {len(rows)} arrays:")
    for ratio, name in sorted(rows, reverse=True)[:_LISTED]:
        say(f"  {ratio:.3e}  {name}")
    _more(len(rows))


def _ratio(distance: float, size: float) -> float:
    return math.sqrt(distance / size) if size else (math.inf if distance else 0.0)


def _weights(file: str, key: str | None) -> Layout:
    """One file's arrays, of the part that would be averaged."""
    path = Path(os.path.expanduser(file))
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    layout = series.read(path)
    said = packages.Settings(key=key)
    package = packages.PACKAGES[packages.told(layout, said)]
    return layout.averaging(tuple(package.averaged(layout, said)))


def _named(layout: Layout) -> dict[str, str]:
    """The floating-point arrays of a file by the names that codes have in common."""
    prefix = layout.prefix
    return {
        name.removeprefix(prefix).replace("/", "."): name
        for name in layout.chosen
        if layout.arrays[name].code in FLOATS and layout.arrays[name].count
    }


def _own(place: str) -> Path | None:
    """The directory of snapshots that this package stored, if they are such."""
    path = Path(os.path.expanduser(place))
    for directory in (path / "snapshots", path):
        if directory.is_dir():
            for each in sorted(directory.glob("*.safetensors")):
                with contextlib.suppress(Damaged, OSError):
                    snapshots.open_snapshot(each)
                    return directory
    return None


def _more(count: int) -> None:
    if count > _LISTED:
        print(f"  and {count - _LISTED} more")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A line on a terminal that says how much is read, twice a second."""
    shown = [0.0]
    started = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now - shown[0] > 0.5:
            shown[0] = now
            rate = human(done / max(now - started, 1e-9))
            print(
                f"\r{done / total:4.0%}, {rate}/s ", end="", file=sys.stderr, flush=True
            )

    try:
        yield on_progress
    finally:
        if shown[0]:
            print("\r" + " " * 30 + "\r", end="", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="edm-ema",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    def add(function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        said = function.__doc__
        made = commands.add_parser(
            function.__name__, help=said, description=said, allow_abbrev=False
        )
        made.set_defaults(run=function)
        return made

    for function in (info, reconstruct):
        made = add(function)
        made.add_argument(
            "snapshots",
            metavar="DIR",
            help="a directory of files, or a pattern such as 'run/step*/model.safetensors'",
        )
        command.add_series(made, flag=False)
    command.add_targets(made)
    for name, said in (
        ("--force", "make every target, whatever its error"),
        ("--strict", "refuse a damaged file instead of leaving it out"),
        ("--dry_run", "print coefficients and errors, and write nothing"),
    ):
        made.add_argument(name, action="store_true", help=said)
    made.add_argument(
        "--max_error",
        type=float,
        help="leave out targets with a larger error (0.25; 0.1 of this package's snapshots)",
    )
    made = add(plan)
    made.add_argument("steps", type=int, metavar="STEPS", help="of the whole run")
    made.add_argument(
        "--sigma_rel",
        default="0.03,0.05,0.07,0.10,0.15,0.20,0.25",
        help="the lengths wanted afterwards (%(default)s)",
    )
    made.add_argument("--tracked", default="0.05,0.10", help="(%(default)s)")
    made.add_argument(
        "--files", type=int, default=64, help="of each length (%(default)s)"
    )
    made.add_argument("--dtype", default="float32", choices=list(snapshots.DTYPES))
    made.add_argument("--update_every", type=int, default=1, metavar="STEPS")
    made.add_argument(
        "--propose",
        action="store_true",
        help="find the plan of least disk for the lengths",
    )
    made.add_argument(
        "--max_error", type=float, default=MAX_ERROR, help="of --propose (%(default)s)"
    )
    made = add(convert)
    made.add_argument("file", metavar="FILE")
    made.add_argument("out", metavar="OUT")
    made.add_argument("--like", metavar="FILE", help="a file whose copy OUT becomes")
    made.add_argument("--key", help="the part of a checkpoint, such as model")
    made = add(compare)
    made.add_argument("file", metavar="FILE")
    made.add_argument("other", metavar="OTHER")
    made.add_argument("--key", help="the part of a checkpoint, such as model")
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; an expected error is one sentence and status 2."""
    try:
        options = parser().parse_args(arguments)
        options.run(options)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("edm-ema: interrupted; run the same command again.", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        text = str(error)
        if isinstance(error, OSError) and is_full(error):
            text = (
                f"The disk is full at {error.filename}: make room, then run it again."
            )
        elif isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {error.strerror}."
        print(f"edm-ema: {printable(' '.join(text.split()))}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
