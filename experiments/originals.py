"""Imports snapshots of the original code, PREFIX-{kimg}-{sigma_rel}.pkl, as a run.

Each pickle is checked and copied once into a snapshot in this project's format. After
that the run is like any other.
"""

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

import configs
from configs.workloads import WORKLOADS
from edm_jax import ema, original
from edm_jax.ema import snapshots
from edm_jax.files import human
from edm_jax.runs.directory import RunDir, read_json, write_json
from edm_jax.train.config import RunConfig
from experiments import cli

SUFFIX = ".pkl"


def take_over(path: Path, files: list[Path], reference: str) -> Path:
    """Copies pickles that are not yet in their run directory.

    Args:
        path: the path that the user gave.
        files: the pickles that it names.
        reference: the config of their training data; '' infers it from the sizes.

    Returns:
        The run's directory.

    Raises:
        ValueError: the files belong to several networks, hold no average, or one of them
            is damaged; or the disk is too full.
    """
    files = _averages(path, files)
    prefixes = sorted({original.name_of(file)[0] for file in files})
    if len(prefixes) > 1:
        pattern = shlex.quote(f"--run={path}/{prefixes[0]}-*{SUFFIX}")
        raise ValueError(
            f"{path} holds snapshots of several networks ({', '.join(prefixes)}): select "
            f"one, such as {pattern}."
        )
    name = prefixes[0] if len(files) > 1 else files[0].name.removesuffix(SUFFIX)
    first = original.load(files[0])
    settings, config = first.settings, _config(first, reference)
    del first  # keep only one file mapped at a time
    run = _open(Path("runs") / f"original-{name}", config)
    memory = run.path / "originals.json"
    taken = read_json(memory)
    missing = [
        file
        for file in files
        if taken.get(file.name) != _identity(file)
        or not (run.snapshots / _meta(run, file).filename).exists()
    ]
    if missing:
        _check_space(run, missing)
        cli.say(f"Copying snapshots of the original code to {run.path}", sys.stderr)
        with cli.progress_bar() as bar:
            for file in bar.track(missing, description="snapshots"):
                _store(run, file, settings)
                taken[file.name] = _identity(file)
                write_json(memory, taken)
        _tell_what_is_kept(run)
    last = max(original.name_of(file)[1] for file in files)
    run.set_status(state="done", nimg=last, total_nimg=last)
    return run.path


def _averages(path: Path, files: list[Path]) -> list[Path]:
    """Returns the files that hold an average; prints which were left out, and why."""
    if files == [path]:
        foreign = []
    else:
        foreign = [file for file in files if not original.is_named(file)]
    named = [file for file in files if file not in foreign]
    empty = [file for file in named if original.name_of(file)[1] == 0]
    for left_out, reason in (
        (empty, "stored at 0 images, before there was an average"),
        (foreign, "not named PREFIX-KIMG-SIGMA_REL.pkl"),
    ):
        if left_out:
            names = ", ".join(file.name for file in left_out[:4])
            more = f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
            cli.say(f"Left out: {names}{more} ({reason}).", sys.stderr)
    found = [file for file in named if file not in empty]
    if not found:
        raise ValueError(
            f"{path} holds no average: its snapshots were stored at 0 images, before "
            "training. Name later ones."
            if empty
            else f"{path} holds no snapshot named PREFIX-KIMG-SIGMA_REL.pkl."
        )
    return found


def _open(place: Path, config: RunConfig) -> RunDir:
    try:
        return RunDir(place, config)
    except ValueError as error:
        difference = str(error).partition(". ")[0]
        raise ValueError(
            f"{difference}. It was made from other snapshots or by another version: "
            f"remove it with `rm -r {shlex.quote(str(place))}`, then run the same "
            "command again."
        ) from error


def _identity(file: Path) -> list[Any]:
    """Identifies a file, to notice when another one replaces it."""
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def _config(first: original.Original, reference: str) -> RunConfig:
    """Config G with the network and data scaling stored in the file.

    Raises ValueError if config G cannot describe the network.
    """
    found = first.settings
    config = configs.load(reference or _guess(found.network)).to_dict()
    config["title"] = "snapshots of the original code"
    config["network"] |= dataclasses.asdict(found.network)
    config["loss"]["sigma_data"] = found.sigma_data
    if not found.half_precision:
        config["network"]["compute_dtype"] = "float32"
    if first.latents is not None:
        scale, bias = first.latents
        # The pipeline's (raw - raw_mean) / raw_std * 0.5 is their raw * scale + bias.
        statistics = {"raw_mean": -bias / scale, "raw_std": 0.5 / scale}
        for field, row in statistics.items():
            known = config["data"][field]
            if len(known) != len(row) or not np.allclose(row, known, 1e-5, 1e-5):
                config["data"][field] = tuple(row.tolist())
    return RunConfig.of(config)


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
        "channels: add --config=configs/config_g.py:WORKLOAD, the one with this data."
    )


def _meta(run: RunDir, file: Path, dtype: str = "float16") -> ema.SnapshotMeta:
    """The metadata for the copy of a pickle."""
    _, nimg, sigma_rel = original.name_of(file)
    try:
        return ema.SnapshotMeta(
            profile=ema.PowerProfile(sigma_rel),
            nimg=nimg,
            update_interval=2048,  # the paper's batch size; the files do not record it
            config_hash=run.config_hash,
            dtype=dtype,
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _store(run: RunDir, file: Path, settings: original.Settings) -> None:
    loaded = original.load(file)
    if loaded.settings != settings:
        raise ValueError(f"{file} holds another network than the files beside it.")
    params, meta = loaded.params(), _meta(run, file, loaded.dtype)
    flat = snapshots.flatten(params)
    exact = {name for name, leaf in flat.items() if leaf.dtype == np.float32}
    snapshots.write(run.snapshots, params, meta, exact=exact)


def _check_space(run: RunDir, files: list[Path]) -> None:
    needed = sum(file.stat().st_size for file in files)
    free = shutil.disk_usage(run.path).free
    if needed > free:
        raise ValueError(
            f"Copies of {len(files)} snapshots need {human(needed)}, but {run.path} has "
            f"{human(free)} free: make room, or name fewer with --run='PREFIX-*{SUFFIX}'."
        )


def _tell_what_is_kept(run: RunDir) -> None:
    copies = [path.stat().length for path in run.snapshots.iterdir()]
    cli.say(
        f"Kept for later commands: {len(copies)} snapshots, {human(sum(copies))}, in "
        f"{run.path}; to remove them: rm -r {shlex.quote(str(run.path))}",
        sys.stderr,
    )
