"""A path is a path, whatever characters it holds; ~ is the user's home."""

import json
import os
import shlex
import sys

import driven_run
import numpy as np
import pytest
from shared_steps import shared_steps
from small_snapshots import tree

import configs
from edm_jax import ema, files
from edm_jax.ema import snapshots
from edm_jax.runs.directory import RunDir
from experiments import cli, compare, evaluate, reconstruct, sample, sweep, train

DIGITS = f"{configs.letter_path('g')}:digits"
NAMES = ["lr=0.1 [big]", "a*b", "what?"]


def call(monkeypatch, main, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    cli.run(main)


def store(run, value):
    made = RunDir(run, configs.load(DIGITS))
    for nimg in (1024, 2048):
        for sigma_rel in (0.05, 0.10):
            meta = ema.SnapshotMeta(
                ema.PowerProfile(sigma_rel), nimg, 64, made.config_hash
            )
            snapshots.write(made.snapshots, {"w": np.full(3, value)}, meta)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_snapshots_of_sibling_runs_are_not_picked_up(
    monkeypatch, capsys, tmp_path, name
):
    for sibling in ("aXb", "whatX", "lr=0.1 b"):
        store(tmp_path / sibling, 2.0)
    store(tmp_path / name, 1.0)
    command = [f"--run={tmp_path / name}", "--sigma_rel=0.1"]
    call(monkeypatch, reconstruct.main, *command)
    (path,) = (tmp_path / name / "reconstructed").iterdir()
    assert snapshots.read(path)[0]["w"][0] == 1.0
    assert str(path) in capsys.readouterr().out


def test_tilde_is_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = store(tmp_path / "run", 1.0)
    command = ["--run=~/run", "--sigma_rel=0.1", "--out=~/out"]
    call(monkeypatch, reconstruct.main, *command)
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert files.user_path("~/a") == tmp_path / "a"
    shared = configs.load(DIGITS, {"training.snapshot_dir": "~/shared"})
    made = RunDir(tmp_path / "study" / "other", shared)
    assert str(made.snapshots) == str(tmp_path / "shared" / "study" / "other")
    assert run.snapshots.is_dir() and not (tmp_path / "~").exists()


def test_commands_are_printed_so_that_they_can_be_pasted():
    odd = "--run=runs/it's [big] $HOME"
    printed = cli.command("evaluate.py", odd)
    assert shlex.split(printed) == ["python", "experiments/evaluate.py", odd]


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b'{"training": 3}', b'{"training": {"snapshot_dir": 3}}']
)
@pytest.mark.parametrize(
    "main", [reconstruct.main, sample.main, evaluate.main, sweep.main]
)
def test_a_damaged_config_is_named_with_what_to_do(
    monkeypatch, capsys, tmp_path, main, raw
):
    run = store(tmp_path / "run", 1.0).path
    (run / "config.json").write_bytes(raw)
    more = ["--sigma_rel=0.1"] if main is reconstruct.main else []
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, main, f"--run={run}", *more)
    assert stop.value.code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert f"{run / 'config.json'} is damaged" in said
    assert "estore it" in said
    if more:
        call(
            monkeypatch,
            main,
            f"--run={run / 'snapshots'}",
            f"--out={tmp_path}/o",
            *more,
        )
        assert (tmp_path / "o").is_dir()


@pytest.mark.parametrize("how", ["pipe", "cut", "nested"])
def test_weights_that_are_damaged_are_not_sampled_but_named(
    monkeypatch, capsys, tmp_path, how
):
    run = store(tmp_path / "run", 1.0).path
    path = tmp_path / "weights.safetensors"
    if how == "pipe":
        os.mkfifo(path)
    else:
        meta = ema.SnapshotMeta(ema.PowerProfile(0.1), 1024, 64, "")
        made = snapshots.write(tmp_path / "made", tree(), meta)
        data = made.read_bytes()
        path.write_bytes(
            data[:-5] if how == "cut" else data[:8] + b"[" * (len(data) - 8)
        )
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, sample.main, f"--run={run}", f"--weights={path}")
    assert stop.value.code == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert str(path) in said


@pytest.mark.slow
@shared_steps()
def test_a_run_in_an_odd_directory_goes_through_all_commands(
    monkeypatch, capsys, tmp_path
):
    study = tmp_path / "study [1] *?"
    run = study / "lr=0.1 [big]*?"
    monkeypatch.setenv("HOME", str(tmp_path))
    data_dir = tmp_path / "data"
    arguments = driven_run.arguments(run, data_dir, 24, *driven_run.LITTLE)
    call(monkeypatch, train.main, *arguments)
    next_line = capsys.readouterr().out.splitlines()[-1]
    *_, command = next_line.split("next: ")
    assert shlex.split(command)[-1] == f"--run={run}"
    call(monkeypatch, train.main, *arguments)
    steps = {place.name for place in (run / "checkpoints").iterdir()}
    assert steps == {"12", "24"}
    status = json.loads((run / "status.json").read_text())
    assert status["state"] != "failed"
    # By its home, as a user may type it.
    short = f"--run=~/{run.relative_to(tmp_path)}"
    call(monkeypatch, evaluate.main, short)
    call(monkeypatch, sample.main, short, "--seeds=0-1", "--force", "--out=~/s [1]")
    call(monkeypatch, sweep.main, short, "--kinds=lengths", "--sigma_rel=0.1")
    call(monkeypatch, reconstruct.main, short, "--sigma_rel=0.1", "--force")
    assert (run / "evaluation.json").exists() and (run / "sweeps").is_dir()
    assert (tmp_path / "s [1]" / "grid.png").exists()
    compare.main([f"~/{study.name}", f"--out={tmp_path / 'report [1]'}"])
    assert (tmp_path / "report [1]" / "index.html").exists()
    assert "damaged" not in capsys.readouterr().err
