"""Branches: the same bits as a run with their schedule from the start, and refusals."""

import hashlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from driven_run import BATCH, arguments
from shared_steps import shared_steps

import configs
from edm_jax import data
from edm_jax.ema import posthoc, snapshots
from edm_jax.ema.profiles import PowerProfile
from edm_jax.train import branch
from experiments import cli, train

SCHEDULE = "--config.optimizer.schedule"
STABLE = [
    f"{SCHEDULE}.name=constant",
    "--config.training.keep_checkpoint_mimg=0.000192",
]
# Over the last third of 36 steps.
DECAY = [
    f"{SCHEDULE}.name=warmup_stable_decay",
    f"{SCHEDULE}.decay=0.3333333",
    f"{SCHEDULE}.tail=linear",
]
AT = 24 * BATCH


def run_train(monkeypatch, *command):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, command)])
    train.main()


@pytest.fixture(scope="module", autouse=True)
def _steps_are_shared():
    with shared_steps():
        yield


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    """A run of 48 steps at a constant rate, with a checkpoint every 12."""
    place = tmp_path_factory.mktemp("stable")
    steps = 48
    with pytest.MonkeyPatch.context() as patch:
        command = arguments(place / "run", place / "tfds", steps, *STABLE)
        data.prepare(cli.parse_config(train.parser(), command)[1].data)
        run_train(patch, *command)
    return place


def weights(run):
    return [
        (ref.path.name, name, hashlib.sha256(array.tobytes()).hexdigest())
        for ref in snapshots.list_snapshots(run / "snapshots")
        for name, array in snapshots.flatten(snapshots.read(ref.path)[0]).items()
    ]


def metrics(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] != "speed"]


def branched(path, stable, *more, at=f"@{AT}"):
    return [f"--branch={stable / 'run'}{at}", f"--run={path}", *more]


DURATION = f"--config.training.duration_mimg={36 * BATCH / 1e6}"


@pytest.mark.slow
def test_a_branch_is_to_the_bit_the_run_that_had_its_schedule_from_the_start(
    monkeypatch, capsys, stable, tmp_path
):
    path, whole = tmp_path / "branch", tmp_path / "whole"
    run_train(monkeypatch, *branched(path, stable, DURATION, *DECAY))
    assert "from the start" not in capsys.readouterr().err
    run_train(monkeypatch, *arguments(whole, stable / "tfds", 36, *DECAY))
    assert weights(path) == weights(whole) and len(weights(path)) > 0
    assert metrics(path) == metrics(whole)
    rates = [r["lr"] for r in metrics(path) if r["kind"] == "train"]
    assert rates[-1] < rates[4] / 5

    origin = json.loads((path / "provenance.json").read_text())["branch"]
    assert origin == {"run": str(stable / "run"), "nimg": AT}
    (change,) = json.loads((path / "changes.json").read_text())["changes"]
    assert change["nimg"] == AT
    assert change["changes"]["optimizer.schedule.name"] == [
        "constant",
        "warmup_stable_decay",
    ]
    # Its snapshots are of one run.
    target = PowerProfile(0.075)
    stored = snapshots.list_snapshots(path / "snapshots")
    assert posthoc.reconstruct(stored, [target], 36 * BATCH, max_error=np.inf)

    # The same command again changes nothing; another origin is refused.
    run_train(monkeypatch, *branched(path, stable, DURATION, *DECAY))
    assert metrics(path) == metrics(whole)
    with pytest.raises(ValueError, match=f"is a branch of .* at {AT} images"):
        run_train(monkeypatch, *branched(path, stable, DURATION, *DECAY, at="@576"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "at", "said"),
    [
        ([], "@100", "no checkpoint at 100 images, only at 192, 384, 576, 768"),
        ([DURATION], "", "begins at 768 images and would end at 576"),
        (["--config.optimizer.method.name=lion"], "", "cannot have another"),
        (["--config.optimizer.batch_size=32"], "", "batch_size cannot change"),
        (["--config=configs/config_g.py:digits"], "", "leave out --config"),
        (["--config.optimizer.alpha_ref=auto"], "", "alpha_ref=auto"),
    ],
)
def test_an_impossible_branch_is_one_sentence_and_makes_nothing(
    monkeypatch, stable, tmp_path, more, at, said
):
    path = tmp_path / "branch"
    with pytest.raises(ValueError, match=said) as caught:
        run_train(monkeypatch, *branched(path, stable, *more, at=at))
    assert "\n" not in str(caught.value)
    assert not (path / "config.json").exists() and not (path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("schedule", "fits"), [("warmup_stable_decay", True), ("cosine", False)]
)
def test_a_branch_whose_schedule_differed_before_prints_a_note(schedule, fits):
    """A late decay is constant up to 80% of the run; a cosine is not."""
    constant, decaying = (
        configs.load(
            f"{configs.letter_path('c')}:digits", {"optimizer.schedule.name": name}
        )
        for name in ("constant", schedule)
    )
    # 469 steps of 64 are 30,016 of 40,000 images.
    said = branch._note(decaying, Path("runs/stable"), constant, 469)
    assert (said == "") == fits
    if not fits:
        late = 0.001 * (1 + math.cos(math.pi * 468 * 64 / 40_000)) / 2
        assert f"was 0.001 there instead of {late:.3g}" in said
