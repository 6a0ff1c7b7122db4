"""The processes of a run: joining, asking one another, and signals that end it.

A run on many hosts is one program started on each of them (JAX's multi-controller
runtime); this is what it needs beyond the arrays.
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
    """How a process finds the others; None leaves it to JAX."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: list[int] | None = None


def find_cluster(environ: Mapping[str, str] = os.environ) -> Cluster | None:
    """What the environment says: a SLURM step of several tasks, or a TPU machine."""
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
    """The GPUs of this task among those it sees; None where SLURM gave none.

    One task of a node takes all of them, several share them evenly.
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
    # Fewer GPUs than tasks: each task sees its own alone (--gpus-per-task).
    return list(range(local * share, (local + 1) * share)) if share else [0]


def join(cluster: Cluster, timeout_s: float = 300.0, say: Any = sys.stderr) -> None:
    """Meets the other processes, once, before anything else of JAX.

    Says whom it waits for, and where they do not come within `timeout_s` ends the
    process with one sentence that says why, and status 2.
    """
    met = threading.Event()
    waiter = threading.Thread(
        target=_watch, args=(cluster, timeout_s, say, met), daemon=True
    )
    waiter.start()
    # JAX's own time-out aborts with a stack trace: it comes after this one.
    later = int(timeout_s) + 60
    jax.distributed.initialize(*cluster, initialization_timeout=later)
    met.set()
    waiter.join()
    if cluster.num_processes != 1 and jax.process_index() == 0:
        count = jax.process_count()
        print(f"All {count} processes are here.", file=say, flush=True)


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
                f"{gave_up}, and process 0 does not answer there ({error}): start it, "
                "or check the address and the firewall."
            )
        return f"{gave_up}: process 0 answers, but not all of the others have come."
    return (
        f"{gave_up}, and not all of them have come: start the same command on every "
        "host, each with a process id of its own, or raise the time-out."
    )


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


class AnyProcess:
    """Whether any process says yes, told to all of them one step later.

    So that they stop after the same step, and none waits for another's host.
    """

    def __init__(self) -> None:
        self._vote: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = parallel.make_mesh(jax.devices())
            self._rows = NamedSharding(mesh, PartitionSpec("data"))
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

    # As two words: JAX would round it to float32.
    words = np.frombuffer(np.float64(value).tobytes(), np.uint32)
    gathered = np.ascontiguousarray(multihost_utils.process_allgather(words))
    return gathered.view(np.float64)[:, 0].tolist()


def first_alone(action: Callable[[], None]) -> None:
    """Runs `action` on the first process; where it raises, all do."""
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
        raise ValueError("process 0 stopped, and says why.")


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Notes SIGINT, SIGTERM and SIGHUP instead of dying; a second one ends the process.

    Everything on disk is whole at any time, so ending at once loses only what came after
    the last checkpoint. SIGHUP, which a lost terminal sends more than once, counts once.
    """
    received: list[int] = []
    numbers = signals.stop_numbers()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def exit_at_second() -> None:
        # In a thread: Python's own handlers wait while XLA compiles.
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
