"""Make a run of exported weights: python experiments/import_weights.py FILE --run=NEW.

    python experiments/import_weights.py exported/weights.safetensors --run=runs/imported
    python experiments/import_weights.py tuned.pt --like=exported/torch_denoiser.safetensors \\
        --run=runs/tuned

FILE is what export.py wrote, or a state dict of its PyTorch module, perhaps trained
further: `torch.save(denoiser.state_dict(), FILE)`. The run holds one snapshot, with the
bits of the one that was exported unless its weights were trained further. What takes
--weights or a snapshot takes it; nothing in FILE is executed.
"""

import argparse
import dataclasses
import os

import configs
from edm_jax import export
from edm_jax.files import user_path
from edm_jax.runs.directory import RunDir
from experiments import cli, guides


def main() -> None:
    """Parse the command line and import."""
    options = _parser().parse_args()
    if (options.run / "config.json").exists():
        raise ValueError(f"--run={options.run} is a run already: name a new directory.")
    found = export.read(options.file, options.like)
    config = configs.from_json(found.config, options.like or options.file)
    here = dataclasses.replace(config.training, snapshot_dir="")
    config = dataclasses.replace(config, training=here)
    guides.check_shapes(options.file, found.tensors, config.model.shapes)
    meta, run = found.meta, RunDir(options.run, config)
    made = run.path / "reconstructed"
    made.mkdir(exist_ok=True)
    path, same = export.restore(made, found, os.path.basename(options.file))
    if same and meta.ancestry is None:
        path = path.rename(os.path.join(run.snapshots, path.name))
    run.set_status(state="done", nimg=meta.nimg, total_nimg=meta.nimg)
    cli.say(
        f"{path}: the exported snapshot, to the bit."
        if same
        else f"{path}: other weights than those that were exported."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", type=os.path.expanduser, help=".safetensors, or what torch.save wrote")
    add(
        "--like",
        type=os.path.expanduser,
        help="a file of the export that FILE began as",
    )
    add("--run", type=user_path, required=True, help="the new run directory")
    return parser


if __name__ == "__main__":
    cli.run(main)
