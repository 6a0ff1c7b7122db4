"""Images per second and compile time of the training step, on the devices at hand.

    python benchmarks/train_step.py --config=configs/config_g.py:digits
    python benchmarks/train_step.py --config=configs/config_g.py:imagenet512-s \\
        --config.optimizer.batch_size=256 --profile=/tmp/profile

One JSON object: images/s (median, least, most of the rounds), the seconds of the first
step, which compiles, peak memory of a device, and model FLOP/s (6 per multiply-accumulate
of a forward pass) against the peak of the data sheet and against a matrix product measured
here. --profile adds the share of the devices' time by kind of operation, and --memory the
peak memory that the compiler and the model of `describe.py --advise` expect. On a CPU the step is also measured as JAX makes it, without what `edm_jax.platform`
does, in turn, so that noise of the machine falls on both.
"""

import contextlib
import json
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from edm_jax import platform
from edm_jax.cost import advice, hlo, memory
from edm_jax.diffusion import flops
from edm_jax.platform import operations
from edm_jax.train import trainer
from experiments import cli


class Measured:
    """One compiled step and its times."""

    def __init__(self, config):
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

    def compiled(self) -> Any:
        """The step once more, from the compilation cache if it is there."""
        made = self.trainer
        batch = trainer.abstract_batch(made.config)
        return made.step.lower(made.shapes, batch).compile()

    def run(self, steps: int) -> float:
        """Seconds that `steps` steps take."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self.trainer.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start


class Elsewhere:
    """A step that a process of its own makes and measures, with its own allocator."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawn)
        self.compile_seconds = self._process.submit(_build, make, *arguments).result()
        self.rates: list[float] = []

    def run(self, steps: int) -> float:
        """Seconds that `steps` steps take."""
        return self._process.submit(_run, steps).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.shutdown()


_BUILT: list[Any] = []  # what a process of Elsewhere measures


def _build(make: Callable[..., Any], *arguments: Any) -> float:
    _BUILT.append(make(*arguments))
    return _BUILT[0].compile_seconds


def _run(steps: int) -> float:
    return _BUILT[0].run(steps)


def plain(config) -> Measured:
    """The step without what `edm_jax.platform` does; spoils the process for others."""
    platform.prepare = lambda: None
    for module in (platform, operations):
        module.compiler_options = lambda platform: None
    platform.convolve_upsampled = lambda x, kernel, convolve, upsample: convolve(
        upsample(x), kernel
    )
    return Measured(config)


def matmul_flops(dtype: str) -> float:
    """Floating-point operations per second of a large matrix product on one device."""
    size = 8192 if jax.default_backend() != "cpu" else 1024
    # Random, as ones draw less power than real data; of unit columns, so that a power of
    # the matrix stays finite.
    a = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
    a = a.astype(dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    repeats, best = 20, 0.0
    for _ in range(5):
        start = time.perf_counter()
        b = a
        for _ in range(repeats):
            b = product(a, b)
        b.block_until_ready()
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start))
    return best


def utilization(config, measured: Measured, rate: float) -> dict[str, Any]:
    """Model FLOP/s, and the share of what the devices could do."""
    dtype, count = config.network.compute_dtype, jax.device_count()
    needed = rate * flops.train_flops(measured.trainer.denoiser.model)
    product = matmul_flops(dtype)
    said = flops.peak_flops(jax.devices()[0].device_kind, dtype)
    return {
        "model_tflops_per_s": round(needed / 1e12, 3),
        "matmul_tflops_per_s": round(product / 1e12, 3),
        "of_measured_matmul": round(needed / (product * count), 4),
        "of_data_sheet": round(needed / (said * count), 4) if said else None,
    }


def expected_memory(config, measured: Measured) -> dict[str, Any]:
    """Peak bytes of a device, by the compiled step and by the model of `--advise`."""
    compiled = measured.compiled().memory_analysis()
    backend, training = jax.default_backend(), config.training
    found = {"peak_device_bytes_by_compiler": memory.peak_bytes(compiled, backend)}
    if (kind := backend.upper()) in advice.FACTORS:
        found["peak_device_bytes_by_model"] = advice.expected_bytes(
            config,
            jax.device_count(),
            training.sharding,
            training.remat,
            training.microbatches,
            kind,
        )
    return found


def share_by_kind(trace: Path, text: str) -> dict[str, float]:
    """Fractions of the time of all of a program's operations in the last trace.

    Args:
        trace: Where `jax.profiler.trace` wrote.
        text: Of the compiled program.
    """
    kinds, spent = hlo.kinds(text), Counter()
    newest = max(trace.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for event in line.events:
                name = dict(event.stats).get("hlo_op", event.name)
                if name in kinds:
                    spent[kinds[name]] += event.duration_ns
    total = spent.total()
    return {kind: round(ns / total, 3) for kind, ns in spent.most_common()}


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--profile", help="also trace a round, into this directory")
    parser.add_argument("--memory", action="store_true", help="also expected memory")
    options, config = cli.parse_config(parser, None)
    measured = Measured(config)
    sides: list[Any] = [measured]
    images = options.steps * config.optimizer.batch_size
    with contextlib.ExitStack() as stack:
        if jax.default_backend() == "cpu":
            sides.append(stack.enter_context(Elsewhere(plain, config)))
        for side in sides * options.rounds:
            side.rates.append(images / side.run(options.steps))
    rate = statistics.median(measured.rates)
    stats = jax.devices()[0].memory_stats() or {}
    result = {
        "config": f"{config.letter}:{config.workload}",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "dtype": config.network.compute_dtype,
        "batch_size": config.optimizer.batch_size,
        "images_per_s": round(rate, 1),
        "images_per_s_range": [round(f(measured.rates), 1) for f in (min, max)],
        "first_step_s": round(measured.compile_seconds, 1),
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
    }
    result |= utilization(config, measured, rate)
    for side in sides[1:]:
        ratios = [a / b for a, b in zip(measured.rates, side.rates, strict=True)]
        result["plain_jax_images_per_s"] = round(statistics.median(side.rates), 1)
        result["ratio_to_plain_jax"] = round(statistics.median(ratios), 2)
    if options.profile:
        with jax.profiler.trace(options.profile):
            measured.run(options.steps)
        result["profile"] = options.profile
        text = measured.compiled().as_text()
        result["share_by_kind"] = share_by_kind(Path(options.profile), text)
    if options.memory:
        result |= expected_memory(config, measured)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    cli.run(main)
