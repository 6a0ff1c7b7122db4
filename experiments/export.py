"""Export averaged weights for use elsewhere: safetensors, a PyTorch module, StableHLO.

    python experiments/export.py --run=runs/ladder-digits/g-seed0 --sigma_rel=0.1
    python experiments/export.py --run=runs/ladder-digits/g-seed0 --profile=halflife:0.002
    python experiments/export.py --run=RUN --weights=RUN/snapshots/FILE --to=torch
    python experiments/export.py --run=BASE --adapter=RUN:0.8

weights.safetensors holds the weights under the names and in the layout of this project,
and the config. torch_denoiser.py with torch_denoiser.safetensors is the denoiser for
PyTorch, which needs nothing else; jax_denoiser.stablehlo with jax_denoiser.py is the same
for JAX. Each samples images by itself: python torch_denoiser.py. import_weights.py makes
a run of such files again.
"""

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

from edm_jax import ema, export
from edm_jax.ema import rebuild, snapshots
from edm_jax.ema.meta import SnapshotMeta
from edm_jax.evals import sweeps
from edm_jax.files import human, user_path
from edm_jax.foreign import command
from edm_jax.runs.directory import RunDir
from edm_jax.runs.schema import SCHEMA
from edm_jax.train import bases
from edm_jax.train.config import RunConfig
from edm_jax.train.starts import Weights
from experiments import adapters, cli, guides

FORMS = ("safetensors", "torch", "stablehlo")


def main() -> None:
    """Parse the command line and export."""
    options = _parser().parse_args()
    forms = _words("--to", options.to, FORMS)
    platforms = _words("--platforms", options.platforms, export.PLATFORMS)
    run, config = cli.open_run(options)
    denoiser = guides.Network(run, config).denoiser
    if config.is_adapted:
        raise ValueError(
            f"{run.path} holds an adapter: export it with its base, by --run=BASE "
            f"--adapter={run.path}."
        )
    with tempfile.TemporaryDirectory() as merged:
        path = _merged(options, run, config, merged) or _snapshot(options, run)
        guides.fitting(path, config.model.shapes)
        found = export.bundle(path, {"schema": SCHEMA, **config.to_dict()})
    adapted = (Path(text).name.replace(":", "-") for text in options.adapter)
    name = "-".join([Path(path).stem, *adapted])
    out = options.out or run.path / "exported" / name
    out.mkdir(parents=True, exist_ok=True)
    written = []
    if "safetensors" in forms or "stablehlo" in forms:
        written.append(out / "weights.safetensors")
        export.write_weights(written[-1], found)
    if "torch" in forms:
        written += [out / "torch_denoiser.py", out / "torch_denoiser.safetensors"]
        export.write_pytorch(written[-2], config.network, denoiser, found)
        export.write_state_dict(written[-1], found)
    if "stablehlo" in forms:
        written += [out / "jax_denoiser.stablehlo", out / "jax_denoiser.py"]
        cli.prepare_jax()
        export.write_stablehlo(written[-2], denoiser, found.tensors, platforms)
    for each in written:
        cli.say(f"{each}: {human(each.stat().st_size)}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.run_parser(__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--sigma_rel", type=float, help="EMA length (0.1, or the only one there is)"
    )
    which.add_argument("--profile", help="another profile, as of reconstruct.py")
    which.add_argument(
        "--weights",
        type=os.path.expanduser,
        help="a snapshot, or a reconstructed .safetensors file",
    )
    adapters.add_options(parser)
    add = parser.add_argument
    add("--nimg", type=int, help="time of the average in images (the last snapshot's)")
    add("--force", action="store_true", help="accept any error of the reconstruction")
    add("--to", default=",".join(FORMS), help="what to write (%(default)s)")
    add("--platforms", default="cpu,cuda,tpu", help="those of the StableHLO: a choice of "
        f"{', '.join(export.PLATFORMS)} (%(default)s)")  # fmt: skip
    add("--out", type=user_path, help="directory (RUN/exported/NAME)")
    return parser


def _words(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    words = [word for word in text.split(",") if word]
    for word in words or [""]:
        if word not in known:
            raise ValueError(f"{option}={text!r}: choose of {', '.join(known)}.")
    return words


def _merged(
    options: argparse.Namespace, run: RunDir, config: RunConfig, directory: str
) -> str:
    """A snapshot of the weights with every --adapter merged in; '' without one."""
    if not options.adapter:
        return ""
    if options.profile or options.nimg is not None:
        raise ValueError("--adapter goes with --sigma_rel or --weights alone.")
    network = guides.Network(run, config, options.weights or "")
    params, made_of = adapters.applied(options, network, options.force)[1:]
    start = Weights(options.weights or str(run.path), options.sigma_rel or 0.0)
    base = bases.find(start)
    meta = SnapshotMeta(
        base.profile,
        base.nimg,
        config.optimizer.batch_size,
        run.config_hash,
        ancestry={"method": "adapters", "of": made_of},
    )
    return os.fspath(snapshots.write(directory, params, meta))


def _snapshot(options: argparse.Namespace, run: RunDir) -> str:
    """The file of --weights, or a reconstruction, which is kept in RUN/reconstructed."""
    if options.weights:
        if options.nimg is not None:
            raise ValueError("--weights names a file, and --nimg a time: drop one.")
        return options.weights
    profiles = {s.meta.profile for s in sweeps.usable(run.snapshots)}
    profile: ema.AnyProfile = ema.PowerProfile(0.1)
    if options.profile:
        profile = command.parse_profile(options.profile)
    elif options.sigma_rel is not None:
        profile = ema.PowerProfile(options.sigma_rel)
    elif len(profiles) == 1:
        profile = profiles.pop()
    nimg = options.nimg or run.best_nimg
    max_error = math.inf if options.force else ema.MAX_ERROR
    request = rebuild.Request([(nimg, profile)], max_error=max_error)
    out = run.path / "reconstructed"
    job = rebuild.prepare(run.snapshots, request)
    for reason in job.left_out:
        cli.say(f"Left out: {reason}", sys.stderr)
    rebuild.check_space(job, out)
    with cli.progress_bar() as bar:
        report = cli.report_to(bar)
        _, [path] = rebuild.run(
            run.snapshots,
            request,
            out,
            lambda done, total: report("reconstruction", done, total),
            job=job,
        )
    return os.fspath(path)


if __name__ == "__main__":
    cli.run(main)
