"""Branches: runs that start from a checkpoint of another run.

One stable phase thus serves many decays: a run at a constant rate keeps checkpoints
(training.keep_checkpoint_mimg), and each branch decays the rate from one of them.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import tree
from edm_jax.ema import snapshots
from edm_jax.optim import chain
from edm_jax.runs import directory
from edm_jax.runs.directory import RunDir
from edm_jax.train import bases
from edm_jax.train.config import RunConfig
from edm_jax.train.trainer import abstract_state


def begin(
    path: Path,
    config: RunConfig,
    run: Path,
    run_config: RunConfig,
    nimg: int | None = None,
) -> str:
    """Makes `path` a run with `config` that starts at a checkpoint of another run.

    Copies that run's checkpoint, and its snapshots and metrics up to there. Fields that
    the config changes are recorded as changes at that point. A branch that already
    exists is left as it is.

    Args:
        path: the branch's directory.
        config: the branch's config.
        run: the run that it starts from.
        run_config: that run's config.
        nimg: images at the checkpoint; None means the last one.

    Returns:
        A warning if the branch equals no run trained from the start, or ''.

    Raises:
        ValueError: there is no such checkpoint, its state does not fit the config, or
            `path` is a run that started elsewhere.
    """
    if (path / "config.json").exists():
        _check_origin(path, run, nimg)
        return ""
    step = _step(run, config.optimizer.batch_size, nimg)
    allowed = _check_changes(config, run, run_config, step)
    _copy(path, config, RunDir(run, run_config, writing=False), step)
    RunDir(path, config, allowed)
    return _note(config, run, run_config, step)


def _check_origin(path: Path, run: Path, nimg: int | None) -> None:
    began = directory.read_json(path / "provenance.json").get("branch", {})
    same = began.get("run") == str(run.absolute())
    if not same or nimg not in (None, began.get("nimg")):
        what = "a branch of {run} at {nimg:,} images" if began else "not a branch"
        raise ValueError(
            f"{path} already exists and is {what.format(**began)}: choose another --run "
            "directory."
        )


def _step(run: Path, batch_size: int, nimg: int | None) -> int:
    """The step of the checkpoint."""
    place = run / "checkpoints"
    names = [each.name for each in place.iterdir()] if place.is_dir() else []
    kept = {int(name) * batch_size: int(name) for name in names if name.isdecimal()}
    if not kept:
        raise ValueError(f"{run} has no checkpoint yet: train it first.")
    nimg = max(kept) if nimg is None else nimg
    if nimg not in kept:
        raise ValueError(
            f"{run} has no checkpoint at {nimg:,} images, only at "
            f"{', '.join(f'{each:,}' for each in sorted(kept))}: choose one of these, or "
            "keep more with training.keep_checkpoint_mimg."
        )
    return kept[nimg]


def _check_changes(
    config: RunConfig, run: Path, run_config: RunConfig, step: int
) -> list[str]:
    """Returns all fields; raises ValueError if a branch cannot have the config."""
    fields = tree.flatten(run_config.to_dict(), ".") | tree.flatten(
        config.to_dict(), "."
    )
    RunDir(run, config, [*fields], writing=False)  # refuses fields that cannot change
    if abstract_state(config) != abstract_state(run_config):
        raise ValueError(
            f"A branch continues with the state of {run}, so it cannot have another "
            "network, method, average or stateful schedule: keep that run's values of "
            "these fields."
        )
    if step >= config.total_steps:
        batch_size = config.optimizer.batch_size
        raise ValueError(
            f"The branch begins at {step * batch_size:,} images and would end at "
            f"{config.total_steps * batch_size:,}: raise "
            "--config.training.duration_mimg."
        )
    return [*fields]


def _copy(path: Path, config: RunConfig, run: RunDir, step: int) -> None:
    """Copies everything; config.json, which makes it a run, comes last in case of a kill."""
    nimg = step * config.optimizer.batch_size
    path.mkdir(parents=True, exist_ok=True)
    place = directory.snapshot_place(path, config.training.snapshot_dir)
    place.mkdir(parents=True, exist_ok=True)
    for each in snapshots.list_snapshots(run.snapshots):
        if each.meta.nimg <= nimg:
            each.path.copy(place / each.path.name, overwrite=True)
    # Training drops the lines of later steps when it starts.
    shutil.copyfile(run.path / "metrics.jsonl", path / "metrics.jsonl")
    checkpoint = path / "checkpoints" / str(step)
    shutil.copytree(run.checkpoints / str(step), checkpoint, dirs_exist_ok=True)
    status: dict[str, Any] = {"state": "queued", "stage": "train", "nimg": nimg}
    directory.write_json(path / "status.json", status)
    origin = {"run": str(run.path.absolute()), "nimg": nimg}
    directory.write_json(path / "provenance.json", {"branch": origin})
    for name in (bases.RECORD, "changes.json", "config.json"):
        if (run.path / name).exists():
            shutil.copyfile(run.path / name, path / name)


def _note(config: RunConfig, run: Path, run_config: RunConfig, step: int) -> str:
    batch_size = config.optimizer.batch_size
    nimg = jnp.linspace(0.0, (step - 1) * batch_size, 1000)
    there, here = (
        np.asarray(
            jax.vmap(chain.learning_rate(c.optimizer, c.training.duration_mimg))(nimg)
        )
        for c in (run_config, config)
    )
    if np.allclose(there, here, rtol=1e-5):
        return ""
    return (
        f"Up to {step * batch_size:,} images the branch's schedule differs from that of "
        f"{run}, whose rate was {there[-1]:.3g} there instead of {here[-1]:.3g}: the "
        "branch does not equal a run trained with its config from the start."
    )
