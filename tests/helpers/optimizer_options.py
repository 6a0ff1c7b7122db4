"""A config's `optimizer` fields, all neutral but for those that are given."""

from edm_jax import fields
from edm_jax.optim import chain


def optimizer_config(**changes):
    settings = {
        "batch_size": 10,
        "alpha_ref": 0.1,
        "schedule": {"name": "constant"},
        "warmup": {"name": "none"},
        "method": {"name": "adam"},
        "clip": {"name": "none"},
        "noise": {"name": "none"},
        "penalty": {"name": "none"},
        "loss_scale": 1.0,
        "forced_weight_norm": False,
        "nonfinite": "zero",
    }
    return fields.make(chain.OptimizerConfig, "optimizer", settings | changes)
