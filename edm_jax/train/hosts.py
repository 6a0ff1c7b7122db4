"""The processes of a run: how they join, agree with each other, and stop on signals.

A run on many hosts is one program started on each of them (JAX's multi-controller
runtime). JAX handles the arrays; everything else is here.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from edm_jax.runs import signals
from edm_jax.train import parallel


class Cluster(NamedTuple):
    """How a process finds the others; None lets JAX find out."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: list[int] | None = None


def find_cluster(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """Detects a SLURM step with several tasks, or a TPU machine; None for neither."""
    if int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environ:
        return Cluster(
            num_processes=int(environ["SLURM_NTASKS"]),
            process_id=int(environ["SLURM_PROCID"]),
            local_devices=slurm_devices(environ),
        )
    is_tpu = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    if is_tpu and importlib.util.find_spec("libtpu"):
        return Cluster()
    return None


def slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
    """The GPUs of this task among those that it sees; None if SLURM allocated none.

    A node's only task takes all of its GPUs; several tasks share them evenly.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    count = len([v for v in visible.split(",") if v]) or int(
        environ.get("SLURM_GPUS_ON_NODE", "0")
    )
    if not count:
        return None
    # '2(x3),1': the numbers of tasks on the step's nodes.
    tasks: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        number, _, times = part.partition("(x")
        tasks += [int(number)] * int(times.rstrip(")") or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    here, local = tasks[min(node, len(tasks) - 1)], int(environ["SLURM_LOCALID"])
    share = count // here
    # Fewer GPUs than tasks: each task sees only its own (--gpus-per-task).
    return list(range(local * share, (local + 1) * share)) if share else [0]


def join(cluster: Cluster, timeout_s: float = 300.0, say: Any = sys.stderr) -> None:
    """Joins the other processes; call it once, before anything else in JAX.

    Prints what it waits for. If some do not join within `timeout_s`, prints why and ends
    the process with status 2.
    """
    met = threading.Event()
    waiter = threading.Thread(
        target=_watch, args=(cluster, timeout_s, say, met), daemon=True
    )
    waiter.start()
    # JAX's own timeout aborts with a stack trace: make it later than ours.
    later = int(timeout_s) + 60
    jax.distributed.initialize(*cluster, initialization_timeout=later)
    met.set()
    waiter.join()
    if cluster.num_processes != 1 and jax.process_index() == 0:
        count = jax.process_count()
        print(f"All {count} processes have joined.", file=say, flush=True)


def _watch(cluster: Cluster, timeout_s: float, say: Any, met: threading.Event) -> None:
    count = cluster.num_processes or "all"
    where = f" at {cluster.coordinator}" if cluster.coordinator else ""
    start, wait = time.monotonic(), 2.0
    while not met.wait(min(wait, timeout_s)):
        waited = time.monotonic() - start
        if waited >= timeout_s:
            sentence = _why_alone(cluster, count, where, timeout_s)
            print(f"{Path(sys.argv[0]).stem}: {sentence}", file=say, flush=True)
            os._exit(2)
        print(
            f"Waiting for {count} processes{where} ({waited:.0f} s of {timeout_s:g}).",
            file=say,
            flush=True,
        )
        wait = 10.0


def _why_alone(cluster: Cluster, count: int | str, where: str, timeout_s: float) -> str:
    gave_up = f"waited {timeout_s:g} s for {count} processes{where}"
    if cluster.process_id and cluster.coordinator:
        host, _, port = cluster.coordinator.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            return (
                f"{gave_up}, but process 0 does not answer ({error}): start it, or check "
                "the address and the firewall."
            )
        return f"{gave_up}: process 0 answers, but not all of the others have joined."
    return (
        f"{gave_up}, but not all of them joined: start the same command on every host, "
        "each with its own process id, or raise the timeout."
    )


def is_first() -> bool:
    """Whether this is the process that writes the run's files."""
    return jax.process_index() == 0


class AnyProcess:
    """Tells all processes one step later whether any of them voted yes.

    They can thus stop after the same step, and no host waits for another.
    """

    def __init__(self) -> None:
        self._vote: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = parallel.make_mesh(jax.devices())
            self._rows = NamedSharding(mesh, parallel.ROWS)
            whole = NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(jnp.max, out_shardings=whole)

    def __call__(self, yes: bool) -> bool:
        """Casts this step's vote and returns the result of the one before."""
        if jax.process_count() == 1:
            return yes
        votes = np.full(jax.local_device_count(), yes, np.int32)
        last = self._vote
        self._vote = self._any(
            jax.make_array_from_process_local_data(self._rows, votes)
        )
        return last is not None and bool(last.addressable_data(0))


def agree(value: float) -> list[float]:
    """Every process's value, on every process."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    # As two 32-bit words, because JAX would round it to float32.
    words = np.frombuffer(np.float64(value).tobytes(), np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(words))
    return gathered.view(np.float64)[:, 0].tolist()


def first_alone(action: Callable[[], None]) -> None:
    """Runs `action` on the first process; if it raises an error, all processes do."""
    failure: Exception | None = None
    if is_first():
        try:
            action()
        except Exception as error:  # noqa: BLE001  raised again below
            failure = error
    failed = any(agree(float(failure is not None)))
    if failure is not None:
        raise failure
    if failed:
        raise ValueError("process 0 failed: see its output for the reason.")


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Records SIGINT, SIGTERM and SIGHUP instead of dying; a second one ends the process.

    Files on disk are always complete, so an immediate end loses only the work since the
    last checkpoint. SIGHUP counts once, because a lost terminal sends it more than once.
    """
    received: list[int] = []
    numbers = signals.stop_numbers()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def exit_at_second() -> None:
        # In a thread, because Python's handlers wait while XLA compiles.
        count, hung_up = 0, False
        while data := reader.recv(1):
            count += data[0] in numbers and not (hung_up and data[0] == signal.SIGHUP)
            hung_up |= data[0] == signal.SIGHUP
            if count > 1:
                os._exit(128 + data[0])

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if number == signal.SIGHUP:
            signals.leave_terminal()

    previous = {number: signal.signal(number, note) for number in numbers}
    old = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=exit_at_second, daemon=True)
    watcher.start()
    try:
        yield lambda: bool(received)
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()
