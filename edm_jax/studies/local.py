"""Runs the tasks of a study on this machine, one in each slot."""

import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from edm_jax.runs import claims, signals
from edm_jax.studies.task import EXIT, Task

_POLL_S = 0.2
_LOOK_AGAIN_S = 2.0  # at a run that another launcher holds
_OUTCOMES = {status: outcome for outcome, status in EXIT.items()}


@dataclasses.dataclass(frozen=True)
class Slot:
    """A part of the machine that one run has to itself."""

    name: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] = ()


class Display(Protocol):
    """What shows the tasks while they run."""

    def show(self, task: Task, note: str, where: str = "") -> None:
        """Shows a task; `note` is waiting, running, held, or how it ended."""

    def stopping(self) -> None:
        """Says that the runs were asked to save and stop."""


def cpu_slots(count: int) -> list[Slot]:
    """Even shares of the cores; more slots than cores share them all."""
    cores = sorted(_cores())
    if count > len(cores):
        return [Slot(f"cpu {i}", cores=tuple(cores)) for i in range(count)]
    return [Slot(f"cpu {i}", cores=tuple(cores[i::count])) for i in range(count)]


def visible_gpus(devices: Sequence[str]) -> list[str]:
    """The names by which CUDA_VISIBLE_DEVICES knows JAX's GPUs."""
    chosen = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    return chosen or list(devices)


def gpu_slots(gpus: Sequence[str], workers: int, gpus_per_run: int = 1) -> list[Slot]:
    """Groups of `gpus_per_run` GPUs, shared by several runs where there are fewer.

    Runs that share one are given equal parts of its memory. Raises ValueError where
    there are fewer GPUs than a run wants.
    """
    groups = [
        gpus[i : i + gpus_per_run]
        for i in range(0, len(gpus) - gpus_per_run + 1, gpus_per_run)
    ]
    if not groups:
        raise ValueError(
            f"--gpus_per_run={gpus_per_run}, but there are {len(gpus)} here."
        )
    shared = -(-workers // len(groups))
    slots = []
    for worker in range(workers):
        group = groups[worker % len(groups)]
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(group)}
        # JAX takes three quarters of the memory of a GPU that it has to itself. So do
        # several runs together: each needs a GiB or more beside its share, for CUDA's
        # context and the handles of cuBLAS and cuDNN.
        if shared > 1 and "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
            fraction = f"{0.75 / shared:.3f}"
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = fraction
        slots.append(Slot(f"gpu {','.join(group)}", environment))
    return slots


def run(
    tasks: Sequence[Task],
    slots: Sequence[Slot],
    display: Display,
    fail_fast: bool = False,
) -> dict[str, str]:
    """Runs tasks, one in each slot at a time; returns how each ended, by name.

    A failure leaves the others running, or with fail_fast preempts them. What another
    launcher holds is waited for, and taken over where it gives it up. SIGINT or SIGTERM
    or SIGHUP is passed on, so that the runs save; then KeyboardInterrupt is raised.
    """
    launch = _Launch(tasks, slots, display)
    with signals.interruptible():
        try:
            while launch.go_on():
                if fail_fast and "failed" in launch.outcomes.values():
                    launch.stop()
                    break
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            launch.stop()
            raise
    return launch.outcomes


class _Launch:
    """Tasks under way."""

    def __init__(self, tasks: Sequence[Task], slots: Sequence[Slot], display: Display):
        self._waiting, self._free, self._display = list(tasks), list(slots), display
        self._active: list[tuple[Task, Slot, subprocess.Popen]] = []
        self._held_until: dict[str, float] = {}  # not looked at before
        self.outcomes: dict[str, str] = {}

    def go_on(self) -> bool:
        """Starts what has room, sees what has ended; False once nothing is left."""
        self._start_free()
        for task, slot, process in list(self._active):
            if (code := process.poll()) is None:
                self._display.show(task, "running", slot.name)
                continue
            self._active.remove((task, slot, process))
            self._free.append(slot)
            self._end(task, _OUTCOMES.get(code, "failed"))
        return bool(self._active or self._waiting)

    def _start_free(self) -> None:
        now = time.monotonic()
        for task in list(self._waiting):
            if not self._free:
                return
            if now < self._held_until.get(task.name, now):
                continue
            if task.is_done:
                self._waiting.remove(task)
                self._end(task, "done")
            elif held := claims.holder(task.path):
                self._held_until[task.name] = now + _LOOK_AGAIN_S
                self._display.show(task, "held", f"by {claims.who(held)}")
            elif not self._failed_elsewhere(task):
                self._waiting.remove(task)
                slot = self._free.pop(0)
                self._active.append((task, slot, _start(task, slot)))

    def _failed_elsewhere(self, task: Task) -> bool:
        """Whether another launcher has just had this task fail: once is enough."""
        if task.status.get("state") != "failed":
            return False
        if task.attempts >= claims.count(task.path):
            return False
        self._waiting.remove(task)
        self._end(task, "failed")
        return True

    def _end(self, task: Task, outcome: str) -> None:
        if outcome == "held":  # another was faster
            self._held_until[task.name] = time.monotonic() + _LOOK_AGAIN_S
            self._waiting.append(task)
            return
        self.outcomes[task.name] = outcome
        self._display.show(task, outcome)

    def stop(self) -> None:
        """Makes all tasks save and stop, and waits for them."""
        self._display.stopping()
        for _, _, process in self._active:
            process.terminate()
        for task, _, process in self._active:
            self._end(task, _OUTCOMES.get(process.wait(), "failed"))
        self._active.clear()


def _start(task: Task, slot: Slot) -> subprocess.Popen:
    process = subprocess.Popen(
        task.process_command(),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **slot.environment},
        # Ctrl-C reaches it through the launcher, once.
        start_new_session=True,
    )
    if slot.cores and hasattr(os, "sched_setaffinity"):
        # In time: it is still starting and has no threads yet.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, slot.cores)
    return process


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))
