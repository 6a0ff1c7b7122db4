"""How good a trained run is: its best EMA length, and what evaluators measure there."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax import data, diffusion, menu
from edm_jax.ema import posthoc
from edm_jax.ema.snapshots import Snapshot
from edm_jax.evals import sweeps
from edm_jax.evals.config import Config
from edm_jax.evals.evaluators import EVALUATORS, Evaluator
from edm_jax.evals.generation import Generator, Recipe
from edm_jax.evals.heldout import HeldOut
from edm_jax.models.unet import Params
from edm_jax.runs import directory

OnProgress = Callable[[str, int, int], None]  # (what, done, total)


class Samples:
    """Images of some weights of a run, as evaluators see them.

    Attributes:
        config: the run's.
        denoiser: its network.
        params: the weights.
        grid: where a picture of the images belongs.
        on_progress: takes what is being done, and how far.
    """

    config: Config
    denoiser: diffusion.Denoiser
    params: Params
    grid: Path
    on_progress: OnProgress

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The classes (N,) of `images`."""
        evaluation, network = self.config.evaluation, self.config.network
        seeds = range(evaluation.num_samples)
        return classes(seeds, network.num_classes, self.config.data.classes)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """Normalised samples (N, H, W, C) of the first evaluation.num_samples seeds."""
        seeds = range(len(self.labels))
        report = functools.partial(self.on_progress, "images")
        return self._generate(self.params, seeds, self.labels, on_progress=report)

    @functools.cached_property
    def _generate(self) -> Generator:
        batch_size = self.config.evaluation.batch_size
        return Generator(self.denoiser, recipe(self.config), batch_size)

    def real(self, split: str) -> np.ndarray:
        """Normalised images (N, H, W, C) of a split, evaluation.num_heldout at most."""
        limit = self.config.evaluation.num_heldout
        return data.load_split(self.config.data, split, limit, 0)["image"]


class Subject(Samples):
    """A run as evaluators see it.

    Attributes:
        run: its directory.
        heldout: its held-out images and their loss.
        stored: its snapshots; if it stopped early, those up to its best.
        nimg: images seen before the last of them.
        sweep: the held-out loss of each EMA length.
        params: the weights of the best.
    """

    def __init__(self, config: Config, run: directory.RunDir, on_progress: OnProgress):
        self.config, self.run, self.on_progress = config, run, on_progress
        self.grid = run.path / "samples.png"
        data.prepare(config.data)
        self.denoiser = diffusion.Denoiser(config.model, config.loss.sigma_data)
        self.heldout = HeldOut(self.denoiser, config)
        self.stored = sweeps.usable(run.snapshots, run.best_nimg)
        if not self.stored:
            raise ValueError(f"{run.path} has no snapshots yet; train it first.")
        self.nimg = posthoc.last_nimg(self.stored)
        self.sweep, self.params = _sweep(config, self.heldout, self.stored, on_progress)

    def heldout_of(self, classes: Sequence[int]) -> HeldOut:
        """The held-out images of other classes than the run's, and their loss."""
        config: Any = self.config
        data_config = dataclasses.replace(config.data, classes=tuple(classes))
        config = dataclasses.replace(config, data=data_config)
        return HeldOut(self.denoiser, config)


class Midway(Samples):
    """Weights of a run in training, for evaluators that need samples alone.

    Evaluators that need a run's snapshots set `needs_snapshots`, and are left out.

    Args:
        config: the run's.
        path: the run's directory; pictures go to samples-NIMG.png.
        denoiser: its network.
    """

    def __init__(self, config: Config, path: Path, denoiser: diffusion.Denoiser):
        self.config, self._path = config, path
        self.denoiser, self.on_progress = denoiser, lambda *_: None
        every = _evaluators(config).values()
        self._evaluators = [
            each for each in every if not getattr(each, "needs_snapshots", False)
        ]

    def evaluate(self, params: Params, nimg: int) -> dict[str, float]:
        """The numbers that the evaluators find of the weights after `nimg` images."""
        for name in ("images", "labels"):
            self.__dict__.pop(name, None)  # of the weights before
        self.params, self.grid = params, self._path / f"samples-{nimg:012}.png"
        found: dict[str, Any] = {}
        for evaluator in self._evaluators:
            found |= evaluator.evaluate(self)
        numbers = {k: v for k, v in found.items() if isinstance(v, int | float)}
        return {name: float(value) for name, value in numbers.items()}


def evaluate(
    config: Config,
    run: directory.RunDir,
    on_progress: OnProgress = lambda *_: None,
    more: Mapping[str, Evaluator] | None = None,
) -> dict[str, Any]:
    """Finds the best EMA length by held-out loss, and measures its weights.

    Args:
        config: the run's; `evaluation.evaluators` are those that measure.
        run: its directory.
        on_progress: takes what is being done, and how far.
        more: evaluators besides those, by name; what they measure counts.

    Returns:
        What evaluation.json then holds.

    Raises:
        ValueError: the run has no snapshots, or two evaluators measure one thing.
    """
    evaluators = _evaluators(config) | dict(more or {})
    subject = Subject(config, run, on_progress)
    speeds = run.records("speed")
    result: dict[str, Any] = {
        "nimg": subject.nimg,
        "sweep": subject.sweep,
        "best": min(subject.sweep, key=lambda point: point["loss"]),
        "images_per_s": _median(speeds, "images_per_s"),
        "input_wait": _median(speeds, "input_wait"),
    }
    for name, evaluator in evaluators.items():
        found = evaluator.evaluate(subject)
        both = sorted(found.keys() & result.keys())
        if both and name not in (more or {}):  # which may measure it again
            raise ValueError(
                f"evaluation.evaluators: {name} measures {both[0]!r}, which "
                "evaluation.json has already."
            )
        result |= found
    directory.write_json(run.path / "evaluation.json", result)
    return result


def _sweep(
    config: Config, heldout: HeldOut, stored: list[Snapshot], on_progress: OnProgress
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


def _median(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    found = [record[name] for record in records if name in record]
    return float(np.median(found)) if found else None


def _evaluators(config: Config) -> dict[str, Evaluator]:
    path = "evaluation.evaluators"
    names = config.evaluation.evaluators.split(",")
    return {name: menu.build(EVALUATORS, path, name) for name in names}


def recipe(config: Config) -> Recipe:
    """How a config makes images."""
    return Recipe(config.evaluation.sampler, config.evaluation.levels)


def classes(
    seeds: Sequence[int], num_classes: int, trained: Sequence[int] = ()
) -> np.ndarray:
    """The class of each seed's image (N,): by turns, the seed modulo their number.

    Args:
        seeds: of the images.
        num_classes: of the network.
        trained: those that the network was trained on; (): all.
    """
    found = trained if num_classes and trained else range(max(num_classes, 1))
    return np.asarray(found)[np.asarray(seeds) % len(found)]
