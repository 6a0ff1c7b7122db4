"""What a training step keeps on each device, before anything is allocated."""

from typing import Any

import jax

from edm_jax.train import parallel, trainer
from edm_jax.train.config import RunConfig


def state_bytes(config: RunConfig, devices: int, sharding: str) -> dict[str, int]:
    """{'params', 'moments', 'averages', 'total'}: bytes on each device.

    sharding: a word of `training.sharding`, over `training.shards` devices. Float32, exact, known without compiling.
    """
    shapes = trainer.abstract_state(config)
    shards = min(config.training.shards or devices, devices)
    spread = parallel.spread_over(shards, shapes)
    parts = {
        "params": (shapes.params, spread.params, sharding == "full"),
        "moments": (shapes.opt_state, spread.opt_state, sharding != "none"),
        "averages": (shapes.emas, spread.emas, sharding != "none"),
    }
    sizes = {
        name: sum(
            jax.tree.leaves(
                jax.tree.map(
                    lambda x, by, split=split: (
                        x.size * x.dtype.itemsize // (by if split else 1)
                    ),
                    tree,
                    shares,
                )
            )
        )
        for name, (tree, shares, split) in parts.items()
    }
    return sizes | {"total": sum(sizes.values())}


def compiled_bytes(config: RunConfig) -> dict[str, Any]:
    """What the compiled step itself says, for the devices at hand.

    'temporary' are activations, gradients and scratch; 'total' is the peak, with the
    state, which the step overwrites. Compiles: a minute and more for large nets.
    """
    made = trainer.make_trainer(config)
    lowered = made.step.lower(made.shapes, trainer.abstract_batch(config))
    analysis: Any = lowered.compile().memory_analysis()
    return {
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "state_and_batch": analysis.argument_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "total": peak_bytes(analysis, jax.default_backend()),
    }


def peak_bytes(analysis: Any, platform: str) -> int:
    """The most that is there at once, of a compiled program's memory_analysis()."""
    # That of a CPU leaves out what is temporary.
    if platform != "cpu" and analysis.peak_memory_in_bytes:
        return analysis.peak_memory_in_bytes
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + new
