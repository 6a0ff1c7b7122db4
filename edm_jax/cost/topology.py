"""What a run takes on TPUs that are not there, as their own compiler says.

libtpu compiles on any machine. The memory is that of its buffer assignment, which it
writes before the slow part, the generation of code; compiling ends there.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from edm_jax import files
from edm_jax.cost import ahead, chips, hlo, hours
from edm_jax.diffusion import flops
from edm_jax.train import trainer
from edm_jax.train.config import RunConfig

OnProgress = Callable[[str, float], None]  # (what is being done, seconds so far)
GIB = 2**30


class Compiled(NamedTuple):
    """What was read of one compilation."""

    device_kind: str
    devices: int
    chips: int
    hosts: int
    hbm_bytes: dict[str, int]  # by kind, on a device
    collectives: list[dict[str, Any]]
    cycles: int | None  # of a step, where code was generated
    seconds: float


def plan(
    config: RunConfig,
    name: str,
    cache: Path,
    on_progress: OnProgress = lambda *_: None,
    full: bool = False,
) -> dict[str, Any]:
    """Memory, traffic and time of a run's step on a topology.

    Args:
        config: the run's.
        name: such as 'v5e:4x4'.
        cache: the directory where compilations are kept.
        on_progress: takes the stage, and the seconds since the start.
        full: also generate code, which takes many times as long and as much memory, for
            the compiler's estimate of the time.

    Returns:
        What `describe.py --topology` prints.

    Raises:
        ValueError: the name is none, or the step does not compile.
        ImportError: libtpu is not installed.
    """
    asked = chips.Topology.of(name)
    name, chip = asked.name, asked.chip
    compiled = _compiled(config, name, cache, on_progress, full)
    per_chip = compiled.devices // compiled.chips
    memory = {k: round(v / GIB, 3) for k, v in compiled.hbm_bytes.items()}
    batch, parts = config.optimizer.batch_size, config.training.microbatches
    rows = batch // compiled.devices // parts
    limit = chip.hbm_gib / per_chip
    return {
        "topology": name,
        "device_kind": compiled.device_kind,
        "devices": compiled.devices,
        "chips": compiled.chips,
        "hosts": compiled.hosts,
        "step": {
            "compute_dtype": config.network.compute_dtype,
            "batch_size": batch,
            "microbatches": parts,
            "rows_per_device_and_microbatch": rows,
            "sharding": config.training.sharding,
            "remat": config.training.remat,
        },
        "hbm_gib_per_device": memory | {"total": round(sum(memory.values()), 3)},
        "hbm_gib_limit": limit,
        "fits": sum(compiled.hbm_bytes.values()) <= limit * GIB,
        "largest_rows_estimate": _largest_rows(config, compiled, limit * GIB),
        "collectives": compiled.collectives,
        "compile_seconds": round(compiled.seconds, 1),
    } | _time(config, compiled, asked.kind)


def _time(config: RunConfig, compiled: Compiled, kind: str) -> dict[str, Any]:
    """FLOPs by our own count, and the run's time.

    Of computation by the compiler's cycles where they and the clock are known, else at an
    assumed share of the peak; and of exchange, as if it did not overlap with computation.
    """
    clock_ghz = chips.CHIPS[kind].clock_ghz
    per_image = flops.train_flops(config.model)
    peak = flops.peak_flops(compiled.device_kind, "bfloat16")
    found: dict[str, Any] = {
        "tflops_per_step": round(per_image * config.optimizer.batch_size / 1e12, 2)
    }
    if peak is None or config.network.compute_dtype == "float32":
        return found
    # A v4's two devices are one to JAX on the machine itself.
    of_chip = peak * (2 if kind == "tpu7x" else 1)
    most = of_chip * compiled.chips / per_image
    assumed = hours.utilization(kind)
    rate = assumed * most
    found["assumed_utilization"] = assumed
    if compiled.cycles and clock_ghz:
        rate = config.optimizer.batch_size * clock_ghz * 1e9 / compiled.cycles
        del found["assumed_utilization"]
        found["cycles_per_step"] = compiled.cycles
        found["utilization_by_cycles"] = round(rate / most, 3)
    exchange = exchange_seconds(compiled.collectives, compiled.chips, kind)
    seconds = config.optimizer.batch_size / rate + exchange
    rate = config.optimizer.batch_size / seconds
    taken = config.total_steps * config.optimizer.batch_size / rate / 3600
    return found | {
        "seconds_per_step": round(seconds, 4),
        "of_which_exchange": round(exchange, 4),
        "images_per_s": round(rate, 1),
        "days": round(taken / 24, 2),
        "chip_hours": round(taken * compiled.chips, 1),
    }


def exchange_seconds(collectives: list[dict[str, Any]], count: int, kind: str) -> float:
    """The least time of a step's collectives, all links of a chip in use.

    Of n chips that each have or want b bytes, a gather or a scatter sends (n - 1) / n b
    out of each chip, and an all-reduce, which is both, twice that (Chan et al., 2007,
    "Collective communication: theory, practice, and experience", Table 1).
    """
    times = {"all-reduce": 2}
    sent = sum(times.get(c["kind"], 1) * c["bytes_a_step"] for c in collectives)
    return sent * (count - 1) / count / (1e9 * chips.CHIPS[kind].link_gb_per_s)


def _largest_rows(config: RunConfig, compiled: Compiled, limit: float) -> int:
    """Rows of a micro-batch on a device that would fit, if activations are linear.

    What is there for any number of rows is the state, the gradients (their sum over the
    micro-batches, and those of one), and weights that were gathered.
    """
    parts, batch = config.training.microbatches, config.optimizer.batch_size
    rows = batch // compiled.devices // parts
    leaves = jax.tree.leaves(trainer.abstract_state(config).params)
    gradient = 4 * sum(x.size for x in leaves)
    total = sum(compiled.hbm_bytes.values())
    half = config.network.compute_dtype != "float32"
    gathered = (0.5 if half else 1.0) * (config.training.sharding == "full")
    fixed = compiled.hbm_bytes["state and batch"] + gradient * (
        (2 if parts > 1 else 1) + gathered
    )
    each = max(total - fixed, 1) / rows
    most = int((limit - fixed) / each)
    # That a micro-batch can have: a divisor of the rows of a device.
    share = batch // compiled.devices
    return max(
        (n for n in range(1, share + 1) if share % n == 0 and n <= most), default=0
    )


def _compiled(
    config: RunConfig, name: str, cache: Path, on_progress: OnProgress, full: bool
) -> Compiled:
    """Compiles, or reads what was compiled before."""
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "libtpu is not installed, which compiles for TPUs: pip install -e '.[plan]'."
        )
    key = _key(config, name)
    place = cache / f"{key}{'-full' if full else ''}.json"
    if place.exists():
        return Compiled(**json.loads(place.read_text()))
    with tempfile.TemporaryDirectory() as dump:
        compiled = _compile(config, name, Path(dump), on_progress, full)
    cache.mkdir(parents=True, exist_ok=True)
    files.write_text(place, json.dumps(compiled._asdict()))
    return compiled


def _key(config: RunConfig, name: str) -> str:
    """Of all that the compiled step follows from: config, versions and our code."""
    digest = hashlib.sha256()
    versions = [importlib.metadata.version(each) for each in ("jax", "libtpu", "flax")]
    digest.update(json.dumps([config.to_dict(), name, versions]).encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(
    config: RunConfig, name: str, dump: Path, on_progress: OnProgress, full: bool
) -> Compiled:
    start = time.monotonic()
    said, wrong = dump / "stdout", dump / "stderr"
    with (
        said.open("w") as out,
        wrong.open("w") as err,
        subprocess.Popen(
            [sys.executable, "-m", "edm_jax.cost.ahead", name, str(dump)],
            env=os.environ | ahead.ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(config.to_dict()))
            process.stdin.close()
            # Written after the buffer assignment, and before code is generated.
            report = "*memory-usage-report.txt"
            while process.poll() is None and (full or not any(dump.glob(report))):
                lines = said.read_text().splitlines()
                stage = ("starting", "tracing", "compiling")[min(len(lines), 2)]
                on_progress(stage, time.monotonic() - start)
                time.sleep(0.5)
        finally:
            process.kill()
    if not any(dump.glob(report)) or (full and process.returncode):
        raise ValueError(_failure(wrong.read_text(), name))
    (assignment,) = dump.glob("*after_optimizations-buffer-assignment.txt")
    (program,) = dump.glob("*after_optimizations.txt")
    parts = config.training.microbatches
    timed = [hlo.cycles(path.read_text()) for path in dump.glob("*after_codegen.txt")]
    return Compiled(
        **json.loads(said.read_text().splitlines()[0]),
        hbm_bytes=hbm_bytes(assignment.read_text()),
        collectives=_traffic(program.read_text(), parts),
        cycles=timed[0][0] + parts * timed[0][1] if timed else None,
        seconds=time.monotonic() - start,
    )


def hbm_bytes(assignment: str) -> dict[str, int]:
    """A device's memory by kind, of the compiler's buffer assignment."""
    kinds = {"parameter": "state and batch", "preallocated-temp": "activations"}
    found = dict.fromkeys([*kinds.values(), "other"], 0)
    for size, rest in re.findall(
        r"^allocation \d+: size (\d+)(, .*)$", assignment, re.MULTILINE
    ):
        if re.search(r", color [1-9]", rest):
            continue  # of on-chip memory
        match = re.match(r", ([a-z-]+)", rest)
        found[kinds.get(match[1] if match else "", "other")] += int(size)
    return found


def _traffic(text: str, microbatches: int) -> list[dict[str, Any]]:
    """Bytes a step by kind of collective, and how often in it."""
    total: Counter[tuple[str, str, int]] = Counter()
    for each in hlo.collectives(text):
        times = microbatches if each.in_loop else 1
        total[each.kind, "+".join(sorted(each.dtypes)), times] += each.bytes * times
    return [
        {"kind": kind, "dtypes": dtypes, "times_a_step": times, "bytes_a_step": size}
        for (kind, dtypes, times), size in sorted(total.items())
    ]


def _failure(error: str, name: str) -> str:
    if match := re.search(r"Ran out of memory[^\n]*", error):
        return f"{name}: {match[0]}"
    lines = [line for line in error.splitlines() if line.strip()]
    why = lines[-1] if lines else "it was killed; is there too little memory here?"
    return f"--topology={name} does not compile: {why}"
