"""--config.optimizer.alpha_ref=auto: a run at the rate that the finder suggests."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm_jax.runs.directory import RunDir, read_json
from edm_jax.train import finder
from edm_jax.train.config import RunConfig
from experiments import cli

FIELD = "optimizer.alpha_ref"


def without(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The overrides of a command line without alpha_ref=auto, and whether it was there."""
    found = cli.overrides(arguments)
    is_auto = found.get(FIELD) == "auto"
    if is_auto:
        del found[FIELD]
    return [f"--config.{field}={text}" for field, text in found.items()], is_auto


def settle(
    config: RunConfig, path: Path, allow: Sequence[str]
) -> tuple[RunConfig, dict[str, Any] | None]:
    """The config at the rate that its run has, or that the finder suggests for it.

    Args:
        config: as of the command line.
        path: the run's directory.
        allow: fields that may differ from what it holds.

    Returns:
        The config, and what the finder found, for the run's provenance; None for a run
        that has a rate.
    """
    recorded = read_json(path / "config.json")
    if rate := recorded.get("optimizer", {}).get("alpha_ref"):
        same = _at(config, rate)
        if not RunDir(path, same, allow, writing=False).is_taken_over:
            return same, None
    with cli.progress_bar() as bar:
        report = cli.report_to(bar)
        found = finder.find(
            config,
            finder.RATES,
            on_progress=lambda done, total: report("learning rate", done, total),
        )
    return _at(config, found.advised.rate), found.summary()


def _at(config: RunConfig, rate: float) -> RunConfig:
    optimizer = dataclasses.replace(config.optimizer, alpha_ref=float(f"{rate:.3g}"))
    return dataclasses.replace(config, optimizer=optimizer)
