"""Snapshots of the original code, PREFIX-{kimg}-{sigma_rel}.pkl, taken over as a run.

What the pickles hold is checked and stored as snapshots of this project's own, once; from
there on it is a run like every other.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import ml_collections

import configs
from configs.workloads import WORKLOADS
from edm_jax import ema, original
from edm_jax.ema import snapshots
from edm_jax.runs.directory import RunDir, read_json, write_json
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
    network = original.load(files[0]).network
    run = RunDir(Path("runs") / f"original-{name}", _config(network, reference))
    memory = run.path / "originals.json"
    taken = read_json(memory)
    missing = [file for file in files if taken.get(file.name) != _identity(file)]
    if missing:
        print(
            f"Taking over snapshots of the original code: {run.path}", file=sys.stderr
        )
        with cli.progress_bar() as bar:
            for file in bar.track(missing, description="snapshots"):
                _store(run, file, network)
                taken[file.name] = _identity(file)
                write_json(memory, taken)
    last = max(original.name_of(file)[1] for file in files)
    run.set_status(state="done", nimg=last, total_nimg=last)
    return run.path


def _identity(file: Path) -> list[Any]:
    """Tells a file from another one put in its place."""
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def _config(
    network: original.OriginalNetwork, reference: str
) -> ml_collections.ConfigDict:
    """Config G with the network's sizes as the file tells them.

    Which lengths there are, the snapshots say: files may be added.
    """
    config = configs.load(reference or _guess(network))
    with config.unlocked():
        config.network.update(dataclasses.asdict(network))
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


def _store(run: RunDir, file: Path, network: original.OriginalNetwork) -> None:
    loaded = original.load(file)
    if loaded.network != network:
        raise ValueError(f"{file} is of another network than the files beside it.")
    meta = ema.SnapshotMeta(
        profile=ema.PowerProfile(loaded.sigma_rel),
        nimg=loaded.nimg,
        update_interval=2048,  # the paper's batch: the files do not say
        config_hash=run.config_hash,
        # Stored as float32, since the Fourier frequencies are divided by 2 pi.
        rounded=loaded.dtype,
    )
    snapshots.write(run.snapshots, loaded.params, meta)
