"""Sample from a run: python experiments/sample.py --run=runs/ladder-digits/g-seed0.

Each seed makes one image, the same in any batch. Writes a grid whose rows are classes,
and the raw images as samples.npz.
"""

import argparse
import functools
import io
import math
import os

import numpy as np

from edm_jax import data, diffusion, ema, files
from edm_jax.ema import snapshots
from edm_jax.evals import evaluation
from edm_jax.evals.generation import Generator
from edm_jax.files import user_path
from edm_jax.models import unet
from edm_jax.models.unet import Params, UNetSpec
from edm_jax.runs.directory import RunDir
from experiments import cli


def main() -> None:
    """Parse the command line and sample."""
    parser = cli.run_parser(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sigma_rel",
        type=float,
        help="EMA length (0.1, or the only one there is)",
    )
    which.add_argument(
        "--weights",
        type=os.path.expanduser,
        help="a reconstructed .safetensors file to sample from instead",
    )
    parser.add_argument(
        "--force", action="store_true", help="accept any error of the reconstruction"
    )
    parser.add_argument(
        "--seeds", default="0-99", help="such as 0-9 or 3,7 (%(default)s)"
    )
    parser.add_argument("--out", type=user_path, help="directory (RUN/samples)")
    options = parser.parse_args()
    seeds = cli.seed_list(options.seeds)
    cli.prepare_jax()
    run, config = cli.open_run(options)
    spec = config.spec
    params = _weights(run, spec, options)
    denoiser = diffusion.Denoiser(spec, config.loss.sigma_data)
    recipe = evaluation.recipe(config)
    generate = Generator(denoiser, recipe, config.evaluation.batch_size)
    labels = evaluation.classes(seeds, config.network.num_classes)
    with cli.progress_bar() as bar:
        report = functools.partial(cli.report_to(bar), "images")
        images = generate(params, seeds, labels, on_progress=report)
    out = options.out or run.path / "samples"
    out.mkdir(parents=True, exist_ok=True)
    evaluation.save_grid(images, labels, out / "grid.png")
    raw = data.denormalize(config.data, images)
    whole = io.BytesIO()
    np.savez(whole, image=raw, label=labels, seed=np.asarray(seeds))
    files.write_bytes(out / "samples.npz", whole.getvalue())
    plural = "" if len(images) == 1 else "s"
    print(f"Wrote {len(images)} image{plural} to {out}")


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


def _weights(run: RunDir, spec: UNetSpec, options: argparse.Namespace) -> Params:
    """The averaged weights that the options name."""
    if options.weights:
        return _fitting(options.weights, unet.abstract_params(spec))
    stored = snapshots.list_snapshots(run.snapshots)
    profiles = [s.meta.profile for s in stored]
    only = profiles[0] if len(profiles) == 1 else ema.PowerProfile(0.1)
    asked = options.sigma_rel is not None
    wanted = ema.PowerProfile(options.sigma_rel) if asked else only
    max_error = math.inf if options.force else ema.MAX_ERROR
    return ema.reconstruct(stored, [wanted], max_error=max_error)[wanted].params


if __name__ == "__main__":
    cli.run(main)
