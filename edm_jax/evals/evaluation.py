"""What a trained run is worth: every EMA length, a grid of samples, a distance."""

import functools
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edm_jax import data, diffusion, ema, files
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.diffusion.samplers import Heun
from edm_jax.ema import posthoc, snapshots
from edm_jax.evals import frechet, sweeps
from edm_jax.evals.config import Config
from edm_jax.evals.generation import Generator, Recipe
from edm_jax.evals.heldout import HeldOut
from edm_jax.models import unet
from edm_jax.models.unet import Params
from edm_jax.runs import directory

GRID_ROWS, GRID_COLUMNS = 10, 10
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
    refs = snapshots.list_snapshots(run.snapshots)
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
    save_grid(images, labels, run.path / "samples.png")
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
    config: Config, heldout: HeldOut, stored: list[Any], on_progress: OnProgress
) -> tuple[list[dict[str, float]], Params]:
    """Held-out loss of every length, and the weights of the best (Fig. 5a)."""
    sigma_rels = sweeps.keep_expressible(stored, config.evaluation.sigma_rels)
    points, best, lowest = [], None, math.inf
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


def save_grid(images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Writes a grid whose rows are classes; small images are enlarged."""
    classes = np.unique(labels)[:GRID_ROWS]
    columns = min([GRID_COLUMNS, *(int(np.sum(labels == c)) for c in classes)])
    picked = np.concatenate([images[labels == c][:columns] for c in classes])
    side, channels = picked.shape[1], picked.shape[3]
    # Two standard deviations of the data, sigma_data each, to either side of its mean;
    # channels beyond three (latents) are left out.
    unit = np.clip(picked[..., : 3 if channels >= 3 else 1] / 2 + 0.5, 0, 1)
    framed = np.pad(unit, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=0.5)
    grid = framed.reshape(len(classes), columns, side + 2, side + 2, -1)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(
        len(classes) * (side + 2), columns * (side + 2), -1
    )
    pixels = np.round(255 * grid).astype(np.uint8)
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    scale = max(1, 64 // side)
    size = (image.width * scale, image.height * scale)
    whole = io.BytesIO()
    image.resize(size, Image.Resampling.NEAREST).save(whole, "PNG")
    files.write_bytes(path, whole.getvalue())
