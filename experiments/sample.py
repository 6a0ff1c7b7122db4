"""Sample from a run: python experiments/sample.py --run=runs/ladder-digits/g-seed0.

Each seed makes one image, whatever the others. Writes a grid whose rows are classes, and
the images in units of the data as samples.npz. Images that were made in the same way are
kept, so that after Ctrl-C the same command resumes. With a guide (arXiv 2406.02507):

    python experiments/sample.py --run=runs/ladder-digits/g-seed0 \\
        --guide=runs/ladder-digits/c-seed0 --guidance=2.0 --interval=0.28,5.42
"""

import argparse
import functools
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm_jax import data, diffusion, ema, menu
from edm_jax.diffusion import samplers
from edm_jax.diffusion.guidance import EVERYWHERE
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.ema import snapshots
from edm_jax.evals import evaluation, gallery, generation, sweeps
from edm_jax.files import user_path
from edm_jax.models.unet import Params
from edm_jax.runs.directory import RunDir
from edm_jax.train.config import RunConfig
from experiments import cli


class Trained(NamedTuple):
    """A network with its averaged weights, and the checksums of what they come from."""

    denoiser: diffusion.Denoiser
    params: Params
    made_of: Any


def main() -> None:
    """Parse the command line and sample."""
    options = _parser().parse_args()
    seeds = cli.seed_list(options.seeds)
    cli.prepare_jax()
    run, config = cli.open_run(options)
    recipe = _recipe(options, config)
    labels = _labels(options.classes, seeds, config.network.num_classes)
    net = _trained(run, config, options.weights, options.sigma_rel, options.force)
    guide, guidance = _guidance(options, config)
    made_of = {
        "weights": net.made_of,
        "recipe": repr(recipe),
        "classes": options.classes,
        "guide": guide and [guide.made_of, *guidance[1:]],
    }
    out = options.out or run.path / "samples"
    out.mkdir(parents=True, exist_ok=True)
    kept = gallery.Gallery(out, made_of)
    missing = kept.missing(seeds)
    if missing:
        batch = options.batch or config.evaluation.batch_size
        generate = generation.Generator(
            net.denoiser, recipe, batch, guide and guide.denoiser
        )
        chosen = [labels[seed] for seed in missing]
        batches = generate.batches(net.params, missing, chosen, guidance)
        with cli.progress_bar() as bar:
            report, done = functools.partial(cli.report_to(bar), "images"), 0
            report(0, len(missing))
            for images in batches:
                part = slice(done, done + len(images))
                raw = data.denormalize(config.data, images)
                kept.add(missing[part], chosen[part], raw)
                report(done := done + len(images), len(missing))
    raw, found = kept.finish(seeds)
    gallery.write_grid(out / "grid.png", data.normalize(config.data, raw), found)
    if options.png or options.subdirs:
        kept.write_pictures(seeds, options.subdirs)
    before = f", {len(seeds) - len(missing)} of them from before" * (missing != seeds)
    count = "An image is" if len(seeds) == 1 else f"{len(seeds)} images are"
    cli.say(f"{count} in {out}{before}.")


def _parser() -> argparse.ArgumentParser:
    parser = cli.run_parser(__doc__)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sigma_rel", type=float, help="EMA length (0.1, or the only one there is)"
    )
    which.add_argument(
        "--weights",
        type=os.path.expanduser,
        help="a reconstructed .safetensors file to sample from instead",
    )
    add("--force", action="store_true", help="accept any error of the reconstruction")
    add("--seeds", default="0-99", help="such as 0-9 or 3,7 (%(default)s)")
    add("--classes", default="", help="one, or several in turn, such as 3 or 0,3,5-7; "
        "random: drawn from the seed (the seed modulo the number of classes)")  # fmt: skip
    add("--batch", type=int, help="images at a time (evaluation.batch_size); another "
        "number may change images by rounding")  # fmt: skip
    how = parser.add_argument_group("the sampler, where not as in the run's config")
    how.add_argument("--sampler", metavar="NAME[,FIELD=VALUE]", help="such as "
        f"stochastic_heun,s_churn=20: {', '.join(samplers.SAMPLERS)}, or FILE.py:NAME")  # fmt: skip
    how.add_argument("--churn", type=float, help="as stochastic_heun,s_churn=CHURN")
    how.add_argument("--steps", type=int)
    how.add_argument("--sigma_min", type=float)
    how.add_argument("--sigma_max", type=float)
    how.add_argument("--rho", type=float)
    guide = parser.add_argument_group("guidance: w D + (1 - w) D_guide")
    guide.add_argument("--guide", help="a run, or a snapshot of one")
    guide.add_argument("--guide_sigma_rel", type=float, help="EMA length of a run")
    guide.add_argument("--guidance", type=float, help="w; 1 is none")
    guide.add_argument("--interval", default="", metavar="LOW,HIGH", help="of sigma")
    add("--png", action="store_true", help="write SEED.png of each image, too")
    add("--subdirs", action="store_true", help="the same, a folder for each thousand")
    add("--out", type=user_path, help="directory (RUN/samples)")
    return parser


def _recipe(options: argparse.Namespace, config: RunConfig) -> generation.Recipe:
    """The config's recipe, but for what the options say."""
    recipe = evaluation.recipe(config)
    chosen: Any = recipe.sampler
    if options.churn is not None:
        if options.sampler:
            raise ValueError(
                "--churn and --sampler exclude one another: write s_churn."
            )
        options.sampler = f"stochastic_heun,s_churn={options.churn}"
    if options.sampler:
        name, *settings = options.sampler.split(",")
        pairs = [text.partition("=")[::2] for text in settings]
        chosen = menu.choice(name, **{k: _number("--sampler", v) for k, v in pairs})
    levels = {
        "num_steps": options.steps,
        "sigma_min": options.sigma_min,
        "sigma_max": options.sigma_max,
        "rho": options.rho,
    }
    given = {name: value for name, value in levels.items() if value is not None}
    return generation.Recipe(
        menu.build(samplers.SAMPLERS, "--sampler", chosen),
        NoiseLevels(**(vars(recipe.levels) | given)),
    )


def _number(option: str, text: str) -> float:
    [value] = cli.number_list(option, text) or [math.nan]
    return value


def _labels(text: str, seeds: list[int], num_classes: int) -> dict[int, int]:
    """The class of each seed."""
    if text == "random":
        draws = (np.random.default_rng((seed, 1)) for seed in seeds)
        found = [int(rng.integers(max(num_classes, 1))) for rng in draws]
    elif text:
        chosen = cli.seed_list(text, "--classes")
        if max(chosen) >= num_classes:
            raise ValueError(
                f"--classes={text!r}: the network has {num_classes} classes, from 0."
            )
        found = [chosen[seed % len(chosen)] for seed in seeds]
    else:
        found = evaluation.classes(seeds, num_classes).tolist()
    return dict(zip(seeds, found, strict=True))


def _guidance(
    options: argparse.Namespace, config: RunConfig
) -> tuple[Trained | None, generation.Guidance | None]:
    """The guide, and how it is used."""
    if not options.guide:
        for name in ("guide_sigma_rel", "guidance", "interval"):
            if getattr(options, name) not in (None, ""):
                raise ValueError(f"--{name} needs a guide: --guide=RUN_OR_SNAPSHOT.")
        return None, None
    if options.guidance is None or not math.isfinite(options.guidance):
        raise ValueError("--guide needs its strength, such as --guidance=2.")
    interval = tuple(cli.number_list("--interval", options.interval)) or EVERYWHERE
    if len(interval) != 2 or interval[0] >= interval[1]:
        raise ValueError(
            f"--interval={options.interval!r} must be LOW,HIGH, such as 0.28,5.42."
        )
    path, file = Path(os.path.expanduser(options.guide)), ""
    if path.suffix == ".safetensors":
        # RUN/snapshots/FILE or RUN/reconstructed/FILE; elsewhere, of the same network.
        path, file = path.absolute().parent.parent, str(path)
    if file and not (path / "config.json").exists():
        guide_run, guide_config = None, config
    else:
        guide_run, guide_config = cli.open_run(
            argparse.Namespace(run=str(path), config="")
        )
    sigma_rel, force = options.guide_sigma_rel, options.force
    guide = _trained(guide_run, guide_config, file, sigma_rel, force)
    ours, theirs = config.network, guide_config.network
    if (ours.resolution, ours.channels) != (theirs.resolution, theirs.channels):
        raise ValueError(
            f"--guide={options.guide}: its images are {theirs.resolution} pixels wide with "
            f"{theirs.channels} channels; the run's are {ours.resolution} with "
            f"{ours.channels}."
        )
    if theirs.num_classes not in (0, ours.num_classes):
        raise ValueError(
            f"--guide={options.guide} has {theirs.num_classes} classes, and the run has "
            f"{ours.num_classes}: a guide has as many, or none."
        )
    return guide, generation.Guidance(guide.params, options.guidance, interval)


def _trained(
    run: RunDir | None,
    config: RunConfig,
    file: str,
    sigma_rel: float | None,
    force: bool,
) -> Trained:
    """The network of a config with the weights of a file, or rebuilt from a run's."""
    denoiser = diffusion.Denoiser(config.model, config.loss.sigma_data)
    if file:
        checksum = snapshots.open_snapshot(file).checksum
        return Trained(denoiser, _fitting(file, config.model.shapes), checksum)
    stored = sweeps.usable(run.snapshots, run.best_nimg)
    profiles = [s.meta.profile for s in stored]
    only = profiles[0] if len(profiles) == 1 else ema.PowerProfile(0.1)
    wanted = only if sigma_rel is None else ema.PowerProfile(sigma_rel)
    max_error = math.inf if force else ema.MAX_ERROR
    params = sweeps.reconstruct(stored, [wanted], max_error=max_error)[wanted].params
    return Trained(denoiser, params, [str(wanted), *(s.checksum for s in stored)])


def _fitting(path: str, abstract_params: Params) -> Params:
    """The weights of a file; raises ValueError where they are of another network."""
    params, _ = snapshots.read(path)
    found, wanted = (
        {name: tuple(leaf.shape) for name, leaf in snapshots.flatten(tree).items()}
        for tree in (params, abstract_params)
    )
    if found != wanted:
        name = min(found.items() ^ wanted.items())[0]
        raise ValueError(
            f"{path} holds the weights of another network than the run's: {name} has "
            f"shape {found.get(name)} there, and {wanted.get(name)} in the run."
        )
    return params


if __name__ == "__main__":
    cli.run(main)
