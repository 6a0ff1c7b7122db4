"""Everything that a run needs to go on exactly; the only file that knows Orbax."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN

from edm_jax.train.step import TrainState

_log = logging.getLogger(__name__)
Agree = Callable[[float], list[float]]


def _write_small_arrays_once() -> None:
    """Has replicas share the writing of large arrays only, and no shardings stored.

    Orbax would cut every array into a part for each device. What is cut into small
    parts takes several times its room on disk, and longer to write.
    """
    handler = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=2**20, enable_write_sharding_file=False
    )
    absl_log = logging.getLogger("absl")  # it warns that a handler is replaced
    level = absl_log.level
    absl_log.setLevel(logging.ERROR)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    absl_log.setLevel(level)


_write_small_arrays_once()


class Restored(NamedTuple):
    """What there was after `step` steps; `extra` is what JSON holds."""

    step: int
    state: TrainState
    extra: dict[str, Any]


class _FirstOfEach:
    """Keeps the first checkpoint at or after every multiple of so many steps."""

    def __init__(self, steps: float):
        self._steps = steps

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        del context
        ages = [int(each.step // self._steps) for each in checkpoints]
        return [age > before for before, age in zip([0, *ages], ages)]


class Checkpoints:
    """The last `keep` states of a run, and one in every so many steps.

    They are written in the background, each whole or not at all, with a checksum of
    every array. `agree` gives every process's value of a number to all of them.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        keep_every: float = math.inf,
        agree: Agree = lambda value: [value],
    ):
        self._directory, self._agree = directory.resolve(), agree
        policies = [LatestN(keep), _FirstOfEach(keep_every)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            create=True,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._saved: int | None = None

    def restore(self, shapes: TrainState) -> Restored | None:
        """The newest checkpoint that is complete and sound; None without any.

        shapes: with the shardings to restore into. A damaged one is passed over with a
        warning, and renamed. Raises ValueError where all are damaged, and for the state
        of another network or optimizer.
        """
        self._manager.reload()
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            found = self._read(step, shapes)
            damaged = isinstance(found, str)
            if not any(self._agree(float(damaged))) and not damaged:
                self._saved = step
                return found
            _log.warning(
                "The checkpoint %s is damaged (%s) and is passed over.",
                self._directory / str(step),
                found if damaged else "as another process sees it",
            )
            self._set_aside(step)
        set_aside = any(self._directory.glob("*.damaged*"))
        if any(self._agree(float(set_aside))):
            raise ValueError(
                f"All checkpoints in {self._directory} are damaged: put one back, or "
                "move them away to train from the start."
            )
        return None

    def save(self, step: int, state: TrainState, extra: dict[str, Any]) -> None:
        """Stores what there is after `step` steps, unless that is there already.

        state: of global arrays. extra: for JSON. Raises OSError, also for the save
        before this one, where that failed in the background.
        """
        if step == self._saved:
            return
        text = json.dumps(extra | {"layout": _layout(state)})
        header = {
            "text": text,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
            "checksums": _checksums(state),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            extra=ocp.args.JsonSave(header),
        )
        with self._faults():
            # Orbax answers False where it finds a later one.
            if not self._manager.save(step, args=items, force=True):
                raise ValueError(f"a later checkpoint is there than step {step}")
        self._saved = step

    def check(self) -> None:
        """Raises OSError where a save failed in the background; never waits for one."""
        # Orbax's check_for_errors would take the error from the thread that, not seeing
        # it, then deletes old checkpoints as if this one were whole.
        if not self._manager.is_saving_in_progress():
            with self._faults():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save; raises OSError where it failed."""
        with self._faults():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _read(self, step: int, shapes: TrainState) -> Restored | str:
        """A checkpoint, or what is wrong with it."""
        header: dict[str, Any] = {}
        try:
            items = ocp.args.Composite(extra=ocp.args.JsonRestore())
            header = self._manager.restore(step, args=items)["extra"]
            sound = hashlib.sha256(header["text"].encode()).hexdigest()
            checks = sound == header["sha256"] and "checksums" in header
            fault = "" if checks else "its header does not check"
        except Exception as error:  # noqa: BLE001  whatever a damaged file makes it
            fault = _first_line(error)
        if any(self._agree(float(bool(fault)))):
            return fault or "its header does not check"
        extra = json.loads(header["text"])
        if odd := sorted(set(extra["layout"].items()) ^ set(_layout(shapes).items())):
            raise ValueError(
                f"The checkpoint of step {step} in {self._directory} holds the state of "
                f"another network or optimizer ({odd[0][0]} differs): restore the config."
            )
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes._asdict()))
            state = TrainState(**self._manager.restore(step, args=items)["state"])
        except Exception as error:  # noqa: BLE001
            return _first_line(error)
        if _checksums(state) != header["checksums"]:
            return "an array does not match its checksum"
        return Restored(step, state, extra)

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            place = self._directory / str(step)
            names = (f"{step}.damaged{i or ''}" for i in itertools.count())
            place.rename(next(p for p in map(place.with_name, names) if not p.exists()))
        self._agree(0.0)  # until it is done
        self._manager.reload()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._manager.reload()
            whole = self._manager.all_steps()
            last = f"step {max(whole)}" if whole else "none"
            raise OSError(
                f"A checkpoint could not be written to {self._directory} "
                f"({_first_line(error)}); the last whole one: {last}. Make room or "
                "see to its permissions, and the same command goes on from there."
            ) from error


@jax.jit
def _checksum(leaves: list[jax.Array]) -> list[jax.Array]:
    """uint32 of each: its 32-bit words, each mixed with its place, summed.

    Whole numbers: the same however the arrays are spread over devices. Changing one
    word changes it; any other change does but for one chance in 2^32.
    """

    def mix(x: jax.Array) -> jax.Array:
        """Every bit of a word spread over all of it, one to one (Wellons' lowbias32)."""
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        return x ^ (x >> 16)

    def words(x: jax.Array) -> jax.Array:
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place * jnp.uint32(size) + along
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
        return jnp.sum(mix(bits ^ mix(place)), dtype=jnp.uint32)

    return [words(x) for x in leaves]


def _checksums(state: TrainState) -> list[int]:
    sums = _checksum(jax.tree.leaves(state))
    return [int(np.asarray(each.addressable_data(0))) for each in sums]


def _layout(state: TrainState) -> dict[str, str]:
    """{leaf: its shape and dtype}."""
    return {
        jax.tree_util.keystr(path): f"{x.dtype} {x.shape}"
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


def _first_line(error: Exception) -> str:
    full = os.strerror(errno.ENOSPC)
    if full in str(error):
        return full  # Orbax says it after long paths
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
