"""`sweep.py --guide`: from its options to measured sweeps of guidance, and their figure."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edm_jax import data, files, menu, report
from edm_jax.evals import evaluation, generation, guided_sweeps, sweeps
from edm_jax.evals.evaluators import EVALUATORS
from edm_jax.evals.features import sources
from edm_jax.evals.guided_sweeps import Averages, Given, Grid, GuidedSweeps, Point
from edm_jax.evals.metrics import METRICS
from edm_jax.evals.scoring import Scorer
from edm_jax.evals.sweeps import Memory, checksums
from edm_jax.runs import directory
from edm_jax.runs.directory import RunDir
from edm_jax.train.config import RunConfig
from experiments import cli, guides

KINDS = ("lengths", "weights", "interval")
_EVERY = 3  # of evaluation.sigma_rels: the map takes the square of their number


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that --guide brings."""
    guides.add_options(parser)
    group = parser.add_argument_group("with a guide")
    add = group.add_argument
    add("--metric", default="pixel_frechet", help="a distance as of evaluate.py --metric, "
        "or an evaluator, or EVALUATOR.FIELD, of which less is better (%(default)s)")  # fmt: skip
    add("--guide_sigma_rel", default="", help="the guide's lengths (the network's)")
    add("--weights", type=files.user_path, metavar="PATH", help="of a metric's network")
    add("--strengths", default="1,1.25,...,3", help="values of w (%(default)s)")
    add(
        "--interval_ends",
        default="0.05,0.1,0.2,0.5,1,2,5",
        help="of sigma (%(default)s)",
    )
    add("--samples", type=int, help="images of a point (evaluation.num_samples)")
    add("--steps", type=int, help="of the sampler (evaluation.num_steps)")


def main(options: argparse.Namespace, run: RunDir, config: RunConfig) -> None:
    """Measure, draw and print."""
    kinds = _kinds(options.kinds)
    start = _start(options)
    data.prepare(config.data)
    network = guides.Network(run, config)
    guide = guides.find(options.guide, network)
    if guide.file or guide.run is None:
        raise ValueError(
            f"--guide={options.guide} has one EMA length: name a run to sweep its lengths."
        )
    stored = sweeps.usable(run.snapshots, run.best_nimg)
    guides_stored = sweeps.usable(guide.run.snapshots, guide.run.best_nimg)
    lengths = cli.number_list("--sigma_rel", options.sigma_rel)
    guides_lengths = cli.number_list("--guide_sigma_rel", options.guide_sigma_rel)
    lengths = sorted(lengths or config.evaluation.sigma_rels[::_EVERY])
    x = sweeps.keep_expressible(stored, lengths)
    y = sweeps.keep_expressible(guides_stored, sorted(guides_lengths or lengths))
    count = options.samples or config.evaluation.num_samples
    recipe = evaluation.recipe(config)
    if options.steps:
        levels = vars(recipe.levels) | {"num_steps": options.steps}
        recipe = generation.Recipe(recipe.sampler, type(recipe.levels)(**levels))
    batch = min(config.evaluation.batch_size, count)
    generate = generation.Generator(network.denoiser, recipe, batch, guide.denoiser)
    seeds = range(count)
    of = config.network.num_classes, config.data.classes
    labels = evaluation.classes(seeds, *of)
    evaluator, measure = _metric(options, config, Given(config, labels))
    made_of = {
        "network": checksums(stored),
        "guide": checksums(guides_stored),
        "unconditional": guide.unconditional,
        "recipe": repr(recipe),
        "samples": count,
        "metric": repr((evaluator, options.metric, options.weights)),
    }
    out = options.out or run.path / "sweeps"
    out.mkdir(parents=True, exist_ok=True)
    stem = f"guided-{options.metric}".replace("/", "_")
    with cli.progress_bar(reads=config) as bar:
        measured = GuidedSweeps(
            lambda own, weak, weight, interval: generate(
                own, seeds, labels, generation.Guidance(weak, weight, interval)
            ),
            measure,
            Averages(stored, x),
            Averages(guides_stored, y),
            Memory(out / f"{stem}-points.json", json.loads(json.dumps(made_of))),
            cli.report_to(bar),
        )
        strengths = sorted(cli.number_list("--strengths", options.strengths))
        ends = sorted(cli.number_list("--interval_ends", options.interval_ends))
        at = start._replace(sigma_rel=_middle(x), guide_sigma_rel=_middle(y))
        swept = guided_sweeps.grids(measured, kinds, (x, y), strengths, ends, at)
        found = dict(swept)
    written = {k: _written(k, grid) for k, grid in found.items()}
    directory.write_json(out / f"{stem}.json", written)
    name = options.metric
    if name in EVALUATORS:
        name = getattr(evaluator, "headline", name)
    title = f"{name} of {run.path.name} guided by {options.guide}"
    drawing = report.draw_guided(title, name, written)
    files.write_bytes(out / f"{stem}.png", drawing.render("png"))
    for kind, grid in found.items():
        _print(kind, grid)
    cli.say(f"Drawn in {out / stem}.png")


def _metric(
    options: argparse.Namespace, config: RunConfig, samples: Given
) -> tuple[Any, Callable[[np.ndarray], float]]:
    """What --metric names, and how it measures normalised images; raises ValueError."""
    if options.metric in METRICS:
        metric = METRICS[options.metric]
        if metric.distance not in ("fd", "kd"):
            raise ValueError(
                f"--metric={options.metric}: a sweep looks for the lowest, and of that more "
                "is better."
            )
        scorer = Scorer([options.metric], options.weights)
        decoder = config.evaluation.decoder
        real = scorer.of_split(config.data, config.data.train_split, decoder)

        def distance(images: np.ndarray) -> float:
            if not np.isfinite(images).all():
                return math.inf
            pictures = sources.of_samples(config.data, images, decoder)
            return float(scorer.score([pictures], real)[options.metric])

        return metric, distance
    name, _, field = options.metric.partition(".")
    if ".py:" in options.metric:
        name, field = options.metric, ""
    evaluator = menu.build(EVALUATORS, "--metric", name)
    return evaluator, lambda images: samples.measure(evaluator, field, images)


def _kinds(text: str) -> list[str]:
    kinds = text.split(",") if text else [*KINDS]
    if set(kinds) - set(KINDS):
        raise ValueError(
            f"--kinds={text!r}: with a guide, choose from {', '.join(KINDS)}, separated "
            "by commas."
        )
    return kinds


def _start(options: argparse.Namespace) -> Point:
    """What the first sweep has in common, apart from the lengths."""
    if ":" in options.guidance:
        raise ValueError(
            f"--guidance={options.guidance!r}: a sweep takes one strength."
        )
    weight: Any = guides.weight(options.guidance or "2")
    return Point(math.nan, math.nan, weight, guides.interval(options.interval))


def _middle(lengths: list[float]) -> float:
    """The length that the other sweeps take where the lengths are not swept."""
    if not lengths:
        raise ValueError("The snapshots express none of the lengths asked for.")
    return lengths[len(lengths) // 2]


def _written(kind: str, grid: Grid) -> dict[str, Any]:
    """A grid as JSON, with what its points have in common, in words."""
    at = grid.at
    said = {
        "lengths": f"σ_rel = {at.sigma_rel:g}, guide's {at.guide_sigma_rel:g}",
        "weights": f"w = {at.weight:g}",
        "interval": f"σ in ({at.interval[0]:g}, {at.interval[1]:g}]"
        if np.isfinite(at.interval[1])
        else "",
    }
    said |= {"lengths": ""} if math.isnan(at.sigma_rel) else {}
    fixed = ", ".join(text for k, text in said.items() if k != kind and text)
    return {**grid._asdict(), "at": at._asdict(), "best": grid.best, "fixed": fixed}


def _print(kind: str, grid: Grid) -> None:
    x, y, value = grid.best
    said = {
        "lengths": f"sigma_rel {x:g}, the guide's {y:g}",
        "weights": f"w = {x:g}",
        "interval": f"sigma in ({x:g}, {y:g}]",
    }[kind]
    ends = [(x, grid.x)] if kind == "weights" else [(x, grid.x), (y, grid.y)]
    edges = [value in (values[0], values[-1]) for value, values in ends]
    edge = (
        ", at the edge of what was measured"
        if kind != "interval" and any(edges)
        else ""
    )
    print(f"{kind:9} best {value:.4f} at {said}{edge}")
