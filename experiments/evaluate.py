"""Evaluate a trained run: python experiments/evaluate.py --run=runs/digits-g-seed0.

Rebuilds every EMA length of evaluation.sigma_rels from the snapshots, measures the
held-out loss of each, and has evaluation.evaluators measure the best. Writes
evaluation.json, and what they draw, such as samples.png. With --metric, also measures
those metrics of its samples.

With --images, scores images instead, of any code: a folder of pictures or an .npz.
"""

import argparse
from pathlib import Path
from typing import Any

from edm_jax import files
from edm_jax.data.config import DataConfig
from edm_jax.evals import evaluation, metrics
from edm_jax.evals.evaluators import Learned
from edm_jax.evals.features import references, sources
from edm_jax.evals.features.networks import NETWORKS
from edm_jax.evals.features.references import Reference
from edm_jax.evals.features.sources import Source
from edm_jax.evals.scoring import Scorer
from experiments import cli


def main() -> None:
    """Parse the command line and evaluate."""
    parser = cli.run_parser(__doc__, required=False)
    parser.add_argument(
        "--images",
        type=files.user_path,
        metavar="DIR_OR_NPZ",
        help="images to score in place of a run: pictures below a folder, or an .npz "
        "with arr_0 or image (N, H, W, C)",
    )
    parser.add_argument(
        "--reference",
        default="",
        metavar="FILE_OR_DATASET",
        help="what --images are compared with: statistics (.npz with mu and sigma, or "
        "the original code's .pkl), images as above, or a data set such as photos/32x32",
    )
    parser.add_argument(
        "--reference_split", default="train", help="of a data set (train)"
    )
    parser.add_argument(
        "--metric",
        default="",
        metavar="NAMES",
        help=f"separated by commas: {', '.join(metrics.METRICS)}",
    )
    parser.add_argument(
        "--weights",
        type=files.user_path,
        metavar="PATH",
        help="of the networks: a file, or a directory of files under their usual names",
    )
    parser.add_argument(
        "--num_images",
        type=int,
        default=0,
        help="of a set (all): 50000 makes three sets of 150,000 images, whose lowest "
        "and mean are told",
    )
    parser.add_argument(
        "--statistics",
        type=files.user_path,
        metavar="FILE",
        help="write mu and sigma of --images: .npz, or .pkl as the original code's",
    )
    parser.add_argument(
        "--json", type=files.user_path, metavar="FILE", help="write the metrics there"
    )
    cli.add_decoder(parser)
    options = parser.parse_args()
    if bool(options.run) == bool(options.images):
        raise ValueError("Name either --run or --images.")
    cli.prepare_jax()
    if options.images:
        score_images(options)
    else:
        evaluate_run(options)


def score_images(options: argparse.Namespace) -> None:
    """Scores --images, or writes their statistics; raises ValueError or OSError."""
    if not options.metric:
        raise ValueError(
            f"--metric is missing: name some of {', '.join(metrics.METRICS)}."
        )
    if bool(options.reference) == bool(options.statistics):
        raise ValueError(
            "Name either --reference, to score --images, or --statistics, to write theirs."
        )
    names = metrics.pick(options.metric)
    images = sources.open_path(options.images)
    if len(images) < 2:
        raise ValueError(f"{options.images} holds one image: metrics need two or more.")
    sets = _sets(images, options.num_images)
    with cli.progress_bar() as bar:
        scorer = Scorer(names, options.weights, cli.report_to(bar))
        if options.statistics:
            found = scorer.reference(str(options.images), images)
            fits = {metrics.frechet_name(k): v.gaussian for k, v in found.items()}
            references.write(options.statistics, fits)
            result = {}
        else:
            real = _reference(options, scorer)
            result = {"num_images": len(sets[0]), **scorer.score(sets, real)}
    if options.statistics:
        cli.say(f"{options.statistics}: statistics of {len(images):,} images")
    _tell(result, len(sets[0]))
    if options.json:
        files.write_json(options.json, result)


def _reference(options: argparse.Namespace, scorer: Scorer) -> dict[str, Reference]:
    path = Path(options.reference).expanduser()
    is_data_set = (path / "dataset_info.json").exists() or not path.exists()
    if path.suffix in (".npz", ".pkl") and not path.is_dir():
        if path.suffix == ".pkl" or sources.is_statistics(path):
            return scorer.of_file(path)
    elif is_data_set:
        split = options.reference_split
        channels = (127.5,), (127.5,)  # not used: images stay in the units stored
        config = DataConfig(options.reference, "", split, split, *channels)
        return scorer.of_split(config, split)
    return scorer.reference(options.reference, sources.open_path(path))


def _sets(images: Source, size: int) -> list[Source]:
    if not size:
        return [images]
    if not 2 <= size <= len(images):
        raise ValueError(
            f"--num_images={size}, but must be between 2 and the {len(images)} images there are."
        )
    count = len(images) // size
    return [sources.Part(images, i, count, size) for i in range(count)]


def _tell(result: dict[str, Any], count: int) -> None:
    for name, value in result.items():
        if isinstance(value, float):
            cli.say(f"{name}: {value:.6g}")
    biased = [name for name in result if name.endswith("_at_infinity")]
    if biased:
        plain = biased[0].removesuffix("_at_infinity")
        cli.say(
            f"{plain} of {count:,} images is biased upwards: compare it with the same "
            f"number of others only, or compare {biased[0]}."
        )


def evaluate_run(options: argparse.Namespace) -> None:
    """Evaluates --run; raises ValueError or OSError."""
    for name in ("reference", "statistics", "num_images"):
        if getattr(options, name):
            raise ValueError(f"--{name} is for --images; a run has its own data set.")
    more = {}
    if options.metric:
        names = ",".join(metrics.pick(options.metric))
        more["--metric"] = Learned(names, str(options.weights or ""))
    run, config = cli.open_run(options)
    config = cli.decoded(options, config)
    before = run.status
    with cli.progress_bar(reads=config) as bar:
        report = cli.report_to(bar)

        def on_progress(what: str, done: int, total: int) -> None:
            report(what, done, total)
            run.set_status(
                state="running",
                stage="evaluate",
                message=f"{what}: {done} of {total}",
                now=False,
            )

        try:
            result = evaluation.evaluate(config, run, on_progress, more)
        except KeyboardInterrupt:
            message = "evaluation stopped by a signal"
            run.set_status(state="preempted", stage="evaluate", message=message)
            raise
        except BaseException as error:
            message = f"evaluation stopped: {type(error).__name__}: {error}"
            run.set_status(state="failed", stage="evaluate", message=message)
            raise
    # Evaluating a run that is still in training leaves it as it was.
    best_nimg = run.best_nimg
    finished = result["nimg"] == (best_nimg or before.get("total_nimg"))
    state = "done" if finished else before["state"]
    run.set_status(state=state, stage="evaluate", message="")
    best, untrained = result["best"], result.get("untrained_loss")
    was = "" if untrained is None else f" (untrained {untrained:.4f})"
    if best_nimg:
        print(f"It stopped early, and is evaluated at its best: {best_nimg:,} images.")
    cli.say(
        f"{run.path}: held-out loss {best['loss']:.4f} at sigma_rel "
        f"{best['sigma_rel']:.3f}{was}; see evaluation.json there"
    )
    told = [k for k in result if k.endswith(tuple(NETWORKS)) or k in metrics.METRICS]
    metric = {k: v for k, v in result.items() if k.removesuffix("_at_infinity") in told}
    _tell(metric, config.evaluation.num_samples)


if __name__ == "__main__":
    cli.run(main)
