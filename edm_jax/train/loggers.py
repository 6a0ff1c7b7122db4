"""Mirrors metrics to TensorBoard and Weights & Biases while a run trains.

metrics.jsonl remains the source of truth: a mirror may fail or be deleted.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from edm_jax import tree

UPLOAD_SECONDS = 300  # how long the end of a run waits for W&B's uploads


class Logger(Protocol):
    """A mirror of the records of metrics.jsonl."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class MissingPackage(ImportError):
    """A logger's package is not installed; the message says how to install it."""


class Mirrors:
    """Several loggers that never stop training: one that fails is dropped with a warning.

    Args:
        openers: {name: function that opens the logger}.

    Raises:
        MissingPackage: a logger's package is not installed.
    """

    def __init__(self, openers: Mapping[str, Callable[[], Logger]]):
        self._loggers: dict[str, Logger] = {}
        for name, opener in openers.items():
            with self._dropped_on_error(name):
                self._loggers[name] = opener()

    def write(self, record: Mapping[str, Any]) -> None:
        for name, logger in list(self._loggers.items()):
            with self._dropped_on_error(name):
                logger.write(record)

    def close(self) -> None:
        for name, logger in list(self._loggers.items()):
            with self._dropped_on_error(name):
                logger.close()
        self._loggers.clear()

    @contextlib.contextmanager
    def _dropped_on_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except MissingPackage:
            raise
        except Exception as error:  # noqa: BLE001  a mirror must not end a run
            self._loggers.pop(name, None)
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            logging.getLogger(__name__).warning(
                "%s receives no more metrics (%s); training continues.", name, reason
            )


class TensorBoard:
    """Event files for TensorBoard, with images on the x axis.

    Args:
        directory: where to write.
        after_nimg: where training resumes. Later records of earlier starts are purged;
            all of them if it is 0.

    Raises:
        MissingPackage: tensorboardX is not installed.
    """

    def __init__(self, directory: Path, after_nimg: int):
        # Not SummaryWriter: a full disk kills its thread, and writing then waits forever.
        with _from_extra("tensorboard"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        self._events: Any = event_pb2  # Any, because their classes are made at import
        self._summaries: Any = summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        # Names hold only the second; two starts in one second must not share a file.
        suffix = f".{time.time_ns()}"
        self._writer = EventsWriter(str(directory / "events"), suffix)
        session = self._events.SessionLog
        first = after_nimg + 1 if after_nimg else 0
        self._add(step=first, session_log=session(status=session.START))

    def write(self, record: Mapping[str, Any]) -> None:
        summary = self._summaries.Summary()
        for name, value in flatten(record).items():
            summary.value.add(tag=name, simple_value=value)
        self._add(step=record["nimg"], summary=summary)

    def close(self) -> None:
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._writer.write_event(event)
        # Flush now: a resume purges records after its checkpoint and keeps the rest.
        self._writer.flush()


class WandB:
    """A run on Weights & Biases, or under WANDB_MODE=offline in `directory`/wandb.

    W&B cannot delete records, so those that training repeats after a resume are not sent
    again.

    Args:
        project: the project on W&B.
        run_name: the name shown there.
        run_id: the same at every start of a run.
        directory: where W&B keeps its files.
        config: the run's config.
        after_nimg: where training resumes; 0 overwrites the run's history.

    Raises:
        MissingPackage: wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        run_name: str,
        run_id: str,
        directory: Path,
        config: Mapping[str, Any],
        after_nimg: int,
    ):
        with _from_extra("wandb"):
            import wandb  # pyright: ignore[reportMissingImports]
        directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project,
            name=run_name,
            id=run_id,
            dir=str(directory),
            config=dict(config),
            resume="allow" if after_nimg else None,
            settings={"finish_timeout": UPLOAD_SECONDS},
        )
        self._run.define_metric("nimg")
        self._run.define_metric("*", step_metric="nimg")
        # Records from here on must still be sent. Offline, W&B does not know.
        self._mark = directory / "wandb_nimg"
        self._first = 0
        self._last: int | None = None
        if after_nimg:
            offline = self._run.offline
            self._first = self._marked() if offline else self._run.starting_step

    def write(self, record: Mapping[str, Any]) -> None:
        nimg = record["nimg"]
        if nimg < self._first:
            return
        self._run.log({"nimg": nimg, **flatten(record)}, step=nimg)
        # W&B keeps a step open until the next one. A kill loses it, so it is sent again.
        # (A kill also loses what W&B had not yet written to disk; that stays missing.)
        self._last = nimg
        self._mark.write_text(str(nimg), encoding="utf-8")

    def close(self) -> None:
        self._run.finish()
        if self._last is not None:
            self._mark.write_text(str(self._last + 1), encoding="utf-8")

    def _marked(self) -> int:
        text = self._mark.read_text(encoding="utf-8") if self._mark.exists() else ""
        return int(text or 0)


def flatten(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by name, such as 'dynamics/weights/enc_8x8/max'.

    List entries are named by position. Text, None, booleans and the position in training
    are left out; NaN and infinity count as numbers.
    """
    place = "kind", "step", "nimg"
    values = {name: value for name, value in record.items() if name not in place}
    return {
        name: float(value)
        for name, value in tree.flatten({record["kind"]: _as_dicts(values)}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _as_dicts(value: Any) -> Any:
    """Replaces every list with a dict of its entries by position."""
    if isinstance(value, list | tuple):
        value = {str(i): each for i, each in enumerate(value)}
    if isinstance(value, Mapping):
        return {name: _as_dicts(each) for name, each in value.items()}
    return value


@contextlib.contextmanager
def _from_extra(extra: str) -> Iterator[None]:
    """Turns a failed import into MissingPackage."""
    try:
        yield
    except ImportError as error:
        raise MissingPackage(
            f"Logging to {extra} needs a package that is not installed: "
            f"pip install -e '.[{extra}]'."
        ) from error
