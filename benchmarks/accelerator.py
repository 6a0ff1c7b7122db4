"""All that there is to measure on an accelerator, in one call of ten minutes at most.

    python benchmarks/accelerator.py --out=DIRECTORY
    python benchmarks/accelerator.py --out=DIRECTORY --workloads=digits-tiny   # tries it on a CPU

By workload, config G in bfloat16 at its own batch, in as few micro-batches as are expected
to fit: images/s, utilization, compile time, the share of the time by kind of operation, and
peak memory beside what the compiler and `describe.py --advise` expect; the step under pmap;
images/s of sampling; and the losses of digits-tiny in float32, to compare with a CPU's. The most
wanted come first, and each gets what time is left. A stage that fails or is stopped does not
stop the others. DIRECTORY/results.json has all, and DIRECTORY/results.md the tables.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LEAST_SECONDS = 20  # with less time left, a stage is not started
LAYOUT = """
import sys, jax
from edm_jax.cost import advice
from experiments import cli
devices, kind = jax.devices(), jax.default_backend().upper()
limit = (devices[0].memory_stats() or {}).get("bytes_limit", 2**33)
_, config = cli.parse_config(cli.config_parser(""), sys.argv[1:])
kind = kind if kind in advice.FACTORS else "GPU"
for best in advice.layouts(config, len(devices), limit, kind)[:1]:
    print(*(f"--config.{name}={value}" for name, value in best.fields.items()))
"""


def main() -> None:
    """Parse the command line, measure, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="for the results")
    parser.add_argument("--workloads", default="imagenet512-xs,imagenet512-s")
    parser.add_argument("--seconds", type=float, default=570, help="(%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if (options.out / "results.json").exists():
        parser.error(f"{options.out} has results already; choose another --out.")
    machine = Machine(options.out, time.monotonic() + options.seconds)
    found: dict[str, Any] = {"date": str(datetime.date.today())}
    for name, command in stages(machine, options.workloads.split(",")):
        found[name] = machine.measured(name, command)
        (options.out / "results.json").write_text(json.dumps(found, indent=1))
        (options.out / "results.md").write_text(markdown(found))
    print(markdown(found))
    failed = [name for name, each in found.items() if "failed" in each]
    sys.exit(f"Not measured: {', '.join(failed)}." if failed else 0)


class Machine:
    """Runs stages, each in a process of its own, until a deadline."""

    def __init__(self, out: Path, deadline: float):
        self.out, self.deadline = out, deadline
        self.environment = os.environ | {
            "PYTHONPATH": f"{HERE.parent}:{os.environ.get('PYTHONPATH', '')}",
            "PYTHONUNBUFFERED": "1",
            # Empty, so that the first step compiles; of one call, so that it does once.
            "JAX_COMPILATION_CACHE_DIR": str(out / "xla"),
        }

    def output(self, name: str, command: list[str]) -> str:
        """A command's standard output; its errors lie in NAME.log."""
        left = self.deadline - time.monotonic()
        if left < LEAST_SECONDS:
            raise TimeoutError("no time was left")
        print(f"== {name}, {left:.0f} s left", file=sys.stderr)
        with (self.out / f"{name}.log").open("w") as log:
            done = subprocess.run(
                [sys.executable, *command],
                check=False,
                env=self.environment,
                cwd=HERE.parent,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                timeout=left,
            )
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}; see {name}.log")
        return done.stdout

    def measured(self, name: str, command: list[str]) -> dict[str, Any]:
        """The JSON that a command prints, or {'failed': why}."""
        try:
            return json.loads(self.output(name, command))
        except subprocess.TimeoutExpired:
            return {"failed": "it took all the time that was left"}
        except (TimeoutError, RuntimeError, json.JSONDecodeError) as error:
            return {"failed": str(error)}

    def layout(self, config: list[str]) -> list[str]:
        """The options that make a step fit, in as few micro-batches as possible."""
        try:
            return self.output("layout", ["-c", LAYOUT, *config]).split()
        except (TimeoutError, RuntimeError, subprocess.TimeoutExpired):
            return []


def stages(machine: Machine, workloads: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(name, command), the most wanted first."""
    benchmark = str(HERE / "train_step.py")
    short = ["--steps=4", "--rounds=5"]
    chosen = {}
    for workload in workloads:
        config = [
            f"--config=configs/config_g.py:{workload}",
            "--config.network.compute_dtype=bfloat16",
        ]
        chosen[workload] = config + machine.layout(config)
        trace = f"--profile={machine.out / f'profile-{workload}'}"
        more = [*short, "--memory", trace]
        yield f"step {workload}", [benchmark, *chosen[workload], *more]
    first = chosen[workloads[0]]
    for_sampling = [first[0], "--config.network.compute_dtype=bfloat16"]
    yield (
        f"sampling {workloads[0]}",
        [str(HERE / "sampling.py"), *for_sampling, "--batch=64", "--rounds=3"],
    )
    yield (
        f"pmap {workloads[0]}",
        [
            benchmark,
            *(option for option in first if "sharding" not in option),
            "--config.training.parallel=pmap",
            *short,
        ],
    )
    yield "parity", ["-c", PARITY, str(machine.out / "parity")]


PARITY = """
import json, subprocess, sys
subprocess.run([sys.executable, "experiments/train.py", "--run=" + sys.argv[1],
    "--config=configs/config_g.py:digits-tiny"], check=True, stdout=sys.stderr)
lines = [json.loads(line) for line in open(sys.argv[1] + "/metrics.jsonl")]
print(json.dumps({"losses": [x["loss"] for x in lines if "loss" in x]}))
"""


def markdown(found: dict[str, Any]) -> str:
    """The results as RESULTS.md has them."""
    lines = [
        (
            "| stage | batch | images/s (least, most) | first step | peak memory "
            "| expected: compiler, model | of the data sheet | of a matrix product |"
        ),
        "|-|-|-|-|-|-|-|-|",
    ]
    shares = []
    for name, each in found.items():
        if not isinstance(each, dict) or name == "parity":
            continue
        if "failed" in each:
            lines.append(f"| {name} | not measured: {each['failed']} | | | | | | |")
        elif name.startswith("sampling"):
            rate = each["images_per_s"]
            lines.append(
                f"| {name} | {each['batch']} "
                f"| {rate['median']} ({rate['least']}, {rate['most']}) "
                f"| {each['first_batch_s']} s | | | | |"
            )
        else:
            low, high = each["images_per_s_range"]
            expected = ", ".join(
                gigabytes(each.get(f"peak_device_bytes_by_{by}"))
                for by in ("compiler", "model")
            )
            lines.append(
                f"| {name} | {each['batch_size']} "
                f"| {each['images_per_s']} ({low}, {high}) | {each['first_step_s']} s "
                f"| {gigabytes(each['peak_device_bytes'])} | {expected} "
                f"| {percent(each['of_data_sheet'])} "
                f"| {percent(each['of_measured_matmul'])} |"
            )
        for kind, share in each.get("share_by_kind", {}).items():
            shares.append(f"| {name} | {kind} | {percent(share)} |")
    machine = next((each for each in found.values() if "device" in each), {})
    title = f"{found['date']}, {machine.get('device')}, jax {machine.get('jax')}"
    table = ["", "| stage | operations | share of the time |", "|-|-|-|", *shares]
    return "\n".join([title, "", *lines, *(table if shares else []), ""])


def gigabytes(size: int | None) -> str:
    """As 12.3 GB."""
    return "—" if size is None else f"{size / 1e9:.1f} GB"


def percent(share: float | None) -> str:
    """As 12.3%."""
    return "—" if share is None else f"{100 * share:.1f}%"


if __name__ == "__main__":
    main()
