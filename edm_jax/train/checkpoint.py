"""Checkpoints hold everything that a run needs to resume exactly.

Only this file and `orbax_quirks` use Orbax.
"""

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

from edm_jax.files import Damaged, open_regular
from edm_jax.train import orbax_quirks
from edm_jax.train.step import TrainState

_log = logging.getLogger(__name__)
Agree = Callable[[float], list[float]]

orbax_quirks.write_small_arrays_once()

# Errors that can keep an undamaged file from being read.
_PASSING = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
)
_EXHAUSTED = "RESOURCE_EXHAUSTED", "Out of memory", "out of memory"


class Restored(NamedTuple):
    """A checkpoint after `step` steps; `extra` is its JSON part."""

    step: int
    state: TrainState
    extra: dict[str, Any]


class _Fault(NamedTuple):
    """Why a checkpoint cannot be restored, and whether its own bytes are the reason."""

    reason: str
    damaged: bool = True


class _FirstOfEach:
    """Keeps the first checkpoint at or after every multiple of `steps`."""

    def __init__(self, steps: float):
        self._steps = steps

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        del context
        ages = [int(each.step // self._steps) for each in checkpoints]
        return [age > before for before, age in zip([0, *ages], ages)]


class Checkpoints:
    """The last `keep` states of a run, and one every `keep_every` steps.

    They are written in the background, each whole or not at all, with a checksum of
    every array.

    Args:
        directory: where they are.
        keep: the number of latest checkpoints to keep.
        keep_every: also keep one per this many steps.
        agree: takes each process's value of a number and gives all of them to all.

    Raises:
        OSError: the directory cannot be made or read.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        keep_every: float = math.inf,
        agree: Agree = lambda value: [value],
    ):
        if os.path.lexists(directory) and not directory.is_dir():
            raise NotADirectoryError(
                f"{directory} is not a directory: move it away, or restore the "
                "checkpoints there."
            )
        self._directory, self._agree = directory.resolve(), agree
        policies = [LatestN(keep), _FirstOfEach(keep_every)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            create=True,
            cleanup_tmp_directories=True,
        )
        self._place = orbax_quirks.plain_path(self._directory)
        self._set_aside_what_orbax_would_wait_for()
        with orbax_quirks.hushed():
            self._manager = ocp.CheckpointManager(self._place, options=options)
        self._saved: int | None = None

    def restore(self, shapes: TrainState) -> Restored | None:
        """Reads the newest checkpoint that is complete and undamaged; None without any.

        A checkpoint whose own bytes are damaged is skipped with a warning, and renamed.

        Args:
            shapes: the state's shapes, with the shardings to restore into.

        Raises:
            ValueError: all are damaged, or it is for another network or optimizer.
            OSError: something else keeps one from being read; nothing is renamed.
        """
        steps = self._whole_steps()
        # Orbax only sees directories.
        inside = [path for path in self._directory.iterdir() if not path.is_dir()]
        files = [int(path.name) for path in inside if path.name.isdecimal()]
        for step in sorted([*steps, *files], reverse=True):
            found = self._read(step, shapes)
            fault = found if isinstance(found, _Fault) else None
            worst = max(
                self._agree(0.0 if fault is None else 1.0 + (not fault.damaged))
            )
            if isinstance(found, Restored) and not worst:
                self._saved = step
                return found
            reason = fault.reason if fault else "another process found it damaged"
            if worst > 1:
                raise OSError(
                    f"The checkpoint {self._directory / str(step)} cannot be read "
                    f"({reason}), but does not seem damaged: fix the cause, then run the "
                    "same command again."
                )
            self._set_aside(step, reason)
        set_aside = any(self._directory.glob("*.damaged*"))
        if any(self._agree(float(set_aside))):
            raise ValueError(
                f"All checkpoints in {self._directory} are damaged: restore one from a "
                "copy, or move them all away to train from the start."
            )
        return None

    def save(self, step: int, state: TrainState, extra: dict[str, Any]) -> None:
        """Stores a checkpoint, unless there is already one for this step.

        Args:
            step: the number of steps taken.
            state: global arrays.
            extra: plain values, stored as JSON.

        Raises:
            OSError: this save, or the previous one in the background, failed.
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
            # Orbax returns False if it finds a later one.
            if not self._manager.save(step, args=items, force=True):
                raise ValueError(f"there is a checkpoint later than step {step}")
        self._saved = step

    def check(self) -> None:
        """Raises OSError if a save failed in the background; never waits for one."""
        # Orbax's check_for_errors would take the error away from its thread, which would
        # then delete old checkpoints as if this one were complete.
        if not self._manager.is_saving_in_progress():
            with self._faults():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save; raises OSError if it failed."""
        with self._faults():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _read(self, step: int, shapes: TrainState) -> Restored | _Fault:
        """Reads a checkpoint, or says what is wrong with it."""
        header: dict[str, Any] = {}
        fault = self._look(step)
        try:
            if fault is None:
                items = ocp.args.Composite(extra=ocp.args.JsonRestore())
                with orbax_quirks.hushed():
                    header = self._manager.restore(step, args=items)["extra"]
                sound = hashlib.sha256(header["text"].encode()).hexdigest()
                if sound != header["sha256"] or "checksums" not in header:
                    fault = _Fault("its header does not match its checksum")
        except Exception as error:  # noqa: BLE001  damaged files raise anything
            fault = self._fault(step, error)
        if any(self._agree(float(fault is not None))):
            return fault or _Fault("another process found it damaged")
        extra = json.loads(header["text"])
        if odd := sorted(set(extra["layout"].items()) ^ set(_layout(shapes).items())):
            raise ValueError(
                f"The checkpoint of step {step} in {self._directory} holds the state of "
                f"another network or optimizer ({odd[0][0]} differs): train with the "
                "config that wrote it, or choose another --run directory."
            )
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(shapes._asdict()))
            with orbax_quirks.hushed():
                restored = self._manager.restore(step, args=items)["state"]
            state = TrainState(**restored)
            if _checksums(state) != header["checksums"]:
                return _Fault("an array does not match its checksum")
        except Exception as error:  # noqa: BLE001
            return self._fault(step, error)
        return Restored(step, state, extra)

    def _fault(self, step: int, error: Exception) -> _Fault:
        """Turns an error into a fault; decides whether the checkpoint is damaged."""
        said, text = self._first_line(error), str(error)
        passing = [os.strerror(each) for each in _PASSING]
        if isinstance(error, (MemoryError, ImportError)) or any(
            each in text for each in (*passing, *_EXHAUSTED)
        ):
            return _Fault(said, damaged=False)
        return self._look(step) or _Fault(said)

    def _look(self, step: int) -> _Fault | None:
        """Looks for faults before anything is parsed, such as pipes, which would block."""
        place = self._directory / str(step)
        if not place.is_dir():
            if os.path.lexists(place):
                return _Fault("it is not a directory")
            return _Fault("it was removed in the meantime", damaged=False)

        def stop(error: OSError) -> None:
            raise error

        try:
            for folder, _, names in os.walk(place, onerror=stop):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        open_regular(Path(folder) / name).close()
        except Damaged as error:
            return _Fault(str(error), damaged=error.__cause__ is None)
        except OSError as error:
            return _Fault(self._first_line(error), damaged=False)
        return None

    def _first_line(self, error: Exception) -> str:
        full = os.strerror(errno.ENOSPC)
        if full in str(error):
            return full  # Orbax puts long paths before it
        lines = str(error).strip().splitlines() or [""]
        line = lines[0].replace(os.fspath(self._place), os.fspath(self._directory))
        return f"{type(error).__name__}: {line[:200]}"

    def _whole_steps(self) -> Sequence[int]:
        """Reads again which steps Orbax considers complete."""
        with orbax_quirks.hushed():
            self._manager.reload()
            return self._manager.all_steps()

    def _set_aside(self, step: int, reason: str) -> None:
        self._rename(step, reason)
        self._agree(0.0)  # all processes wait for the rename
        self._whole_steps()

    def _rename(self, step: int, reason: str) -> None:
        place = self._directory / str(step)
        _log.warning("The checkpoint %s is damaged (%s); skipping it.", place, reason)
        if jax.process_index() == 0:
            names = (f"{step}.damaged{i or ''}" for i in itertools.count())
            place.rename(next(p for p in map(place.with_name, names) if not p.exists()))

    def _set_aside_what_orbax_would_wait_for(self) -> None:
        # On start its manager reads this file of every checkpoint, even if it is a pipe.
        for path in sorted(self._directory.glob("*/_CHECKPOINT_METADATA")):
            if path.parent.name.isdecimal() and path.exists() and not path.is_file():
                self._rename(int(path.parent.name), f"{path.name} is not a file")
        self._agree(0.0)

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            whole = self._whole_steps()
            last = f"step {max(whole)}" if whole else "none"
            raise OSError(
                f"A checkpoint could not be written to {self._directory} "
                f"({self._first_line(error)}); the last complete one: {last}. Free some "
                "space or fix the permissions, then run the same command again to resume "
                "from there."
            ) from error


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """uint32 checksum of an array: the sum of its 32-bit words, each mixed with its place.

    An integer sum does not depend on how the array is spread over devices. Changing one
    word always changes it; any other change goes unnoticed with probability 2^-32.
    """

    def mix(x: jax.Array) -> jax.Array:
        """Bijectively spreads every bit over the whole word (Wellons' lowbias32)."""
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        return x ^ (x >> 16)

    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        place = place * jnp.uint32(size) + along
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.sum(mix(bits ^ mix(place)), dtype=jnp.uint32)


def _checksums(state: TrainState) -> list[int]:
    # Compiled once per shape; there are far fewer shapes than leaves.
    sums = [_checksum(x) for x in jax.tree.leaves(state)]
    return [int(np.asarray(each.addressable_data(0))) for each in sums]


def _layout(state: TrainState) -> dict[str, str]:
    """{leaf: its shape and dtype}."""
    return {
        jax.tree_util.keystr(path): f"{x.dtype} {x.shape}"
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }
