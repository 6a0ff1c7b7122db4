"""Each platform gets its own form, all forms agree, and XLA accepts its options."""

import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

import configs
from edm_jax import diffusion, platform
from edm_jax.models import activations, inits, layers
from edm_jax.platform import accelerators, cpu, operations, options

mp_silu = activations.resolve(activations.SiLU(), preserving=True)


@pytest.mark.skipif(
    not jaxlib.__version__.startswith("0.10."), reason="other versions may refuse them"
)
def test_the_pinned_xla_takes_every_option():
    # A refused option is left out in silence: the step would only be slower.
    assert platform.compiler_options("cpu") == options._CPU_OPTIONS


@pytest.mark.parametrize("target", ["tpu", "gpu", "cuda"])
def test_options_are_those_of_the_target_not_of_the_host(target):
    assert jax.default_backend() == "cpu"
    assert platform.compiler_options(target) is None


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(options, "_CPU_OPTIONS", {"xla_cpu_no_such_option": True})
    found = platform.compiler_options.__wrapped__("cpu")
    assert found is None
    jax.jit(lambda x: x + 1, compiler_options=found)(0.0)


def compiled_gradient(options):
    """Text and result of the gradient of a convolution between two functions."""
    layer = layers.Layer(4, 3, normalized=False, bias=False, draw=inits.zeros)

    def loss(x, kernel):
        y = layer.apply({"params": {"kernel": kernel}}, mp_silu(x))
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


tuned = pytest.mark.skipif(
    not platform.compiler_options("cpu"), reason="this XLA does not take the options"
)


@tuned
def test_barriers_keep_arithmetic_out_of_transpositions_and_change_no_number(
    monkeypatch,
):
    moves = {"parameter", "reverse", "transpose", "copy", "bitcast"}
    text, apart = compiled_gradient(platform.compiler_options("cpu"))
    assert computed_while_transposing(text) <= moves
    monkeypatch.setattr(operations, "compiler_options", lambda platform: None)
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
    found = platform.total(x, axes)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-5)
    weights = np.arange(1.0, 1 + exact.size).reshape(exact.shape)
    gradient = jax.grad(lambda x: jnp.sum(weights * platform.total(x, axes)))(x)
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
def test_broadcasting_and_its_derivatives_are_those_of_float64(small, shape):
    x, weights = normal(*small), normal(*shape)

    def weighted(x):
        return jnp.sum(weights * platform.broadcast_to(x, shape))

    np.testing.assert_array_equal(
        platform.broadcast_to(x, shape), np.broadcast_to(x, shape)
    )
    axes = tuple(i for i in range(len(shape)) if small[i] != shape[i])
    exact = weights.astype(np.float64).sum(axis=axes, keepdims=True)
    np.testing.assert_allclose(jax.grad(weighted)(x), exact, rtol=1e-5, atol=1e-5)
    _, tangent = jax.jvp(weighted, (x,), (x,))
    np.testing.assert_allclose(tangent, np.sum(exact * x), rtol=1e-4, atol=1e-4)
    twice = jax.vmap(jax.grad(weighted))(np.stack([x, x]))
    np.testing.assert_allclose(twice[1], exact, rtol=1e-5, atol=1e-5)


def lowered(function, target, *args):
    """The program of a function for a platform, traced on this machine."""
    return jax.jit(function).trace(*args).lower(lowering_platforms=(target,)).as_text()


def vocabulary(params, x, emb):
    """A loss that uses everything that has a form of its own on a CPU."""
    conv = layers.Layer(
        16, 3, normalized=True, bias=False, draw=inits.normal, resample="up"
    )
    y = layers.RMSGroupNorm().apply({}, mp_silu(x))
    y = conv.apply({"params": params}, layers.modulate(y, emb))
    return jnp.sum(jnp.square(layers.pixel_norm(layers.upsample(y))))


@tuned
@pytest.mark.parametrize("target", ["tpu", "cuda", "cpu"])
def test_the_platform_compiled_for_decides_the_form(target):
    args = {"kernel": normal(3, 3, 16, 16)}, normal(2, 8, 8, 16), normal(2, 16)
    text = lowered(jax.grad(vocabulary, (0, 1, 2)), target, *args)
    convolutions = text.count("stablehlo.convolution")
    if target == "cpu":
        assert text.count("optimization_barrier") > 10
        assert convolutions == 3 * 4  # four of merged taps for each
    else:
        assert "optimization_barrier" not in text
        assert convolutions == 3  # forward, and two gradients


@pytest.mark.slow
@tuned
@pytest.mark.parametrize("letter", ["a", "g"])
def test_a_training_loss_exported_for_accelerators_has_no_form_of_the_cpu(letter):
    path = f"{configs.letter_path(letter)}:digits-tiny"
    model = configs.load(path, {}).model
    loss = diffusion.make_loss(diffusion.Denoiser(model, 0.5), -0.4, 1.0)
    batch = {"image": normal(4, 8, 8, 1), "label": np.arange(4)}
    keys = jax.random.split(jax.random.key(0), 4)
    gradient = jax.jit(jax.grad(lambda p: loss(p, batch, keys)[0]))
    params = model.shapes
    for target in ("tpu", "cuda", "cpu"):
        exported = jax.export.export(gradient, platforms=[target])(params)
        barriers = exported.mlir_module().count("optimization_barrier")
        assert (barriers > 100) == (target == "cpu")


@pytest.fixture
def machine(monkeypatch):
    """A machine with these device files, on which JAX was asked for a platform."""

    def machine(files, asked):
        monkeypatch.setattr(accelerators.os.path, "exists", lambda name: name in files)
        monkeypatch.setattr(
            accelerators.jax, "config", types.SimpleNamespace(jax_platforms=asked)
        )
        accelerators.warn_if_idle.cache_clear()

    yield machine
    accelerators.warn_if_idle.cache_clear()


@pytest.mark.parametrize(
    ("files", "used", "asked", "says"),
    [
        (["/dev/nvidia0"], "cpu", None, r"has a GPU.*jax\[cuda12\]"),
        (["/dev/accel0"], "cpu", "", r"has a TPU.*jax\[tpu\]"),
        (["/dev/nvidia0"], "cpu", "cpu", ""),
        (["/dev/nvidia0"], "gpu", None, ""),
        ([], "cpu", None, ""),
    ],
)
def test_an_accelerator_that_is_left_idle_is_named_once(
    machine, caplog, files, used, asked, says
):
    machine(files, asked)
    for _ in range(2):
        platform.warn_if_idle(used)
    assert len(caplog.messages) == bool(says)
    assert re.search(says, "".join(caplog.messages))


@pytest.mark.parametrize(
    ("files", "asked", "kept"),
    [([], None, True), (["/dev/nvidia0"], "cpu", True), (["/dev/nvidia0"], None, False),
     (["/dev/accel0"], "tpu", False), ([], "cuda", False)],
)  # fmt: skip
def test_freed_memory_is_kept_only_where_the_cpu_computes(
    machine, monkeypatch, files, asked, kept
):
    machine(files, asked)
    set_to = []
    libc = types.SimpleNamespace(mallopt=lambda *option: set_to.append(option))
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: libc)
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("JAX_CPU_ENABLE_ASYNC_DISPATCH", "0")
    platform.prepare()
    assert bool(set_to) == kept


# 64 MiB of scratch: 16,384 pages of 4 KiB.
PAGE_FAULTS = """
import resource, statistics
import jax, jax.numpy as jnp
from edm_jax import platform
if {prepared}:
    platform.prepare()
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
    """New memory pages per run of a compiled function, in a separate process."""
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
