"""Networks and guides as command lines name them."""

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edm_jax import diffusion, ema
from edm_jax.diffusion.guidance import EVERYWHERE, Weight, WeightTable
from edm_jax.ema import snapshots
from edm_jax.evals import sweeps
from edm_jax.models.unet import Params
from edm_jax.runs.directory import RunDir
from edm_jax.train.config import RunConfig
from experiments import cli

UNCONDITIONAL = "unconditional"


class Network(NamedTuple):
    """A run, or a file of weights in its place."""

    run: RunDir | None
    config: RunConfig
    file: str = ""
    unconditional: bool = False

    @property
    def denoiser(self) -> diffusion.Denoiser:
        config = self.config
        model, sigma_data = config.model, config.loss.sigma_data
        return diffusion.Denoiser(model, sigma_data, self.unconditional)


class Trained(NamedTuple):
    """A network with its averaged weights, and the checksums of what they come from."""

    denoiser: diffusion.Denoiser
    params: Params
    made_of: Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """--guide, --guidance and --interval."""
    group = parser.add_argument_group("guidance: w D + (1 - w) D_guide")
    group.add_argument(
        "--guide",
        help=f"a run, or a snapshot of one; {UNCONDITIONAL}: the network itself, its "
        "class hidden, for a run with loss.label_dropout",
    )
    group.add_argument(
        "--guidance",
        default="",
        metavar="W",
        help="w; 1 is none; SIGMA:W,SIGMA:W,... for another w at each noise level, "
        "linear in ln sigma between",
    )
    group.add_argument("--interval", default="", metavar="LOW,HIGH", help="of sigma")


def weight(text: str) -> Weight:
    """The w of --guidance; raises ValueError."""
    try:
        if ":" not in text:
            [value] = cli.number_list("--guidance", text)
            return value
        pairs = [part.split(":") for part in text.split(",")]
        return WeightTable.of({float(sigma): float(w) for sigma, w in pairs})
    except ValueError as error:
        raise ValueError(
            f"--guidance={text!r} must be a strength, such as 2, or two or more of "
            "SIGMA:STRENGTH, such as 0.1:1,1:2.5."
        ) from error


def interval(text: str) -> tuple[float, float]:
    """The (low, high) of --interval, everywhere by default; raises ValueError."""
    ends = tuple(cli.number_list("--interval", text)) or EVERYWHERE
    if len(ends) != 2 or ends[0] >= ends[1]:
        raise ValueError(f"--interval={text!r} must be LOW,HIGH, such as 0.28,5.42.")
    return ends


def find(text: str, main: Network) -> Network:
    """The network that --guide names; raises ValueError where it cannot guide `main`."""
    if text == UNCONDITIONAL:
        if not main.config.loss.label_dropout:
            raise ValueError(
                f"--guide={text}: the run was trained without loss.label_dropout, so it "
                "has seen no image without its class; name a run of network.num_classes=0."
            )
        return main._replace(unconditional=True)
    path, file = Path(os.path.expanduser(text)), ""
    if path.suffix == ".safetensors":
        # RUN/snapshots/FILE or RUN/reconstructed/FILE; elsewhere, of the same network.
        path, file = path.absolute().parent.parent, str(path)
    if file and not (path / "config.json").exists():
        guide = Network(None, main.config, file)
    else:
        named = argparse.Namespace(run=str(path), config="")
        guide = Network(*cli.open_run(named), file)
    ours, theirs = main.config.network, guide.config.network
    if (ours.resolution, ours.channels) != (theirs.resolution, theirs.channels):
        raise ValueError(
            f"--guide={text}: its images are {theirs.resolution} pixels wide with "
            f"{theirs.channels} channels; the run's are {ours.resolution} with "
            f"{ours.channels}."
        )
    if theirs.num_classes not in (0, ours.num_classes):
        raise ValueError(
            f"--guide={text} has {theirs.num_classes} classes, and the run has "
            f"{ours.num_classes}: a guide has as many, or none."
        )
    return guide


def trained(network: Network, sigma_rel: float | None, force: bool) -> Trained:
    """The network with the weights of its file, or rebuilt from its run's.

    Args:
        network: what the command line names.
        sigma_rel: the EMA length, 0.1 or the only one there is by default.
        force: whether any error of the reconstruction is accepted.
    """
    run, config, file = network.run, network.config, network.file
    if file or run is None:
        checksum = snapshots.open_snapshot(file).checksum
        return Trained(network.denoiser, fitting(file, config.model.shapes), checksum)
    stored = sweeps.usable(run.snapshots, run.best_nimg)
    profiles = [s.meta.profile for s in stored]
    only = profiles[0] if len(profiles) == 1 else ema.PowerProfile(0.1)
    wanted = only if sigma_rel is None else ema.PowerProfile(sigma_rel)
    max_error = math.inf if force else ema.MAX_ERROR
    params = sweeps.reconstruct(stored, [wanted], max_error=max_error)[wanted].params
    made_of = [str(wanted), *(s.checksum for s in stored)]
    return Trained(network.denoiser, params, made_of)


def fitting(path: str, abstract_params: Params) -> Params:
    """The weights of a file; raises ValueError where they are of another network."""
    params, _ = snapshots.read(path)
    check_shapes(path, snapshots.flatten(params), abstract_params)
    return params


def check_shapes(
    path: str, weights: Mapping[str, Any], abstract_params: Params
) -> None:
    """Raises ValueError if the weights of a file are of another network than a run's."""
    of_run = snapshots.flatten(abstract_params)
    found, wanted = (
        {name: tuple(leaf.shape) for name, leaf in flat.items()}
        for flat in (weights, of_run)
    )
    if found != wanted:
        name = min(found.items() ^ wanted.items())[0]
        raise ValueError(
            f"{path} holds the weights of another network than the run's: {name} has "
            f"shape {found.get(name)} there, and {wanted.get(name)} in the run."
        )
