"""Train one config: python experiments/train.py --config=configs/config_g.py:digits.

The run directory holds all that evaluating and comparing need. Ctrl-C or SIGTERM saves
and stops, with status 75; the same command resumes it, as after any crash. On
several hosts start it on each: found by itself under SLURM and on TPU pods, else with
--coordinator, --num_processes and --process_id.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import configs
from edm_jax import files
from edm_jax.cost import disk
from edm_jax.runs import claims
from edm_jax.runs.directory import RunDir, plain
from edm_jax.train import branch, hosts, loggers, loop
from edm_jax.train.config import RunConfig
from experiments import auto_rate, cli

PREEMPTED = 75  # what the system calls a temporary failure: try again


def main() -> None:
    """Parse the command line and train."""
    cli.prepare_jax()
    options, rest = parser().parse_known_args()
    overrides, is_auto = auto_rate.without(cli.overrides(rest))
    origin = _origin(options, is_auto)
    if origin:
        config = configs.changed(origin[1], overrides)
    else:
        config = cli.load_config(options, overrides)
    if cluster := _cluster(options):
        hosts.join(cluster, options.join_timeout_s)
    workload = Path(config.workload).stem  # of a workload in a file
    name = f"{workload}-{config.letter}-seed{config.seed}"
    allow = cli.allowed_fields(options.allow, config)
    path = options.run or Path("runs") / name
    with contextlib.ExitStack() as stack:
        # Process 0 claims the run for all; where it is refused, all of them stop.
        claim = claims.held(path, f"train.py (process {os.getpid()})", _lost)
        hosts.first_alone(lambda: stack.enter_context(claim))
        if origin:
            hosts.first_alone(lambda: _say(branch.begin(path, config, *origin)))
        found = None
        if is_auto:
            config, found = auto_rate.settle(config, path, allow)
        _train(path, config, options, allow, found)


def _origin(
    options: argparse.Namespace, is_auto: bool
) -> tuple[Path, RunConfig, int | None] | None:
    """The run that --branch names, its config, and the images; None without."""
    if not options.branch:
        return None
    if options.config or not options.run or is_auto:
        raise ValueError(
            "--branch takes its run's config and rate, and --run for its own directory: "
            "leave out --config and alpha_ref=auto, and name --run."
        )
    name, at, nimg = options.branch.rpartition("@")
    if not (at and nimg.isdecimal()):
        name, nimg = options.branch, None
    run = files.user_path(name)
    return run, cli.recorded_config(run), int(nimg) if nimg else None


def _say(sentence: str) -> None:
    if sentence:
        cli.say(f"train: {sentence}", sys.stderr)


def _train(
    path: Path,
    config: RunConfig,
    options: argparse.Namespace,
    allow: list[str],
    learning_rate: dict[str, Any] | None,
) -> None:
    """Trains in a run directory that this process holds."""
    run = RunDir(path, config, allow, writing=hosts.is_first())
    run.learning_rate = learning_rate
    if options.study:
        run.study = {"name": options.study, "variant": options.variant}

    def check_disk() -> None:
        print(disk.check(config, run.checkpoints, run.snapshots), file=sys.stderr)

    try:
        hosts.first_alone(check_disk)
        with _progress(config) as report:
            loop.train(
                config,
                run,
                report,
                open_mirrors=lambda nimg: _mirrors(run, config, options, nimg),
                profile_steps=options.profile,
                allow_data="data" in allow,
            )
    except loop.Preempted as stop:
        cli.say(f"train: {stop} The same command resumes it.", sys.stderr)
        sys.exit(PREEMPTED)
    except Exception as error:
        # A full disk takes no status either, and must not hide what went wrong.
        with contextlib.suppress(OSError):
            run.set_status(state="failed", message=f"{type(error).__name__}: {error}")
        raise
    if hosts.is_first():
        cli.say(f"Trained {path}; next: {cli.command('evaluate.py', f'--run={path}')}")


def _lost(sentence: str) -> None:
    """Ends the process at once: another writes to the run now."""
    cli.say(f"train: {sentence}", sys.stderr)
    os._exit(2)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    options = cli.config_parser(__doc__, required=False)
    add = options.add_argument
    add(
        "--run", type=files.user_path, help="run directory (runs/WORKLOAD-LETTER-seedN)"
    )
    add(
        "--branch",
        metavar="RUN[@NIMG]",
        help="begin at a checkpoint of that run (its last), with its config but for the "
        "overrides; needs --run",
    )
    add(
        "--allow",
        default="",
        metavar="FIELD,FIELD",
        help="fields that may differ from those the run was begun with",
    )
    add("--study", metavar="NAME", help="study to record that the run belongs to")
    add("--variant", default="", metavar="NAME", help="which run of it this is")
    add("--tensorboard", action="store_true", help="also write RUN/tensorboard")
    add("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    add(
        "--profile",
        type=int,
        default=0,
        metavar="STEPS",
        help="trace this number of steps with jax.profiler, into RUN/profile",
    )
    add("--coordinator", metavar="HOST:PORT", help="of process 0, on several hosts")
    add("--num_processes", type=int, help="of all hosts")
    add("--process_id", type=int, help="of this one, from 0")
    add(
        "--join_timeout_s",
        type=float,
        default=300.0,
        help="how long to wait for the other processes (%(default)g)",
    )
    return options


def _cluster(options: argparse.Namespace) -> hosts.Cluster | None:
    """As the options say, or as the environment does."""
    given = options.coordinator, options.num_processes, options.process_id
    if all(value is None for value in given):
        return hosts.find_cluster()
    if any(value is None for value in given):
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together: give all "
            "three, or none under SLURM and on TPU pods."
        )
    if not 0 <= options.process_id < options.num_processes:
        raise ValueError(
            f"--process_id={options.process_id} is not in 0 to "
            f"{options.num_processes - 1}: --num_processes={options.num_processes}."
        )
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(
            f"--coordinator={options.coordinator!r} is not HOST:PORT, such as "
            "10.0.0.1:12345."
        )
    return hosts.Cluster(*given)


@contextlib.contextmanager
def _progress(config: RunConfig) -> Iterator[loop.OnProgress]:
    """A bar, on the first process."""
    if not hosts.is_first():
        yield lambda *_: None
        return
    with cli.progress_bar(cli.RATE) as bar:
        name = f"config {config.letter.upper()}"
        task = bar.add_task(f"{name}: preparing", total=None, rate=0.0)
        compiling = True

        def on_progress(nimg: int, total: int, rate: float) -> None:
            nonlocal compiling  # until the second call
            text = f"{name}: compiling" if compiling else name
            if compiling and not bar.console.is_terminal:
                print(f"{text}.", file=sys.stderr, flush=True)
            compiling = False
            bar.update(task, completed=nimg, total=total, rate=rate, description=text)

        yield on_progress


def _mirrors(
    run: RunDir, config: RunConfig, options: argparse.Namespace, nimg: int
) -> loggers.Mirrors:
    """Where the options say that the records of metrics.jsonl go, too."""
    openers = {}
    if options.tensorboard:
        openers["TensorBoard"] = lambda: loggers.TensorBoard(
            run.path / "tensorboard", nimg
        )
    if options.wandb:
        name = "-".join(run.path.absolute().parts[-2:])
        openers["W&B"] = lambda: loggers.WandB(
            options.wandb,
            name,
            f"{name}-{run.config_hash}",
            run.path,
            plain(config),
            nimg,
        )
    return loggers.Mirrors(openers)


if __name__ == "__main__":
    cli.run(main)
