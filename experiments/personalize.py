"""Teach a class from a few pictures: python experiments/personalize.py --base=RUN --images=DIR --class=3.

Four to twenty pictures become a class of a conditional base, as in DreamBooth (arXiv
2208.12242), whose classes are words. So that the network does not forget the others, it is
trained on samples of them as well, which the base makes first (prior preservation):

    L = L_subject + w L_prior,

both with the same noise levels, weight lambda(sigma) and u(sigma). A batch holds the
pictures and the samples in the ratio 1 : w. The pictures, shifted, are held out; the run
stops once their loss no longer falls. --lora trains an adapter and leaves the base as it is.

The run is like any other. It holds the pictures and the samples (data/), images on the way,
personalize.json, and before_after.html.
"""

import argparse
import base64
import html
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax import data, files
from edm_jax.data.arrays import Arrays
from edm_jax.data.config import DataConfig
from edm_jax.data.folders import Images
from edm_jax.evals import evaluation, gallery
from edm_jax.evals.generation import Generator
from edm_jax.train.config import RunConfig
from experiments import cli, evaluate, guides, train

FEWEST, MOST = 2, 100
# Seeds of the samples of the base, apart from those that are evaluated.
PRIOR_SEED, SEEN = 2**30, 32


def main() -> None:
    """Parse the command line, make the data, train, evaluate, and write the page."""
    options, rest = _parser().parse_known_args()
    overrides = cli.overrides(rest)
    cli.prepare_jax()
    options.config, base = "", argparse.Namespace(run=options.base, config="")
    base_run, config = cli.open_run(base)
    taught = _check(options, config)
    path = options.run or Path("runs") / f"{Path(options.base).name}-class{taught}"
    place = path / "data"
    made_of = {
        "base": os.path.abspath(options.base),
        "images": os.path.abspath(options.images),
        "class": taught,
        "prior": bool(options.prior),
        "prior_images": options.prior_images,
    }
    if (place / "heldout.npz").exists():
        if files.read_json(place / "made_of.json") != made_of:
            raise ValueError(
                f"{path} was taught from other pictures or samples: choose another --run."
            )
    else:
        pictures = _pictures(options.images, config)
        before = guides.trained(guides.Network(base_run, config), None, False)
        generate = Generator(
            before.denoiser, evaluation.recipe(config), config.evaluation.batch_size
        )
        samples, labels = _prior(options, config, taught, generate, before.params)
        place.mkdir(parents=True, exist_ok=True)
        files.write_json(place / "made_of.json", made_of)
        _write(place / "train.npz", [pictures, samples], [taught, labels])
        first = generate(before.params, range(SEEN), [taught] * SEEN)
        _write(place / "before.npz", [data.denormalize(config.data, first)], [taught])
        # Last: that it is there says that all are.
        _write(place / "heldout.npz", [_shifted(pictures)], [taught])
    fields = _fields(options, config, taught, place) | overrides
    sys.argv = [
        "train.py",
        f"--init_from={options.base}",
        f"--run={path}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    train.main()
    sys.argv = ["evaluate.py", f"--run={path}"]
    evaluate.main()
    found = _measure(path, taught)
    files.write_json(path / "personalize.json", found)
    _write_page(path, taught, found)
    cli.say(
        f"{path}: the nearest picture is {found['nearest']:.3f} away from a sample, and "
        f"{found['nearest_before']:.3f} before; {found['copies']:.0%} of the samples are "
        "as near to one as it is to itself, shifted. See before_after.html there."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--base", required=True, type=os.path.expanduser, help="a trained run")
    add("--images", required=True, type=files.user_path, metavar="DIR_OR_NPZ",
        help="a folder of pictures, or an .npz with image (N, H, W, C) as the base's data "
        "are stored")  # fmt: skip
    add("--class", required=True, type=int, dest="taught", metavar="N",
        help="the class that they become")  # fmt: skip
    add("--lora", action="store_true", help="train an adapter (lora, rank 8) alone; "
        "--config.adapter.name=NAME chooses another")  # fmt: skip
    add("--prior", type=float, default=1.0, metavar="W", help="w (1); 0: no samples")
    add(
        "--prior_images",
        type=int,
        default=200,
        help="samples of the base (%(default)s)",
    )
    add("--steps", type=int, default=400, help="at most (%(default)s)")
    add("--batch", type=int, default=16, help="(%(default)s)")
    add("--rate", type=float, help="learning rate (a tenth of the base's; its own for an "
        "adapter)")  # fmt: skip
    add("--run", type=files.user_path, help="run directory (runs/BASE-classN)")
    return parser


def _check(options: argparse.Namespace, config: RunConfig) -> int:
    """The class; raises ValueError for options that make no sense."""
    classes = config.network.num_classes
    if not classes:
        raise ValueError(
            f"--base={options.base} has no classes: a class is taught to a conditional "
            "network."
        )
    if not 0 <= options.taught < classes:
        raise ValueError(
            f"--class={options.taught}, but the base has classes 0 to {classes - 1}. To "
            "add one, start a run with network.num_classes one higher from it."
        )
    if config.is_adapted:
        raise ValueError(f"--base={options.base} is an adapter: name its own base.")
    if not 0 <= options.prior < math.inf:
        raise ValueError(
            f"--prior={options.prior}, but must be finite and not negative."
        )
    for name in ("prior_images", "steps", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"--{name}={getattr(options, name)}, but must be at least 1."
            )
    return options.taught


def _pictures(path: Path, config: RunConfig) -> np.ndarray:
    """The pictures (N, H, W, C) in the units of the base's data."""
    net = config.network
    if not path.exists():
        raise FileNotFoundError(f"--images={path}: there is nothing of that name.")
    reader: Any = (
        Images(resolution=net.resolution, channels=net.channels, heldout=0.0)
        if path.is_dir()
        else Arrays(heldout=0.0)
    )
    settings = DataConfig(
        str(path.absolute()), "", "all", "all", config.data.raw_mean,
        config.data.raw_std, reader,
    )  # fmt: skip
    images = data.load_split(settings, "all", num_classes=0)["image"]
    if images.shape[1:] != (net.resolution, net.resolution, net.channels):
        raise ValueError(
            f"--images={path} holds images of shape {images.shape[1:]}, and the base makes "
            f"{(net.resolution, net.resolution, net.channels)}."
        )
    if not FEWEST <= len(images) <= MOST:
        raise ValueError(
            f"--images={path} holds {len(images)} pictures; {FEWEST} to {MOST} are taken, "
            "and of more train a run as usual, with train.py --init_from."
        )
    return data.denormalize(config.data, images)


def _prior(
    options: argparse.Namespace,
    config: RunConfig,
    taught: int,
    generate: Generator,
    params: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Samples (N, H, W, C) of the classes that the base knows besides, and their labels."""
    known = config.data.classes or range(config.network.num_classes)
    others = [each for each in known if each != taught]
    count = options.prior_images if options.prior and others else 0
    labels = np.array([others[i % len(others)] for i in range(count)], np.int64)
    shape = (0, config.network.resolution, config.network.resolution)
    samples = np.zeros((*shape, config.network.channels), np.float32)
    if count:
        with cli.progress_bar() as bar:
            report = cli.report_to(bar)
            samples = generate(
                params,
                range(PRIOR_SEED, PRIOR_SEED + count),
                labels,
                on_progress=lambda done, total: report("samples", done, total),
            )
    return data.denormalize(config.data, samples), labels


def _shifted(images: np.ndarray) -> np.ndarray:
    """Crops that were not trained on: each image shifted in the four directions.

    By a sixteenth of its width, at least a pixel; edges are repeated.
    """
    by = max(1, images.shape[2] // 16)
    wide = np.pad(images, ((0, 0), (by, by), (by, by), (0, 0)), mode="edge")
    size = images.shape[1]
    corners = ((0, by), (2 * by, by), (by, 0), (by, 2 * by))
    return np.concatenate([wide[:, y : y + size, x : x + size] for y, x in corners])


def _write(path: Path, images: list[np.ndarray], labels: list[Any]) -> None:
    """An .npz of several sets of images, each with its labels or their one."""
    numbers = [np.broadcast_to(k, len(x)) for x, k in zip(images, labels, strict=True)]
    stored = {
        "image": np.concatenate(images).astype(np.float32),
        "label": np.concatenate(numbers).astype(np.int64),
    }
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **stored)
    partial.replace(path)


def _fields(
    options: argparse.Namespace, config: RunConfig, taught: int, place: Path
) -> dict[str, Any]:
    """The overrides of the base's config."""
    with np.load(place / "train.npz") as stored:
        counts = np.bincount(stored["label"], minlength=config.network.num_classes)
    prior = counts.sum() - counts[taught]
    weight = [options.prior / max(prior, 1) if n else 0.0 for n in counts]
    weight[taught] = 1 / counts[taught]
    mimg = options.steps * options.batch / 1e6
    rate = options.rate or config.optimizer.alpha_ref * (1 if options.lora else 0.1)
    adapter = {"adapter.name": "lora"} if options.lora else {}
    return adapter | {
        "data.reader.name": "numpy",
        "data.name": str(place.absolute()),
        "data.train_split": "train",
        "data.heldout_split": "heldout",
        "data.classes": "()",
        "data.sampling.name": "weighted",
        "data.sampling.by_class": f"({','.join(f'{each:.6g}' for each in weight)},)",
        "optimizer.batch_size": options.batch,
        "optimizer.alpha_ref": f"{rate:.6g}",
        "optimizer.schedule.name": "constant",
        "optimizer.warmup.name": "none",
        "training.duration_mimg": mimg,
        "training.snapshot_mimg": mimg / 8,
        "training.probe_mimg": mimg / 20,
        "training.log_mimg": mimg / 40,
        "training.checkpoint_mimg": mimg / 2,
        "training.evaluate_mimg": mimg / 4,
        "training.patience_mimg": mimg / 4,
        "evaluation.evaluators": "heldout_loss,sample_grid",
        "evaluation.sigma_rels": "(0.05,0.1,0.15)",
        "evaluation.num_samples": 2 * config.network.num_classes,
    }


def _measure(run: Path, taught: int) -> dict[str, Any]:
    """What the samples of the class are beside the pictures: memorization.

    Distances are RMS over the values of an image, in units of the data's deviation.
    """
    network = guides.Network(*cli.open_run(argparse.Namespace(run=str(run), config="")))
    config = network.config
    after = guides.trained(network, None, False)
    generate = Generator(
        after.denoiser, evaluation.recipe(config), config.evaluation.batch_size
    )
    samples = generate(after.params, range(SEEN), [taught] * SEEN)
    place = run / "data"
    _write(place / "after.npz", [data.denormalize(config.data, samples)], [taught])
    pictures, before = (
        _read(place / name, config, taught) for name in ("train.npz", "before.npz")
    )
    held = _read(place / "heldout.npz", config, taught)
    nearest = _distances(samples, pictures)
    # How far a picture is from itself, shifted: nearer than that is a copy.
    copies = float(np.mean(_distances(held, pictures).min(axis=1)))
    best = json.loads((run / "evaluation.json").read_text())
    return {
        "class": taught,
        "pictures": len(pictures),
        "nearest": float(nearest.min(axis=1).mean()),
        "nearest_before": float(_distances(before, pictures).min(axis=1).mean()),
        "shifted": copies,
        "copies": float(np.mean(nearest.min(axis=1) < copies)),
        "nearest_picture": nearest.argmin(axis=1).tolist(),
        "nimg": best["nimg"],
        "heldout_loss": best["best"]["loss"],
    }


def _read(path: Path, config: RunConfig, taught: int) -> np.ndarray:
    with np.load(path) as stored:
        return data.normalize(config.data, stored["image"][stored["label"] == taught])


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """RMS differences (N, M) of images, over the deviation of the data, 0.5."""
    rows = [np.mean(np.square(b - each), axis=(1, 2, 3)) for each in a]
    return np.sqrt(rows) / 0.5


def _write_page(run: Path, taught: int, found: dict[str, Any]) -> None:
    """before_after.html: the pictures, and samples before and after beside the nearest."""
    config = cli.recorded_config(run)
    place = run / "data"
    pictures, before, after = (
        _read(place / f"{name}.npz", config, taught)
        for name in ("train", "before", "after")
    )
    sets = {
        f"The {len(pictures)} pictures": pictures,
        "Samples of the class before": before,
        "Samples after": after,
        "The picture nearest to each sample": pictures[found["nearest_picture"]],
    }
    parts = []
    for title, images in sets.items():
        path = place / "grid.png"
        rows = np.arange(len(images)) // 8 if len(images) % 8 == 0 else None
        labels = np.zeros(len(images), int) if rows is None else rows
        gallery.write_grid(path, images, labels)
        encoded = base64.b64encode(path.read_bytes()).decode()
        alt = html.escape(title)
        parts.append(
            f'<h2>{alt}</h2><img alt="{alt}" src="data:image/png;base64,{encoded}">'
        )
    (place / "grid.png").unlink()
    said = (
        f"Distance of a sample to the nearest picture: {found['nearest_before']:.3f} "
        f"before, {found['nearest']:.3f} after. A picture and itself, shifted, are "
        f"{found['shifted']:.3f} apart; {found['copies']:.0%} of the samples are nearer "
        "to a picture than that. Distances are RMS, in standard deviations of the data."
    )
    title = f"Class {taught}, taught from {len(pictures)} pictures"
    files.write_text(
        run / "before_after.html",
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font:16px sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
        "img{image-rendering:pixelated;max-width:100%}</style>"
        f"<h1>{title}</h1><p>{said}</p>{''.join(parts)}</html>\n",
    )


if __name__ == "__main__":
    cli.run(main)
