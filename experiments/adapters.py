"""Adapters as command lines name them: --adapter=FILE:0.8."""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm_jax import ema, files, menu, tree
from edm_jax.ema import snapshots
from edm_jax.ema.snapshots import SnapshotMeta
from edm_jax.evals import sweeps
from edm_jax.models.adapters import ADAPTERS, Adapted, Part, merge
from edm_jax.models.unet import Params
from edm_jax.runs import directory
from edm_jax.train import bases
from edm_jax.train.starts import Weights
from experiments.guides import Network, Trained


class Stored(NamedTuple):
    """A trained adapter, and where it comes from."""

    path: Path
    adapter: Any
    params: Params
    base: dict[str, Any]
    made_of: Any
    strength: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """--adapter."""
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="FILE_OR_RUN[:STRENGTH]",
        help="a snapshot of an adapter that was trained on this run's weights, or its "
        "run (EMA length 0.1), and how much of it counts (1); several add up",
    )


def applied(options: argparse.Namespace, network: Network, force: bool) -> Trained:
    """The network with the weights of --run, changed by every --adapter.

    Args:
        options: with `adapter` and `sigma_rel`.
        network: that of --run.
        force: whether other weights are accepted than those that it was trained on.

    Raises:
        ValueError: an adapter does not fit the network or its weights.
        FileNotFoundError: there is no such file.
    """
    config, run = network.config, network.run
    if config.is_adapted or run is None:
        raise ValueError(
            "--run is itself an adapter's: name the run that it was trained on, and both "
            "adapters with --adapter."
        )
    stored = [read(text) for text in options.adapter]
    source = network.file or str(run.path)
    found = bases.find(Weights(source, options.sigma_rel or 0.0))
    base = tree.unflatten(found.weights([found.profile])[0])
    _check_shapes(config.model.shapes, base, source)
    checksum = bases.weights_checksum(base)
    for each in stored:
        _check(each, config.model, checksum, source, force)
    parts = [Part(each.adapter, each.params, each.strength) for each in stored]
    made_of = [checksum, *([each.made_of, each.strength] for each in stored)]
    params = tree.unflatten(
        {
            name: np.asarray(leaf)
            for name, leaf in tree.flatten(merge(base, parts)).items()
        }
    )
    return Trained(network.denoiser, params, made_of)


def read(text: str) -> Stored:
    """The adapter that FILE_OR_RUN[:STRENGTH] names; raises ValueError or OSError."""
    path, strength = _parse(text)
    if (path / "config.json").exists():
        recorded = directory.read_json(path / "config.json")
        root = recorded.get("training", {}).get("snapshot_dir", "")
        best = directory.read_status(path).get("best_nimg")
        found = sweeps.usable(directory.snapshot_place(path, root), best)
        if not found:
            raise ValueError(f"{path} has no snapshots yet: train it first.")
        profile, meta = ema.PowerProfile(0.1), found[0].meta
        params = sweeps.reconstruct(found, [profile])[profile].params
        made_of = [str(profile), *(each.checksum for each in found)]
    else:
        params, meta = snapshots.read(path)
        made_of = snapshots.open_snapshot(path).checksum
    return Stored(
        path, _adapter(path, meta), params, dict(meta.base or {}), made_of, strength
    )


def _parse(text: str) -> tuple[Path, float]:
    name, colon, number = text.rpartition(":")
    try:
        strength = float(number) if colon else 1.0
    except ValueError:
        name, strength = text, 1.0  # a colon of the name itself
    if not math.isfinite(strength):
        raise ValueError(f"--adapter={text}: the strength must be finite, such as 0.8.")
    path = files.user_path(name if colon and name else text)
    if not path.exists():
        raise FileNotFoundError(f"--adapter={text}: there is no {path}.")
    return path, strength


def _adapter(path: Path, meta: SnapshotMeta) -> Any:
    chosen = (meta.base or {}).get("adapter")
    if not isinstance(chosen, dict) or "weights" not in (meta.base or {}):
        raise ValueError(
            f"{path} holds no adapter, but a network's own weights: name a snapshot of a "
            "run with config.adapter."
        )
    try:
        return menu.build(ADAPTERS, "adapter", chosen)
    except (KeyError, TypeError, ValueError) as error:
        raise files.Damaged(path, f"has damaged metadata ({error}).") from error


def _check_shapes(wanted: Params, found: Params, source: str) -> None:
    shapes = {k: tuple(v.shape) for k, v in tree.flatten(wanted).items()}
    if shapes != {k: tuple(v.shape) for k, v in tree.flatten(found).items()}:
        raise ValueError(
            f"{source} holds the weights of another network than the run's."
        )


def _check(each: Stored, network: Any, checksum: str, source: str, force: bool) -> None:
    adapted = Adapted(network.spec, each.adapter)
    wanted, found = (
        {k: tuple(v.shape) for k, v in tree.flatten(params).items()}
        for params in (adapted.shapes, each.params)
    )
    if wanted != found:
        name = min(wanted.items() ^ found.items())[0]
        raise ValueError(
            f"{each.path} does not fit the network of {source}: {name} has shape "
            f"{found.get(name)} there, and {wanted.get(name)} here."
        )
    if each.base["weights"] != checksum and not force:
        profile = each.base.get("profile", {})
        raise ValueError(
            f"{each.path} was trained on other weights than these: those of "
            f"{each.base.get('source')} with sigma_rel {profile.get('sigma_rel')} at "
            f"{each.base.get('nimg'):,} images. Choose these with --run and --sigma_rel, "
            "or accept the difference with --force."
        )
