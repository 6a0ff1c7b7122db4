"""train.py as a command: which process may train a run, and how others are refused."""

import argparse
import json
import signal
import time

import pytest
from driven_run import Driven

import configs
from edm_jax import data
from edm_jax.runs import claims
from edm_jax.runs.directory import RunDir, read_json
from experiments import cli

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    fields = {"data.data_dir": str(directory)}
    data.prepare(configs.load(f"{configs.letter_path('g')}:digits", fields).data)
    return directory


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.finish()
        time.sleep(0.005)


def train_steps(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r["step"] for r in map(json.loads, lines) if r["kind"] == "train"]


def test_a_run_is_trained_by_one_process_and_taken_over_once_that_is_killed(
    data_dir, tmp_path
):
    run = tmp_path / "run"
    first = Driven(run, data_dir, 3000)
    wait_for((run / "config.json").exists, first)
    first.send_signal(signal.SIGSTOP)  # so that it is not done before it is killed
    status, out, err = Driven(run, data_dir, 3000).finish()
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith(f"train: {run} is in use by train.py (process {first.pid})")
    first.send_signal(signal.SIGCONT)
    wait_for(lambda: list(run.glob("checkpoints/*/commit_success.txt")), first)
    first.send_signal(signal.SIGKILL)
    first.finish()
    allow = "--allow=training.duration_mimg"
    status, _, err = Driven(run, data_dir, 120, allow).finish()
    assert status == 0, err
    assert train_steps(run) == list(range(5, 121, 5))


def test_what_evaluates_a_run_in_training_leaves_its_status_alone(tmp_path):
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny")
    RunDir(tmp_path, config).set_status(state="running", nimg=16)
    options = argparse.Namespace(run=str(tmp_path), config="")
    for holds, state in ((True, "running"), (False, "preempted")):
        claim = claims.take(tmp_path, "train.py") if holds else None
        cli.open_run(options)[0].set_status(state="preempted")
        assert read_json(tmp_path / "status.json")["state"] == state
        if isinstance(claim, claims.Claim):
            claim.release("done")
