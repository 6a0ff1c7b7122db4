"""Record a sample of a run's weights after every step: python benchmarks/record_weights.py OUT.npz.

Trains a config (configs/config_g.py:digits) as train.py does and writes the weights that
its averages see, of 4,096 parameters chosen at random, as `path` (steps, 4096) float32,
with `batch_size`. benchmarks/planned_errors.py compares planned errors with it.
"""

import argparse
import itertools
from pathlib import Path

import jax
import numpy as np

import configs
from edm_jax import data
from edm_jax.optim import chain
from edm_jax.train import trainer
from experiments import cli

UNITS = 4096


def main() -> None:
    """Train and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="configs/config_g.py:digits")
    options = parser.parse_args()
    cli.prepare_jax()
    config = configs.load(options.config)
    data.prepare(config.data)
    made = trainer.make_trainer(config)
    state = made.initial_state()
    sizes = [leaf.size for leaf in jax.tree.leaves(state.params)]
    chosen = np.sort(np.random.default_rng(0).choice(sum(sizes), UNITS, replace=False))
    starts = np.cumsum([0, *sizes])
    places = [
        chosen[(chosen >= low) & (chosen < high)] - low
        for low, high in itertools.pairwise(starts)
    ]

    @jax.jit
    def sample(state):
        latest = jax.tree.leaves(chain.averaged(state.params, state.opt_state))
        return [x.ravel()[at] for x, at in zip(latest, places, strict=True)]

    batches = data.train_batches(
        config.data,
        batch_size=config.optimizer.batch_size,
        seed=config.seed,
        num_classes=config.network.num_classes,
        start_step=0,
        process_index=0,
        process_count=1,
    )
    path = []
    for step in range(config.total_steps):
        state, _ = made.step(state, next(batches))
        path.append(np.concatenate([np.asarray(x) for x in sample(state)]))
        if step % 50 == 0:
            print(f"step {step:,} of {config.total_steps:,}", flush=True)
    np.savez(options.out, path=np.array(path), batch_size=config.optimizer.batch_size)


if __name__ == "__main__":
    cli.run(main)
