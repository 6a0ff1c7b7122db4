"""Arithmetic counted by hand and by the paper, and peaks of devices by their names."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import configs
from edm_jax.diffusion import flops
from edm_jax.diffusion.flops import count_macs, peak_flops
from edm_jax.models.build import Model

IMAGES = jnp.zeros((2, 8, 8, 3))
KERNEL = jnp.zeros((3, 3, 3, 5))
CONV_MACS = 2 * 8 * 8 * 5 * 3 * 3 * 3  # outputs, each of 3 x 3 x 3 products
SQUARE = jnp.zeros((4, 4))
DOT_MACS = 4 * 4 * 4


def conv(x, kernel, **options):
    dimensions = "NHWC", "HWIO", "NHWC"
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, **options
    )


def dot(x):
    return x @ x


def model_of(letter, workload="imagenet512-s"):
    return configs.load(f"{configs.letter_path(letter)}:{workload}").model


def test_a_convolution_counts_every_product_padding_included():
    assert count_macs(conv, IMAGES, KERNEL) == CONV_MACS


def test_a_convolution_counts_the_same_however_its_axes_are_laid_out():
    def channels_first(x, kernel):
        return jax.lax.conv(x, kernel, (1, 1), "SAME")

    images, kernel = IMAGES.transpose(0, 3, 1, 2), KERNEL.transpose(3, 2, 0, 1)
    assert count_macs(channels_first, images, kernel) == CONV_MACS


def test_a_grouped_convolution_counts_the_products_within_groups():
    depthwise = jnp.zeros((3, 3, 1, 3))
    macs = count_macs(lambda *xs: conv(*xs, feature_group_count=3), IMAGES, depthwise)
    assert macs == 2 * 8 * 8 * 3 * 3 * 3


def test_a_matrix_product_counts_its_contracted_axes_once_per_output():
    q, k = jnp.zeros((2, 7, 3, 5)), jnp.zeros((2, 11, 3, 5))
    attention = count_macs(lambda *xs: jnp.einsum("nqhc,nkhc->nhqk", *xs), q, k)
    assert attention == 2 * 3 * 7 * 11 * 5
    assert count_macs(dot, SQUARE) == DOT_MACS


def test_shapes_are_enough_and_elementwise_work_is_not_counted():
    shape = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)
    assert count_macs(lambda x: jnp.tanh(x + x) * jnp.sum(x), shape) == 0
    assert count_macs(dot, shape) == DOT_MACS


@jax.custom_jvp
def dot_with_jvp(x):
    return x @ x


dot_with_jvp.defjvp(lambda xs, ts: (dot_with_jvp(*xs), 2 * xs[0] @ ts[0]))


@jax.custom_vjp
def dot_with_vjp(x):
    return x @ x


dot_with_vjp.defvjp(lambda x: (x @ x, x), lambda x, g: (2 * x @ g,))


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (jax.jit(dot), 1),
        (jax.jit(jax.jit(lambda x: dot(dot(x)))), 2),
        (jax.checkpoint(dot), 1),
        (dot_with_jvp, 1),
        (dot_with_vjp, 1),
        (lambda x: jax.lax.scan(lambda c, _: (dot(c), None), x, length=7), 7),
        (lambda x: jax.lax.fori_loop(0, 5, lambda _, c: dot(dot(c)), x), 10),
        (jax.jit(lambda x: jax.lax.map(lambda _: dot(x), jnp.arange(6))), 6),
        (
            lambda x: jax.lax.scan(
                lambda c, _: (jax.lax.fori_loop(0, 2, lambda _, d: dot(d), c), None),
                jax.checkpoint(dot)(x),
                length=3,
            ),
            7,
        ),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: dot(dot(y)), dot, x), 2),
    ],
    ids=[
        "jit",
        "jit-jit",
        "remat",
        "jvp",
        "vjp",
        "scan",
        "fori",
        "map",
        "nested",
        "cond",
    ],
)
def test_products_are_counted_as_often_as_they_run(function, times):
    assert count_macs(function, SQUARE) == times * DOT_MACS


def test_a_loop_of_unknown_length_is_refused_only_where_it_has_products():
    def until_large(body):
        return lambda x: jax.lax.while_loop(lambda c: c[0, 0] < 9, body, x)

    assert count_macs(until_large(lambda c: c + 1), SQUARE) == 0
    with pytest.raises(ValueError, match="while"):
        count_macs(until_large(dot), SQUARE)


# Gflops of Table 1, which counts more than convolutions and matrix products.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("letter", "gflops"), [("a", 110.4), ("c", 100.3), ("g", 102.2)]
)
def test_a_forward_pass_costs_what_table_1_says(letter, gflops):
    macs = flops.forward_macs(model_of(letter))
    assert gflops * 0.98 < macs / 1e9 <= gflops


def test_a_training_step_is_two_operations_a_product_and_three_forward_passes():
    model = model_of("g", "digits-tiny")
    assert flops.train_flops(model) == 2 * 3 * flops.forward_macs(model) > 0


@pytest.mark.slow
def test_recomputing_activations_is_no_progress():
    model = model_of("g", "digits-tiny")
    again = Model(dataclasses.replace(model.spec, remat=True))
    assert flops.train_flops(again) == flops.train_flops(model)


@pytest.mark.parametrize(
    ("device_kind", "bfloat16", "float16", "float32"),
    [
        ("Tesla V100-SXM2-16GB", None, 125e12, 15.7e12),
        ("Tesla V100-PCIE-16GB", None, 112e12, 14e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 312e12, 19.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 312e12, 19.5e12),
        ("A100-PCIE-40GB", 312e12, 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 312e12, 19.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 756e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 835e12, 60e12),
        ("NVIDIA H200", 989e12, 989e12, 67e12),
        ("NVIDIA H200 NVL", 835e12, 835e12, 60e12),
        ("NVIDIA GH200 480GB", 989e12, 989e12, 67e12),
        ("NVIDIA GH200 144G HBM3e", 989e12, 989e12, 67e12),
        ("NVIDIA B200", 2250e12, 2250e12, 75e12),
        ("NVIDIA GB200", 2500e12, 2500e12, 80e12),
        ("NVIDIA L4", 121e12, 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 362e12, 91.6e12),
        ("NVIDIA A10", 125e12, 125e12, 31.2e12),
        ("NVIDIA A10G", 70e12, 70e12, 35e12),
        ("NVIDIA GeForce RTX 3090", 71e12, 71e12, 35.6e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 165.2e12, 82.6e12),
        ("TPU v2", 23e12, None, None),
        ("TPU v3", 61.5e12, None, None),
        ("TPU v4", 275e12, None, None),
        ("TPU v5 lite", 197e12, None, None),
        ("TPU v5e", 197e12, None, None),
        ("TPU v5", 459e12, None, None),
        ("TPU v5p", 459e12, None, None),
        ("TPU v6 lite", 918e12, None, None),
        ("TPU v6e", 918e12, None, None),
        ("TPU7x", 1153.5e12, None, None),
    ],
)
def test_a_known_device_has_its_data_sheets_peaks(
    device_kind, bfloat16, float16, float32
):
    assert peak_flops(device_kind, "bfloat16") == bfloat16
    assert peak_flops(device_kind, "float16") == float16
    assert peak_flops(device_kind, "float32") == float32


@pytest.mark.parametrize(
    "device_kind",
    [
        "cpu",
        "",
        "NVIDIA H100",  # which of three?
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100X",
        "TPU v4 lite",
    ],
)
def test_a_device_that_is_not_known_for_sure_has_no_peak(device_kind):
    assert peak_flops(device_kind, "bfloat16") is None


def test_a_dtype_without_a_peak_has_none():
    assert peak_flops("NVIDIA H200", "int8") is None
    assert peak_flops("NVIDIA H200", "tensorfloat32") is None
