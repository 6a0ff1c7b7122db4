"""Adapters against their equations in NumPy float64, and in networks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal

import configs
from edm_jax import tree
from edm_jax.models import adapters, layers
from edm_jax.models.adapters import ADAPTERS, Adapted, Part, merge
from edm_jax.optim import weight_norm

CHANGING = {name: cls for name, cls in ADAPTERS.items() if name != "none"}
TINY = {
    "network.resolution": "4",
    "network.channel_mult": "(1,)",
    "network.model_channels": "16",
}


def trained(adapter, shape, seed=0):
    """A layer's leaves as after some training: nothing is zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.tree.map(
        lambda leaf: leaf.value.shape,
        adapter.leaves(shape),
        is_leaf=lambda x: hasattr(x, "draw"),
    )
    return jax.tree.map(
        lambda s: rng.normal(0, 0.3, s).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def expected(name, adapter, w, leaves, strength=1.0):
    """The kernel that the docstrings' equations give, as a float64 matrix."""
    w = np.asarray(w, np.float64).reshape(-1, w.shape[-1])
    at = {k: np.asarray(v, np.float64) for k, v in tree.flatten(leaves).items()}
    s = strength * adapter.alpha / adapter.rank
    length = np.linalg.norm(w, axis=0)
    if name == "normalized":
        a = at["down/kernel"].reshape(len(w), -1)
        b = at["up/kernel"]
        a, b = (x / (1e-4 + np.sqrt(np.mean(x**2, axis=0))) for x in (a, b))
        return w + strength * at["gain"] * np.sqrt(np.mean(w**2)) * (a @ b) / np.sqrt(
            len(b)
        )
    if name == "rotation":
        u, v = at["down"].reshape(len(w), -1), s * at["up"].reshape(len(w), -1)
        q = u @ v.T - v @ u.T
        one = np.eye(len(w))
        return (one + q) @ np.linalg.inv(one - q) @ w
    d = s * at["down"].reshape(len(w), -1) @ at["up"]
    if name == "lora":
        return w + d
    if name == "dora":
        moved = (w + d) / np.linalg.norm(w + d, axis=0)
        return (1 + strength * at["length"]) * length * moved
    columns = []
    for unit, move in zip(w.T, d.T, strict=True):
        e = unit / np.linalg.norm(unit)
        t = move - e * (e @ move)
        theta = np.linalg.norm(t) / np.linalg.norm(unit)
        f = t / np.linalg.norm(t)
        columns.append(np.linalg.norm(unit) * (np.cos(theta) * e + np.sin(theta) * f))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (6, 4)], ids=["conv", "linear"])
@pytest.mark.parametrize("name", CHANGING)
def test_the_kernel_is_that_of_the_equation(name, shape):
    adapter = CHANGING[name](rank=3, alpha=2.0)
    w = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    leaves = trained(adapter, shape)
    for strength in (1.0, 0.5, -0.25):
        found = adapter.kernel(jnp.asarray(w), leaves, strength)
        assert found.shape == shape
        want = expected(name, adapter, w, leaves, strength)
        np.testing.assert_allclose(found.reshape(want.shape), want, atol=2e-6)


def test_lengths_and_angles_are_kept_where_they_are_said_to_be():
    w = np.random.default_rng(1).normal(size=(3, 3, 5, 7)).astype(np.float32)
    grams = {}
    for name, cls in CHANGING.items():
        adapter = cls(rank=3)
        made = adapter.kernel(jnp.asarray(w), trained(adapter, w.shape))
        made = np.asarray(made, np.float64).reshape(-1, 7)
        grams[name] = made.T @ made
    flat = w.reshape(-1, 7).astype(np.float64)
    base = flat.T @ flat
    np.testing.assert_allclose(grams["rotation"], base, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.diag(grams["sphere"]), np.diag(base), rtol=1e-5)
    assert np.abs(grams["sphere"] - base).max() > 0.1
    assert np.abs(np.diag(grams["lora"]) / np.diag(base) - 1).max() > 0.01


def convolved(x, kernel):
    """A zero-padded convolution as the layers define it, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    out = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for n in range(len(x)):
        for i in range(kernel.shape[2]):
            for o in range(kernel.shape[3]):
                out[n, ..., o] += scipy.signal.correlate2d(
                    x[n, ..., i], kernel[..., i, o], mode="same"
                )
    return out


@pytest.mark.parametrize("rank_stabilized", [False, True])
@pytest.mark.parametrize("resample", ["keep", "down", "up", "linear"])
def test_merged_equals_the_second_path_through_rank_channels(resample, rank_stabilized):
    window = 1 if resample == "linear" else 3
    layer = layers.Layer(
        6,
        window,
        normalized=False,
        bias=False,
        draw=None,
        resample="keep" if resample == "linear" else resample,
    )
    adapter = adapters.Lora(rank=2, alpha=3.0, rank_stabilized=rank_stabilized)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 4, 4, 5)).astype(np.float32)
    w = rng.normal(size=(3, 3, 5, 6) if window == 3 else (5, 6)).astype(np.float32)
    leaves = trained(adapter, w.shape)
    found = layer.apply(
        {"params": {"kernel": adapter.kernel(jnp.asarray(w), leaves)}}, x
    )
    if resample == "down":
        x = x.reshape(2, 2, 2, 2, 2, 5).mean((2, 4))
    if resample == "up":
        x = x.repeat(2, 1).repeat(2, 2)
    apply = convolved if window == 3 else lambda x, k: np.float64(x) @ np.float64(k)
    s = 3.0 / (np.sqrt(2) if rank_stabilized else 2)
    second = apply(x, leaves["down"]) @ np.float64(leaves["up"])
    np.testing.assert_allclose(found, apply(x, w) + s * second, atol=1e-5)


@pytest.fixture(scope="module", params="ag")
def network(request):
    """A tiny network of a letter, its parameters, and inputs."""
    path = f"{configs.letter_path(request.param)}:digits-tiny"
    overrides = TINY | ({"network.zero_last": "False"} if request.param == "a" else {})
    model = configs.load(path, overrides).model
    rng = np.random.default_rng(0)
    base = jax.tree.map(
        lambda w: np.float32(rng.normal(1, 0.3)) if w.ndim == 0 else w, model.init(0)
    )
    inputs = [rng.normal(size=x.shape).astype(np.float32) for x in model.inputs(2)]
    return request.param, model, base, inputs


@pytest.mark.parametrize("name", CHANGING)
def test_a_new_adapter_is_the_base_to_the_bit(network, name):
    _, model, base, _ = network
    adapted = Adapted(model.spec, CHANGING[name](), lambda: base)
    for found in (
        adapted.weights(adapted.init(3)),
        merge(base, [Part(CHANGING[name](), adapted.init(4), 0.3)]),
    ):
        jax.tree.map(np.testing.assert_array_equal, found, base)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGING)
def test_merged_beforehand_equals_merged_in_the_graph(network, name):
    letter, model, base, inputs = network
    if letter == "a" and name not in ("lora", "dora"):
        pytest.skip("as in G: the rest is the kernels', which other tests compare")
    adapted = Adapted(model.spec, CHANGING[name](rank=4), lambda: base)
    rng = np.random.default_rng(5)
    params = jax.tree.map(
        lambda w: w + rng.normal(0, 0.1, w.shape).astype(np.float32), adapted.init(0)
    )
    forward = jax.jit(model.apply)
    f, u, _ = jax.jit(adapted.apply)(params, *inputs)
    g, v, _ = forward(adapted.weights(params), *inputs)
    np.testing.assert_allclose(f, g, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(u, v, atol=1e-5, rtol=1e-5)
    assert np.abs(f - forward(base, *inputs)[0]).max() > 1e-2


@pytest.mark.slow
def test_a_full_rank_takes_the_first_step_of_full_fine_tuning(network):
    """With orthonormal A over all of fan_in, A'A = 1: B's step is that of W, times s^2."""
    letter, model, base, inputs = network
    if letter == "a":
        pytest.skip("D is the same")
    base = weight_norm.project(base)  # on the sphere, as E to G are

    @jax.jit
    @jax.grad
    def gradient(weights):
        f, u, _ = model.apply(weights, *inputs)
        return jnp.mean(jnp.square(f - 1)) + jnp.mean(u)

    full = gradient(base)
    for name, rate, atol in (("lora", 0.05, 1e-5), ("sphere", 2e-3, 1e-3)):
        adapter = CHANGING[name](rank=4096, alpha=4096.0, init="orthogonal")
        adapted = Adapted(model.spec, adapter, lambda: base)
        params = adapted.init(0)
        # The chain rule from W to the adapter, and a step of gradient descent.
        _, pull_back = jax.vjp(adapted.weights, params)
        (grads,) = pull_back(full)
        stepped = jax.tree.map(lambda p, g, r=rate: p - r * g, params, grads)
        step = jax.tree.map(jnp.subtract, adapted.weights(stepped), base)
        a, b = (
            np.concatenate(
                [
                    np.ravel(np.float64(leaf))
                    for layer, leaf in tree.flatten(each).items()
                    if layer.endswith("/kernel")
                ]
            )
            for each in (step, full)
        )
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        np.testing.assert_allclose(cosine, -1, atol=atol)


def test_a_ratio_of_rates_is_two_rates():
    """Two steps of Adam at rates 0.1 for A and 0.4 for B, by hand."""
    w, target = np.zeros((5, 3), np.float32), np.ones((5, 3), np.float32)
    adapter = adapters.Lora(rank=2, alpha=2.0, rate_ratio=4.0)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 2)), rng.normal(size=(2, 3))
    trained = {"down": jnp.float32(a), "up": jnp.float32(b / 4)}
    rule = optax.adam(0.1)
    state = rule.init(trained)
    for _ in range(2):
        grads = jax.grad(
            lambda p: jnp.sum(jnp.square(adapter.kernel(jnp.asarray(w), p) - target))
        )(trained)
        updates, state = rule.update(grads, state)
        trained = optax.apply_updates(trained, updates)
    moments = {"a": (0.0, 0.0), "b": (0.0, 0.0)}
    for t in (1, 2):
        error = 2 * (a @ b - target)
        grads = {"a": error @ b.T, "b": a.T @ error}
        steps = {}
        for name, g in grads.items():
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[name] = m, v
            steps[name] = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        a, b = a - 0.1 * steps["a"], b - 0.4 * steps["b"]
    found = adapter.kernel(jnp.asarray(w), trained)
    np.testing.assert_allclose(found, a @ b, atol=1e-4)


def test_dropout_leaves_out_whole_components_and_keeps_the_mean():
    adapter = adapters.Lora(rank=6, alpha=6.0, dropout=0.25)
    w = np.zeros((9, 4), np.float32)
    base = {"layer": {"kernel": w}}
    leaves = {"layer": trained(adapter, w.shape)}
    down, up = leaves["layer"]["down"], leaves["layer"]["up"]
    keeps = []
    merged = jax.jit(lambda key: merge(base, [Part(adapter, leaves)], key))
    for seed in range(400):
        made = merged(jax.random.key(seed))["layer"]["kernel"]
        # Which components are in it, from the product itself.
        keep = np.linalg.lstsq(
            np.stack([np.outer(down[:, i], up[i]).ravel() for i in range(6)], 1),
            np.ravel(made),
            rcond=None,
        )[0]
        keeps.append(keep)
    keeps = np.array(keeps)
    assert {round(float(each), 2) for each in keeps.ravel()} == {0.0, 1.33}
    assert abs(keeps.mean() - 1) < 0.05


def test_several_adapters_add_their_changes():
    rng = np.random.default_rng(7)
    base = {"layer": {"kernel": rng.normal(size=(5, 4)).astype(np.float32)}}
    w = base["layer"]["kernel"]
    parts, want = [], np.float64(w)
    for name, strength in (("lora", 0.8), ("sphere", 0.5), ("normalized", -0.3)):
        adapter = CHANGING[name](rank=2)
        leaves = trained(adapter, w.shape, seed=len(parts))
        parts.append(Part(adapter, {"layer": leaves}, strength))
        want = want + expected(name, adapter, w, leaves, strength) - np.float64(w)
    np.testing.assert_allclose(merge(base, parts)["layer"]["kernel"], want, atol=1e-6)
