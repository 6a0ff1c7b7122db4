# Copyright 2026 The edm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Samples images from jax_denoiser.stablehlo and weights.safetensors, beside this file.

    python jax_denoiser.py --seeds=16 --classes=0,3

It needs JAX and flatbuffers alone, and writes samples.npy, (N, H, W, C), scaled to
standard deviation 0.5. `load` returns the denoiser D(x, sigma, label) for other uses.
"""

import argparse
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import export

HERE = Path(__file__).parent


def load():
    """The exported function and its first argument, the weights."""
    raw = bytearray((HERE / "jax_denoiser.stablehlo").read_bytes())
    return export.deserialize(raw), read_safetensors(HERE / "weights.safetensors")


def read_safetensors(path):
    """The arrays of a file: a length of 8 bytes, a header in JSON, and the data."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    arrays = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            row = np.frombuffer(raw[begin:end], dtypes[entry["dtype"]])
            arrays[name] = jnp.asarray(row.reshape(entry["shape"]))
    return arrays


def sample(denoise, x, steps=32, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """Heun's method from white noise x to images (arXiv 2206.00364, Alg. 1)."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = [*((high + ramp * (low - high)) ** rho), 0.0]
    x = x * sigmas[0]
    for now, then in itertools.pairwise(sigmas):
        slope = (x - denoise(x, now)) / now
        moved = x + (then - now) * slope
        if then > 0:
            slope = (slope + (moved - denoise(moved, then)) / then) / 2
            moved = x + (then - now) * slope
        x = moved
    return x


def main():
    parser = argparse.ArgumentParser(description="Sample images.")
    parser.add_argument("--seeds", type=int, default=16, help="how many (%(default)s)")
    parser.add_argument("--classes", default="", help="in turn, such as 0,3 (all)")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--out", default="samples.npy")
    options = parser.parse_args()
    exported, weights = load()
    (_, image, _, labels), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    num_classes = labels.shape[1]
    classes = [int(c) for c in options.classes.split(",") if c]
    classes = classes or list(range(num_classes)) or [0]
    chosen = [classes[seed % len(classes)] for seed in range(options.seeds)]
    label = np.zeros((options.seeds, num_classes), np.float32)
    if num_classes:
        label[np.arange(options.seeds), chosen] = 1
    draws = (np.random.default_rng(seed) for seed in range(options.seeds))
    x = np.stack([rng.standard_normal(image.shape[1:]) for rng in draws])
    call = jax.jit(exported.call)

    def denoise(x, sigma):
        return call(weights, x, jnp.full(len(x), sigma, jnp.float32), label)

    np.save(options.out, sample(denoise, jnp.asarray(x, jnp.float32), options.steps))
    print(f"{options.seeds} images are in {options.out}.")


if __name__ == "__main__":
    main()
