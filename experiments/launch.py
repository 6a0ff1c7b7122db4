"""Launch a study: python experiments/launch.py --study=ladder --workload=digits.

Trains and evaluates every run of experiments/studies/STUDY.py, or of a file of your own,
under runs/STUDY-WORKLOAD. Runs that are done are skipped; Ctrl-C saves, and the same
command resumes them. Several launchers may work on one study.
--config.FIELD=VALUE changes every run.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import rich.markup
import rich.table

import configs
from configs.workloads import get_workload
from edm_jax import files
from edm_jax.cost import disk
from edm_jax.menu import suggest
from edm_jax.studies import RunSpec, by_seed, local, slurm, tpu
from edm_jax.studies.task import LOG, Task
from experiments import cli, live, planning

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Parse the command line and launch what is not done."""
    options, rest = _parser().parse_known_args()
    overrides = cli.overrides(rest)
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers={options.workers}, but must be at least 1.")
    study, specs = load_study(options.study)
    seeds = cli.seed_list(options.seeds) if options.seeds else None
    directory = options.runs or Path("runs") / f"{study}-{options.workload}"
    runs = by_seed(specs(options.workload), seeds)
    if not runs:
        raise ValueError(f"The study {study} has no runs.")
    plans = planning.plan(
        study, runs, directory, overrides, options.retry_failed, options.allow
    )
    # Commands that are printed are all that is.
    for sentence in planning.skipped(plans, directory):
        print(sentence, file=sys.stderr if options.backend == "tpu" else sys.stdout)
    if options.dry_run:
        _dry_run(plans, options)
    elif any(plan.goes for plan in plans):
        {"local": _local, "slurm": _slurm, "tpu": _tpu}[options.backend](plans, options)
    if any(plan.action == planning.FAILED for plan in plans) and not options.dry_run:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", default="ladder", help="a name, or a FILE.py (%(default)s)")
    add("--workload", default="digits", help="(%(default)s)")
    add("--runs", type=files.user_path, help="study directory (runs/STUDY-WORKLOAD)")
    add("--seeds", help="of every run, such as 0-2 or 0,3 (the study's own)")
    add("--dry_run", action="store_true", help="say what would run, where, how much")
    add("--retry_failed", action="store_true", help="run those again that failed")
    add("--allow", default="", metavar="FIELD,FIELD", help="as of train.py")
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--fail_fast", action="store_true", help="stop at the first run that fails"
    )
    ends.add_argument("--keep_going", action="store_true", help="do not (the default)")
    add("--backend", choices=("local", "slurm", "tpu"), default="local")
    group = parser.add_argument_group("--backend=local")
    group.add_argument(
        "--workers", type=int, help="runs at a time (one for each core, or GPU)"
    )
    group.add_argument("--gpus_per_run", type=int, default=1, help="(%(default)s)")
    group = parser.add_argument_group("--backend=slurm")
    group.add_argument("--partition")
    group.add_argument("--account")
    group.add_argument("--time_min", type=int, default=1440, help="(%(default)s)")
    group.add_argument("--nodes", type=int, default=1, help="of a run (%(default)s)")
    group.add_argument("--gpus_per_node", type=int, default=0, help="(%(default)s)")
    group.add_argument("--cpus_per_task", type=int)
    group.add_argument("--mem_gb", type=int)
    group.add_argument("--max_parallel", type=int, default=1000, help="runs at a time")
    group = parser.add_argument_group("--backend=tpu: prints the commands")
    group.add_argument("--tpu", default="TPU_NAME")
    group.add_argument("--zone", default="ZONE")
    group.add_argument(
        "--directory", type=Path, default=HERE.parent, help="of this project there"
    )
    return parser


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


def _dry_run(plans: Sequence[planning.Plan], options: argparse.Namespace) -> None:
    """The table of what would run, where, how many images, how much disk."""
    table = rich.table.Table("run", "what", "images", "disk")
    for plan in plans:
        cells = (
            rich.markup.escape(plan.spec.name),
            plan.action,
            f"{plan.nimg:,}",
            disk.human(plan.bytes),
        )
        table.add_row(*cells)
    # As wide as it is where nobody sees it, so that it can be searched.
    console = cli.Console()
    wide = None if console.is_terminal else 200
    cli.Console(width=wide).print(table)
    going = [plan for plan in plans if plan.goes]
    images, stored = (sum(p.nimg for p in going), sum(p.bytes for p in going))
    print(
        f"{len(going)} of {len(plans)} runs, {images:,} images, {disk.human(stored)} "
        f"at most; {_where(options, len(going))}. Nothing was started."
    )
    for note in sorted({configs.duration_note(plan.config) for plan in plans} - {""}):
        print(note)


def _where(options: argparse.Namespace, runs: int) -> str:
    if options.backend == "slurm":
        gpus = f" with {options.gpus_per_node} GPUs" if options.gpus_per_node else ""
        return f"in a SLURM array, each on {options.nodes} nodes{gpus}"
    if options.backend == "tpu":
        return f"on the TPU {options.tpu}, one after the other"
    slots = _slots(options, max(1, runs))
    return f"here, {len(slots)} at a time ({', '.join(s.name for s in slots)})"


def _local(plans: Sequence[planning.Plan], options: argparse.Namespace) -> None:
    slots = _slots(options, sum(plan.goes for plan in plans))
    tasks = planning.open_runs(plans, options.allow)
    done = sum(plan.action == planning.DONE for plan in plans)
    print(f"{len(tasks)} runs to go, {len(slots)} at a time.", flush=True)
    start = time.monotonic()
    with live.Table(tasks, done) as table:
        try:
            outcomes = local.run(tasks, slots, table, options.fail_fast)
        except KeyboardInterrupt:
            table.close()
            print(
                "launch: interrupted; the same command resumes the runs.",
                file=sys.stderr,
            )
            sys.exit(130)
    failed = [task for task in tasks if outcomes.get(task.name) == "failed"]
    if failed:
        _tell_failures(failed)
        rest = len(tasks) - sum(o in ("done", "failed") for o in outcomes.values())
        stopped = f", and {rest} were stopped or not begun" if rest else ""
        sys.exit(
            f"launch: {len(failed)} of {len(tasks)} runs failed{stopped}; --retry_failed "
            "runs them again."
        )
    if any(outcome == "preempted" for outcome in outcomes.values()):
        sys.exit("launch: some runs were preempted; the same command resumes them.")
    print(
        f"{len(tasks)} runs in {live.duration(time.monotonic() - start)}; next: "
        f"{cli.command('compare.py', tasks[0].path.parent)}"
    )


def _tell_failures(failed: Sequence[Task]) -> None:
    table = rich.table.Table("failed", "why", "last lines of its log", show_lines=True)
    for task in failed:
        why = str(task.status.get("message", ""))
        table.add_row(str(task.path / LOG), why, task.log_tail())
    console = cli.Console(markup=False)
    console.print(table)


def _slots(options: argparse.Namespace, runs: int) -> list[local.Slot]:
    # In a process of its own: asking here would take an accelerator's memory.
    ask = (
        "import jax, sys\n"
        "try: print(jax.default_backend(), *(d.id for d in jax.local_devices()))\n"
        "except Exception as error: sys.exit(str(error) or ' ')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise ValueError(cli.jax_start_sentence(answer.stderr))
    backend, *devices = answer.stdout.split()
    if backend == "cpu":
        cores = len(local.cpu_slots(1)[0].cores)
        return local.cpu_slots(min(runs, options.workers or cores))
    if backend == "gpu":
        gpus = local.visible_gpus(devices)
        workers = options.workers or max(1, len(gpus) // options.gpus_per_run)
        return local.gpu_slots(gpus, min(runs, workers), options.gpus_per_run)
    return [local.Slot(f"all {len(devices)} devices")]


def _slurm(plans: Sequence[planning.Plan], options: argparse.Namespace) -> None:
    slurm.check()
    tasks = planning.open_runs(plans, options.allow)
    resources = slurm.Resources(
        options.partition,
        options.account,
        options.time_min,
        options.nodes,
        options.gpus_per_node,
        options.cpus_per_task,
        options.mem_gb,
        options.max_parallel,
    )
    directory = tasks[0].path.parent
    jobs = slurm.submit(tasks, directory / "slurm", resources, directory.name)
    print(
        f"Submitted {len(jobs)} runs as {jobs[0].job_id} to {jobs[-1].job_id}; watch them "
        f"with {cli.command('compare.py', directory, '--follow')}"
    )


def _tpu(plans: Sequence[planning.Plan], options: argparse.Namespace) -> None:
    # Commands that are only printed leave nothing behind.
    free = [plan for plan in plans if plan.action != planning.HELD]
    tasks = planning.open_runs(free, options.allow, create=False)
    print(
        "# Run these one after the other; a command that is repeated resumes its run."
    )
    for line in tpu.commands(
        tasks, options.tpu, options.zone, HERE.parent, options.directory
    ):
        print(line)


if __name__ == "__main__":
    cli.run(main)
