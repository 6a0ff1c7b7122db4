"""Images per second of sampling, and its share of time outside the network.

    python benchmarks/sampling.py --config=configs/config_g.py:digits
    python benchmarks/sampling.py --config=configs/config_g.py:digits --score=10000

Three forms of one batch take turns: all that a sampling command does (noise drawn from the
seeds, the sampler, the copy to the host); the same network as often in a loop and nothing
else; and, where PyTorch is installed, Heun's method in PyTorch with the same network,
first checked to make the same images. Weights are random. --score=N also samples N images, and
takes the pixel Fréchet distance to the training images.
"""

import argparse
import importlib.util
import itertools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import data, diffusion, platform, tree
from edm_jax.diffusion import samplers
from edm_jax.evals import evaluation, frechet, generation
from edm_jax.train.config import RunConfig
from experiments import cli


def main() -> None:
    """Parse the command line, measure and print."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--batch", type=int, help="(evaluation.batch_size)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--score", type=int, default=0, metavar="IMAGES")
    options, config = cli.parse_config(parser, None)
    cli.prepare_jax()
    print(json.dumps(measure(config, options), indent=1))


def measure(config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """What `main` prints."""
    denoiser = diffusion.Denoiser(config.model, config.loss.sigma_data)
    params, recipe = random_weights(config), evaluation.recipe(config)
    batch = options.batch or config.evaluation.batch_size
    generate = generation.Generator(denoiser, recipe, batch)
    seeds = range(generate.batch_size)
    labels = evaluation.classes(seeds, config.network.num_classes)
    evaluations = 2 * config.evaluation.num_steps - 1
    alone = network_alone(denoiser, params, evaluations, labels)
    sides: dict[str, Callable[[], Any]] = {
        "sampling": lambda: generate(params, seeds, labels),
        "network": lambda: jax.block_until_ready(alone()),
    }
    if importlib.util.find_spec("torch") and config.letter == "g":
        sides["pytorch"] = theirs = pytorch(config, params, labels)
        ours = generate(params, seeds, labels)
        np.testing.assert_allclose(theirs(), ours, rtol=1e-3, atol=1e-3 * ours.std())
    seconds = {name: [] for name in sides}
    first = {name: timed(run) for name, run in sides.items()}
    for _ in range(options.rounds):
        for name, run in sides.items():
            seconds[name].append(timed(run))
    rates = {name: [len(seeds) / s for s in each] for name, each in seconds.items()}
    pairs = zip(seconds["network"], seconds["sampling"], strict=True)
    found: dict[str, Any] = {
        "config": f"{config.letter}:{config.workload}",
        "device": jax.devices()[0].device_kind,
        "batch": len(seeds),
        "evaluations": evaluations,
        "images_per_s": spread(rates["sampling"]),
        "outside_the_network": round(statistics.median(1 - n / s for n, s in pairs), 4),
        "first_batch_s": round(first["sampling"], 1),
    }
    if "pytorch" in sides:
        found["pytorch_images_per_s"] = spread(rates["pytorch"])
        pairs = zip(rates["sampling"], rates["pytorch"], strict=True)
        found["ratio"] = spread([a / b for a, b in pairs])
    if options.score:
        found["scored"] = scored(config, generate, params, options.score)
    return found


def random_weights(config: RunConfig) -> Any:
    """Initial weights whose gains are not zero, so that the network does something."""
    drawn = tree.flatten(config.model.init(0))
    return tree.unflatten({k: x + 0.5 * k.endswith("gain") for k, x in drawn.items()})


def network_alone(
    denoiser: diffusion.Denoiser, params: Any, evaluations: int, labels: np.ndarray
) -> Callable[[], Any]:
    """The denoiser as often as a sampler asks for it, each time of what it has made."""
    spec = denoiser.model.spec
    shape = (len(labels), spec.resolution, spec.resolution, spec.channels)

    def repeat(params: Any, x: Any) -> Any:
        def once(x: Any, sigma: Any) -> tuple[Any, None]:
            return denoiser(params, x, jnp.full(len(x), sigma), labels).image, None

        return jax.lax.scan(once, x, jnp.geomspace(80, 0.002, evaluations))[0]

    options = platform.compiler_options(jax.devices()[0].platform)
    compiled = jax.jit(repeat, compiler_options=options)
    placed = jax.device_put((params, jnp.ones(shape)))
    return lambda: compiled(*placed)


def pytorch(config: RunConfig, params: Any, labels: np.ndarray) -> Callable[[], Any]:
    """Heun's method in PyTorch, eager, of the same seeds; images (N, H, W, C)."""
    import torch
    from against_pytorch import Network

    spec, deviation = config.model.spec, config.loss.sigma_data
    sigmas = config.evaluation.levels.sigmas()
    net = Network(spec, tree.flatten(params))
    shape = (spec.resolution, spec.resolution, spec.channels)
    label = torch.eye(spec.num_classes)[torch.tensor(labels)]

    def slope(x: Any, sigma: float) -> Any:
        variance = sigma**2 + deviation**2
        c_noise = torch.full((len(x),), float(np.log(sigma) / 4))
        f, _ = net(x / variance**0.5, c_noise, label)
        denoised = deviation**2 / variance * x + sigma * deviation / variance**0.5 * f
        return (x - denoised) / sigma

    @torch.inference_mode()
    def sample() -> np.ndarray:
        noise = samplers.initial_noise(range(len(labels)), shape)
        x = torch.tensor(np.moveaxis(noise, -1, 1).copy()) * sigmas[0]
        for now, then in itertools.pairwise(sigmas):
            d = slope(x, now)
            ahead = x + (then - now) * d
            if then:
                ahead = x + (then - now) * (d + slope(ahead, then)) / 2
            x = ahead
        return x.movedim(1, -1).numpy()

    return sample


def scored(
    config: RunConfig, generate: generation.Generator, params: Any, count: int
) -> dict[str, Any]:
    """Seconds to sample `count` images, and to compute their pixel Fréchet distance."""
    data.prepare(config.data)
    real = data.load_split(config.data, config.data.train_split)["image"]
    start = time.perf_counter()
    labels = evaluation.classes(range(count), config.network.num_classes)
    images = generate(params, range(count), labels)
    sampled = time.perf_counter()
    frechet.pixel_frechet(images, real)
    end = time.perf_counter()
    return {
        "images": count,
        "sampling_s": round(sampled - start, 2),
        "scoring_s": round(end - sampled, 2),
    }


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    three = statistics.median(values), min(values), max(values)
    return dict(zip(("median", "least", "most"), (float(f"{v:.4g}") for v in three)))


if __name__ == "__main__":
    cli.run(main)
