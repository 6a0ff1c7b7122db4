"""What a run will store, told before it starts."""

import contextlib
import math
import os
import threading
import types

import jax
import numpy as np
import pytest
from etils import epath

import configs
from edm_jax.cost import disk
from edm_jax.runs.directory import RunDir
from edm_jax.train import loop

G = f"{configs.letter_path('g')}:"


@pytest.mark.slow
def test_the_papers_run_of_size_s_stores_what_its_weights_say():
    config = configs.load(G + "imagenet512-s")
    found = disk.estimate(config)
    params = config.model.shapes
    weights = sum(x.size for x in jax.tree.leaves(params))
    assert weights == 280_212_709 + 128 + 2 * (128 + 192)
    assert found.snapshot_bytes == pytest.approx(4 * weights, rel=1e-4)
    assert found.snapshots == 2 * 256  # every 8 Mi of 2048 Mi images
    # Weights, Adam's two moments and two averages, compressed by 5% at least.
    assert found.checkpoint_bytes == pytest.approx(0.95 * 5 * 4 * weights, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_the_snapshots(dtype):
    whole = disk.estimate(configs.load(G + "digits"))
    half = disk.estimate(configs.load(G + "digits", {"ema.snapshot_dtype": dtype}))
    header = 2 * half.snapshot_bytes - whole.snapshot_bytes
    assert half.snapshots == whole.snapshots and 0 < header < 12_000
    assert half.checkpoint_bytes == whole.checkpoint_bytes


def there(run):
    """Blocks of what lies in a run's directory itself."""
    return sum(path.lstat().st_blocks * 512 for path in run.path.iterdir())


def with_free(monkeypatch, count):
    usage = disk.shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)


def test_a_run_that_cannot_fit_says_so_first(tmp_path, monkeypatch):
    config = configs.load(G + "digits")
    run = RunDir(tmp_path / "run", config)
    wanted = disk.estimate(config)
    total = wanted.total - there(run)
    with_free(monkeypatch, total - 1)
    with pytest.raises(ValueError, match="set ema.snapshot_dtype=float16"):
        disk.check(config, run.checkpoints, run.snapshots)
    with_free(monkeypatch, total)
    said = disk.check(config, run.checkpoints, run.snapshots)
    assert said.startswith(f"Needs up to {disk.human(wanted.total)} of disk (64 snap")


def test_what_a_run_stored_before_it_resumes_needs_no_room(tmp_path, monkeypatch):
    config = configs.load(G + "digits")
    run = RunDir(tmp_path / "run", config)
    wanted = disk.estimate(config)
    (run.snapshots / "a").write_bytes(b"0" * 102_400)
    with_free(monkeypatch, wanted.total - there(run) - 102_400)
    disk.check(config, run.checkpoints, run.snapshots)


def test_only_as_many_checkpoints_count_as_can_be_there_at_once():
    def count(stored=0, checkpoint_mimg=1.0, keep_checkpoint_mimg=math.inf):
        training = types.SimpleNamespace(
            keep_checkpoints=2,
            checkpoint_mimg=checkpoint_mimg,
            keep_checkpoint_mimg=keep_checkpoint_mimg,
        )
        return disk._checkpoints(training, 40_000, stored)

    assert count(checkpoint_mimg=0.04) == 1
    assert count(checkpoint_mimg=0.02) == 2
    # Two are kept, and the third is written before the first goes.
    assert count(checkpoint_mimg=0.001) == 3
    assert count(checkpoint_mimg=0.001, keep_checkpoint_mimg=0.01) == 7
    # A run that was stopped left one of its own.
    assert count(checkpoint_mimg=0.04, stored=1) == 2


def allocated(directory):
    total = 0
    for root, folders, names in os.walk(directory):
        for name in (*folders, *names):
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


@pytest.mark.slow
def test_the_estimate_is_within_a_tenth_above_what_a_real_run_takes(tmp_path):
    steps = {"training.duration_mimg": 24, "training.checkpoint_mimg": 3}
    steps |= {"training.snapshot_mimg": 12, "training.probe_mimg": 12}
    dotted = {name: str(count * 64 / 1e6) for name, count in steps.items()}
    dotted |= {"data.data_dir": str(tmp_path / "data"), "evaluation.num_sigmas": "1"}
    dotted |= {"optimizer.warmup.name": "none", "network.channel_mult": "(1,)"}
    config = configs.load(G + "digits", dotted)
    run, seen, done = RunDir(tmp_path / "run", config), [], threading.Event()

    def watch():
        while not done.wait(0.002):
            seen.append(allocated(run.path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        loop.train(config, run)
    finally:
        done.set()
        watcher.join()
    wanted = disk.estimate(config)
    assert (wanted.snapshots, wanted.checkpoints) == (4, 3)
    assert max(seen) <= wanted.total <= 1.1 * max(seen)


def test_snapshots_elsewhere_need_no_room_here(tmp_path, monkeypatch, bucket):
    where = {"training.snapshot_dir": bucket}
    config = configs.load(G + "digits", where)
    run = RunDir(tmp_path / "run", config)
    assert run.snapshots == epath.Path(bucket) / tmp_path.name / "run"
    wanted = disk.estimate(config)
    with_free(monkeypatch, wanted.total - wanted.snapshots_total - there(run))
    disk.check(config, run.checkpoints, run.snapshots)


@pytest.mark.slow
def test_snapshots_on_another_disk_are_counted_there(tmp_path, monkeypatch):
    large = tmp_path / "large"
    config = configs.load(G + "digits", {"training.snapshot_dir": str(large)})
    run = RunDir(tmp_path / "run", config)
    wanted = disk.estimate(config)
    here = wanted.checkpoints_total + wanted.other_bytes - there(run)
    room = {True: wanted.snapshots_total, False: here}
    usage = disk.shutil.disk_usage("/")
    monkeypatch.setattr(disk, "_disk_of", lambda place: int("large" in str(place)))
    monkeypatch.setattr(
        disk.shutil,
        "disk_usage",
        lambda p: usage._replace(free=room["large" in str(p)]),
    )
    disk.check(config, run.checkpoints, run.snapshots)
    for where in room:
        room[where] -= 1
        with pytest.raises(ValueError, match="are free at"):
            disk.check(config, run.checkpoints, run.snapshots)
        room[where] += 1


def test_runs_of_one_name_do_not_share_their_snapshots(tmp_path):
    config = configs.load(
        G + "digits", {"training.snapshot_dir": str(tmp_path / "all")}
    )
    one, other = (RunDir(tmp_path / study / "g", config) for study in ("a", "b"))
    assert one.snapshots != other.snapshots


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (999_900, "1 MB"),
        (1500, "1.5 kB"),
        (2.5e9, "2.5 GB"),
        (3e15, "3e+03 TB"),
    ],
)
def test_bytes_are_written_for_people(count, text):
    assert disk.human(np.float64(count)) == text
