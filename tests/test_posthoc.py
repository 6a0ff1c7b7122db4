"""Snapshots on disk, and post-hoc reconstruction against direct tracking."""

import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from edm_jax import ema, posthoc, snapshots

TRACKED = (0.05, 0.10)
TARGETS = (0.06, 0.08, 0.12, 0.15, 0.20)
BATCH = 128


def meta(nimg=4096, sigma_rel=0.05, dtype="float32", config_hash="c0ffee"):
    profile = ema.PowerProfile(sigma_rel)
    return snapshots.SnapshotMeta(profile, nimg, BATCH, config_hash, dtype)


def tree(scale=1.0):
    rng = np.random.default_rng(0)
    return {
        "enc": {"conv": {"kernel": scale * rng.standard_normal((3, 3, 4, 8))}},
        "out_gain": np.asarray(0.25 * scale),
    }


def walk(updates=2048, count=64, units=500):
    """A random walk's tracked averages, and the directly tracked targets."""
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(units)
    gammas = {s: ema.gamma_from_sigma_rel(s) for s in (*TRACKED, *TARGETS)}
    averages = {s: np.zeros(units) for s in gammas}
    stored = []
    for update in range(1, updates + 1):
        theta = theta + rng.standard_normal(units) / np.sqrt(updates)
        nimg = update * BATCH
        for sigma_rel, gamma in gammas.items():
            weight = ema.power_weight(BATCH, nimg, gamma)
            averages[sigma_rel] += weight * (theta - averages[sigma_rel])
        if update % (updates // count) == 0:
            for sigma_rel in TRACKED:
                stored.append((nimg, sigma_rel, averages[sigma_rel].copy()))
    return stored, averages


def relative_rms(estimate, truth):
    return np.linalg.norm(estimate - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("dtype", "roundoff"),
    [("float32", 2.0**-24), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)],
)
def test_a_snapshot_reads_back_as_it_was_rounded(tmp_path, dtype, roundoff):
    path = snapshots.write(tmp_path, tree(), meta(dtype=dtype))
    params, header = snapshots.read(path)
    assert header == meta(dtype=dtype) == snapshots.read_meta(path)
    flat, expected = snapshots.flatten(params), snapshots.flatten(tree())
    assert flat.keys() == expected.keys() == {"enc/conv/kernel", "out_gain"}
    for name, leaf in flat.items():
        assert leaf.dtype == np.float32
        assert leaf.shape == expected[name].shape
        np.testing.assert_allclose(leaf, expected[name], rtol=1.001 * roundoff)


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        (ema.PowerProfile(0.05), "power-0.050-000000065536.safetensors"),
        (ema.PowerProfile(0.0504), "power-0.0504-000000065536.safetensors"),
        (
            ema.TraditionalProfile(50, 0.05),
            "traditional-50.000-000000065536.safetensors",
        ),
    ],
)
def test_the_file_name_tells_profile_and_nimg(tmp_path, profile, name):
    wanted = snapshots.SnapshotMeta(profile, 65536, BATCH, "c0ffee")
    path = snapshots.write(tmp_path, tree(), wanted)
    assert path.name == name
    assert snapshots.read_meta(path) == wanted


def test_the_header_and_not_the_name_says_what_a_snapshot_is(tmp_path):
    path = snapshots.write(tmp_path, tree(), meta(nimg=1024))
    path.rename(tmp_path / "a.safetensors")
    snapshots.write(tmp_path, tree(), meta(nimg=512))
    refs = snapshots.list_snapshots(tmp_path)
    assert [ref.meta.nimg for ref in refs] == [512, 1024]


def test_weights_keep_their_order_when_stored_from_a_transposed_view(tmp_path):
    kernel = np.arange(6.0).reshape(2, 3).T
    path = snapshots.write(tmp_path, {"kernel": kernel}, meta())
    np.testing.assert_array_equal(snapshots.read(path)[0]["kernel"], kernel)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_directory_as_it_was(
    tmp_path, monkeypatch, failing
):
    path = snapshots.write(tmp_path, tree(), meta())
    before = path.read_bytes()

    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        snapshots.write(tmp_path, tree(scale=2.0), meta())
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_others_may_read_a_snapshot_where_the_umask_lets_them(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = snapshots.write(tmp_path, tree(), meta())
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_snapshot_is_named(tmp_path, size):
    path = snapshots.write(tmp_path, tree(), meta())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        snapshots.list_snapshots(tmp_path)


def test_a_foreign_safetensors_file_is_named(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="other.safetensors is not a snapshot"):
        snapshots.read(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nimg", "many", "damaged snapshot header"),
        ("profile", "cosine", "damaged snapshot header"),
        ("sigma_rel", "0.5", "damaged snapshot header"),
        ("format_version", "2", "has snapshot format 2"),
    ],
)
def test_a_header_that_cannot_be_believed_is_named(tmp_path, key, value, message):
    path = snapshots.write(tmp_path, tree(), meta())
    with safetensors.safe_open(path, framework="np") as file:
        header = file.metadata() | {key: value}
    safetensors.numpy.save_file({"a": np.zeros(2)}, path, metadata=header)
    with pytest.raises(ValueError, match=f"{path.name} has.*") as error:
        snapshots.read_meta(path)
    assert message in str(error.value)


def test_missing_places_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory of snapshots"):
        snapshots.list_snapshots(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no snapshot at"):
        snapshots.read(tmp_path / "none.safetensors")


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too large for float16"):
        snapshots.write(tmp_path, {"w": np.array([1e6])}, meta(dtype="float16"))
    with pytest.raises(ValueError, match="hold '/'"):
        snapshots.write(tmp_path, {"a/b": np.zeros(2)}, meta())
    with pytest.raises(ValueError, match="choose one of float32"):
        meta(dtype="int8")
    with pytest.raises(ValueError, match="at least 1 image"):
        meta(nimg=0)
    assert not list(tmp_path.iterdir())


def test_reconstruction_matches_direct_tracking_of_a_random_walk():
    stored, direct = walk()
    trees = [(nimg, s, {"w": average}) for nimg, s, average in stored]
    result = posthoc.reconstruct_trees(trees, TARGETS)
    for sigma_rel in TARGETS:
        params, solution = result[sigma_rel]
        assert params["w"].dtype == np.float32
        # Measured: .8e-6 to 2.2e-6, and 4.3e-5 at .20 (fit errors 2e-4 to 1.7e-3). The
        # walk is smoother than its worst case; .05 and .10 themselves are 9e-2 apart.
        bound = 1e-5 if sigma_rel < 0.20 else 1e-4
        assert relative_rms(params["w"], direct[sigma_rel]) < bound
        assert solution.fit_error < 2e-3


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_files_reconstruct_as_well_as_their_format_promises(tmp_path, dtype):
    stored, direct = walk(units=1000)
    for nimg, sigma_rel, average in stored:
        snapshots.write(tmp_path, {"w": average}, meta(nimg, sigma_rel, dtype))
    result = posthoc.reconstruct(tmp_path, TARGETS)
    for sigma_rel in TARGETS:
        params, solution = result[sigma_rel]
        error = relative_rms(params["w"], direct[sigma_rel])
        # 5e-5: what the fit itself leaves of this walk.
        assert error < 1.2 * solution.rounding_error + 5e-5
        assert dtype == "float32" or error > 0.8 * solution.rounding_error


def test_each_file_is_read_once_for_all_targets(tmp_path, monkeypatch):
    for nimg in (1024, 2048, 3072):
        snapshots.write(tmp_path, tree(nimg / 1024), meta(nimg))
    reads = []
    read = snapshots.read
    monkeypatch.setattr(snapshots, "read", lambda p: reads.append(p) or read(p))
    posthoc.reconstruct(tmp_path, TARGETS)
    assert sorted(reads) == sorted(set(reads))
    assert len(reads) == 3


def test_a_stored_length_comes_back_unchanged_at_its_nimg(tmp_path):
    for nimg in (1024, 2048, 3072):
        for sigma_rel in TRACKED:
            snapshots.write(tmp_path, tree(nimg * sigma_rel), meta(nimg, sigma_rel))
    result = posthoc.reconstruct(tmp_path, [0.10], nimg=2048)
    expected = tree(2048 * 0.10)
    params, solution = result[0.10]
    kernel = expected["enc"]["conv"]["kernel"].astype(np.float32)
    np.testing.assert_array_equal(params["enc"]["conv"]["kernel"], kernel)
    assert params["out_gain"].shape == ()
    assert len(solution.snapshots) == 4  # those after nimg are left out
    assert solution.target[0] == 2048


def test_traditional_snapshots_are_left_out(tmp_path):
    profile = ema.TraditionalProfile(50.0)
    snapshots.write(
        tmp_path, tree(), snapshots.SnapshotMeta(profile, 2048, BATCH, "c0ffee")
    )
    with pytest.raises(ValueError, match="no snapshots of power-function profiles"):
        posthoc.reconstruct(tmp_path, [0.1])
    snapshots.write(tmp_path, tree(), meta(1024))
    solution = posthoc.reconstruct(tmp_path, [0.1])[0.1].solution
    assert [nimg for nimg, _ in solution.snapshots] == [1024]


def test_snapshots_of_two_configs_are_not_mixed(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024, config_hash="aaaa"))
    snapshots.write(tmp_path, tree(), meta(2048, config_hash="bbbb"))
    with pytest.raises(ValueError, match="different configs .aaaa, bbbb."):
        posthoc.reconstruct(tmp_path, [0.1])


def test_a_snapshot_that_does_not_fit_is_named(tmp_path):
    snapshots.write(tmp_path, {"w": np.ones(3)}, meta(1024))
    path = snapshots.write(tmp_path, {"w": np.array([1, np.nan, 1])}, meta(2048))
    with pytest.raises(ValueError, match=f"{path.name} holds weights that are not fin"):
        posthoc.reconstruct(tmp_path, [0.1])
    snapshots.write(tmp_path, {"w": np.ones(4)}, meta(2048))
    with pytest.raises(ValueError, match=f"{path.name} holds other weights"):
        posthoc.reconstruct(tmp_path, [0.1])


def test_a_time_before_the_first_snapshot_is_refused(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024))
    with pytest.raises(ValueError, match="the first is at 1024"):
        posthoc.reconstruct(tmp_path, [0.1], nimg=1000)


def test_a_time_after_the_last_snapshot_is_refused(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024))
    with pytest.raises(ValueError, match="after the last snapshot, at 1024"):
        posthoc.reconstruct(tmp_path, [0.1], nimg=2048)


def test_reconstruction_needs_no_jax():
    code = "import sys, edm_jax.posthoc; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
