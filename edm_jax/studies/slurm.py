"""Running the tasks of a study under SLURM, by submitit: an array of jobs.

A job that is preempted, or runs out of its time, saves, is queued again and resumes.
"""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm_jax.fields import Count, Index, Settings
from edm_jax.runs.directory import read_state, write_json
from edm_jax.studies.task import Task

JOB = "slurm.json"
_PREEMPTION_NOTICE_S = 120


@dataclasses.dataclass(frozen=True)
class Resources(Settings):
    """What one run asks of the cluster; None leaves it to the cluster's defaults."""

    partition: str | None = None
    account: str | None = None
    time_min: Count = 24 * 60
    nodes: Count = 1  # of a run
    gpus_per_node: Index = 0
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    max_parallel: Count = 1000  # runs at a time


@dataclasses.dataclass
class SlurmTask:
    """A task as submitit runs it: on each node of its job once."""

    task: Task

    def __call__(self) -> str:
        self._leaving, self._left = False, threading.Event()
        job, rank = (os.environ.get(f"SLURM_{n}") for n in ("JOB_ID", "PROCID"))
        self.task.by = f"SLURM job {job}"
        if int(rank or 0) > 0:
            return self.task.follow_first(int(rank or 0))
        # In a thread: submitit's signal handler takes the main one, and waits there.
        outcome: list[str] = []
        worker = threading.Thread(target=lambda: outcome.append(self._run()))
        worker.start()
        worker.join()
        if outcome == ["failed"]:
            raise RuntimeError(f"{self.task.path} failed: {self.task.log_tail(1)}")
        return outcome[0]

    def _run(self) -> str:
        try:
            return self.task.when_free(lambda: self._leaving)
        finally:
            self._left.set()

    def checkpoint(self) -> Any:
        """Called by submitit where the job must go: has it save, to be queued again."""
        from submitit.helpers import DelayedSubmission

        self._leaving = True
        self._left.wait(_PREEMPTION_NOTICE_S - 20)
        return DelayedSubmission(SlurmTask(self.task))


def check() -> None:
    """Raises ImportError without submitit, OSError where there is no SLURM."""
    # Not imported to see: that closes the handlers of everybody's loggers.
    if importlib.util.find_spec("submitit") is None:
        raise ImportError("--backend=slurm needs submitit: pip install -e '.[slurm]'.")
    if not shutil.which("srun"):
        raise OSError("There is no SLURM here: srun was not found.")
    live_jobs()


def submit(
    tasks: Sequence[Task],
    folder: Path,
    resources: Resources,
    name: str,
    cluster: str = "slurm",
) -> list[Any]:
    """Submits tasks as one array and returns submitit's jobs.

    cluster: 'slurm', or 'local' for submitit's own stand-in.
    """
    import submitit

    executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
    parameters: dict[str, Any] = {
        "name": name,
        "timeout_min": resources.time_min,
        "nodes": resources.nodes,
        "tasks_per_node": 1,
        "gpus_per_node": resources.gpus_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "mem_gb": resources.mem_gb,
        "slurm_partition": resources.partition,
        "slurm_account": resources.account,
        "slurm_array_parallelism": resources.max_parallel,
        "slurm_signal_delay_s": _PREEMPTION_NOTICE_S,
        "slurm_additional_parameters": {"requeue": True},
    }
    executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
    # Not map_array: submitit asks what it is given for `checkpoint`.
    with executor.batch():
        jobs = [executor.submit(SlurmTask(task)) for task in tasks]
    for task, job in zip(tasks, jobs, strict=True):
        write_json(task.path / JOB, {"job": job.job_id})
    return jobs


def live_jobs() -> set[str]:
    """The jobs of this user that wait or run; empty where there is no SLURM.

    Raises OSError where SLURM does not answer.
    """
    ask = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return set()
    if answer.returncode:
        raise OSError(f"SLURM does not answer: {answer.stderr.strip()}")
    return set(answer.stdout.split())


def job_of(run: Path) -> str:
    """The SLURM job that a run was last submitted as; '' for none."""
    job = read_state(run / JOB).get("job", "")
    return job if isinstance(job, str) else ""
