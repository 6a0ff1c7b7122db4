"""Sample from a run: python experiments/sample.py --run=runs/ladder-digits/g.

One seed an image: the same seed gives the same image in any batch. Writes a grid whose
rows are classes, and the raw images as samples.npz.
"""

import argparse
from pathlib import Path

import numpy as np

from edm_jax import backend, data, diffusion, evaluation, posthoc, resolve
from edm_jax.heldout import Inference
from experiments import cli


def main() -> None:
    """Parse the command line and sample."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a run directory")
    parser.add_argument(
        "--sigma_rel", type=float, default=0.1, help="EMA length (%(default)s)"
    )
    parser.add_argument("--seeds", default="0-99", help="FIRST-LAST (%(default)s)")
    parser.add_argument("--out", type=Path, help="directory (RUN/samples)")
    options = parser.parse_args()
    seeds = _seed_range(options.seeds)
    cli.use_compilation_cache()
    run, config = cli.open_run(options.run)
    backend.keep_freed_memory()
    rebuilt = posthoc.reconstruct(run.snapshots, [options.sigma_rel])
    params = rebuilt[options.sigma_rel].params
    spec = resolve.resolve_network(config)
    denoiser = diffusion.Denoiser(spec, config.loss.sigma_data)
    inference = Inference(denoiser, min(config.evaluation.batch_size, len(seeds)))
    with cli.progress_bar() as bar:
        task = bar.add_task("sampling steps")
        images, labels = evaluation.sample(
            config,
            inference,
            params,
            seeds,
            lambda _, done, total: bar.update(task, completed=done, total=total),
        )
    out = options.out or run.path / "samples"
    out.mkdir(parents=True, exist_ok=True)
    evaluation.save_grid(images, labels, out / "grid.png")
    raw = data.denormalize(config.data, images)
    np.savez(out / "samples.npz", image=raw, label=labels, seed=np.asarray(seeds))
    print(f"Wrote {len(images)} images to {out}")


def _seed_range(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() or not last)):
        raise ValueError(f"--seeds={text!r} is not FIRST-LAST, such as 0-99.")
    seeds = range(int(first), int(last or first) + 1)
    if not seeds:
        raise ValueError(f"--seeds={text!r} ends before it begins.")
    return seeds


if __name__ == "__main__":
    cli.run(main)
