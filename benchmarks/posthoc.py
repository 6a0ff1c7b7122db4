"""Bytes per second and memory of post-hoc reconstruction, beside a bare read.

    python benchmarks/posthoc.py --snapshots=64 --params=30000000 --targets=8

Writes snapshots x {.05, .10} of random weights, then measures, each in a process of its
own and with the files out of the page cache (--warm: in it, as far as it goes): a bare
read of the same files, all targets in one pass, and the obvious loop that loads every
file for every target. The loop is timed for one target and scaled. --against=CHECKOUT
measures the pass of another version in turns with this one. Beside other work on the same
processors only the seconds of CPU time can be compared.
"""

import argparse
import concurrent.futures
import itertools
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from edm_jax import ema
from edm_jax.ema import rebuild, snapshots

TRACKED = (0.05, 0.10)
LEAVES = 64  # of the network
HERE = Path(__file__).resolve().parent.parent


def targets(count: int) -> list[tuple[None, ema.PowerProfile]]:
    """Lengths spread over the range of the paper."""
    return [(None, ema.PowerProfile(float(s))) for s in np.linspace(0.03, 0.22, count)]


def make(directory: Path, count: int, params: int, dtype: str) -> None:
    """Stores snapshots of independent random weights."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(params, np.float32)
    bounds = np.linspace(0, params, LEAVES + 1).astype(int)
    for i in range(count):
        for k, sigma_rel in enumerate(TRACKED):
            row = np.roll(base, 1009 * (2 * i + k))
            tree = {f"{a:012d}": row[a:b] for a, b in itertools.pairwise(bounds)}
            profile = ema.PowerProfile(sigma_rel)
            meta = ema.SnapshotMeta(profile, (i + 1) * 2**23, 2048, "benchmark", dtype)
            snapshots.write(directory, tree, meta)


def forget(directory: Path) -> None:
    """Puts the files out of the page cache."""
    for path in directory.glob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def bare_read(directory: Path, threads: int) -> None:
    """Reads every file from its start to its end."""

    def read(path: Path) -> None:
        buffer = memoryview(bytearray(2**20))
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, sorted(directory.glob("*.safetensors"))))


def one_pass(directory: Path, out: Path, count: int) -> None:
    """All targets at once."""
    rebuild.run(directory, rebuild.Request(targets(count)), out)


def obvious_loop(directory: Path) -> None:
    """One target: loads each file whole, and adds it up."""
    plan = rebuild.prepare(directory, rebuild.Request(targets(1))).plan
    total = None
    for source, row in zip(plan.sources, plan.coefficients, strict=True):
        tree = safetensors.numpy.load_file(source.name)
        if total is None:
            total = {name: np.zeros(leaf.shape) for name, leaf in tree.items()}
        for name, leaf in tree.items():
            total[name] += row[0] * leaf


def measure(
    what: str, directory: Path, arguments: list[str], checkout: Path = HERE
) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak memory (GB) of a way, in a process of its own."""
    command = [sys.executable, str(checkout / "benchmarks/posthoc.py")]
    command += [f"--child={what}", f"--dir={directory}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        command + arguments,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds, memory = map(float, result.stdout.split())
    return seconds, cpu, memory


def peak_memory() -> int:
    """Bytes; ru_maxrss would count the parent's before this process began."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", text)[1])


def child(options: argparse.Namespace) -> None:
    """Prints seconds and peak memory of what the parent asks for."""
    directory = Path(options.dir)
    start = time.perf_counter()
    if options.child == "bare":
        bare_read(directory, 1)
    elif options.child == "threads":
        bare_read(directory, 4)
    elif options.child == "pass":
        with tempfile.TemporaryDirectory(dir=directory) as out:
            one_pass(directory, Path(out), options.targets)
            seconds = time.perf_counter() - start
        start = time.perf_counter() - seconds
    else:
        obvious_loop(directory)
    seconds = time.perf_counter() - start
    print(seconds, peak_memory() / 1e9)


def main() -> None:
    """Parse the command line, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snapshots", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--params", type=int, default=30_000_000, help="(%(default)s)")
    parser.add_argument("--targets", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--dtype", default="float32", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--dir", default="", help="where to put the files (a temporary)"
    )
    parser.add_argument("--warm", action="store_true", help="leave the page cache be")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="another version of this project",
    )
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    with tempfile.TemporaryDirectory(dir=options.dir or None) as name:
        directory = Path(name)
        make(directory, options.snapshots, options.params, options.dtype)
        files = list(directory.glob("*.safetensors"))
        total = sum(file.stat().st_size for file in files)
        print(f"{len(files)} files, {total / 1e9:.1f} GB, {options.targets} targets")
        ways = {
            "bare": "bare read, one thread",
            "threads": "bare read, four threads",
            "pass": "all targets in one pass",
            "loop": "obvious loop, for all targets",
        }
        if options.against:
            ways["before"] = f"one pass of {options.against}"
        rates: dict[str, list[float]] = {what: [] for what in ways}
        for _ in range(options.rounds):
            for what, name in ways.items():
                if not options.warm:
                    forget(directory)
                other = options.against.resolve() if what == "before" else HERE
                seconds, cpu, memory = measure(
                    "pass" if what == "before" else what,
                    directory,
                    [f"--targets={options.targets}"],
                    other,
                )
                seconds *= options.targets if what == "loop" else 1
                rates[what].append(total / seconds / 1e9)
                print(
                    f"{name}: {seconds:.1f} s, {cpu:.1f} s of CPU, "
                    f"{rates[what][-1]:.2f} GB/s, "
                    f"peak memory {memory:.2f} GB",
                    flush=True,
                )
        best = {what: float(np.median(rates[what])) for what in ways}
        print(
            f"one pass, median: {best['pass'] / best['bare']:.0%} of the bare read, "
            f"{best['pass'] / best['threads']:.0%} of four threads', "
            f"{best['pass'] / best['loop']:.1f} times the loop"
        )


if __name__ == "__main__":
    main()
