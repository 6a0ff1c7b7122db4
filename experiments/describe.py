"""Describe a config without allocating its network, as one JSON object.

    python experiments/describe.py --config=configs/config_g.py:imagenet512-s

gflops is per image, forward: an own count of the convolutions and matrix products, a
multiply-accumulate counted once and padding included, as in the paper's Table 1.
"""

import json
import math
from typing import Any

import ml_collections

import configs
from edm_jax import disk, flops, networks, resolve, trainer
from experiments import cli


def describe(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `main` prints."""
    spec = resolve.resolve_network(config)
    params = networks.abstract_params(spec)
    stored = disk.estimate(config)
    return {
        "config": config.letter,
        "title": config.title,
        "workload": config.workload,
        "params": networks.count_params(params["unet"]),
        "params_with_logvar": networks.count_params(params),
        "gflops": round(flops.forward_macs(spec) / 1e9, 2),
        "gflops_source": "own count: multiply-accumulates of one image, forward",
        "nimg": trainer.total_steps(config) * config.optimizer.batch_size,
        "snapshot_bytes": stored.snapshot_bytes,  # the loss's u(sigma) head included
        "snapshots": stored.snapshots,
        "snapshots_total_bytes": stored.snapshots_total,
        "checkpoint_bytes": stored.checkpoint_bytes,
        "changes_from": configs.parent_letter(config.letter),
        "changes": changes(config),
    }


def changes(config: ml_collections.ConfigDict) -> dict[str, list[Any]]:
    """{field: [before, after]} against the letter before, same workload."""
    parent = configs.parent_letter(config.letter)
    if parent is None:
        return {}
    before = configs.flatten(
        configs.load(f"{configs.letter_path(parent)}:{config.workload}")
    )
    after = configs.flatten(config)
    return {
        field: [_printable(before[field]), _printable(after[field])]
        for field in after
        if field not in ("letter", "title") and before[field] != after[field]
    }


def _printable(value: Any) -> Any:
    return "inf" if value == math.inf else value  # JSON has no infinity


def main() -> None:
    """Parse the command line and print."""
    _, config = cli.parse_config(cli.config_parser(__doc__), None)
    print(json.dumps(describe(config), indent=1))


if __name__ == "__main__":
    cli.run(main)
