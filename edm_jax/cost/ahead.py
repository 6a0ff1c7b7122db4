"""Compiles a run's step for TPUs that are not there: a process of its own.

    python -m edm_jax.cost.ahead TOPOLOGY DUMP < config.json

The compiler writes what it decides into the directory DUMP as it goes along;
`edm_jax.cost.topology` starts this, reads that, and ends it early.
"""

import json
import os
import sys
from typing import Any

# Without them libtpu asks for the machine that it is on.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it would lock a chip, and uses none
}


def devices(name: str) -> list[Any]:
    """The devices of a topology such as 'v5e:4x4'; those of one chip for 'v5e:1x1'."""
    from jax.experimental import topologies

    sides = [int(side) for side in name.partition(":")[2].split("x")]
    one_chip = {"chips_per_host_bounds": [1, 1, 1]} if max(sides) == 1 else {}
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **one_chip)
    return list(found.devices)


def main() -> None:
    """Compile, saying each stage on a line of its own."""
    name, dump = sys.argv[1:]
    os.environ |= ENVIRONMENT
    from edm_jax.train import trainer
    from edm_jax.train.config import RunConfig

    config = RunConfig.of(json.load(sys.stdin))
    found = devices(name)
    chip = {
        "device_kind": found[0].device_kind,
        "devices": len(found),
        "chips": len({tuple(device.coords) for device in found}),
        "hosts": len({device.process_index for device in found}),
    }
    print(json.dumps(chip), flush=True)
    made = trainer.make_trainer(config, found)
    lowered = made.step.lower(made.shapes, trainer.abstract_batch(config))
    print("lowered", flush=True)
    options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True}
    lowered.compile(compiler_options=options)


if __name__ == "__main__":
    main()
