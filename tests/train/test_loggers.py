"""Mirrored metrics: every number once, and training never stops."""

import importlib.util
import logging
import math
import struct
import sys

import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from edm_jax.train import loggers
from edm_jax.train.loggers import Mirrors, MissingPackage, TensorBoard, WandB, flatten

START = event_pb2.SessionLog.START
BATCH = 2**30  # images a step: more of them than int32 holds


def record(step, kind="train", **values):
    return {"kind": kind, "step": step, "nimg": step * BATCH, **values}


# Names.


def test_numbers_are_named_by_kind_and_path_and_nothing_else_is_kept():
    values = {
        "loss": 0.5,
        "nonfinite": 2,
        "weights": {"enc_8x8": {"max": 1.5, "mean": 1}, "out": {}},
        "sigma": {"edges": [0.1, 1.0], "loss_per_element": [0.25, None, 4.0]},
        "message": "loss rises",
        "learning_rate": None,
        "resumed": True,
        "worst": {"step": 7, "kind": "loss"},
    }
    assert flatten(record(3, "dynamics", **values)) == {
        "dynamics/loss": 0.5,
        "dynamics/nonfinite": 2.0,
        "dynamics/weights/enc_8x8/max": 1.5,
        "dynamics/weights/enc_8x8/mean": 1.0,
        "dynamics/sigma/edges/0": 0.1,
        "dynamics/sigma/edges/1": 1.0,
        "dynamics/sigma/loss_per_element/0": 0.25,
        "dynamics/sigma/loss_per_element/2": 4.0,
        "dynamics/worst/step": 7.0,
    }


def test_values_that_are_not_finite_are_kept():
    flat = flatten(record(1, loss=math.nan, grads=[math.inf, -math.inf]))
    assert math.isnan(flat["train/loss"])
    assert (flat["train/grads/0"], flat["train/grads/1"]) == (math.inf, -math.inf)


# TensorBoard.


def events(directory):
    """The events of every file, in the order in which TensorBoard reads them."""
    for path in sorted(directory.glob("*tfevents*")):
        data, start = path.read_bytes(), 0
        while start < len(data):
            # TFRecord: length, its checksum, content, its checksum.
            (length,) = struct.unpack_from("<Q", data, start)
            yield event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            start += 12 + length + 4


def shown(directory):
    """{name: [(nimg, value)]} as TensorBoard shows it: a start purges from its step."""
    points = {}
    for event in events(directory):
        if event.session_log.status == START:
            for name, before in points.items():
                points[name] = [p for p in before if p[0] < event.step]
        for value in event.summary.value:
            points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def board_with(directory, after, steps, **values):
    board = TensorBoard(directory, after * BATCH)
    for step in steps:
        board.write(record(step, **values))
    return board


def test_tensorboard_shows_every_number_at_its_images(tmp_path):
    board = TensorBoard(tmp_path / "new" / "board", 0)
    board.write(record(0, "heldout", loss=0.5))
    board.write(record(4, loss=0.25, bins=[1.0, None, math.nan], note="text"))
    board.close()
    points = shown(tmp_path / "new" / "board")
    assert math.isnan(points.pop("train/bins/2")[0][1])
    assert points == {
        "heldout/loss": [(0, 0.5)],
        "train/loss": [(2**32, 0.25)],
        "train/bins/0": [(2**32, 1.0)],
    }


def test_tensorboard_has_a_record_as_soon_as_it_is_written(tmp_path):
    board = board_with(tmp_path, 0, [1, 2], loss=0.5)
    assert len(shown(tmp_path)["train/loss"]) == 2  # were the process killed now
    board.close()


@pytest.mark.parametrize("checkpoint", [0, 2, 5])
def test_a_resume_shows_every_point_once_on_tensorboard(tmp_path, checkpoint):
    board_with(tmp_path, 0, range(6), loss=1.0).close()
    # From 0, training probes the initial state again; else it goes on after its step.
    first = checkpoint + 1 if checkpoint else 0
    board_with(tmp_path, checkpoint, range(first, 9), loss=2.0).close()
    expected = [(i * BATCH, 1.0 if i < first else 2.0) for i in range(9)]
    assert shown(tmp_path)["train/loss"] == expected


def test_starts_within_one_second_leave_a_file_each(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.time, "time", lambda: 1e9)
    for step in (1, 2, 3):
        board_with(tmp_path, step - 1, [step], loss=1.0).close()
    assert len(list(tmp_path.iterdir())) == 3
    assert len(shown(tmp_path)["train/loss"]) == 3


def test_a_full_disk_is_warned_about_and_training_continues(
    tmp_path, monkeypatch, caplog
):
    board = TensorBoard(tmp_path, 0)
    mirrors = Mirrors({"tensorboard": lambda: board})
    with monkeypatch.context() as patch:
        patch.setattr(record_writer.RecordWriter, "write", full_disk)
        for step in range(30):  # more than any queue holds
            mirrors.write(record(step, loss=1.0))
        mirrors.close()
    board.close()
    (warning,) = caplog.messages
    assert "tensorboard" in warning and "No space left" in warning


def full_disk(*_):
    raise OSError(28, "No space left on device")


# Weights & Biases, by a stand-in.


class StandIn:
    """A fake W&B with one run: rows by step, fixed once the next step begins."""

    def __init__(self, offline):
        self.offline, self.rows = offline, {}

    def init(self, **arguments):
        self.arguments, self.axes = arguments, {}
        resumed = arguments["resume"] == "allow"
        if not resumed:
            self.rows.clear()
        known = resumed and self.rows and not self.offline
        self.starting_step = self._last = max(self.rows) + 1 if known else 0
        self._open, self.finished = {}, False
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values, step):
        assert step >= self._last, "W&B warns and ignores this"
        if step > self._last:
            self.commit()
        self._last = step
        self._open |= values

    def commit(self):
        if self._open:
            assert self._last not in self.rows, "a step is there twice"
            self.rows[self._last] = self._open
        self._open = {}

    def finish(self):
        self.commit()
        self.finished = True


@pytest.fixture(params=["online", "offline"])
def wandb(request, monkeypatch):
    stand_in = StandIn(request.param == "offline")
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def wandb_run(tmp_path, after=0):
    return WandB("edm", "g-0", "id-1", tmp_path / "run", {"seed": 0}, after * BATCH)


def train(run, steps):
    """Writes two records a step, the later ones of which join the step's row."""
    for step in steps:
        run.write(record(step, "heldout", loss=step))
        run.write(record(step, loss=step))


def steps_of(wandb):
    """Each row's step, by its axis and by the values of both of its records."""
    names = "heldout/loss", "train/loss"
    rows = wandb.rows.values()
    return [(row["nimg"] / BATCH, *(row[name] for name in names)) for row in rows]


def test_wandb_is_told_which_run_it_is_and_that_the_axis_is_images(wandb, tmp_path):
    run = wandb_run(tmp_path)
    expected = {"project": "edm", "name": "g-0", "id": "id-1", "config": {"seed": 0}}
    expected["dir"] = str(tmp_path / "run")  # which W&B wants to be there
    assert wandb.arguments | expected == wandb.arguments
    assert (tmp_path / "run").is_dir()
    assert wandb.axes == {"nimg": None, "*": "nimg"}
    train(run, [0, 1])
    run.close()
    assert wandb.finished and steps_of(wandb) == [(0, 0, 0), (1, 1, 1)]


@pytest.mark.parametrize(
    ("killed", "checkpoint"),
    [(True, 1), (True, 4), (False, 1), (False, 4), (False, 5)],
)
def test_a_resume_gives_wandb_every_record_once(wandb, tmp_path, killed, checkpoint):
    first = wandb_run(tmp_path)
    train(first, range(6))
    if not killed:  # a kill loses the step that W&B holds open
        first.close()
    wandb_run(tmp_path, checkpoint).close()  # stopped before its first record
    second = wandb_run(tmp_path, checkpoint)
    train(second, range(checkpoint + 1, 9))
    second.close()
    assert steps_of(wandb) == [(i, i, i) for i in range(9)]


def test_a_run_that_starts_over_overwrites_its_history_on_wandb(wandb, tmp_path):
    train(wandb_run(tmp_path), range(6))
    again = wandb_run(tmp_path, after=0)
    train(again, range(3))
    again.close()
    assert steps_of(wandb) == [(i, i, i) for i in range(3)]


# Failures.


class Recorder:
    def __init__(self, fails_at=math.inf, fails_to_close=False):
        self.steps, self.closed = [], 0
        self._fails_at, self._fails_to_close = fails_at, fails_to_close

    def write(self, record):
        if record["step"] >= self._fails_at:
            raise ConnectionError("the network\n is down.")
        self.steps.append(record["step"])

    def close(self):
        if self._fails_to_close:
            raise TimeoutError
        self.closed += 1


def test_a_logger_that_fails_is_warned_about_once_and_the_others_go_on(caplog):
    bad, good = Recorder(fails_at=2), Recorder()
    mirrors = Mirrors({"bad": lambda: bad, "good": lambda: good})
    for step in range(5):
        mirrors.write(record(step))
    mirrors.close()
    assert bad.steps == [0, 1] and good.steps == [0, 1, 2, 3, 4]
    assert good.closed and not bad.closed
    assert caplog.messages == [
        "bad receives no more metrics (the network is down); training continues."
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_logger_that_cannot_be_opened_is_warned_about_and_left_out(caplog):
    good = Recorder()

    def unreachable():
        raise ConnectionError("no route to host")

    mirrors = Mirrors({"bad": unreachable, "good": lambda: good})
    mirrors.write(record(0))
    assert good.steps == [0]
    (warning,) = caplog.messages
    assert "bad" in warning and "no route to host" in warning


def test_a_logger_that_cannot_be_closed_is_warned_about_and_the_others_closed(caplog):
    bad, good = Recorder(fails_to_close=True), Recorder()
    mirrors = Mirrors({"bad": lambda: bad, "good": lambda: good})
    mirrors.close()
    mirrors.close()
    assert good.closed == 1
    (warning,) = caplog.messages
    assert "bad" in warning and "TimeoutError" in warning


@pytest.mark.parametrize(
    ("package", "extra", "opener"),
    [
        ("tensorboardX", "tensorboard", lambda path: TensorBoard(path, 0)),
        ("wandb", "wandb", lambda path: WandB("p", "n", "i", path, {}, 0)),
    ],
)
def test_a_package_that_is_missing_is_one_sentence_before_training(
    tmp_path, monkeypatch, package, extra, opener
):
    for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as missing:
        Mirrors({extra: lambda: opener(tmp_path)})
    assert isinstance(missing.value, MissingPackage)
    assert f"pip install -e '.[{extra}]'" in str(missing.value)
    assert "\n" not in str(missing.value)


def test_loggers_are_imported_without_their_packages(monkeypatch):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.find_spec("edm_jax.train.loggers")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
