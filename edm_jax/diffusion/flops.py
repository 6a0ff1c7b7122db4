"""Arithmetic of a network and of devices, for model-FLOP utilization.

It is images/s * train_flops(model) / (devices * peak_flops(device_kind, dtype)).
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from edm_jax.diffusion.denoiser import Denoiser
from edm_jax.models.build import Model

# TFLOP/s of one device, dense: bfloat16, float16, float32. From the vendors' data sheets;
# where one states only the rate with 2:4 sparsity, half of it.
_PEAKS: dict[str, tuple[float | None, ...]] = {
    r"Tesla V100-SXM[23]-\d+GB": (None, 125, 15.7),
    r"Tesla V100-PCIE-\d+GB": (None, 112, 14),
    r"A100-(SXM4-[48]0GB|PCIE-40GB)|A100 80GB PCIe": (312, 312, 19.5),
    r"H100 80GB HBM3": (989, 989, 67),
    r"H100 PCIe": (756, 756, 51),
    r"H[12]00 NVL": (835, 835, 60),
    r"H200": (989, 989, 67),
    r"GH200 \d+GB?( HBM3e)?": (989, 989, 67),
    r"B200": (2250, 2250, 75),
    r"GB200": (2500, 2500, 80),
    r"L4": (121, 121, 30.3),
    r"L40S": (362, 362, 91.6),
    r"A10": (125, 125, 31.2),
    r"A10G": (70, 70, 35),
    # GeForce cards: 16-bit products summed in float32, as XLA does, at half the rate.
    r"GeForce RTX 3090": (71, 71, 35.6),
    r"GeForce RTX 4090": (165.2, 165.2, 82.6),
    r"TPU v2": (23, None, None),  # a device is one of a chip's two cores
    r"TPU v3": (61.5, None, None),  # the same
    r"TPU v4": (275, None, None),
    r"TPU v5 ?(lite|e)": (197, None, None),
    r"TPU v5p?": (459, None, None),
    r"TPU v6 ?(lite|e)": (918, None, None),
    r"TPU7x": (1153.5, None, None),  # a device is one of a chip's two
}
_DTYPES = "bfloat16", "float16", "float32"


def forward_macs(model: Model) -> int:
    """Multiply-accumulates of the denoiser for one image, as `count_macs` counts."""
    model = model.network
    denoiser = Denoiser(model, 0.5)
    params, inputs = model.shapes, model.inputs()
    return count_macs(lambda *args: denoiser(*args).image, params, *inputs)


def train_flops(model: Model) -> float:
    """Floating-point operations of one image's training step.

    Two per multiply-accumulate, and twice the forward pass for the backward pass. What
    rematerialization computes again is not counted: it is no progress.
    """
    return 6.0 * forward_macs(model)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Dense FLOP/s that the vendor states for matrix products on one `jax.Device`.

    device_kind: as the device reports it. dtype: 'bfloat16', 'float16' or 'float32'.
    None where nothing is stated or known: CPUs, slices of a GPU, float32 on TPUs. That
    of float32 is without tensor cores; JAX's default precision on GPUs uses them for
    float32 too (TF32), and can therefore be faster.
    """
    for pattern, teraflops in _PEAKS.items():
        # In full: a laptop's GPU or a MIG slice carries a longer name.
        if re.fullmatch(pattern, device_kind.removeprefix("NVIDIA ")):
            peak = teraflops[_DTYPES.index(dtype)] if dtype in _DTYPES else None
            return None if peak is None else peak * 1e12
    return None


def count_macs(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiply-accumulates of a function's convolutions, padding included, and matrix
    products.

    inputs: arrays or their shapes; nothing is computed. The most expensive branch of a
    `cond` counts. Raises ValueError for products in a `while`, whose length is unknown.
    """
    return _macs(jax.make_jaxpr(function)(*inputs).jaxpr)


def _macs(jaxpr: Any) -> int:
    return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        out_features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return equation.outvars[0].aval.size * kernel.size // out_features
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        depth = math.prod(shape[axis] for axis in contracted)
        return equation.outvars[0].aval.size * depth
    inner = [_macs(jaxpr) for jaxpr in inner_jaxprs(params)]
    if name == "while" and any(inner):
        raise ValueError("The length of a while loop with matrix products is unknown.")
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each
