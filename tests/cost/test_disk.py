"""What a run will store, told before it starts."""

import jax
import numpy as np
import pytest
from etils import epath

import configs
from edm_jax.cost import disk
from edm_jax.models import ops, unet
from edm_jax.runs.directory import RunDir

G = f"{configs.letter_path('g')}:"


@pytest.mark.slow
def test_the_papers_run_of_size_s_stores_what_its_weights_say():
    config = configs.load(G + "imagenet512-s")
    found = disk.estimate(config)
    params = unet.abstract_params(ops.resolve_network(config))
    weights = sum(x.size for x in jax.tree.leaves(params))
    assert weights == 280_212_709 + 128 + 2 * (128 + 192)
    assert found.snapshot_bytes == 4 * weights
    assert found.snapshots == 2 * 256  # every 8 Mi of 2048 Mi images
    # Weights, Adam's two moments and two averages; the projection's scales are small.
    assert found.checkpoint_bytes == pytest.approx(5 * 4 * weights, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_halves_the_snapshots(dtype):
    whole = disk.estimate(configs.load(G + "digits"))
    half = disk.estimate(configs.load(G + "digits", {"ema.snapshot_dtype": dtype}))
    assert half.snapshots_total * 2 == whole.snapshots_total
    assert half.checkpoint_bytes == whole.checkpoint_bytes


def with_free(monkeypatch, count):
    usage = disk.shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)


def test_a_run_that_cannot_fit_says_so_first(tmp_path, monkeypatch):
    config = configs.load(G + "digits")
    run = RunDir(tmp_path / "run", config)
    wanted = disk.estimate(config)
    total = wanted.snapshots_total + wanted.checkpoints_total
    with_free(monkeypatch, total - 1)
    with pytest.raises(ValueError, match="set ema.snapshot_dtype=float16"):
        disk.check(config, run.checkpoints, run.snapshots)
    with_free(monkeypatch, total)
    said = disk.check(config, run.checkpoints, run.snapshots)
    assert said.startswith(f"Stores {wanted.snapshots} snapshots of ")


def test_what_a_run_stored_before_it_goes_on_needs_no_room(tmp_path, monkeypatch):
    config = configs.load(G + "digits")
    run = RunDir(tmp_path / "run", config)
    wanted = disk.estimate(config)
    (run.snapshots / "a").write_bytes(b"0" * 100_000)
    with_free(monkeypatch, wanted.snapshots_total + wanted.checkpoints_total - 100_000)
    disk.check(config, run.checkpoints, run.snapshots)


def test_snapshots_elsewhere_need_no_room_here(tmp_path, monkeypatch, bucket):
    where = {"training.snapshot_dir": bucket}
    config = configs.load(G + "digits", where)
    run = RunDir(tmp_path / "run", config)
    assert run.snapshots == epath.Path(bucket) / tmp_path.name / "run"
    with_free(monkeypatch, disk.estimate(config).checkpoints_total)
    disk.check(config, run.checkpoints, run.snapshots)


def test_snapshots_on_another_disk_are_counted_there(tmp_path, monkeypatch):
    large = tmp_path / "large"
    config = configs.load(G + "digits", {"training.snapshot_dir": str(large)})
    run = RunDir(tmp_path / "run", config)
    wanted = disk.estimate(config)
    room = {True: wanted.snapshots_total, False: wanted.checkpoints_total}
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
        (1500, "1.5 kB"),
        (2.5e9, "2.5 GB"),
        (3e15, "3e+03 TB"),
    ],
)
def test_bytes_are_written_for_people(count, text):
    assert disk.human(np.float64(count)) == text
