"""Snapshots on an object store, through the commands; runs lie on file systems."""

import json
import sys

import pytest

import configs
from edm_jax import data
from edm_jax.ema import snapshots
from experiments import compare, evaluate, reconstruct, train


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    main()


@pytest.mark.slow
def test_a_run_whose_snapshots_lie_there_is_trained_evaluated_and_compared(
    monkeypatch, tmp_path, bucket
):
    reference = f"{configs.letter_path('g')}:digits-tiny"
    fields = {
        "data.data_dir": str(tmp_path / "data"),
        "network.channel_mult": "(1,)",
        "training.snapshot_dir": bucket,
        "evaluation.evaluators": "heldout_loss",
    }
    data.prepare(configs.load(reference, fields).data)
    overrides = [f"--config.{field}={text}" for field, text in fields.items()]
    directory = tmp_path / "study" / "g"
    run(
        monkeypatch,
        train.main,
        f"--config={reference}",
        f"--run={directory}",
        *overrides,
    )
    stored = snapshots.list_snapshots(f"{bucket}/study/g")
    assert len(stored) == 8 and not (directory / "snapshots").exists()
    run(monkeypatch, evaluate.main, f"--run={directory}")
    evaluated = json.loads((directory / "evaluation.json").read_text())
    assert evaluated["best"]["loss"] < evaluated["untrained_loss"]
    command = "--sigma_rel=0.12", f"--out={bucket}/out"
    run(monkeypatch, reconstruct.main, f"--run={directory}", *command)
    (made,) = snapshots.list_snapshots(f"{bucket}/out")
    assert made.meta.nimg == stored[-1].meta.nimg
    run(monkeypatch, compare.main, directory.parent, f"--out={tmp_path}/report")
    table = (tmp_path / "report" / "results.md").read_text()
    assert f"{evaluated['best']['loss']:.4f}" in table


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (train.main, ["--config=configs/config_g.py:digits-tiny", "--run=gs://b/g"]),
        (evaluate.main, ["--run=s3://b/g"]),
        (compare.main, ["gs://b/study"]),
    ],
)
def test_a_run_directory_on_an_object_store_is_refused(
    monkeypatch, capsys, tmp_path, main, arguments
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, ValueError)) as stop:
        run(monkeypatch, main, *arguments)
    said = capsys.readouterr().err + str(stop.value)
    assert "mount the bucket, and name the path there" in said
    # As a path it would be a directory gs: here.
    assert not list(tmp_path.iterdir())
