"""Metrics shown elsewhere while a run trains: on TensorBoard, on Weights & Biases.

metrics.jsonl stays the source of truth: what is mirrored may fail or be thrown away.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from edm_jax import tree

UPLOAD_SECONDS = 300  # how long the end of a run waits for what W&B has not sent yet


class Logger(Protocol):
    """A place that the records of metrics.jsonl are mirrored to."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class MissingPackage(ImportError):
    """A logger's package is not installed; says in one sentence how to install it."""


class Mirrors:
    """Several loggers that never stop training: one that fails is warned about, once,
    and dropped.

    Takes what opens each logger, by name. Raises MissingPackage only.
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
        except Exception as error:  # noqa: BLE001  no mirror is worth a run
            self._loggers.pop(name, None)
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            logging.getLogger(__name__).warning(
                "%s gets no more metrics (%s); training continues.", name, reason
            )


class TensorBoard:
    """Event files for TensorBoard, their x axis in images.

    after_nimg: where training resumes; what an earlier start wrote after it is purged,
    and all of it where training starts at 0. Raises MissingPackage.
    """

    def __init__(self, directory: Path, after_nimg: int):
        # Not its SummaryWriter: that one's thread dies of a full disk, and writing then
        # waits for it forever.
        with _from_extra("tensorboard"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2
        self._events: Any = event_pb2  # Any: their classes are made at import
        self._summaries: Any = summary_pb2
        directory.mkdir(parents=True, exist_ok=True)
        # Names hold the second; two starts within one must not share a file.
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
        # At once: a resume purges what is after its checkpoint, and keeps the rest.
        self._writer.flush()


class WandB:
    """A run on Weights & Biases, or under WANDB_MODE=offline in `directory`/wandb.

    run_id: the same at every start of a run. after_nimg: where training resumes; at 0
    the run's history is overwritten. W&B cannot take records back, so those that
    training repeats after a resume are not sent again. Raises MissingPackage.
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
        # From where records are still to be sent. Offline, W&B itself does not know.
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
        # W&B keeps a step open until the next one: a kill loses it, and it is sent again.
        # (A kill also takes what W&B wrote to disk seconds late; that stays missing.)
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
    """The numbers of a record by name, such as 'train/loss' or
    'dynamics/weights/enc_8x8/max'.

    An entry of a list is named by its position in it. Left out: text, None, true and
    false, and the position in training; NaN and infinity are numbers.
    """
    place = "kind", "step", "nimg"
    values = {name: value for name, value in record.items() if name not in place}
    return {
        name: float(value)
        for name, value in tree.flatten({record["kind"]: _as_dicts(values)}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _as_dicts(value: Any) -> Any:
    """The same, with every list as a dict of its entries by position."""
    if isinstance(value, list | tuple):
        value = {str(i): each for i, each in enumerate(value)}
    if isinstance(value, Mapping):
        return {name: _as_dicts(each) for name, each in value.items()}
    return value


@contextlib.contextmanager
def _from_extra(extra: str) -> Iterator[None]:
    """Makes an import's failure one sentence."""
    try:
        yield
    except ImportError as error:
        raise MissingPackage(
            f"Logging to {extra} needs a package that is not installed here: "
            f"pip install -e '.[{extra}]'."
        ) from error
