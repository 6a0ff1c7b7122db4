"""Describe a config without allocating its network, as one JSON object.

    python experiments/describe.py --config=configs/config_g.py:imagenet512-s

--topology=v5e:4x4 adds what the step takes on those TPUs, which need not be there:
memory of each device against what it has, the largest number of images at a time that
fits, what devices exchange, and the time of the run. --advise proposes micro-batches, rematerialization and sharding for that
topology, or for --devices=8 of --memory_gb=80. --devices=8 adds the memory of the state on each of 8 devices, for each
training.sharding; --compile adds what the compiler of this machine says the step takes.
gflops is per image, forward: the multiply-accumulates of the convolutions and matrix
products, padding included, as in the paper's Table 1. note names the fields that were
chosen for another duration than the run's.
"""

import argparse
import json
import math
import os
import sys
from typing import Any

import jax
import rich.console

import configs
from edm_jax import ema, files, menu
from edm_jax.cost import advice, averages, chips, disk, memory, topology
from edm_jax.diffusion import flops
from edm_jax.diffusion.presets import PRESETS
from edm_jax.models.build import count_params
from edm_jax.optim import chain, groups
from edm_jax.train.config import RunConfig
from experiments import cli


def describe(config: RunConfig) -> dict[str, Any]:
    """What `main` prints."""
    params = config.model.shapes
    stored = disk.estimate(config)
    return {
        "config": config.letter,
        "title": config.title,
        "workload": config.workload,
        "params": count_params(params["unet"]),
        "params_with_logvar": count_params(params),
        "gflops": round(flops.forward_macs(config.model) / 1e9, 2),
        "gflops_source": "own count: multiply-accumulates of one image, forward",
        "nimg": config.total_steps * config.optimizer.batch_size,
        **_groups(config),
        "snapshot_bytes": stored.snapshot_bytes,  # the loss's u(sigma) head included
        "snapshots": stored.snapshots,
        "snapshots_total_bytes": stored.snapshots_total,
        "averages": averages.line(config),
        "checkpoint_bytes": stored.checkpoint_bytes,
        "changes_from": configs.parent_letter(config.letter),
        "changes": changes(config),
        "note": " ".join(
            filter(None, (configs.duration_note(config), chain.note(config.optimizer)))
        ),
    }


def _groups(config: RunConfig) -> dict[str, Any]:
    """The groups of parameters, if there are any."""
    opt = config.optimizer
    if not opt.groups:
        return {}
    rows = groups.table(opt.groups, opt.alpha_ref, config.model.shapes)
    return {"groups": [row._asdict() for row in rows]}


def changes(config: RunConfig) -> dict[str, list[Any]]:
    """{field: [before, after]} against the letter before, same workload."""
    parent = configs.parent_letter(config.letter)
    if parent is None:
        return {}
    before = configs.flatten(
        configs.load(f"{configs.letter_path(parent)}:{config.workload}")
    )
    after = configs.flatten(config)
    # A field of a choice may be in one of them alone.
    changed = {f: [before.get(f), after.get(f)] for f in {**before, **after}}
    return {
        field: [_printable(value) for value in values]
        for field, values in changed.items()
        if field not in ("letter", "title") and values[0] != values[1]
    }


def _printable(value: Any) -> Any:
    return "inf" if value == math.inf else value  # JSON has no infinity


def describe_memory(config: RunConfig, devices: int, compiled: bool) -> dict[str, Any]:
    """Bytes on each device, by `training.sharding`, and as compiled."""
    found: dict[str, Any] = {
        "devices": devices,
        "state_bytes_per_device": {
            sharding: memory.state_bytes(config, devices, sharding)
            for sharding in ("none", "state", "full")
        },
    }
    if compiled:
        training = config.training
        step = {
            "sharding": training.sharding,
            "microbatches": training.microbatches,
            "remat": training.remat,
        }
        found["compiled_bytes_per_device"] = step | memory.compiled_bytes(config)
    return found


def describe_topology(config: RunConfig, name: str, full: bool) -> dict[str, Any]:
    """What the step takes on TPUs, with a line on stderr while it is compiled."""
    stages = set()
    with rich.console.Console(stderr=True).status("") as status:

        def on_progress(stage: str, seconds: float) -> None:
            status.update(f"{name}: {stage} ({seconds:.0f} s)")
            if stage not in stages and not status.console.is_terminal:
                print(f"{name}: {stage}.", file=sys.stderr, flush=True)
            stages.add(stage)

        place = files.cache_home() / "plans"
        return topology.plan(config, name, place, on_progress, full)


def describe_advice(
    config: RunConfig, devices: int, limit: float, kind: str
) -> tuple[dict[str, Any], list[advice.Layout]]:
    """What to set so that the step fits, and all that would; raises ValueError."""
    found = advice.layouts(config, devices, limit, kind)
    if not found:
        share = config.optimizer.batch_size // devices
        least = advice.expected_bytes(config, devices, "full", True, share, kind)
        raise ValueError(
            f"Nothing fits: {limit / topology.GIB:.1f} GiB can be used of each of "
            f"{devices} devices, and one image at a time, with training.remat=True and "
            f"training.sharding=full, takes {least / topology.GIB:.1f} GiB."
        )
    best = {(each.remat, each.sharding): each for each in reversed(found)}
    said = {
        "by": "a model of the memory, fitted to XS and S, rougher with remat",
        "devices": devices,
        "usable_gib_per_device": round(limit / topology.GIB, 2),
        "proposal": _layout(found[0]),
        "overrides": " ".join(f"--config.{k}={v}" for k, v in found[0].fields.items()),
        "alternatives": [_layout(each) for each in found if each in best.values()][1:],
    }
    return said, found


def _layout(layout: advice.Layout) -> dict[str, Any]:
    shown = layout._asdict()
    size = shown.pop("bytes")
    return shown | {"expected_gib_per_device": round(size / topology.GIB, 2)}


def advise_gpus(config: RunConfig, devices: int, memory_gb: float) -> dict[str, Any]:
    """For GPUs of a given memory, of which JAX reserves three quarters by default."""
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75"))
    return describe_advice(config, devices, memory_gb * 1e9 * share, "GPU")[0]


def advise_tpus(config: RunConfig, name: str, full: bool) -> dict[str, Any]:
    """For a topology: the first proposals are compiled, until one fits."""
    asked = chips.Topology.of(name)
    per_chip = asked.chip.devices
    limit = asked.chip.hbm_gib * topology.GIB / per_chip
    said, found = describe_advice(config, asked.chips * per_chip, limit, "TPU")
    layout, plan = found[0], {}
    for layout in found[:3]:
        plan = describe_topology(configs.changed(config, layout.fields), name, full)
        if plan["fits"]:
            break
    said["proposal"] = _layout(layout)
    said["overrides"] = " ".join(f"--config.{k}={v}" for k, v in layout.fields.items())
    return {"advice": said, "plan": plan}


def describe_menus(name: str) -> str:
    """The entries of a menu, or of all, with their fields; raises ValueError."""
    # Here: figures take long to import.
    from edm_jax.report import COLUMNS
    from experiments.backends import BACKENDS

    menus = {k: (f"--config.{at}", of) for k, (at, of) in configs.ALL_MENUS.items()}
    menus["column"] = "compare.py --columns", COLUMNS
    menus["preset"] = "sample.py --preset", PRESETS
    menus["backend"] = "launch.py --backend", BACKENDS
    menus["profile"] = "reconstruct.py --profile", ema.PROFILES
    if name not in (*menus, "all"):
        listed, near = ", ".join(menus), menu.suggest(name, menus)
        raise ValueError(
            f"--menu={name}: there is no such menu; there are {listed}.{near}"
        )
    return "\n\n".join(
        f"{each}: {menus[each][0]}=NAME\n{menu.describe(menus[each][1])}"
        for each in (menus if name == "all" else [name])
    )


def main() -> None:
    """Parse the command line and print."""
    parser = cli.config_parser(__doc__, required=False)
    parser.add_argument(
        "--menu",
        metavar="NAME",
        help="list a menu's entries, such as schedule, and nothing else; all for all",
    )
    parser.add_argument(
        "--devices",
        type=int,
        help="also the memory on this number of devices, simulated on the CPU",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also the activations, from the compiled step (minutes for large nets)",
    )
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="also memory, traffic and time on TPUs, such as v5e:4x4, v5p:2x2x1, "
        "v6e:2x2 or tpu7x:2x2x1 (a minute or two; pip install -e '.[plan]')",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="with --topology, also generate code, for the compiler's estimate of the "
        "time (10 minutes and 9 GB for imagenet512-xs)",
    )
    parser.add_argument(
        "--advise",
        action="store_true",
        help="propose micro-batches, remat and sharding: with --topology, or with "
        "--devices and --memory_gb",
    )
    parser.add_argument(
        "--memory_gb", type=float, help="of each of --devices GPUs, such as 80"
    )
    options, rest = parser.parse_known_args()
    if options.menu is not None:
        print(describe_menus(options.menu))
        return
    config = cli.load_config(options, cli.overrides(rest))
    _check(options)
    if options.topology is not None:
        jax.config.update("jax_platforms", "cpu")  # libtpu would look for chips here
    if options.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)
    described = describe(config)
    if options.devices or options.compile:
        devices = options.devices or jax.device_count()
        described["memory"] = describe_memory(config, devices, options.compile)
    if options.topology is not None and options.advise:
        described |= advise_tpus(config, options.topology, options.full)
    elif options.topology is not None:
        described["plan"] = describe_topology(config, options.topology, options.full)
    elif options.advise:
        gpus = options.devices, options.memory_gb
        described["advice"] = advise_gpus(config, *gpus)
    print(json.dumps(described, indent=1))


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for options that say nothing, or not enough."""
    if options.topology is not None:
        chips.Topology.of(options.topology)
    if options.devices is not None and options.devices < 1:
        raise ValueError(f"--devices={options.devices}, but must be at least 1.")
    memory_gb = options.memory_gb
    if memory_gb is not None and not 0 < memory_gb < math.inf:
        raise ValueError(f"--memory_gb={memory_gb}, but must be positive and finite.")
    of_gpus = options.devices is not None and memory_gb is not None
    if options.advise and options.topology is None and not of_gpus:
        raise ValueError(
            "--advise needs --topology, or --devices and --memory_gb: what should the "
            "step fit on?"
        )


if __name__ == "__main__":
    cli.run(main)
