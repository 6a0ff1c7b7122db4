"""What makes XLA fast on a CPU changes no number, and is taken by the XLA that is pinned."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from edm_jax import backend
from edm_jax.models import layers


@pytest.mark.skipif(
    not jaxlib.__version__.startswith("0.10."), reason="other versions may refuse them"
)
def test_the_pinned_xla_takes_every_option():
    # A refused option is left out in silence: the step would only be slower.
    assert backend.compiler_options() == backend._CPU_OPTIONS


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(backend, "_CPU_OPTIONS", {"xla_cpu_no_such_option": True})
    options = backend.compiler_options.__wrapped__()
    assert options is None
    jax.jit(lambda x: x + 1, compiler_options=options)(0.0)


def compiled_gradient(options):
    """Text and result of the gradient of a convolution between two functions."""
    layer = layers.Layer(4, 3, normalized=False, bias=False, draw=layers.zeros_draw)

    def loss(x, kernel):
        y = layer.apply({"params": {"kernel": kernel}}, layers.mp_silu(x))
        return jnp.sum(jnp.sin(y))

    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.full((3, 3, 4, 4), 0.1)
    jitted = jax.jit(jax.grad(loss, (0, 1)), compiler_options=options)
    return jitted.lower(x, kernel).compile().as_text(), jitted(x, kernel)


def computed_while_transposing(text):
    """The operations of fusions that transpose."""
    bodies = [body for body in text.split("\n\n") if body.startswith("%fused")]
    transposing = [body for body in bodies if " transpose(" in body]
    assert transposing
    return set(re.findall(r" = \S+ (\w+)\(", "".join(transposing)))


@pytest.mark.skipif(not backend.compiler_options(), reason="this XLA has no barriers")
def test_barriers_keep_arithmetic_out_of_transpositions_and_change_no_number(
    monkeypatch,
):
    moves = {"parameter", "reverse", "transpose", "copy", "bitcast"}
    text, apart = compiled_gradient(backend.compiler_options())
    assert computed_while_transposing(text) <= moves
    monkeypatch.setattr(backend, "compiler_options", lambda: None)
    text, fused = compiled_gradient(None)
    assert "multiply" in computed_while_transposing(text)
    for a, b in zip(apart, fused, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ()),
        ((4, 8, 4), None),
        ((31,), (0,)),
        ((4096,), (0,)),
        ((64, 3), (0,)),
        ((3, 3, 64, 5), (0, 1, 2)),
        ((2, 8, 8, 5), (1, 2)),
        ((2, 3, 7, 5), (1, 2)),
        ((3, 64), (-1,)),
        ((3, 64), (1,)),
        ((16, 3, 16), (0, 2)),
    ],
)
def test_a_sum_and_its_gradient_are_those_of_float64(shape, axes):
    x = normal(*shape)
    exact = x.astype(np.float64).sum(axis=axes)
    found = backend.sum_over(x, axes)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-5)
    weights = np.arange(1.0, 1 + exact.size).reshape(exact.shape)
    gradient = jax.grad(lambda x: jnp.sum(weights * backend.sum_over(x, axes)))(x)
    kept = weights if axes is None else np.expand_dims(weights, axes)
    np.testing.assert_array_equal(gradient, np.broadcast_to(kept, shape))


@pytest.mark.parametrize(
    ("small", "shape"),
    [
        ((1, 1, 1, 5), (3, 3, 64, 5)),
        ((2, 1, 1, 5), (2, 8, 8, 5)),
        ((2, 1, 1, 5), (2, 3, 7, 5)),
        ((2, 8, 8, 1), (2, 8, 8, 5)),
        ((1, 3, 1), (16, 3, 16)),
        ((4, 5), (4, 5)),
        ((), ()),
    ],
)
def test_spreading_is_broadcasting_and_so_are_its_derivatives(small, shape):
    x, weights = normal(*small), normal(*shape)

    def weighted(x):
        return jnp.sum(weights * backend.spread(x, shape))

    np.testing.assert_array_equal(backend.spread(x, shape), np.broadcast_to(x, shape))
    axes = tuple(i for i in range(len(shape)) if small[i] != shape[i])
    exact = weights.astype(np.float64).sum(axis=axes, keepdims=True)
    np.testing.assert_allclose(jax.grad(weighted)(x), exact, rtol=1e-5, atol=1e-5)
    _, tangent = jax.jvp(weighted, (x,), (x,))
    np.testing.assert_allclose(tangent, np.sum(exact * x), rtol=1e-4, atol=1e-4)
    twice = jax.vmap(jax.grad(weighted))(np.stack([x, x]))
    np.testing.assert_allclose(twice[1], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not backend.compiler_options(), reason="nothing is tuned here")
def test_functions_can_be_traced_as_they_are_written():
    def operations(x):
        return str(jax.make_jaxpr(lambda x: backend.apart(x))(x))  # traced anew

    assert "optimization_barrier" in operations(1.0)
    with backend.untuned():
        assert "optimization_barrier" not in operations(1.0)
    assert "optimization_barrier" in operations(1.0)


# 64 MiB of scratch: 16,384 pages of 4 KiB.
PAGE_FAULTS = """
import resource, statistics
import jax, jax.numpy as jnp
from edm_jax import backend
if {prepared}:
    backend.prepare()
x = jnp.ones((4096, 8))
step = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x.T)))
counts = []
for _ in range(30):
    step(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
# Most steps: now and then something small lies where the scratch was.
print(statistics.median(b - a for a, b in zip(counts, counts[1:])))
"""


def page_faults(prepared, **environment):
    """New pages for each run of a compiled function, in a process of its own."""
    base = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    done = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS.format(prepared=prepared)],
        env=base | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


@pytest.mark.slow
@on_linux
def test_a_prepared_process_takes_no_new_memory_for_a_step():
    assert page_faults(prepared=True) < 1_000
    assert page_faults(prepared=False) > 10_000


@pytest.mark.slow
@on_linux
def test_who_sets_how_jax_dispatches_is_left_alone():
    kept = page_faults(prepared=True, JAX_CPU_ENABLE_ASYNC_DISPATCH="1")
    assert kept > 10_000
