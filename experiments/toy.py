"""Draw what guidance does where the density is known: two classes of points in a plane.

    python experiments/toy.py --run=runs/toy/main --guide=runs/toy/guide \\
        --unconditional=runs/toy/unconditional

Above, samples of one class: of the exact density, without guidance, with classifier-free
guidance, and with autoguidance (arXiv 2406.02507, Fig. 1 and 2). Below, how far the network
and the guide are from the exact denoiser, and the paths of a few samples. Prints the
divergence of each kind from the exact density; docs/tutorial.md says how to train the runs.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import data, files
from edm_jax.data.plane import Mixture
from edm_jax.diffusion import samplers
from edm_jax.diffusion.guidance import guided
from edm_jax.diffusion.samplers import Denoise
from edm_jax.evals import density, evaluation, generation
from edm_jax.files import user_path
from edm_jax.report import toy_figure
from edm_jax.report.toy_figure import Cloud, Field, Paths
from edm_jax.train.config import RunConfig
from experiments import cli, guides

_SIDE = 200  # points of the grid
_PATHS = 60
_METRIC = density.Density()


class Kind(NamedTuple):
    """A way to sample: its name, guide and w."""

    name: str
    guide: guides.Trained | None
    weight: float


def main() -> None:
    """Parse the command line, sample, measure and draw."""
    options = _parser().parse_args()
    cli.prepare_jax()
    run, config = cli.open_run(options)
    mixture = _mixture(config, options.label)
    network = guides.Network(run, config)
    own = guides.trained(network, options.sigma_rel, options.force)
    names = options.unconditional, options.guide
    free, weak = (
        guides.trained(
            guides.find(name, network), options.guide_sigma_rel, options.force
        )
        for name in names
    )
    kinds = [
        Kind("no guidance", None, 1.0),
        Kind(f"classifier-free, w = {options.guidance:g}", free, options.guidance),
        Kind(f"autoguidance, w = {options.guidance:g}", weak, options.guidance),
    ]
    clouds = [_cloud("exact density", _draws(mixture, options.samples), mixture)]
    for kind in kinds:
        points = _sample(config, own, kind, options)
        clouds.append(_cloud(kind.name, points, mixture))
    grid, inside = _grid(clouds[0].points)
    at = jnp.full(len(inside), options.sigma, jnp.float32)
    images = jnp.asarray(_images(config, inside))
    exact = data.normalize(config.data, np.asarray(mixture.denoise(
        jnp.float32(inside.reshape(-1, 1, 1, 2)), at / _scale(config))))  # fmt: skip
    labels = np.full(len(inside), options.label)
    fields = [
        Field(
            f"error of {name}, σ = {options.sigma:g}",
            _norm(np.asarray(jax.jit(_denoise(net, labels))(images, at)) - exact),
        )
        for name, net in (("the network", own), ("the guide", weak))
    ]
    paths = [_paths(config, own, kind, options.label) for kind in (kinds[0], kinds[2])]
    log = np.asarray(mixture.log_density(jnp.float32(inside), 3 * _METRIC.sigma))
    shape = (_SIDE, _SIDE)
    drawing = toy_figure.draw_toy(
        clouds,
        [Field(f.title, f.values.reshape(shape)) for f in fields],
        paths,
        grid,
        log.reshape(shape),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(options.out, drawing.render("png"))
    cli.say(f"Drawn in {options.out}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.run_parser(__doc__)
    add = parser.add_argument
    add("--guide", required=True, help="a smaller or less trained run, or a snapshot")
    add("--unconditional", required=True, help="a run without classes; unconditional: "
        "the network itself, for a run with loss.label_dropout")  # fmt: skip
    add("--guidance", type=float, default=2.0, help="w (%(default)s)")
    add("--sigma_rel", type=float, help="EMA length of the network")
    add("--guide_sigma_rel", type=float, help="EMA length of the guides")
    add("--force", action="store_true", help="accept any error of the reconstruction")
    add("--label", type=int, default=0, help="the class (%(default)s)")
    add("--samples", type=int, default=4096, help="(%(default)s)")
    add("--sigma", type=float, default=0.1, help="of the errors drawn (%(default)s)")
    add("--out", type=user_path, default=Path("toy.png"), help="(%(default)s)")
    return parser


def _mixture(config: RunConfig, label: int) -> Mixture:
    mixtures: Any = getattr(config.data.reader, "mixtures", tuple)()
    if not mixtures or not config.network.num_classes:
        raise ValueError(
            "--run must be of data whose density is known, with classes: of "
            "--config=configs/config_g.py:toy."
        )
    if not 0 <= label < len(mixtures):
        raise ValueError(f"--label={label}: the classes are 0 to {len(mixtures) - 1}.")
    return mixtures[label]


def _draws(mixture: Mixture, count: int) -> np.ndarray:
    return mixture.sample(np.random.default_rng(0), count)


def _cloud(name: str, points: np.ndarray, mixture: Mixture) -> Cloud:
    """Points with what they measure, which is printed."""
    found = density.compare(mixture, points, _METRIC.sigma)
    print(
        f"{name:26} KL {found['kl']:6.3f}  cross entropy {found['cross_entropy']:6.3f}  "
        f"entropy {found['entropy']:6.3f}  outliers {found['outliers']:6.1%}"
    )
    title = f"{name}\nKL {found['kl']:.2f}, outliers {found['outliers']:.1%}"
    return Cloud(title, points, density.outliers(mixture, points, _METRIC.sigma))


def _denoise(network: guides.Trained, labels: np.ndarray) -> Denoise:
    return lambda x, sigma: network.denoiser(network.params, x, sigma, labels).image


def _sample(
    config: RunConfig, own: guides.Trained, kind: Kind, options: argparse.Namespace
) -> np.ndarray:
    recipe = evaluation.recipe(config)
    guide, weights = None, None
    if kind.guide:
        guide = kind.guide.denoiser
        weights = generation.Guidance(kind.guide.params, kind.weight)
    generate = generation.Generator(own.denoiser, recipe, options.samples, guide)
    seeds, labels = range(options.samples), np.full(options.samples, options.label)
    images = generate(own.params, seeds, labels, weights)
    return data.denormalize(config.data, images).reshape(-1, 2)


def _paths(config: RunConfig, own: guides.Trained, kind: Kind, label: int) -> Paths:
    """Where Heun's steps lead: the denoiser is watched, in a scan that is not compiled."""
    labels = np.full(_PATHS, label)
    denoise = _denoise(own, labels)
    if kind.guide:
        denoise = guided(denoise, _denoise(kind.guide, labels), kind.weight)
    sigmas = config.evaluation.levels.sigmas()
    x = samplers.initial_noise(range(_PATHS), (1, 1, 2)) * np.float32(sigmas[0])
    compiled = jax.jit(denoise)
    places: list[np.ndarray] = []

    def watched(x: Any, sigma: Any) -> Any:
        places.append(np.asarray(x))
        with jax.disable_jit(False):
            return compiled(x, sigma)

    with jax.disable_jit():
        keys = samplers.seed_keys(range(_PATHS))
        end = samplers.Heun().sample(watched, jnp.asarray(x), sigmas, keys)
    raw = [
        data.denormalize(config.data, each).reshape(-1, 2)
        # Without where a step looks ahead.
        for each in (*places[::2], np.asarray(end))
    ]
    return Paths(f"paths: {kind.name}", np.array(raw))


def _grid(points: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The axes of the picture, and its points (n * n, 2) in rows of x."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.12 * (high - low)
    x, y = np.linspace(low - margin, high + margin, _SIDE).T
    return (x, y), np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _images(config: RunConfig, points: np.ndarray) -> np.ndarray:
    return data.normalize(config.data, points.reshape(-1, 1, 1, 2).astype(np.float32))


def _scale(config: RunConfig) -> float:
    """Units of a normalised image in one of the data, the same for both channels."""
    ends = _images(config, np.array([[0.0, 0.0], [1.0, 1.0]]))
    return float(ends[1, 0, 0, 0] - ends[0, 0, 0, 0])


def _norm(difference: np.ndarray) -> np.ndarray:
    return np.linalg.norm(difference.reshape(-1, 2), axis=1)


if __name__ == "__main__":
    cli.run(main)
