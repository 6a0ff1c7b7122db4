"""Describe a config without allocating its network, as one JSON object.

    python experiments/describe.py --config=configs/config_g.py:imagenet512-s

gflops is per image, forward: an own count of the convolutions and matrix products, a
multiply-accumulate counted once and padding included, as in the paper's Table 1.
"""

import json
import math
from typing import Any

import jax
import ml_collections

import configs
from edm_jax import diffusion, disk, networks, resolve, trainer
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
        "gflops": round(forward_gflops(spec), 2),
        "gflops_source": "own count: multiply-accumulates of one image, forward",
        "nimg": trainer.total_steps(config) * config.optimizer.batch_size,
        "snapshot_bytes": stored.snapshot_bytes,  # the loss's u(sigma) head included
        "snapshots": stored.snapshots,
        "snapshots_total_bytes": stored.snapshots_total,
        "checkpoint_bytes": stored.checkpoint_bytes,
        "changes_from": configs.parent_letter(config.letter),
        "changes": changes(config),
    }


def forward_gflops(spec: networks.UNetSpec) -> float:
    """Giga multiply-accumulates of the denoiser for one image."""
    denoiser = diffusion.Denoiser(spec, 0.5)
    params = networks.abstract_params(spec)
    jaxpr = jax.make_jaxpr(lambda *inputs: denoiser(*inputs).image)(
        params, *networks.abstract_inputs(spec)
    )
    return _macs(jaxpr.jaxpr) / 1e9


def _macs(jaxpr: Any) -> int:
    """Multiply-accumulates of convolutions, padding included, and matrix products."""
    total = 0
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr")
        if inner is not None:
            total += _macs(getattr(inner, "jaxpr", inner))
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += equation.outvars[0].aval.size * math.prod(kernel.shape[:-1])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += equation.outvars[0].aval.size * depth
    return total


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
