"""A run that is killed repeatedly ends in the same state as one that never was."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from driven_run import BATCH, ROOT, Driven, one_device

import configs
from edm_jax import data, files
from edm_jax.ema import snapshots
from edm_jax.train import trainer
from edm_jax.train.checkpoint import Checkpoints

KILLS, STEPS = 6, 120


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The two directories after both runs are done, and when the kills happened."""
    directory, data_dir = map(tmp_path_factory.mktemp, ("runs", "tfds"))
    fields = {"data.data_dir": str(data_dir)}
    data.prepare(configs.load(f"{configs.letter_path('g')}:digits", fields).data)
    script = str(ROOT / "tests" / "helpers" / "killed_run.py")
    done = subprocess.run(
        [sys.executable, script, directory, data_dir, str(KILLS), str(STEPS)],
        env=one_device() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    places = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    print(done.stdout)  # shown where a test fails
    kinds = [line.split()[1] for line in done.stdout.splitlines()]
    return directory / "undisturbed", directory / "killed", places, kinds


@functools.cache
def checkpoint(run):
    """The last state, and the JSON part beside it."""
    config = configs.from_json(files.read_json(run / "config.json"), run)
    made = trainer.make_trainer(config, jax.devices()[:1])
    checkpoints = Checkpoints(run / "checkpoints")
    found = checkpoints.restore(made.step.abstract(made.shapes))
    checkpoints.close()
    return found


@pytest.mark.slow
def test_every_kill_came_and_most_amid_training(runs):
    places = runs[2]
    assert len(places) == KILLS
    assert sum(0 < place < STEPS for place in places) > KILLS // 2
    assert len(set(places)) > KILLS // 3


@pytest.mark.slow
def test_kills_came_while_snapshots_and_checkpoints_were_written(runs):
    assert "snapshot" in runs[3] and "checkpoint" in runs[3]


@pytest.mark.slow
def test_killed_run_ends_with_the_same_parameters_moments_and_averages(runs):
    whole, killed = (checkpoint(run) for run in runs[:2])
    assert whole.step == killed.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, whole.state, killed.state)
    # The monitor, the position in the data, and metrics not yet logged.
    assert whole.extra == killed.extra


@pytest.mark.slow
def test_killed_run_ends_with_the_same_snapshots(runs):
    files = [sorted((run / "snapshots").iterdir()) for run in runs[:2]]
    assert len(files[0]) == 2 * STEPS // 20
    assert len(snapshots.list_snapshots(runs[1] / "snapshots")) == len(files[0])
    for one, other in zip(*files, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_killed_run_ends_with_the_same_metrics(runs):
    whole, killed = (
        [
            line
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if json.loads(line)["kind"] != "speed"  # what a clock says
        ]
        for run in runs[:2]
    )
    assert len(whole) == STEPS // 5 + 2 * (STEPS // 60 + 1)
    assert killed == whole


@pytest.mark.slow
def test_killed_run_says_done_and_leaves_nothing_half_written(runs):
    killed = runs[1]
    status = json.loads((killed / "status.json").read_text())
    assert status["state"] == "done" and status["nimg"] == STEPS * BATCH
    names = [name for _, folders, files in os.walk(killed) for name in folders + files]
    odd = "tmp", "partial", "damaged"
    assert not [n for n in names if n.startswith(".") or any(o in n for o in odd)]


@pytest.mark.slow
def test_a_full_disk_stops_a_run_cleanly_and_it_resumes_to_the_same_end(runs, mount):
    disk = mount(megabytes=8)
    whole, run = runs[0], disk / "run"
    recorded = json.loads((whole / "config.json").read_text())
    command = run, recorded["data"]["data_dir"], STEPS
    process = Driven(*command)
    log, filler = run / "metrics.jsonl", disk / "filler"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.005)
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    status, *printed = process.finish()
    output = "".join(printed)
    assert status == 2, output
    assert "Traceback" not in output
    # By a checkpoint, or by a file of the run directory.
    assert "o space left on device" in output or "The disk is full at" in output
    # Nothing is half-written.
    assert log.read_bytes().endswith(b"\n")
    for path in run.rglob("*.json"):
        json.loads(path.read_text())
    filler.unlink()
    status, *printed = Driven(*command).finish()
    assert status == 0, printed
    ended, expected = checkpoint(run), checkpoint(whole)
    jax.tree.map(np.testing.assert_array_equal, ended.state, expected.state)
    names = [sorted(p.name for p in (r / "snapshots").iterdir()) for r in (run, whole)]
    assert names[0] == names[1]
