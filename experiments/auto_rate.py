"""--config.optimizer.alpha_ref=auto: a run at the rate that the finder suggests."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edm_jax.runs.directory import RunDir, read_json
from edm_jax.train.config import RunConfig
from experiments import cli

FIELD = "optimizer.alpha_ref"


def without(overrides: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """Overrides without alpha_ref=auto, and whether it was there."""
    is_auto = overrides.get(FIELD) == "auto"
    rest = {f: text for f, text in overrides.items() if not (is_auto and f == FIELD)}
    return rest, is_auto


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
    # Imported here: it brings the checkpoints' library, which planning does not need.
    from edm_jax.train import finder

    if same := recorded(config, path, allow):
        return same, None
    with cli.progress_bar(reads=config) as bar:
        report = cli.report_to(bar)
        found = finder.find(
            config,
            finder.RATES,
            on_progress=lambda done, total: report("learning rate", done, total),
        )
    rate = float(f"{found.advised.rate:.3g}")
    return _at(config, rate), found.summary()


def recorded(config: RunConfig, path: Path, allow: Sequence[str]) -> RunConfig | None:
    """The config at the rate of its run; None where there is no run of it yet."""
    rate = read_json(path / "config.json").get("optimizer", {}).get("alpha_ref")
    same = _at(config, rate) if rate else None
    if same and not RunDir(path, same, allow, writing=False).is_taken_over:
        return same
    return None


def _at(config: RunConfig, rate: float) -> RunConfig:
    optimizer = dataclasses.replace(config.optimizer, alpha_ref=rate)
    return dataclasses.replace(config, optimizer=optimizer)
