"""Train one config: python experiments/train.py --config=configs/config_g.py:digits.

The run directory holds everything that evaluation and comparison need. Ctrl-C or SIGTERM
saves and stops with status 75; the same command resumes the run, as it does after a
crash. With several hosts, start it on each one: SLURM and TPU pods are detected;
elsewhere give --coordinator, --num_processes and --process_id.
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
from edm_jax.menu import choice
from edm_jax.runs import claims, store
from edm_jax.runs.directory import RunDir, plain
from edm_jax.train import bases, branch, hosts, loggers, loop, starts
from edm_jax.train.config import RunConfig
from experiments import auto_rate, cli

PREEMPTED = 75  # EX_TEMPFAIL: a temporary failure, try again


def main() -> None:
    """Parse the command line and train."""
    cli.prepare_jax()
    options, rest = parser().parse_known_args()
    overrides, is_auto = auto_rate.without(_with_start(options, cli.overrides(rest)))
    origin = _origin(options, is_auto)
    if origin:
        config = configs.changed(origin[1], overrides)
    elif options.init_from and not options.config:
        config = _config_of_base(options, overrides)
    else:
        config = cli.load_config(options, overrides)
    if cluster := _cluster(options):
        hosts.join(cluster, options.join_timeout_s)
    workload = Path(config.workload).stem  # of a workload in a file
    name = f"{workload}-{config.letter}-seed{config.seed}"
    allow = cli.allowed_fields(options.allow, config)
    if isinstance(config.training.start, starts.Weights):
        name += "-tuned"  # a base often has the plain name
    place = options.run or Path("runs") / name
    if not _is_begun(place):
        bases.begin(config)  # refuses a base that does not fit before there is a run
    by = f"train.py (process {os.getpid()})"
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_working_copy(place, by, bool(cluster)))
        # Process 0 claims the run for all processes; if the claim fails, all stop.
        claim = claims.held(path, by, _lost)
        hosts.first_alone(lambda: stack.enter_context(claim))
        if origin:
            hosts.first_alone(lambda: _say(branch.begin(path, config, *origin)))
        found = None
        if is_auto:
            config, found = auto_rate.settle(config, path, allow)
        _train(path, config, options, allow, found)
    if hosts.is_first():
        cli.say(
            f"Trained {place}; next: {cli.command('evaluate.py', f'--run={place}')}"
        )


def _is_begun(place: Path | store.StoredRun) -> bool:
    if isinstance(place, Path):
        return (place / "config.json").exists()
    return place.exists()


def _working_copy(
    place: Path | store.StoredRun, by: str, on_hosts: bool
) -> contextlib.AbstractContextManager[Path]:
    """Where to train: the run directory, or the copy of one on an object store."""
    if isinstance(place, Path):
        return contextlib.nullcontext(place)
    if on_hosts:
        raise ValueError(
            f"--run={place} is on an object store, and several hosts share a run directory: "
            "mount the bucket on each of them, and name the path there."
        )
    return place.training(by, _lost)


def _with_start(
    options: argparse.Namespace, overrides: dict[str, str]
) -> dict[str, str]:
    """The overrides, and the fields that --init_from=SOURCE[:SIGMA_REL] sets."""
    if not options.init_from:
        return overrides
    if options.branch:
        raise ValueError(
            "--branch continues with the state of a run and --init_from starts anew with "
            "its weights: give one of them."
        )
    source, colon, sigma_rel = options.init_from.rpartition(":")
    try:
        float(sigma_rel)
    except ValueError:
        source, colon = options.init_from, ""
    start = {"name": "weights", "source": source or options.init_from}
    if colon:
        start["sigma_rel"] = sigma_rel
    return {f"training.start.{k}": v for k, v in start.items()} | overrides


def _config_of_base(
    options: argparse.Namespace, overrides: dict[str, str]
) -> RunConfig:
    """The config of the run that --init_from names, with overrides."""
    source = files.user_path(overrides["training.start.source"])
    run = source if (source / "config.json").exists() else source.absolute().parents[1]
    if not (run / "config.json").exists():
        raise ValueError(
            f"--init_from={options.init_from}: it is not in a run directory, so nothing "
            "says how to train it: add --config=FILE:WORKLOAD."
        )
    recorded = cli.recorded_config(run).to_dict()
    recorded["training"]["start"] = choice("scratch")  # not what the base started from
    return configs.changed(RunConfig.of(recorded), overrides)


def _origin(
    options: argparse.Namespace, is_auto: bool
) -> tuple[Path, RunConfig, int | None] | None:
    """--branch's run, its config, and the images to branch at; None without --branch."""
    if not options.branch:
        return None
    if options.config or not options.run or is_auto:
        raise ValueError(
            "--branch uses the config and rate of the run that it names, and needs --run "
            "for its own directory: leave out --config and alpha_ref=auto, and add --run."
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
    """Trains in a run directory that this process has claimed."""
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
                allow_base="base" in allow,
            )
    except loop.Preempted as stop:
        cli.say(f"train: {stop} The same command resumes it.", sys.stderr)
        sys.exit(PREEMPTED)
    except Exception as error:
        # On a full disk this fails, too; that must not hide the first error.
        with contextlib.suppress(OSError):
            run.set_status(state="failed", message=f"{type(error).__name__}: {error}")
        raise


def _lost(sentence: str) -> None:
    """Ends the process at once, because another process owns the run now."""
    cli.say(f"train: {sentence}", sys.stderr)
    os._exit(2)


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    options = cli.config_parser(__doc__, required=False)
    add = options.add_argument
    add(
        "--run",
        type=cli.place,
        help="run directory, here or on gs:// or s3:// (runs/WORKLOAD-LETTER-seedN)",
    )
    add(
        "--branch",
        metavar="RUN[@NIMG]",
        help="start from a checkpoint of that run (the last one), with its config and any "
        "overrides; needs --run",
    )
    add(
        "--init_from",
        metavar="SOURCE[:SIGMA_REL]",
        help="start from the averaged weights of a run, a snapshot, or snapshots of the "
        "original code (.pkl), as --config.training.start does; without --config, with "
        "the config of that run",
    )
    add(
        "--allow",
        default="",
        metavar="FIELD,FIELD",
        help="config fields that may differ from those that the run started with; also "
        "data, for the data set itself, and base, for the weights it started from",
    )
    add("--study", metavar="NAME", help="record that the run belongs to this study")
    add("--variant", default="", metavar="NAME", help="the run's name in the study")
    add("--tensorboard", action="store_true", help="also write RUN/tensorboard")
    add("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    add(
        "--profile",
        type=int,
        default=0,
        metavar="STEPS",
        help="trace this many steps with jax.profiler, into RUN/profile",
    )
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--num_processes", type=int, help="number of processes on all hosts")
    add("--process_id", type=int, help="number of this process, from 0")
    add(
        "--join_timeout_s",
        type=float,
        default=300.0,
        help="how long to wait for the other processes (%(default)g)",
    )
    return options


def _cluster(options: argparse.Namespace) -> hosts.Cluster | None:
    """The cluster from the options, or else from the environment."""
    given = options.coordinator, options.num_processes, options.process_id
    if all(value is None for value in given):
        return hosts.find_cluster()
    if any(value is None for value in given):
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together: give all "
            "three, or none of them under SLURM and on TPU pods."
        )
    if not 0 <= options.process_id < options.num_processes:
        raise ValueError(
            f"--process_id={options.process_id}, but must be 0 to "
            f"{options.num_processes - 1} for --num_processes={options.num_processes}."
        )
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(
            f"--coordinator={options.coordinator!r}, but must be HOST:PORT, such as "
            "10.0.0.1:12345."
        )
    return hosts.Cluster(*given)


@contextlib.contextmanager
def _progress(config: RunConfig) -> Iterator[loop.OnProgress]:
    """A progress bar, on the first process only."""
    if not hosts.is_first():
        yield lambda *_: None
        return
    with cli.progress_bar(cli.RATE, reads=config) as bar:
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
    """The loggers that the options ask for, besides metrics.jsonl."""
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
