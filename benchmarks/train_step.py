"""Images per second and compile time of the training step, side by side.

    python benchmarks/train_step.py --config=configs/config_g.py:digits

On a CPU the step is measured with and without what `edm_jax.backend` sets, in turn, so
that noise of the machine falls on both; the last line is their ratio.
"""

import statistics
import time
from unittest import mock

import jax
import numpy as np

from edm_jax import backend, trainer
from experiments import cli


class Measured:
    """One compiled step and its times."""

    def __init__(self, config, tuned: bool):
        options = backend.compiler_options() if tuned else None
        with mock.patch.object(backend, "compiler_options", lambda: options):
            self.trainer = trainer.make_trainer(config)
        self.state = self.trainer.initial_state()
        net, count = config.network, config.optimizer.batch_size
        shape = (count, net.resolution, net.resolution, net.channels)
        rng = np.random.default_rng(0)
        self.batch = {
            "image": 0.5 * rng.standard_normal(shape).astype(np.float32),
            "label": np.arange(count, dtype=np.int32) % max(net.num_classes, 1),
            "index": np.arange(count, dtype=np.int32),
        }
        self.compile_seconds = self.run(1)
        self.rates: list[float] = []

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.trainer.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    options, config = cli.parse_config(parser, None)
    backend.keep_freed_memory()
    tuned = Measured(config, tuned=True)
    plain = Measured(config, tuned=False) if backend.compiler_options() else None
    both = {"as trained": tuned} | ({"plain XLA": plain} if plain else {})
    images = options.steps * config.optimizer.batch_size
    for _ in range(options.rounds):
        for measured in both.values():
            measured.rates.append(images / measured.run(options.steps))
    for name, measured in both.items():
        rate, compile_seconds = (
            statistics.median(measured.rates),
            measured.compile_seconds,
        )
        print(f"{name}: {rate:,.0f} images/s, first step {compile_seconds:.1f} s")
    if plain:
        ratios = [a / b for a, b in zip(tuned.rates, plain.rates)]
        print(f"ratio: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    cli.run(main)
