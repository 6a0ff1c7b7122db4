"""Launch a study: python experiments/launch.py --study=ladder --workload=digits.

Trains and evaluates every run of experiments/studies/STUDY.py, or of a file of your own,
under runs/STUDY-WORKLOAD. Runs that are done are skipped; Ctrl-C saves, and the same
command resumes them. Several launchers may work on one study.
--config.FIELD=VALUE changes every run.
"""

import argparse
import dataclasses
import math
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import rich.markup
import rich.table

import configs
from configs.workloads import get_workload
from edm_jax import fields, files, menu
from edm_jax.cost import averages, disk, hours
from edm_jax.menu import suggest
from edm_jax.studies import RunSpec, by_seed, remote
from experiments import cli, planning
from experiments.backends import BACKENDS, Backend, Documented, Launch

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Parse the command line and launch what is not done."""
    parser = _parser()
    options, _ = parser.parse_known_args()
    name = options.backend
    kind = menu.entry(BACKENDS, "--backend", name)
    _add_flags(parser, name, kind)
    parser.add_argument("--help", "-h", action="help")
    options, rest = parser.parse_known_args()
    overrides = cli.overrides(rest)
    _check_price(options)
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(kind)}
    backend = fields.make(kind, "--backend", given)
    study, specs = load_study(options.study)
    seeds = cli.seed_list(options.seeds) if options.seeds else None
    directory = options.runs or Path("runs") / f"{study}-{Path(options.workload).stem}"
    runs = by_seed(specs(options.workload), seeds)
    if not runs:
        raise ValueError(f"The study {study} has no runs.")
    plans = planning.plan(
        study, runs, directory, overrides, options.retry_failed, options.allow
    )
    for sentence in planning.unreadable(plans):
        print(sentence, file=sys.stderr)
    wanted = Launch(plans, options.allow, options.fail_fast)
    documents = None
    if options.dry_run and isinstance(backend, Documented):
        documents = remote.as_yaml(backend.documents(wanted))
    # Commands and documents that are printed are all that is.
    aside = documents is not None or options.backend == "tpu"
    said = sys.stderr if aside else sys.stdout
    for sentence in planning.skipped(plans, directory):
        print(sentence, file=said)
    if options.dry_run:
        chip = options.chip or hours.known(getattr(backend, "chip", ""))
        _dry_run(plans, backend, said, chip, options.price_per_chip_hour)
        print(documents or "", end="")
    elif any(plan.goes for plan in plans):
        backend.launch(wanted)
    if any(plan.action == planning.FAILED for plan in plans) and not options.dry_run:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,  # until the back-end's flags are known
    )
    add = parser.add_argument
    add("--study", default="ladder", help="a name, or a FILE.py (%(default)s)")
    add("--workload", default="digits", help="(%(default)s)")
    add("--runs", type=files.user_path, help="study directory (runs/STUDY-WORKLOAD)")
    add("--seeds", help="of every run, such as 0-2 or 0,3 (the study's own)")
    add("--dry_run", action="store_true", help="say what would run, where, how much")
    add("--chip", help="with --dry_run, say its hours: v5e, H100, … (the back-end's)")
    add("--price_per_chip_hour", type=float, help="and what they cost")
    add("--retry_failed", action="store_true", help="run those again that failed")
    add("--allow", default="", metavar="FIELD,FIELD", help="as of train.py")
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--fail_fast", action="store_true", help="stop at the first run that fails"
    )
    ends.add_argument("--keep_going", action="store_true", help="do not (the default)")
    listed = ", ".join(BACKENDS)
    add("--backend", default="local", help=f"{listed} (%(default)s), or FILE.py:NAME; "
        "--backend=NAME --help lists its flags")  # fmt: skip
    return parser


def _add_flags(parser: argparse.ArgumentParser, name: str, kind: type) -> None:
    """A flag for each field of a back-end."""
    about = (kind.__doc__ or "").strip().splitlines()[0]
    group = parser.add_argument_group(f"--backend={name}", about)
    types = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        [of, *_] = typing.get_args(types[field.name]) or [types[field.name]]
        how: dict[str, typing.Any] = {"type": of}
        if of is bool:
            how = {"action": argparse.BooleanOptionalAction}
        group.add_argument(
            f"--{field.name}", default=field.default, help="(%(default)s)", **how
        )


def _check_price(options: argparse.Namespace) -> None:
    if options.chip is not None:
        hours.check_chip(options.chip)
    price = options.price_per_chip_hour
    if price is not None and not 0 <= price < math.inf:
        raise ValueError(
            f"--price_per_chip_hour={price}, but must be finite and not negative."
        )


def load_study(name: str) -> tuple[str, Callable[[str], list[RunSpec]]]:
    """A study's name and its function `runs`; raises ValueError for none."""
    path = Path(name)
    if path.suffix != ".py":
        names = sorted(p.stem for p in (HERE / "studies").glob("[a-z]*.py"))
        if name not in names:
            raise ValueError(
                f"There is no study {name!r}; there are {', '.join(names)}."
                + suggest(name, names)
            )
        path = HERE / "studies" / f"{name}.py"
    if not path.is_file():
        raise FileNotFoundError(f"There is no study file {name}.")
    build = files.run_python(path).get("runs")
    if not callable(build):
        raise files.Damaged(path, "has no function runs(workload).")

    def runs(workload: str) -> list[RunSpec]:
        get_workload(workload)
        with files.blamed_on(path):
            found = build(workload)
        if not isinstance(found, Sequence) or not all(
            isinstance(each, RunSpec) for each in found
        ):
            raise files.Damaged(
                path, "must return a list of RunSpec from runs(workload)."
            )
        return list(found)

    return path.stem, runs


def _dry_run(
    plans: Sequence[planning.Plan],
    backend: Backend,
    said: typing.TextIO,
    chip: str,
    price: float | None,
) -> None:
    """The table of what would run, where, how many images, how much disk and time."""
    taken = [hours.chip_hours(plan.config, chip) if chip else None for plan in plans]
    is_timed = any(each is not None for each in taken)
    timed = ["chip-hours"] if is_timed else []
    table = rich.table.Table("run", "what", "images", "disk", *timed)
    for plan, each in zip(plans, taken, strict=True):
        cells = (
            rich.markup.escape(plan.spec.name),
            plan.action,
            f"{plan.nimg:,}",
            disk.human(plan.bytes),
        )
        shown = "" if each is None else _hours(each)
        table.add_row(*cells, *([shown] if is_timed else []))
    # As wide as it is where nobody sees it, so that it can be searched.
    wide = None if said.isatty() else 200
    cli.Console(width=wide, file=said).print(table)
    going = [plan for plan in plans if plan.goes]
    images, stored = (sum(p.nimg for p in going), sum(p.bytes for p in going))
    print(
        f"{len(going)} of {len(plans)} runs, {images:,} images, {disk.human(stored)} "
        f"at most; {backend.where(len(going))}. Nothing was started.",
        file=said,
    )
    if chip or price is not None:
        known = [each for plan, each in zip(plans, taken, strict=True) if plan.goes]
        print(_cost(known, chip, price), file=said)
    for note in sorted({averages.line(plan.config) for plan in plans}):
        print(note, file=said)
    for note in sorted({configs.duration_note(plan.config) for plan in plans} - {""}):
        print(note, file=said)


def _hours(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def _cost(taken: Sequence[float | None], chip: str, price: float | None) -> str:
    """A sentence on the chip-hours of the runs that go, and their price."""
    if not chip:
        return "Name the --chip to have its hours and their price."
    if None in taken:
        return (
            f"The peak of {chip} is not stated for network.compute_dtype of these runs: "
            "no hours are known."
        )
    total = sum(each for each in taken if each is not None)
    cost = "" if price is None else f", {total * price:,.2f} at {price:g} an hour"
    return (
        f"{_hours(total)} hours of {chip}{cost}, without evaluation, at "
        f"{hours.utilization(chip):.0%} of its peak: an assumption that small networks "
        "do not reach."
    )


if __name__ == "__main__":
    cli.run(main)
