"""What a trained run is worth: every EMA length, a grid of samples, a distance."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edm_jax import data, diffusion, ema
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.diffusion.samplers import Heun
from edm_jax.ema import posthoc, snapshots
from edm_jax.evals import frechet, gallery, sweeps
from edm_jax.evals.config import Config
from edm_jax.evals.generation import Generator, Recipe
from edm_jax.evals.heldout import HeldOut
from edm_jax.models import unet
from edm_jax.models.unet import Params
from edm_jax.runs import directory

MAX_PIXEL_FEATURES = 4096
OnProgress = Callable[[str, int, int], None]  # (what, done, total)


def evaluate(
    config: Config, run: directory.RunDir, on_progress: OnProgress = lambda *_: None
) -> dict[str, Any]:
    """Rebuilds the sweep of sigma_rel, finds the best by held-out loss, samples from it.

    Writes evaluation.json and samples.png; returns the former. Raises ValueError where
    the run has no snapshots.
    """
    data.prepare(config.data)
    denoiser = diffusion.Denoiser(config.spec, config.loss.sigma_data)
    heldout = HeldOut(denoiser, config)
    refs = sweeps.usable(run.snapshots)
    if not refs:
        raise ValueError(f"{run.path} has no snapshots yet; train it first.")
    nimg = posthoc.last_nimg(refs)
    sweep, best = _sweep(config, heldout, refs, on_progress)
    traditional = [
        {
            "halflife_mimg": ref.meta.profile.halflife_mimg,
            "loss": heldout.loss(snapshots.read(ref.path)[0]),
        }
        for ref in refs
        if isinstance(ref.meta.profile, ema.TraditionalProfile)
        and ref.meta.nimg == nimg
    ]
    seeds = range(config.evaluation.num_samples)
    labels = classes(seeds, config.network.num_classes)
    images = Generator(denoiser, recipe(config), config.evaluation.batch_size)(
        best, seeds, labels, on_progress=functools.partial(on_progress, "images")
    )
    gallery.write_grid(run.path / "samples.png", images, labels)
    train, test = (
        data.load_split(config.data, name, config.evaluation.num_heldout, 0)["image"]
        for name in (config.data.train_split, config.data.heldout_split)
    )
    rates = [r["images_per_s"] for r in run.records("speed")]
    probes = run.records("heldout")
    result = {
        "nimg": nimg,
        "untrained_loss": heldout.loss(unet.init_params(config.spec, config.seed)),
        "raw_loss": probes[-1]["raw_loss_per_element"] if probes else None,
        "sweep": sweep,
        "best": min(sweep, key=lambda point: point["loss"]),
        "traditional": traditional,
        "pixel_frechet": _pixel_frechet(images, test),
        "pixel_frechet_floor": _pixel_frechet(train, test),
        "num_samples": len(images),
        "images_per_s": float(np.median(rates)) if rates else None,
    }
    directory.write_json(run.path / "evaluation.json", result)
    return result


def _pixel_frechet(images_a: np.ndarray, images_b: np.ndarray) -> float | None:
    # A covariance of many more pixels means nothing, and does not fit.
    small = images_a[0].size <= MAX_PIXEL_FEATURES
    return frechet.pixel_frechet(images_a, images_b) if small else None


def _sweep(
    config: Config,
    heldout: HeldOut,
    stored: list[snapshots.Snapshot],
    on_progress: OnProgress,
) -> tuple[list[dict[str, float]], Params]:
    """Held-out loss of every length, and the weights of the best (Fig. 5a)."""
    sigma_rels = sweeps.keep_expressible(stored, config.evaluation.sigma_rels)
    points, best, lowest = [], None, math.inf
    on_progress("EMA lengths", 0, len(sigma_rels))
    for sigma_rel, (params, solution) in sweeps.rebuilt(stored, sigma_rels):
        loss = heldout.loss(params)
        if loss < lowest or best is None:
            best, lowest = params, loss
        points.append(
            {
                "sigma_rel": sigma_rel,
                "loss": loss,
                "fit_error": solution.fit_error,
                "sum_abs": solution.sum_abs,
            }
        )
        on_progress("EMA lengths", len(points), len(sigma_rels))
    return points, best


def recipe(config: Config) -> Recipe:
    """How a config makes images."""
    fields = config.evaluation
    return Recipe(
        Heun(),
        NoiseLevels(fields.num_steps, fields.sigma_min, fields.sigma_max, fields.rho),
    )


def classes(seeds: Sequence[int], num_classes: int) -> np.ndarray:
    """The class of each seed's image (N,): the seed modulo num_classes."""
    return np.asarray(seeds) % max(num_classes, 1)
