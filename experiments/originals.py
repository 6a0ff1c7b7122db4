"""Snapshots of the original code, PREFIX-{kimg}-{sigma_rel}.pkl, taken over as a run.

What the pickles hold is checked and stored as snapshots of this project's own, once; from
there on it is a run like every other.
"""

import dataclasses
import sys
from pathlib import Path

import ml_collections

import configs
from configs.workloads import WORKLOADS
from edm_jax import ema, original
from edm_jax.ema import snapshots
from edm_jax.run_dir import RunDir
from experiments import cli

SUFFIX = ".pkl"


def find(path: Path) -> list[Path]:
    """The pickles that a path means: one file, a pattern, or a directory's own."""
    if path.suffix == SUFFIX and "*" in path.name:
        found = sorted(path.parent.glob(path.name))
        if not found:
            raise FileNotFoundError(f"There is no file like {path}.")
        return found
    if path.suffix == SUFFIX:
        return [path]
    return sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else []


def take_over(path: Path, files: list[Path], reference: str) -> Path:
    """The run directory of these pickles, made or completed.

    reference: the config that says what data they are of, '' to tell by their sizes.
    Raises ValueError for files of several networks, or damaged ones, by name.
    """
    prefixes = sorted({original.name_of(file)[0] for file in files})
    if len(prefixes) > 1:
        raise ValueError(
            f"{path} holds snapshots of several networks ({', '.join(prefixes)}): name "
            f"those of one, such as --run='{path}/{prefixes[0]}-*{SUFFIX}'."
        )
    name = prefixes[0] if len(files) > 1 else files[0].name.removesuffix(SUFFIX)
    first = original.load(files[0])
    config = _config(first, [original.name_of(file)[2] for file in files], reference)
    run = RunDir(Path("runs") / f"original-{name}", config)
    missing = [file for file in files if not _is_there(run, file)]
    if missing:
        print(
            f"Taking over snapshots of the original code: {run.path}", file=sys.stderr
        )
        with cli.progress_bar() as bar:
            for file in bar.track(missing, description="snapshots"):
                _store(run, file, first.network)
    last = max(original.name_of(file)[1] for file in files)
    run.set_status(state="done", nimg=last, total_nimg=last)
    return run.path


def _config(
    first: original.Original, sigma_rels: list[float], reference: str
) -> ml_collections.ConfigDict:
    """Config G with the network's sizes as the file tells them."""
    config = configs.load(reference or _guess(first.network))
    with config.unlocked():
        config.network.update(dataclasses.asdict(first.network))
        config.ema.sigma_rels = tuple(sorted(set(sigma_rels)))
        config.ema.halflives_mimg = ()
        config.title = "snapshots of the original code"
    return config


def _guess(network: original.OriginalNetwork) -> str:
    path = configs.letter_path("g")
    for name, workload in WORKLOADS.items():
        if all(
            getattr(workload, field) == getattr(network, field)
            for field in ("resolution", "channels", "num_classes", "model_channels")
        ):
            return f"{path}:{name}"
    raise ValueError(
        f"No workload has images of {network.resolution}x{network.resolution}x"
        f"{network.channels}, {network.num_classes} classes and {network.model_channels} "
        "channels: name the one with this data, --config=configs/config_g.py:WORKLOAD."
    )


def _meta(run: RunDir, file: Path) -> ema.SnapshotMeta:
    _, nimg, sigma_rel = original.name_of(file)
    return ema.SnapshotMeta(
        profile=ema.PowerProfile(sigma_rel),
        nimg=nimg,
        update_interval=2048,
        config_hash=run.config_hash,
        # Not float16: the Fourier frequencies are divided by 2 pi.
        rounded="float16",
    )


def _is_there(run: RunDir, file: Path) -> bool:
    wanted = _meta(run, file)
    try:
        return snapshots.open_snapshot(run.snapshots / wanted.filename).meta == wanted
    except (FileNotFoundError, ema.Damaged):
        return False


def _store(run: RunDir, file: Path, network: original.OriginalNetwork) -> None:
    loaded = original.load(file)
    if loaded.network != network:
        raise ValueError(f"{file} is of another network than the files beside it.")
    snapshots.write(run.snapshots, loaded.params, _meta(run, file))
