"""Launch a study: python experiments/launch.py --study=ladder --workload=digits.

Trains and evaluates every run of experiments/studies/STUDY.py under
runs/STUDY-WORKLOAD. Runs that are done are skipped; Ctrl-C saves, and the same command
goes on from there.
"""

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Self

import rich.console
import rich.progress

import configs
from edm_jax import study
from edm_jax.resolve import suggest
from edm_jax.run_dir import RunDir
from experiments import cli

HERE = Path(__file__).parent


def main() -> None:
    """Parse the command line and launch what is not done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="ladder", help="(%(default)s)")
    parser.add_argument("--workload", default="digits", help="(%(default)s)")
    parser.add_argument(
        "--runs", type=Path, help="study directory (runs/STUDY-WORKLOAD)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="runs at a time (one for each core on a CPU, else one with all devices)",
    )
    options = parser.parse_args()
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers={options.workers}, but must be at least 1.")
    directory = options.runs or Path("runs") / f"{options.study}-{options.workload}"
    jobs, done = [], []
    for spec in load_study(options.study)(options.workload):
        # Opening refuses a run of another config before anything is trained.
        run = RunDir(directory / spec.name, configs.load(spec.config, spec.overrides))
        if study.is_done(run.path):
            done.append(spec.name)
        else:
            jobs.append(study.Job(spec.name, run.path, _commands(spec, run.path)))
    if done:
        print(f"{directory}: {len(done)} runs are done ({', '.join(done)}).")
    if jobs:
        _launch(jobs, options.workers or _default_workers(len(jobs)))


def load_study(name: str):
    """The function `runs` of a study; raises ValueError naming the nearest study."""
    names = sorted(p.stem for p in (HERE / "studies").glob("[a-z]*.py"))
    if name not in names:
        raise ValueError(
            f"There is no study {name!r}; there are {', '.join(names)}."
            + suggest(name, names)
        )
    return importlib.import_module(f"experiments.studies.{name}").runs


def _commands(spec: study.RunSpec, run: Path) -> list[list[str]]:
    overrides = [f"--config.{field}={text}" for field, text in spec.overrides.items()]
    train = [f"--config={spec.config}", *overrides, f"--run={run}"]
    return [
        [sys.executable, str(HERE / "train.py"), *train],
        [sys.executable, str(HERE / "evaluate.py"), f"--run={run}"],
    ]


def _launch(jobs: list[study.Job], workers: int) -> None:
    console = rich.console.Console(stderr=True)
    print(f"{len(jobs)} runs to go, {workers} at a time.", flush=True)
    with _Bars(jobs, console) as bars:
        try:
            failed = study.run_local(jobs, workers, bars)
        except KeyboardInterrupt:
            sys.exit("launch: interrupted; the same command goes on from here.")
    for job in failed:
        print(f"{job.run} failed; {job.run / study.LOG} ends:\n{job.log_tail()}\n")
    if failed:
        sys.exit(f"launch: {len(failed)} of {len(jobs)} runs failed.")


def _default_workers(runs: int) -> int:
    # In a process of its own: asking here would take an accelerator's memory.
    ask = "import jax; print(jax.default_backend())"
    answer = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True
    )
    return min(runs, os.cpu_count() or 1) if answer.stdout.strip() == "cpu" else 1


class _Bars:
    """A bar for each run; lines of text where there is no terminal."""

    def __init__(self, jobs: list[study.Job], console: rich.console.Console):
        self._console = console
        self._bar = cli.progress_bar(cli.RATE)
        self._tasks = {
            job.name: self._bar.add_task(f"{job.name}: waiting", total=None, rate=0.0)
            for job in jobs
        }
        self._said: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._bar.stop()

    def stopping(self) -> None:
        self.close()
        print("Stopping: each run finishes its step and saves.", flush=True)

    def show(self, job: study.Job, note: str) -> None:
        status = job.status
        stage = status.get("stage", "train") if note == "running" else note
        nimg, total = status.get("nimg", 0), status.get("total_nimg")
        rate = status.get("images_per_s", 0.0)
        text = f"{job.name}: {stage}"
        if stage == "evaluate":
            text += f", {status.get('message', '')}"
        self._bar.update(
            self._tasks[job.name],
            description=text,
            completed=nimg,
            total=total,
            rate=rate,
        )
        if not self._console.is_terminal:
            self._say(job, text, nimg, total, rate)

    def _say(
        self, job: study.Job, text: str, nimg: int, total: int | None, rate: float
    ) -> None:
        """A line for every tenth of the training and for every stage."""
        tenths = 10 * nimg // total if total else 0
        key = f"{text.split(',')[0]} {tenths}"
        if self._said.get(job.name) == key:
            return
        self._said[job.name] = key
        left = f", {(total - nimg) / rate:.0f} s left" if total and rate else ""
        progress = f"{nimg:,} of {total:,} images" if total else "starting"
        print(f"{text}: {progress}, {rate:,.0f} img/s{left}", flush=True)


if __name__ == "__main__":
    cli.run(main)
