"""A small tree of weights, and what a snapshot of it says."""

import numpy as np

from edm_jax import ema

BATCH = 128


def meta(nimg=4096, sigma_rel=0.05, dtype="float32", config_hash="c0ffee", **fields):
    profile = ema.PowerProfile(sigma_rel)
    return ema.SnapshotMeta(profile, nimg, BATCH, config_hash, dtype, **fields)


def tree(scale=1.0):
    rng = np.random.default_rng(0)
    return {
        "enc": {"conv": {"kernel": scale * rng.standard_normal((3, 3, 4, 8))}},
        "out_gain": np.asarray(0.25 * scale),
    }
