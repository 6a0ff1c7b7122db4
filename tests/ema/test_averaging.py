"""Averages tracked in any JAX loop, of any pytree, on any number of processes."""

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import ema
from edm_jax.ema import averaging, snapshots


def documented_loop():
    """The five lines of docs/ema.md for other training loops."""
    text = (Path(__file__).parents[2] / "docs" / "ema.md").read_text(encoding="utf-8")
    section = text.partition("## In your own training loop")[2]
    return section.partition("```python\n")[2].partition("```")[0]


@pytest.mark.slow
def test_the_documented_five_lines_average_a_strangers_training(tmp_path, monkeypatch):
    (tmp_path / "loop.py").write_text(documented_loop())
    monkeypatch.chdir(tmp_path)
    history, update = [], ema.Averages.update
    monkeypatch.setattr(
        ema.Averages, "update", lambda *a: history.append(a[2]) or update(*a)
    )
    scope = runpy.run_path("loop.py")
    weights = scope["weights"]
    assert jax.tree.structure(weights) == jax.tree.structure(scope["params"])
    # What the lines say they make: the power-function average of all that was.
    gamma = ema.gamma_from_sigma_rel(0.13)
    steps = len(history)
    mass = np.diff((np.arange(steps + 1) / steps) ** (gamma + 1))
    expected = np.tensordot(mass, np.stack([h["w"] for h in history]), 1)
    spread = np.std([h["w"] for h in history])
    np.testing.assert_allclose(weights["w"], expected, atol=2e-3 * spread)


def by_definition(path, nimg, sigma_rel):
    """Σ of the weights times the mass of the images since the previous update."""
    gamma = ema.gamma_from_sigma_rel(sigma_rel)
    mass = np.diff((np.asarray(nimg) / nimg[-1]) ** (gamma + 1), prepend=0)
    return np.tensordot(mass, path, 1)


def walk(steps=200, units=5):
    rng = np.random.default_rng(0)
    return np.cumsum(rng.standard_normal((steps, units)), axis=0).astype(np.float32)


@pytest.mark.parametrize("nimg", [np.arange(1, 201), 7.5 * np.arange(1, 201) ** 1.5])
@pytest.mark.parametrize("traced", [False, True])
def test_updates_at_any_times_leave_the_profile(nimg, traced):
    averages = ema.Averages((0.05, 0.2))
    update = jax.jit(averages.update) if traced else averages.update
    path = walk()
    state = averages.init({"w": jnp.zeros(5)})
    for theta, t in zip(path, nimg, strict=True):
        state = update(state, {"w": jnp.asarray(theta)}, t if traced else float(t))
    for sigma_rel, average in zip((0.05, 0.2), state.averages, strict=True):
        expected = by_definition(path, nimg, sigma_rel)
        np.testing.assert_allclose(average["w"], expected, rtol=1e-4, atol=1e-4)


def test_a_time_that_goes_back_changes_nothing_under_jit_and_is_refused_outside():
    averages = ema.Averages((0.1,))
    state = averages.update(averages.init(jnp.zeros(2)), jnp.ones(2), 8)
    with pytest.raises(ValueError, match="must span more than 0"):
        averages.update(state, 2 * jnp.ones(2), 4)
    traced = jax.jit(averages.update)(state, 2 * jnp.ones(2), 4)
    np.testing.assert_array_equal(traced.averages[0], state.averages[0])


def test_beyond_2_to_the_31_the_count_stays_exact():
    averages = ema.Averages((0.1,))
    state = averages.init(jnp.zeros(()))._replace(nimg=2**33)
    state = averages.update(state, jnp.ones(()), 2**33 + 2048)
    gamma = ema.gamma_from_sigma_rel(0.1)
    expected = ema.power_weight(2048, 2**33 + 2048, gamma)
    assert float(state.averages[0]) == pytest.approx(float(expected), rel=1e-6)


def test_averages_of_half_precision_weights_move():
    averages = ema.Averages((0.05,))
    state = averages.init({"w": jnp.ones(3, jnp.bfloat16)})
    assert state.averages[0]["w"].dtype == jnp.float32
    state = averages.update(
        state._replace(nimg=10**6), {"w": jnp.full(3, 1.5)}, 10**6 + 1
    )
    assert (state.averages[0]["w"] > 1).all()


class Odd(dict):
    """A user's own pytree node."""


jax.tree_util.register_pytree_with_keys(
    Odd,
    lambda node: (((jax.tree_util.GetAttrKey("inner"), node["inner"]),), None),
    lambda _, children: Odd(inner=children[0]),
)


def test_any_pytree_is_stored_and_restored_in_its_structure(tmp_path):
    params = {
        "list": [jnp.ones((2, 3)), jnp.full(4, 2.0, jnp.bfloat16)],
        "odd": Odd(inner=jnp.zeros(())),
    }
    averages = ema.Averages((0.05, 0.10))
    state = averages.update(averages.init(params), params, 512)
    paths = averages.save(tmp_path, state, config_hash="mine", update_interval=512)
    assert [p.name for p in paths] == [
        s.path.name for s in ema.list_snapshots(tmp_path)
    ]
    assert snapshots.open_snapshot(paths[0]).meta.config_hash == "mine"
    back = ema.restore(tmp_path, [0.05], like=params)[0.05]
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="only one of the two has list/1"):
        ema.restore(tmp_path, [0.05], like={"list": [jnp.ones((2, 3))]})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "no leaves"),
        ({"w": jnp.ones(2), "count": jnp.arange(3)}, "count holds int32"),
        ({"key": jax.random.key(0)}, "key holds key<"),
        ({"f": len}, "f holds <class"),
        ({"a/b": jnp.ones(3), "a": {"b": jnp.zeros(3)}}, "Two leaves .* named a/b"),
        ({"a/b": jnp.ones(3), "a": jnp.zeros(3)}, "Two leaves .* named a:"),
        ({"__metadata__": jnp.ones(3)}, "__metadata__"),
    ],
)
def test_leaves_that_cannot_be_averaged_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        ema.Averages().init(params)


def test_invalid_lengths_and_times_are_refused(tmp_path):
    for sigma_rels in ((), (0.1, 0.1), (1e-300,), (0.3,)):
        with pytest.raises(ValueError, match="sigma_rel"):
            ema.Averages(sigma_rels)
    averages = ema.Averages()
    state = averages.update(averages.init(jnp.ones(2)), jnp.ones(2), 1.7)
    with pytest.raises(ValueError, match="not a whole number"):
        averages.save(tmp_path, state)


def test_a_tree_of_other_shapes_is_not_restored(tmp_path):
    averages = ema.Averages((0.05,))
    params = {"w": jnp.ones(2)}
    averages.save(tmp_path, averages.update(averages.init(params), params, 8))
    with pytest.raises(ValueError, match=r"w has shape \(2,\) in .* and \(7,\)"):
        ema.restore(tmp_path, [0.05], like={"w": jnp.ones(7)})


def test_a_reconstructed_tree_goes_to_a_file_with_its_metadata_and_back(tmp_path):
    averages = ema.Averages((0.05, 0.10))
    params = {"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": jnp.ones(())}
    state = averages.init(params)
    for step in (8, 16):
        state = averages.update(
            state, {"a": {"w": params["a"]["w"] * step}, "b": params["b"]}, step
        )
        averages.save(tmp_path / "stored", state)
    profile = ema.PowerProfile(0.07)
    made, solution = ema.reconstruct(tmp_path / "stored", [profile])[profile]
    ancestry = {"fit_error": solution.fit_error, "inputs": ["stored"]}
    meta = ema.SnapshotMeta(profile, 16, 8, "mine", ancestry=ancestry)
    path = ema.write_snapshot(tmp_path, made, meta)
    back, found = ema.read_snapshot(path)
    assert found == meta
    assert jax.tree.all(jax.tree.map(np.array_equal, back, made))


def test_an_array_over_eight_devices_is_gathered_whole(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = np.arange(64.0, dtype=np.float32).reshape(16, 4)
    spread = jax.device_put(whole, sharding)
    np.testing.assert_array_equal(averaging.gather(spread), whole)
    averages = ema.Averages((0.05,))
    state = averages.update(averages.init({"w": spread}), {"w": spread}, 8)
    (path,) = averages.save(tmp_path, state)
    np.testing.assert_array_equal(snapshots.read(path)[0]["w"], whole)


WORKER = """
import sys
import jax
import numpy as np
address, index, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, num_processes=2, process_id=index)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from edm_jax import ema
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
whole = {"spread": np.arange(32.0, dtype=np.float32).reshape(8, 4), "same": np.ones(3, np.float32)}
specs = {"spread": P("data"), "same": P()}
params = {
    name: jax.make_array_from_callback(
        value.shape, NamedSharding(mesh, specs[name]), lambda i, v=value: v[i]
    )
    for name, value in whole.items()
}
averages = ema.Averages((0.05,))
state = averages.update(averages.init(params), params, 8)
averages.save(directory, state)
"""


@pytest.mark.slow
def test_two_processes_store_one_snapshot_of_what_both_hold(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    environment = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, address, str(index), str(tmp_path)],
            env=environment,
        )
        for index in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    (stored,) = ema.list_snapshots(tmp_path)
    params, _ = snapshots.read(stored.path)
    np.testing.assert_array_equal(params["spread"].ravel(), np.arange(32.0))
    np.testing.assert_array_equal(params["same"], np.ones(3))
