"""Post-hoc reconstruction against direct tracking, in memory and from files."""

import math
import subprocess
import sys

import numpy as np
import pytest
from small_snapshots import BATCH, meta, tree

from edm_jax import ema
from edm_jax.ema import combine, snapshots

TRACKED = (0.05, 0.10)
TARGETS = (0.06, 0.08, 0.12, 0.15, 0.20)


def walk(updates=2048, count=64, units=500, every=1):
    """A random walk's tracked averages, and the directly tracked targets.

    The averages are updated every few steps, the targets at every step.
    """
    rng = np.random.default_rng(1)
    theta = rng.standard_normal(units)
    gammas = {s: ema.gamma_from_sigma_rel(s) for s in (*TRACKED, *TARGETS)}
    averages = {s: np.zeros(units) for s in gammas}
    stored = []
    for update in range(1, updates + 1):
        # The weights stand still between updates, so that no update misses a move.
        if update % every == 1 or every == 1:
            theta = theta + rng.standard_normal(units) * np.sqrt(every / updates)
        nimg = update * BATCH
        for sigma_rel, gamma in gammas.items():
            step = every if sigma_rel in TRACKED else 1
            if update % step == 0:
                weight = ema.power_weight(BATCH * step, nimg, gamma)
                averages[sigma_rel] += weight * (theta - averages[sigma_rel])
        if update % (updates // count) == 0:
            for sigma_rel in TRACKED:
                stored.append((nimg, sigma_rel, averages[sigma_rel].copy()))
    return stored, averages


def as_trees(stored):
    return [(nimg, s, {"w": average}) for nimg, s, average in stored]


def relative_rms(estimate, truth):
    return np.linalg.norm(estimate - truth) / np.linalg.norm(truth)


def plain(stored, sigma_rel):
    """The paper's normal equations, solved directly, and their combination in float64."""
    t, gamma = np.array([(t, ema.gamma_from_sigma_rel(s)) for t, s, _ in stored]).T
    gram = ema.inner_product(t[:, None], gamma[:, None], t, gamma)
    target = t[-1], ema.gamma_from_sigma_rel(sigma_rel)
    x = np.linalg.solve(gram, ema.inner_product(t, gamma, *target))
    x /= x.sum()
    return np.tensordot(x, np.stack([average for _, _, average in stored]), 1)


@pytest.mark.slow
@pytest.mark.parametrize("count", [32, 128])
def test_reconstruction_matches_direct_tracking_of_a_random_walk(count):
    stored, direct = walk(count=count)
    result = ema.reconstruct_trees(as_trees(stored), TARGETS)
    for sigma_rel in TARGETS:
        params, solution = result[sigma_rel]
        assert params["w"].dtype == np.float64  # as the averages given
        error = relative_rms(params["w"], direct[sigma_rel])
        # The walk is smoother than the white noise that the fit error stands for.
        assert error < solution.fit_error / 20
        assert error <= 1.001 * relative_rms(
            plain(stored, sigma_rel), direct[sigma_rel]
        )


@pytest.mark.parametrize("every", [4, 16])
def test_updates_every_k_steps_reconstruct_the_same_profiles(every):
    stored, direct = walk(every=every)
    result = ema.reconstruct_trees(as_trees(stored), TARGETS)
    for sigma_rel in TARGETS:
        error = relative_rms(result[sigma_rel].params["w"], direct[sigma_rel])
        assert error < result[sigma_rel].solution.fit_error / 20


@pytest.mark.slow
@pytest.mark.parametrize(
    "profile",
    [
        ema.TraditionalProfile(0.01),
        ema.TraditionalProfile(0.02, math.inf),
        ema.UniformProfile(131072),
        ema.UniformProfile(65536, 196608),
        ema.TableProfile((0, 131072, 262144), (0, 1, 0)),
        ema.FunctionProfile("late quarter", lambda tau: 1.0 * (tau > 196608)),
    ],
    ids=lambda profile: profile.label,
)
def test_any_profile_averages_a_random_walk_by_its_density(profile):
    rng = np.random.default_rng(1)
    path = np.cumsum(rng.standard_normal((2048, 300)), axis=0) / np.sqrt(2048)
    ends = BATCH * np.arange(1, 2049)
    averages = {s: np.zeros(300) for s in TRACKED}
    stored = []
    for end, theta in zip(ends, path, strict=True):
        for s in TRACKED:
            weight = ema.power_weight(BATCH, end, ema.gamma_from_sigma_rel(s))
            averages[s] += weight * (theta - averages[s])
            if end % 4096 == 0:
                stored.append((end, s, averages[s].copy()))
    # The average by definition: the mass of each step's images times its weights.
    inside = (np.arange(BATCH) + 0.5)[:, None] + ends - BATCH
    mass = profile.density(inside, ends[-1]).mean(axis=0)
    expected = mass @ path / mass.sum()
    params, solution = ema.reconstruct_trees(as_trees(stored), [profile])[profile]
    assert solution.fit_error < 0.05
    assert relative_rms(params["w"], expected) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "weights"),
    [
        (ema.UniformProfile(131072), np.repeat([0, 1], 1024)),
        (ema.UniformProfile(65536, 196608), np.repeat([0, 1, 1, 0], 512)),
        (
            ema.TableProfile((0, 131072, 262144), (0, 1, 0)),
            1 - np.abs(np.arange(2048) + 0.5 - 1024) / 1024,
        ),
        (
            ema.TraditionalProfile(0.02, math.inf),
            0.5 ** ((2047.5 - np.arange(2048)) * BATCH / 0.02e6),
        ),
    ],
    ids=["second half", "middle half", "triangle", "half-life"],
)
def test_explicit_weights_make_the_same_average(profile, weights):
    rng = np.random.default_rng(1)
    path = np.cumsum(rng.standard_normal((2048, 300)), axis=0) / np.sqrt(2048)
    averages, stored = {s: np.zeros(300) for s in TRACKED}, []
    for step, theta in enumerate(path, start=1):
        for s in TRACKED:
            gamma = ema.gamma_from_sigma_rel(s)
            averages[s] += (1 - (1 - 1 / step) ** (gamma + 1)) * (theta - averages[s])
            if step % 32 == 0:
                stored.append((step * BATCH, s, averages[s].copy()))
    params, _ = ema.reconstruct_trees(as_trees(stored), [profile])[profile]
    expected = weights @ path / weights.sum()
    assert relative_rms(params["w"], expected) < 3e-3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_files_reconstruct_as_well_as_their_format_promises(tmp_path, dtype):
    stored, direct = walk(units=1000)
    for nimg, sigma_rel, average in stored:
        snapshots.write(tmp_path, {"w": average}, meta(nimg, sigma_rel, dtype))
    result = ema.reconstruct(tmp_path, TARGETS)
    for sigma_rel in TARGETS:
        params, solution = result[sigma_rel]
        error = relative_rms(params["w"], direct[sigma_rel])
        # 5e-5: what the fit itself leaves of this walk.
        assert error < 1.2 * solution.rounding_error + 5e-5
        assert dtype == "float32" or error > 0.8 * solution.rounding_error


@pytest.mark.parametrize("chunk", [64, 100, 2**20])
def test_files_of_mixed_formats_add_up_whatever_the_chunks(
    tmp_path, monkeypatch, chunk
):
    monkeypatch.setattr(snapshots, "CHUNK", chunk)
    monkeypatch.setattr(combine, "_MIN_BLOCK", 16)
    monkeypatch.setattr(combine, "_BLOCK_BYTES", 1000)
    rng = np.random.default_rng(0)
    stored = {}
    for k, dtype in enumerate(["float32", "float16", "float32", "bfloat16"]):
        nimg, sigma_rel = 1024 * (1 + k // 2), TRACKED[k % 2]
        weights = {"a": rng.standard_normal((31, 7)), "b": rng.standard_normal(12)}
        path = snapshots.write(tmp_path, weights, meta(nimg, sigma_rel, dtype))
        stored[nimg, sigma_rel] = snapshots.read(path)[0]
    found = ema.reconstruct(tmp_path, [0.07, 0.2], max_error=math.inf)
    for sigma_rel, (params, solution) in found.items():
        x = dict(zip(sorted(stored), solution.coefficients, strict=True))
        for name in ("a", "b"):
            expected = sum(x[key] * stored[key][name].astype(float) for key in stored)
            np.testing.assert_allclose(params[name], expected, rtol=1e-6, atol=1e-7)
        assert solution.profile.sigma_rel == sigma_rel


def test_each_file_is_read_once_for_all_targets(tmp_path, monkeypatch):
    for nimg in (1024, 2048, 3072):
        snapshots.write(tmp_path, tree(nimg / 1024), meta(nimg))
    reads = []
    read = snapshots.Snapshot.read
    monkeypatch.setattr(
        snapshots.Snapshot,
        "read",
        lambda self, start, out: (
            reads.append((self.name, start)) or read(self, start, out)
        ),
    )
    ema.reconstruct(tmp_path, TARGETS, max_error=math.inf)
    assert len(reads) == len(set(reads)) == 3


def test_a_stored_length_comes_back_unchanged_at_its_nimg(tmp_path):
    for nimg in (1024, 2048, 3072):
        for sigma_rel in TRACKED:
            snapshots.write(tmp_path, tree(nimg * sigma_rel), meta(nimg, sigma_rel))
    result = ema.reconstruct(tmp_path, [0.10], nimg=2048)
    expected = tree(2048 * 0.10)
    params, solution = result[0.10]
    kernel = expected["enc"]["conv"]["kernel"].astype(np.float32)
    np.testing.assert_array_equal(params["enc"]["conv"]["kernel"], kernel)
    assert params["out_gain"].shape == ()
    assert len(solution.coefficients) == 4  # those after nimg are left out
    assert solution.nimg == 2048


@pytest.mark.slow
def test_missing_snapshots_cost_accuracy_only():
    stored, direct = walk(count=64)
    thinned = [each for i, each in enumerate(stored) if i not in (20, 41, 77, 90)]
    whole, holed = (
        ema.reconstruct_trees(as_trees(each), [0.12])[0.12]
        for each in (stored, thinned)
    )
    assert whole.solution.fit_error < holed.solution.fit_error < 0.02
    assert relative_rms(holed.params["w"], direct[0.12]) < 1e-3


def test_traditional_snapshots_are_left_out(tmp_path):
    profile = ema.TraditionalProfile(50.0)
    snapshots.write(tmp_path, tree(), ema.SnapshotMeta(profile, 2048, BATCH, "c0ffee"))
    with pytest.raises(ValueError, match="no snapshots of power-function profiles"):
        ema.reconstruct(tmp_path, [0.1])
    snapshots.write(tmp_path, tree(), meta(1024, 0.1))
    solution = ema.reconstruct(tmp_path, [0.1])[0.1].solution
    assert solution.nimg == 1024 and len(solution.coefficients) == 1


def test_snapshots_of_two_configs_are_not_mixed(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024, config_hash="aaaa"))
    snapshots.write(tmp_path, tree(), meta(2048, config_hash="bbbb"))
    with pytest.raises(ValueError, match="different configs .aaaa of .*, bbbb of"):
        ema.reconstruct(tmp_path, [0.1])


def test_a_reconstruction_among_the_snapshots_is_refused(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024, ancestry={"inputs": []}))
    with pytest.raises(ValueError, match="is a reconstruction, not a snapshot"):
        ema.reconstruct(tmp_path, [0.05])


def test_a_snapshot_that_does_not_fit_is_named(tmp_path):
    force = {"max_error": math.inf}
    snapshots.write(tmp_path, {"w": np.ones(3)}, meta(1024))
    path = snapshots.write(tmp_path, {"w": np.array([1, np.nan, 1])}, meta(2048))
    with pytest.raises(ValueError, match=f"{path.name} holds weights that are not fin"):
        ema.reconstruct(tmp_path, [0.1], **force)
    snapshots.write(tmp_path, {"w": np.ones(4)}, meta(2048))
    with pytest.raises(ValueError, match=f"{path.name} holds weights of other names"):
        ema.reconstruct(tmp_path, [0.1], **force)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "said"),
    [
        (ema.PowerProfile(0.004), r"sigma_rel from 0\.0\d+ to 0\.2\d+\.$"),
        (ema.TraditionalProfile(1e-5), r"half-lives from .* million images\.$"),
        (ema.UniformProfile(1000, 1001), "start and end at snapshots"),
    ],
)
def test_a_refusal_names_the_range_that_can_be_expressed(profile, said):
    stored, _ = walk(updates=256, count=64, units=2)
    with pytest.raises(ValueError, match=f"cannot express .*{said}"):
        ema.reconstruct_trees(as_trees(stored), [profile])
    forced = ema.reconstruct_trees(as_trees(stored), [profile], max_error=math.inf)
    assert forced[profile].solution.error > ema.MAX_ERROR


@pytest.mark.slow
def test_the_range_that_a_refusal_names_is_expressed_and_no_more():
    stored, _ = walk(updates=256, count=32, units=2)
    with pytest.raises(ValueError, match="They can express") as error:
        ema.reconstruct_trees(as_trees(stored), [0.004])
    words = str(error.value).rstrip(".").split()
    low, high = (float(words[words.index(word) + 1]) for word in ("from", "to"))
    ema.reconstruct_trees(as_trees(stored), [low, high])
    for outside in (low - 0.001, high + 0.001):
        with pytest.raises(ValueError, match="cannot express"):
            ema.reconstruct_trees(as_trees(stored), [outside])


def test_a_time_between_snapshots_names_the_one_before(tmp_path):
    stored, _ = walk(updates=256, count=16, units=2)
    with pytest.raises(ValueError, match="last snapshot before that time is at 16384"):
        ema.reconstruct_trees(as_trees(stored), [0.1], nimg=18000)


def test_a_time_before_the_first_snapshot_is_refused(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024))
    with pytest.raises(ValueError, match="before the first snapshot, at 1024"):
        ema.reconstruct(tmp_path, [0.1], nimg=1000)


def test_a_time_after_the_last_snapshot_is_refused(tmp_path):
    snapshots.write(tmp_path, tree(), meta(1024))
    with pytest.raises(ValueError, match="after the last snapshot, at 1024"):
        ema.reconstruct(tmp_path, [0.1], nimg=2048)


def test_reconstruction_needs_no_jax():
    code = "import sys, edm_jax.ema; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
