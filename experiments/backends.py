"""Where a launch runs its runs: here, on a cluster, or as commands for a TPU pod."""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import rich.table

from edm_jax.fields import Count, Settings
from edm_jax.studies import jobset, local, remote, sky, slurm, tpu
from edm_jax.studies.task import LOG, Task
from experiments import cli, live, planning

PROJECT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Launch:
    """What a back-end is to run."""

    plans: Sequence[planning.Plan]
    allow: str  # fields that may differ from those recorded
    fail_fast: bool

    def tasks(self) -> list[Task]:
        """The runs to go, whose directories are made."""
        return planning.open_runs(self.plans, self.allow)

    def tasks_elsewhere(self) -> list[Task]:
        """The runs to go but those that somebody holds; no directory is made."""
        free = [plan for plan in self.plans if plan.action != planning.HELD]
        return planning.open_runs(free, self.allow, create=False)


@runtime_checkable
class Backend(Protocol):
    """An entry of BACKENDS; its fields are flags of launch.py."""

    def where(self, runs: int) -> str:
        """Where that many runs would go, for --dry_run."""
        ...

    def launch(self, launch: Launch) -> None:
        """Runs, submits or prints the tasks; ends with SystemExit where any failed."""
        ...


@runtime_checkable
class Documented(Backend, Protocol):
    """A back-end that submits documents, which --dry_run prints."""

    def documents(self, launch: Launch) -> list[dict[str, Any]]:
        """One for each run that goes; leaves nothing behind."""
        ...


@dataclasses.dataclass(frozen=True)
class Local(Settings):
    """On this machine, as many at a time as there are cores or GPUs, or `workers`."""

    workers: int | None = None
    gpus_per_run: Count = 1

    def faults(self) -> Iterator[str]:
        """What contradicts itself."""
        if self.workers is not None and self.workers < 1:
            yield f"workers={self.workers}, but must be at least 1."

    def where(self, runs: int) -> str:
        """Such as 'here, 2 at a time (cpu 0, cpu 1)'."""
        slots = self.slots(max(1, runs))
        return f"here, {len(slots)} at a time ({', '.join(s.name for s in slots)})"

    def launch(self, launch: Launch) -> None:
        """Runs the tasks under a table that shows them."""
        slots = self.slots(sum(plan.goes for plan in launch.plans))
        tasks = launch.tasks()
        done = sum(plan.action == planning.DONE for plan in launch.plans)
        print(f"{len(tasks)} runs to go, {len(slots)} at a time.", flush=True)
        start = time.monotonic()
        with live.Table(tasks, done) as table:
            try:
                outcomes = local.run(tasks, slots, table, launch.fail_fast)
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
                f"launch: {len(failed)} of {len(tasks)} runs failed{stopped}; "
                "--retry_failed runs them again."
            )
        if any(outcome == "preempted" for outcome in outcomes.values()):
            sys.exit("launch: some runs were preempted; the same command resumes them.")
        cli.say(
            f"{len(tasks)} runs in {live.duration(time.monotonic() - start)}; next: "
            f"{cli.command('compare.py', tasks[0].path.parent)}"
        )

    def slots(self, runs: int) -> list[local.Slot]:
        """The parts of this machine that runs have to themselves."""
        # In a process of its own: asking here would take an accelerator's memory.
        ask = (
            "import jax, sys\n"
            "from edm_jax import platform\n"
            "platform.keep_plugin_errors()\n"
            "try: print(jax.default_backend(), *(d.id for d in jax.local_devices()))\n"
            "except Exception as e: sys.exit(platform.plugin_error() or str(e) or ' ')"
        )
        answer = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise ValueError(cli.jax_start_sentence(answer.stderr))
        backend, *devices = answer.stdout.split()
        if backend == "cpu":
            cores = len(local.cpu_slots(1)[0].cores)
            return local.cpu_slots(min(runs, self.workers or cores))
        if backend == "gpu":
            gpus = local.visible_gpus(devices)
            workers = self.workers or max(1, len(gpus) // self.gpus_per_run)
            return local.gpu_slots(gpus, min(runs, workers), self.gpus_per_run)
        return [local.Slot(f"all {len(devices)} devices")]


@dataclasses.dataclass(frozen=True)
class Slurm(slurm.Resources):
    """An array of SLURM jobs, by submitit; a job out of time is queued again."""

    def where(self, runs: int) -> str:
        """Such as 'in a SLURM array, each on 1 nodes'."""
        gpus = f" with {self.gpus_per_node} GPUs" if self.gpus_per_node else ""
        return f"in a SLURM array, each on {self.nodes} nodes{gpus}"

    def launch(self, launch: Launch) -> None:
        """Submits the tasks."""
        slurm.check()
        tasks = launch.tasks()
        directory = tasks[0].path.parent
        jobs = slurm.submit(tasks, directory / "slurm", self, directory.name)
        print(
            f"Submitted {len(jobs)} runs as {jobs[0].job_id} to {jobs[-1].job_id}; watch "
            f"them with {cli.command('compare.py', directory, '--follow')}"
        )


@dataclasses.dataclass(frozen=True)
class Tpu(Settings):
    """Prints the commands for a Cloud TPU pod, which has the project in `directory`."""

    tpu: str = "TPU_NAME"
    zone: str = "ZONE"
    directory: str = str(PROJECT)

    def where(self, runs: int) -> str:
        """Such as 'on the TPU NAME, one after the other'."""
        return f"on the TPU {self.tpu}, one after the other"

    def launch(self, launch: Launch) -> None:
        """Prints the commands, and leaves nothing behind."""
        tasks = launch.tasks_elsewhere()
        print("# Run these one after the other; one that is repeated resumes its run.")
        there = Path(self.directory)
        for line in tpu.commands(tasks, self.tpu, self.zone, PROJECT, there):
            print(line)


@dataclasses.dataclass(frozen=True)
class Sky(sky.Resources):
    """SkyPilot's managed jobs on any cloud or Kubernetes; --dry_run prints them."""

    def where(self, runs: int) -> str:
        """Such as 'by SkyPilot, each on 1 x H100:8, spot'."""
        machine = self.accelerators or "a machine without accelerators"
        spot = ", spot" if self.spot else ""
        return f"by SkyPilot, each on {self.nodes} x {machine}{spot}"

    def documents(self, launch: Launch) -> list[dict[str, Any]]:
        """SkyPilot's tasks."""
        tasks = launch.tasks_elsewhere()
        found = [sky.document(task, self, PROJECT) for task in tasks]
        sky.validate(found)
        return found

    def launch(self, launch: Launch) -> None:
        """Submits the jobs."""
        for name, job in sky.submit(self.documents(launch)):
            print(f"Submitted {name} as job {job}.", flush=True)
        print("Watch them with: sky jobs queue")


@dataclasses.dataclass(frozen=True)
class K8s(jobset.Resources):
    """Kubernetes JobSets, one pod a host, by kubectl; --dry_run prints the manifests."""

    def where(self, runs: int) -> str:
        """Such as 'on Kubernetes, each on 4 hosts with 4 google.com/tpu'."""
        limits = ", ".join(f"{n} {what}" for what, n in self.limits().items())
        each = f" with {limits}" if limits else ""
        return f"on Kubernetes, each on {self.all_hosts} hosts{each}"

    def documents(self, launch: Launch) -> list[dict[str, Any]]:
        """The JobSets."""
        return [
            jobset.manifest(task, self, PROJECT) for task in launch.tasks_elsewhere()
        ]

    def launch(self, launch: Launch) -> None:
        """Has kubectl create the JobSets."""
        print(jobset.apply(remote.as_yaml(self.documents(launch))), end="")


BACKENDS = {"local": Local, "slurm": Slurm, "tpu": Tpu, "sky": Sky, "k8s": K8s}


def _tell_failures(failed: Sequence[Task]) -> None:
    table = rich.table.Table("failed", "why", "last lines of its log", show_lines=True)
    for task in failed:
        why = str(task.status.get("message", ""))
        table.add_row(str(task.path / LOG), why, task.log_tail())
    console = cli.Console(markup=False)
    console.print(table)
