"""Runs and snapshots on an object store, through the commands."""

import json
import sys

import numpy as np
import pytest
from driven_run import LITTLE
from shared_steps import shared_steps

import configs
from edm_jax import data, tree
from edm_jax.ema import snapshots
from edm_jax.runs import claims, store
from edm_jax.runs.directory import RunDir
from edm_jax.runs.store import StoredRun
from edm_jax.train import hosts
from experiments import cli, compare, evaluate, launch, reconstruct, train


def run(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    main()


@pytest.mark.slow
@shared_steps()
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
        *LITTLE,
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


@pytest.mark.slow
def test_a_run_on_a_store_goes_from_machine_to_machine_with_the_same_bits(
    monkeypatch, tmp_path, bucket
):
    """Begun on one, resumed on a second, evaluated on a third, compared on a fourth."""
    config = [
        f"--config={configs.letter_path('g')}:digits-tiny",
        f"--config.data.data_dir={tmp_path / 'data'}",
        "--config.network.channel_mult=(1,)",
        "--config.evaluation.evaluators=heldout_loss",
        "--config.training.checkpoint_mimg=64e-6",
    ]
    url = f"{bucket}/study/g"

    def machine(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        monkeypatch.setattr(claims, "_machine", lambda: name)

    def dies_at(nimg):
        def log(self, kind, step, at, **values):
            if kind == "train" and at >= nimg:
                raise KeyboardInterrupt
            logged(self, kind, step, at, **values)

        logged = RunDir.log
        return log

    monkeypatch.setattr(store, "SEND_EVERY_S", 0.05)
    run(monkeypatch, train.main, *config, f"--run={tmp_path / 'study' / 'g'}")
    machine("first")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "log", dies_at(320))
        run(patch, train.main, *config, f"--run={url}")
    machine("second")
    run(monkeypatch, train.main, *config, f"--run={url}")
    starts = json.loads((StoredRun(url).here / "provenance.json").read_text())["starts"]
    assert len(starts) == 2 and 0 < starts[1]["nimg"] <= 320
    machine("third")
    monkeypatch.setattr(cli, "_used", [])
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--run={url}"])
    cli.run(evaluate.main)
    here = StoredRun(url).here
    assert not (here / "checkpoints").exists()
    undisturbed = snapshots.list_snapshots(tmp_path / "study" / "g" / "snapshots")
    moved = snapshots.list_snapshots(here / "snapshots")
    assert len(moved) == len(undisturbed) == 8
    for ours, theirs in zip(moved, undisturbed, strict=True):
        ours, theirs = (tree.flatten(snapshots.read(s.path)[0]) for s in (ours, theirs))
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    machine("fourth")
    run(monkeypatch, compare.main, f"{bucket}/study", f"--out={tmp_path}/report")
    table = (tmp_path / "report" / "results.md").read_text()
    evaluated = json.loads((here / "evaluation.json").read_text())
    assert f"{evaluated['best']['loss']:.4f}" in table
    assert not (StoredRun(url).here / "snapshots").exists()


@pytest.mark.parametrize(
    ("main", "arguments", "sentence"),
    [
        (train.main, ["--run=http://b/g"], "is not an address such as gs://BUCKET/RUN"),
        (train.main, ["--run=gs://b"], "is not an address such as gs://BUCKET/RUN"),
        (evaluate.main, ["--run=gs://b/none"], "There is no run at gs://b/none"),
        (compare.main, ["gs://b/none"], "There are no runs at gs://b/none"),
        (compare.main, ["gs://b/none", "--follow"], "mount the bucket"),
        (
            train.main,
            [
                "--run=gs://b/g",
                "--coordinator=h:1",
                "--num_processes=2",
                "--process_id=0",
            ],
            "mount the bucket on each of them",
        ),
        (launch.main, ["--study=ladder", "--runs=gs://b/g"], "mount the bucket"),
    ],
)
def test_what_cannot_be_had_on_an_object_store_is_refused(
    monkeypatch, capsys, tmp_path, bucket, main, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hosts, "join", lambda *_: None)
    if main is train.main:
        arguments = [f"--config={configs.letter_path('g')}:digits-tiny", *arguments]
    with pytest.raises((SystemExit, *cli.EXPECTED)) as stop:
        run(monkeypatch, main, *arguments)
    assert sentence in capsys.readouterr().err + str(stop.value)
    # As a path it would be a directory gs: here.
    assert not list(tmp_path.iterdir())
