"""Sample from a run: python experiments/sample.py --run=runs/ladder-digits/g-seed0.

Each seed makes one image, whatever the others. Writes a grid whose rows are classes, and
the images in units of the data as samples.npz. Images that were made in the same way are
kept, so that after Ctrl-C the same command resumes. With a guide (arXiv 2406.02507):

    python experiments/sample.py --run=runs/ladder-digits/g-seed0 \\
        --guide=runs/ladder-digits/c-seed0 --guidance=2.0 --interval=0.28,5.42

An adapter that was trained on the run's weights changes them, several add up:

    python experiments/sample.py --run=runs/digits-g-seed0 --adapter=runs/adapter:0.8

--preset takes the values of a paper: `describe.py --menu=preset` lists them.
"""

import argparse
import functools
import math
import os
from typing import Any

import numpy as np

from edm_jax import data, menu
from edm_jax.diffusion import samplers
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.diffusion.presets import PRESETS
from edm_jax.evals import evaluation, gallery, generation, latents
from edm_jax.files import user_path
from edm_jax.train.config import RunConfig
from experiments import adapters, cli, guides
from experiments.guides import UNCONDITIONAL


def main() -> None:
    """Parse the command line and sample."""
    options = _parser().parse_args()
    seeds = cli.seed_list(options.seeds)
    cli.prepare_jax()
    run, config = cli.open_run(options)
    config = cli.decoded(options, config)
    recipe = _recipe(options, config, _take_preset(options))
    of = config.network.num_classes, config.data.classes
    labels = _labels(options.classes, seeds, *of)
    main = guides.Network(run, config, options.weights or "")
    if options.adapter:
        net = adapters.applied(options, main, options.force)
    else:
        net = guides.trained(main, options.sigma_rel, options.force)
    guide, guidance = _guidance(options, main)
    made_of = {
        "weights": net.made_of,
        "recipe": repr(recipe),
        "classes": options.classes,
        "guide": guide and _made_of_guide(options, guide, guidance),
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
    normalized, pictures = data.normalize(config.data, raw), latents.pictures_of(config)
    gallery.write_grid(out / "grid.png", normalized, found, pictures)
    if options.png or options.subdirs:
        kept.write_pictures(seeds, options.subdirs, config.evaluation.decoder)
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
    adapters.add_options(parser)
    add("--force", action="store_true", help="accept any error of the reconstruction, "
        "and adapters of other weights")  # fmt: skip
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
    add("--preset", metavar="NAME", help="the values of a paper, where no other is "
        "given: describe.py --menu=preset")  # fmt: skip
    guides.add_options(parser)
    cli.add_decoder(parser)
    add("--guide_sigma_rel", type=float, help="EMA length of a guide that is a run")
    add("--png", action="store_true", help="write SEED.png of each image, too")
    add("--subdirs", action="store_true", help="the same, a folder for each thousand")
    add("--out", type=user_path, help="directory (RUN/samples)")
    return parser


def _recipe(
    options: argparse.Namespace, config: RunConfig, preset: samplers.Sampler | None
) -> generation.Recipe:
    """The config's recipe, but for what the preset and the options say."""
    recipe = evaluation.recipe(config)
    chosen: Any = preset or recipe.sampler
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


def _made_of_guide(
    options: argparse.Namespace, guide: guides.Trained, guidance: Any
) -> list[Any]:
    """What images depend on by their guide."""
    strength = options.guidance if ":" in options.guidance else guidance.weight
    how = [UNCONDITIONAL] if guide.denoiser.unconditional else []
    return [guide.made_of, strength, guidance.interval, *how]


def _labels(
    text: str, seeds: list[int], num_classes: int, trained: tuple[int, ...] = ()
) -> dict[int, int]:
    """The class of each seed, by default of those that were trained."""
    if text == "random":
        draws = (np.random.default_rng((seed, 1)) for seed in seeds)
        of = trained if num_classes and trained else range(max(num_classes, 1))
        found = [of[int(rng.integers(len(of)))] for rng in draws]
    elif text:
        chosen = cli.seed_list(text, "--classes")
        if max(chosen) >= num_classes:
            raise ValueError(
                f"--classes={text!r}: the network has {num_classes} classes, from 0."
            )
        found = [chosen[seed % len(chosen)] for seed in seeds]
    else:
        found = evaluation.classes(seeds, num_classes, trained).tolist()
    return dict(zip(seeds, found, strict=True))


def _guidance(
    options: argparse.Namespace, main: guides.Network
) -> tuple[guides.Trained | None, generation.Guidance | None]:
    """The guide, and how it is used."""
    if not options.guide:
        for name in ("guide_sigma_rel", "guidance", "interval"):
            if getattr(options, name) not in (None, ""):
                raise ValueError(f"--{name} needs a guide: --guide=RUN_OR_SNAPSHOT.")
        return None, None
    if not options.guidance:
        raise ValueError("--guide needs its strength, such as --guidance=2.")
    weight, interval = (
        guides.weight(options.guidance),
        guides.interval(options.interval),
    )
    network, sigma_rel = guides.find(options.guide, main), options.guide_sigma_rel
    if network.unconditional and sigma_rel is None:
        sigma_rel = options.sigma_rel
    guide = guides.trained(network, sigma_rel, options.force)
    return guide, generation.Guidance(guide.params, weight, interval)


def _take_preset(options: argparse.Namespace) -> samplers.Sampler | None:
    """Fills in what --preset says and the command line does not; its sampler, if any."""
    if not options.preset:
        return None
    preset: Any = menu.entry(PRESETS, "--preset", options.preset)
    if preset.guide and not options.guide:
        raise ValueError(
            f"--preset={options.preset} takes a guide, in the paper {preset.guide}: add "
            "--guide=RUN_OR_SNAPSHOT."
        )
    values = {
        "steps": preset.num_steps,
        "sigma_rel": None if options.weights else preset.sigma_rel,
        "guide_sigma_rel": preset.guide_sigma_rel,
        "guidance": "" if preset.guidance is None else str(preset.guidance),
        "interval": preset.interval,
    }
    for name, value in values.items():
        if getattr(options, name) in (None, ""):
            setattr(options, name, value)
    return preset.sampler


if __name__ == "__main__":
    cli.run(main)
