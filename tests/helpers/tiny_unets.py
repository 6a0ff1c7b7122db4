"""The seven networks at their smallest, with random parameters, and inputs for them."""

import functools
import math

import jax
import numpy as np

import configs

BATCH = 8


def tiny_config(letter):
    # Several heads; from C on, a clamp so low that it acts.
    clamp = {} if letter in "ab" else {"network.clamp": "2.5"}
    heads = {"network.channels": "3", "network.head_channels": "4"}
    data = {"data.raw_mean": "8,8,8", "data.raw_std": "4,5,6"}
    return config_of(letter, overrides=heads | data | clamp)


def config_of(letter, workload="digits-tiny", overrides=None):
    return configs.load(f"{configs.letter_path(letter)}:{workload}", overrides)


def model_of(letter, workload="digits-tiny", overrides=None):
    return config_of(letter, workload, overrides).model


def tiny_model(letter):
    return tiny_config(letter).model


@functools.cache
def example():
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.normal(-0.4, 1.0, BATCH)).astype(np.float32)
    scale = np.sqrt(0.25 + sigma**2)[:, None, None, None]
    x = scale * rng.normal(size=(BATCH, 8, 8, 3))
    label = np.eye(10)[rng.integers(10, size=BATCH)]
    label[0] = rng.dirichlet(np.ones(10))  # soft labels count, too
    return x.astype(np.float32), sigma, label.astype(np.float32)


@functools.cache
def initial_params(letter):
    return tiny_model(letter).init(seed=0)


@functools.cache
def random_params(letter):
    """Random parameters without zeros, ones or unit norms, so that every path matters."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            spread = np.exp(rng.normal(size=leaf.shape[-1]) - 2)  # so that eps counts
            scale = spread if letter in "defg" else 1 / math.sqrt(leaf[..., 0].size)
            return (rng.normal(size=leaf.shape) * scale).astype(np.float32)
        if name in ("bias", "scale", "gain"):
            center = {"bias": 0.0, "scale": 1.0, "gain": 0.7}[name]
            return np.asarray(center + 0.3 * rng.normal(size=leaf.shape), np.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(draw, initial_params(letter))
