"""Reconstructed files: ancestry, damage, and resuming after a kill."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from edm_jax import ema
from edm_jax.ema import combine as combining
from edm_jax.ema import rebuild, snapshots

TRACKED = (0.05, 0.10)
BATCH = 128
COUNT = 12
UNITS = 1000


def store(directory, count=COUNT, units=UNITS):
    rng = np.random.default_rng(0)
    for i in range(count):
        for sigma_rel in TRACKED:
            profile = ema.PowerProfile(sigma_rel)
            meta = ema.SnapshotMeta(profile, (i + 1) * 4096, BATCH, "c0ffee")
            tree = {
                "a": {"w": rng.standard_normal((units // 10, 9))},
                "b": rng.random(units // 10),
            }
            snapshots.write(directory, tree, meta)
    return directory


def request(*sigma_rels, **fields):
    targets = [(None, ema.PowerProfile(s)) for s in sigma_rels or (0.05, 0.07, 0.15)]
    return rebuild.Request(targets, **fields)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(snapshots, "CHUNK", 128)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_files_hold_the_same_as_reconstructions_in_memory(tmp_path):
    stored = store(tmp_path / "in")
    _, paths = rebuild.run(stored, request(), tmp_path / "out")
    expected = ema.reconstruct(stored, [0.05, 0.07, 0.15])
    for path, sigma_rel in zip(paths, (0.05, 0.07, 0.15), strict=True):
        params, meta = snapshots.read(path)
        assert meta.profile == ema.PowerProfile(sigma_rel)
        for name, leaf in snapshots.flatten(expected[sigma_rel].params).items():
            np.testing.assert_array_equal(snapshots.flatten(params)[name], leaf)


def test_an_output_records_its_full_ancestry(tmp_path):
    stored = store(tmp_path / "in")
    job, (path,) = rebuild.run(stored, request(0.07), tmp_path / "out")
    ancestry = snapshots.open_snapshot(path).meta.ancestry
    found = {i["file"]: i for i in ancestry["inputs"]}
    assert len(found) == 2 * COUNT
    for each in snapshots.list_snapshots(stored):
        words = found[each.path.name]
        assert words["checksum"] == each.checksum
        assert words["nimg"] == each.meta.nimg
        assert words["profile"] == {
            "kind": "power",
            "sigma_rel": each.meta.profile.sigma_rel,
        }
    (solution,) = job.plan.solutions
    assert [i["coefficient"] for i in ancestry["inputs"]] == list(solution.coefficients)
    assert ancestry["fit_error"] == solution.fit_error
    assert "2312.02696" in ancestry["method"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_outputs_come_in_the_format_asked_for(tmp_path, dtype):
    stored = store(tmp_path / "in")
    _, (path,) = rebuild.run(stored, request(0.07, dtype=dtype), tmp_path / "out")
    params, meta = snapshots.read(path)
    assert meta.dtype == dtype
    exact = ema.reconstruct(stored, [0.07])[0.07].params["b"]
    np.testing.assert_allclose(params["b"], exact, rtol=1.01 * meta.unit_roundoff)


def test_targets_at_several_times_take_one_pass(tmp_path):
    stored = store(tmp_path / "in")
    profile = ema.PowerProfile(0.07)
    times = [6 * 4096, 9 * 4096, None]
    job, paths = rebuild.run(
        stored, rebuild.Request([(t, profile) for t in times]), tmp_path / "out"
    )
    assert job.plan.bytes_to_read == 2 * COUNT * 4 * UNITS
    for path, nimg in zip(paths, times, strict=True):
        alone = ema.reconstruct(stored, [0.07], nimg=nimg)[0.07].params["b"]
        np.testing.assert_allclose(snapshots.read(path)[0]["b"], alone, rtol=1e-6)


def test_finished_targets_are_not_made_again(tmp_path, monkeypatch):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    rebuild.run(stored, request(), out)
    before = contents(out)
    stamps = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr(combining, "combine", None)
    rebuild.run(stored, request(), out)
    assert contents(out) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in out.iterdir()}


def test_more_training_remakes_a_finished_target(tmp_path):
    stored, out = store(tmp_path / "in", count=8), tmp_path / "out"
    at = [(8 * 4096, ema.PowerProfile(0.07))]
    rebuild.run(stored, rebuild.Request(at), out)
    before = contents(out)
    store(tmp_path / "in", count=9)
    rebuild.run(stored, rebuild.Request(at), out)
    assert contents(out) == before  # later snapshots are no part of it
    os.unlink(next((tmp_path / "in").glob("power-0.050-*8192.safetensors")))
    rebuild.run(stored, rebuild.Request(at), out)
    assert contents(out) != before


def test_an_interrupt_keeps_what_is_done(tmp_path, monkeypatch):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    rebuild.run(stored, request(), tmp_path / "undisturbed")
    chunks = []
    combine = combining.combine

    def interrupted(plan, todo, *rest):
        for chunk in combine(plan, todo, *rest):
            yield chunk
            chunks.append(chunk)
            if len(chunks) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(combining, "combine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rebuild.run(stored, request(), out)
    assert not list(out.glob("*.safetensors"))
    asked = []
    monkeypatch.setattr(
        combining,
        "combine",
        lambda p, todo, *r: asked.extend(todo) or combine(p, todo, *r),
    )
    progress = []
    rebuild.run(
        stored, request(), out, lambda done, total: progress.append((done, total))
    )
    assert len(asked) == -(-UNITS // 128) - 3
    assert progress[-1][0] == progress[-1][1]
    assert contents(out) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_journal_of_other_snapshots_is_ignored(tmp_path, monkeypatch):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    combine = combining.combine

    def interrupted(plan, todo, *rest):
        yield from list(combine(plan, todo, *rest))[:3]
        raise KeyboardInterrupt

    monkeypatch.setattr(combining, "combine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rebuild.run(stored, request(), out)
    monkeypatch.undo()
    monkeypatch.setattr(snapshots, "CHUNK", 128)
    # Other weights in a file of the same name: all headers keep their lengths.
    meta = ema.SnapshotMeta(ema.PowerProfile(0.10), 8192, BATCH, "c0ffee")
    tree = {"a": {"w": np.ones((UNITS // 10, 9))}, "b": np.ones(UNITS // 10)}
    snapshots.write(stored, tree, meta)
    rebuild.run(stored, request(), out)
    rebuild.run(stored, request(), tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


def flip(path, offset=-40):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "cut", "foreign"])
def test_a_damaged_snapshot_is_left_out_and_named(tmp_path, how):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    bad = stored / "power-0.050-000000016384.safetensors"
    if how == "flipped":
        flip(bad)
    elif how == "cut":
        bad.write_bytes(bad.read_bytes()[:-100])
    else:
        bad.write_bytes(b"PK\x03\x04" * 100)
    told = []
    job, paths = rebuild.run(
        stored, request(), out, on_damage=lambda error, again: told.append(error)
    )
    assert [e.path.name for e in job.left_out] == [bad.name]
    assert len(told) == (how == "flipped")  # the others show in their headers
    assert len(job.plan.sources) == 2 * COUNT - 1
    for path in paths:
        assert snapshots.open_snapshot(path).meta.ancestry["left_out"] == [bad.name]
    os.unlink(bad)
    clean = ema.reconstruct(stored, [0.15])[0.15].params["b"]
    np.testing.assert_array_equal(snapshots.read(paths[2])[0]["b"], clean)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in paths)


def test_damage_that_reads_as_nan_is_damage(tmp_path):
    stored = store(tmp_path / "in")
    bad = stored / "power-0.050-000000016384.safetensors"
    data = bad.read_bytes()
    bad.write_bytes(data[:-400] + b"\xff" * 400)
    job, _ = rebuild.run(stored, request(), tmp_path / "out")
    assert [e.path.name for e in job.left_out] == [bad.name]


def test_weights_that_were_not_finite_leave_nothing_behind(tmp_path):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    meta = ema.SnapshotMeta(ema.PowerProfile(0.10), 8192, BATCH, "c0ffee")
    tree = {"a": {"w": np.full((UNITS // 10, 9), np.nan)}, "b": np.ones(UNITS // 10)}
    bad = snapshots.write(stored, tree, meta)
    with pytest.raises(
        ValueError, match=f"{bad.name} holds weights that are not finite"
    ):
        rebuild.run(stored, request(), out)
    assert not list(out.iterdir())


def test_a_damaged_last_header_does_not_change_the_time_of_the_targets(tmp_path):
    stored = store(tmp_path / "in")
    for sigma_rel in TRACKED:
        flip(stored / f"power-{sigma_rel:.3f}-{COUNT * 4096:012d}.safetensors", 40)
    with pytest.raises(
        ValueError, match="power-0.050.*power-0.100.* Without them: "
    ) as error:
        rebuild.run(stored, request(0.07), tmp_path / "out")
    assert f"the last snapshot, at {11 * 4096}" in str(error.value)


def test_outputs_cannot_replace_the_snapshots(tmp_path):
    stored = store(tmp_path / "in")
    before = contents(stored)
    (tmp_path / "link").symlink_to(stored)
    for out in (stored, tmp_path / "link"):
        with pytest.raises(ValueError, match="holds the snapshots themselves"):
            rebuild.run(stored, request(0.05), out)
    assert contents(stored) == before


def test_two_targets_of_one_name_are_refused(tmp_path):
    stored = store(tmp_path / "in")
    same = [
        ema.FunctionProfile("f", lambda tau: tau),
        ema.FunctionProfile("f", np.sqrt),
    ]
    targets = [(None, profile) for profile in same]
    wanted = rebuild.Request(targets, max_error=math.inf)
    with pytest.raises(ValueError, match="be stored as function-f-"):
        rebuild.run(stored, wanted, tmp_path / "out")
    different = [ema.TraditionalProfile(0.002), ema.TraditionalProfile(0.002, 0.1)]
    assert different[0].label != different[1].label


@pytest.mark.slow
def test_a_second_writer_is_refused(tmp_path, monkeypatch):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    combine = combining.combine

    def meanwhile(*arguments):
        with pytest.raises(ValueError, match="Another process is writing to"):
            rebuild.run(stored, request(0.15), out)
        yield from combine(*arguments)

    monkeypatch.setattr(combining, "combine", meanwhile)
    _, paths = rebuild.run(stored, request(), out)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in paths)
    monkeypatch.setattr(combining, "combine", combine)
    rebuild.run(stored, request(0.15, 0.2), out)


@pytest.mark.slow
def test_a_finished_target_is_kept_when_others_are_added(tmp_path):
    stored, out = store(tmp_path / "in", count=32), tmp_path / "out"
    rebuild.run(stored, request(0.07, 0.12), out)
    before = {
        path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()
    }
    other = [(None, ema.UniformProfile(50_000)), (None, ema.PowerProfile(0.02))]
    targets = [*request(0.12, 0.07, 0.2).targets, *other]
    rebuild.run(stored, rebuild.Request(targets), out)
    for name, was in before.items():
        assert ((out / name).stat().st_ino, (out / name).read_bytes()) == was
    assert len(list(out.iterdir())) == 5


def test_partial_files_of_an_abandoned_command_are_removed(tmp_path, monkeypatch):
    stored, out = store(tmp_path / "in"), tmp_path / "out"

    def interrupted(*_):
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(combining, "combine", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rebuild.run(stored, request(0.2), out)
    assert any(path.name.endswith(".partial") for path in out.iterdir())
    _, paths = rebuild.run(stored, request(0.07), out)
    assert list(out.iterdir()) == [tmp_path / "out" / paths[0].name]


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_strict_refuses_a_damaged_snapshot_by_name(tmp_path, how):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    bad = stored / "power-0.050-000000016384.safetensors"
    flip(bad)
    if how == "cut":
        bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(ema.Damaged, match=bad.name):
        rebuild.run(stored, request(strict=True), out)
    assert not out.exists() or not list(out.iterdir())


def test_a_damaged_last_snapshot_does_not_change_the_time_of_the_targets(tmp_path):
    stored, out = store(tmp_path / "in"), tmp_path / "out"
    for sigma_rel in TRACKED:
        flip(stored / f"power-{sigma_rel:.3f}-{COUNT * 4096:012d}.safetensors")
    with pytest.raises(
        ValueError, match=f"Without them: .* the last snapshot, at {11 * 4096}"
    ):
        rebuild.run(stored, request(0.07), out)


def test_outputs_that_do_not_fit_the_disk_are_refused_before(tmp_path, monkeypatch):
    job = rebuild.prepare(store(tmp_path / "in"), request())
    rebuild.check_space(job, tmp_path / "out")
    usage = rebuild.shutil.disk_usage(tmp_path)._replace(free=11_999)
    monkeypatch.setattr(rebuild.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="need 12 kB"):
        rebuild.check_space(job, tmp_path / "out")


def test_outputs_go_to_an_object_store_as_well(tmp_path, bucket):
    stored = store(tmp_path / "in")
    _, (path,) = rebuild.run(stored, request(0.07), f"{bucket}/out")
    local = rebuild.run(stored, request(0.07), tmp_path / "out")[1][0]
    assert path.read_bytes() == local.read_bytes()
    _, again = rebuild.run(stored, request(0.07), f"{bucket}/out")
    assert again == [path]


COMMAND = """
import sys
from edm_jax import ema
from edm_jax.ema import rebuild, snapshots
snapshots.CHUNK = 4096
targets = [(None, ema.PowerProfile(s)) for s in (.05, .06, .08, .15)]
rebuild.JOURNAL_SECONDS = 0.01
first = []
rebuild.run(
    sys.argv[1], rebuild.Request(targets), sys.argv[2],
    lambda done, total: first.append(done / total),
)
print(min(first, default=1.0))
"""


@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "CHUNK", 4096)
    stored = store(tmp_path / "in", count=32, units=300_000)
    command = [sys.executable, "-c", COMMAND, str(stored)]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    seconds = time.monotonic() - start
    whole = contents(tmp_path / "whole")
    rng, began = np.random.default_rng(0), []
    # Ten at least, and until one fell amid the pass, from where the next call went on.
    while len(began) < 10 or not any(0.05 < start < 1 for start in began):
        assert len(began) < 50
        out = tmp_path / f"out{len(began)}"
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
        time.sleep(seconds * rng.uniform(0.1, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = subprocess.run([*command, str(out)], check=True, capture_output=True)
        began.append(float(again.stdout))
        assert contents(out) == whole


def test_a_plan_counts_what_it_will_read_and_write(tmp_path):
    job = rebuild.prepare(store(tmp_path / "in"), request(0.07, 0.15, dtype="float16"))
    assert job.plan.bytes_to_read == 2 * COUNT * 4 * UNITS
    assert job.bytes_to_write == 2 * 2 * UNITS
    stored_target = rebuild.prepare(tmp_path / "in", request(0.10))
    assert stored_target.plan.bytes_to_read == 4 * UNITS


@pytest.mark.slow
def test_a_target_that_cannot_be_expressed_is_left_out_and_the_others_are_made(
    tmp_path, monkeypatch
):
    stored = store(tmp_path / "in")
    # It takes seconds.
    monkeypatch.setattr("edm_jax.ema.solver.expressible_range", lambda *_: None)
    with pytest.raises(ValueError, match="cannot express power-0.004"):
        rebuild.run(stored, request(0.004, 0.003), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    mixed = [
        (8192, ema.PowerProfile(0.07)),
        (None, ema.PowerProfile(0.004)),
        (COUNT * 4096 + 1, ema.PowerProfile(0.07)),
        (1024, ema.PowerProfile(0.07)),
        (8192, ema.UniformProfile(10_000)),
        (None, ema.PowerProfile(0.08)),
    ]
    some = rebuild.Request(mixed)
    job, paths = rebuild.run(stored, some, tmp_path / "out")
    assert [path.name for path in paths] == [
        "power-0.070-000000008192.safetensors",
        f"power-0.080-{COUNT * 4096:012d}.safetensors",
    ]
    whys = "cannot express", "after the last", "before the first", "starts after"
    assert len(job.plan.refused) == len(whys)
    for why, said in zip(whys, job.plan.refused, strict=True):
        assert why in said
    # What is made does not depend on what is left out.
    alone = ema.reconstruct(stored, [0.08])[0.08].params
    made, _ = snapshots.read(paths[1])
    flat, wanted = map(snapshots.flatten, (made, alone))
    for name in wanted:
        np.testing.assert_array_equal(flat[name], wanted[name])
    forced = request(0.07, 0.004, max_error=math.inf)
    job, paths = rebuild.run(stored, forced, tmp_path / "out")
    assert not job.plan.refused
    error = snapshots.open_snapshot(paths[1]).meta.ancestry["fit_error"]
    assert error > ema.MAX_ERROR
    assert json.dumps(snapshots.open_snapshot(paths[1]).meta.ancestry)
