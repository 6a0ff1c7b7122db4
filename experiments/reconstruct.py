"""Rebuild averaged weights of any EMA profile from a run's snapshots (App. C, Alg. 3).

    python experiments/reconstruct.py --run=runs/ladder-digits/g-seed0 --sigma_rel=0.06,0.15
    python experiments/reconstruct.py --run=gs://bucket/run --sigma_rel=0.02,0.03,...,0.25
    python experiments/reconstruct.py --run=runs/ladder-digits/g-seed0 --profile=halflife:0.002
    python experiments/reconstruct.py --run=runs/ladder-digits/g-seed0 --profile=2*power:.05-power:.1
    python experiments/reconstruct.py --snapshots=post-hoc-ema-checkpoints --sigma_rel=0.1 \
        --tracked=0.05,0.28 --update_every=10

One pass over the snapshots makes all targets. Each is a safetensors file that lists its
inputs. After Ctrl-C or a kill the same command resumes, losing a few seconds of work.
Prints the errors of each target: `fit` is the relative error of its profile, `rounding`
the expected error from the snapshots' number format, relative to a unit weight. Its mean
age and width compare profiles of different kinds. Leaves out, and names, damaged snapshots and targets that the snapshots cannot express. The exit
status is 0 if at least one target was made, else 2.

--snapshots reads the files of other codes (docs/averaging.md), whatever their framework,
and writes the averages in the same format.
"""

import argparse
import math
import sys
from pathlib import Path

import rich.progress
from etils import epath

from edm_jax import ema, files
from edm_jax.ema import rebuild, snapshots
from edm_jax.files import human, user_path
from edm_jax.foreign import command
from experiments import cli


def main() -> None:
    """Parse the command line and rebuild."""
    options = _parser().parse_args()
    if (options.run is None) == (not options.snapshots):
        raise ValueError("Name either --run or --snapshots.")
    if options.snapshots:
        _foreign(options)
        return
    request = rebuild.Request(
        targets=command.targets(options),
        dtype=options.dtype,
        max_error=math.inf if options.force else options.max_error or ema.MAX_ERROR,
        strict=options.strict,
    )
    stored, run = cli.find_snapshots(options)
    out = epath.Path(options.out or run / "reconstructed")
    job = rebuild.prepare(stored, request)
    damaged = files.few(job.left_out, "damaged snapshots")
    for reason in (*damaged, *job.plan.refused):
        cli.say(f"Left out: {reason}", sys.stderr)
    if options.draw:
        _draw(job, options.draw)
    if options.dry_run:
        _print_plan(job, out)
        return
    rebuild.check_space(job, out)
    count = len(job.metas)
    with cli.progress_bar(
        rich.progress.TransferSpeedColumn(), count=rich.progress.DownloadColumn()
    ) as bar:
        task = bar.add_task(
            f"{count} target{'s' * (count != 1)}", total=job.plan.bytes_to_read
        )

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def on_damage(error: ema.Damaged, again: rebuild.Job) -> None:
            cli.say(f"Left out, starting over: {error}", sys.stderr)
            bar.update(task, completed=0, total=again.plan.bytes_to_read)

        job, paths = rebuild.run(stored, request, out, on_progress, on_damage, job)
        bar.update(task, completed=job.plan.bytes_to_read)
    for path, solution in zip(paths, job.plan.solutions, strict=True):
        cli.say(f"{path}: {_errors(solution)}")


def _foreign(options: argparse.Namespace) -> None:
    """Averages of another code's files."""
    if options.draw or options.dtype != "float32":
        raise ValueError("--draw and --dtype go with --run: --snapshots takes neither.")
    job = command.prepare(options, command.targets(options))
    if options.dry_run:
        return
    count = len(job.templates)
    with cli.progress_bar(
        rich.progress.TransferSpeedColumn(), count=rich.progress.DownloadColumn()
    ) as bar:
        task = bar.add_task(f"{count} target{'s' * (count != 1)}", total=None)

        def on_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        command.write(job, options, on_progress)


def _parser() -> argparse.ArgumentParser:
    parser = cli.run_parser(__doc__, required=False)
    command.add_series(parser)
    command.add_targets(parser)
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=list(snapshots.DTYPES),
        help="number format of the outputs (%(default)s)",
    )
    parser.add_argument(
        "--max_error",
        type=float,
        help="leave out targets with a larger error (0.1; 0.25 with --snapshots)",
    )
    parser.add_argument(
        "--force", action="store_true", help="make every target, whatever its error"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a damaged snapshot instead of leaving it out",
    )
    parser.add_argument(
        "--draw",
        type=user_path,
        metavar="FILE.png",
        help="draw the profiles and what the snapshots make of them",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan and write nothing"
    )
    return parser


def _draw(job: rebuild.Job, path: Path) -> None:
    """Draws the profiles of a plan's targets, and what the snapshots make of them."""
    suffix = path.suffix.removeprefix(".")
    if suffix not in ("png", "pdf", "svg"):
        raise ValueError(f"--draw={path}: end the name in .png, .pdf or .svg.")
    from edm_jax import report  # here: figures take long to import

    metas = [s.meta for s in job.plan.sources]
    stored = [(m.nimg + m.before_nimg, m.profile) for m in metas]
    drawing = report.draw_profiles(stored, job.plan.solutions, job.plan.coefficients)
    files.write_bytes(path, drawing.render(suffix))
    cli.say(f"Drawn: {path}")


def _print_plan(job: rebuild.Job, out: epath.Path) -> None:
    """Prints targets and errors, then the coefficient of every input for each target."""
    plan, paths = job.plan, job.paths(out)
    print(f"{len(paths)} targets:")
    for k, (path, solution) in enumerate(zip(paths, plan.solutions, strict=True)):
        cli.say(f"  [{k}] {path}: {_errors(solution)}")
    print(f"{len(plan.sources)} inputs, with their coefficient for each target:")
    heads = "".join(f"{f'[{k}]':>13}" for k in range(len(paths)))
    print(f"  {'':40} {'dtype':>9}{heads}")
    for source, row in zip(plan.sources, plan.coefficients, strict=True):
        name = files.printable(Path(source.name).name)
        print(f"  {name:40} {source.dtype!s:>9}" + "".join(f"{x:13.4e}" for x in row))
    print(
        f"{human(plan.bytes_to_read)} to read, {human(job.bytes_to_write)} to write, "
        f"{plan.size:,} weights per network."
    )


def _errors(solution: ema.Solution) -> str:
    nimg, moments = solution.nimg, solution.profile.moments(solution.nimg)
    width = "none"
    if not math.isnan(moments.width):
        width = f"{moments.width * nimg:,.0f} ({moments.width:.4f})"
    return (
        f"fit {solution.fit_error:.1e}, rounding {solution.rounding_error:.1e}, "
        f"sum |x| {solution.sum_abs:.3g}; mean age {moments.mean_age * nimg:,.0f} images "
        f"({moments.mean_age:.4f} of all), width {width}"
    )


if __name__ == "__main__":
    cli.run(main)
