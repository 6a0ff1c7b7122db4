"""Start-up time, memory and examples per second of the readers, as sets grow.

    python benchmarks/data.py --counts=10000,100000,1000000

Writes small latents (8x4x4 float32, means and deviations, with dataset.json) as an
uncompressed ZIP, and 4x4x4 ones as array_record, as often as asked for; latents of full
size (8x64x64) and PNGs of 64 and 512 pixels a few times. Each is measured in a process
of its own: seconds until a split is open, those until the first batch is there, the
process's peak memory over what it had before, and examples per second of 40 batches of
256, or fewer where they are large.

    python benchmarks/data.py --pytorch=/tmp/torch/bin/python

measures ZIPs alone, in turns with PyTorch's DataLoader (data_pytorch.py) run by an
interpreter that has PyTorch.
"""

import argparse
import contextlib
import functools
import io
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from edm_jax import data
from edm_jax.data.folders import Images, Original
from edm_jax.data.readers import Tfds

CLASSES = 1000
BATCH, SECONDS = 256, 5.0


class SmallLatents(tfds.core.GeneratorBasedBuilder):
    """Latents of 4x4x4, as many as the config says."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None
    BUILDER_CONFIGS: Any = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=str(n)) for n in (10_000, 100_000, 1_000_000)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(
            shape=(4, 4, 4), dtype=np.float32, encoding="bytes"
        )
        label = tfds.features.ClassLabel(num_classes=CLASSES)
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng(0)
        assert self.builder_config is not None
        for i in range(int(self.builder_config.name)):
            image = rng.standard_normal((4, 4, 4), np.float32)
            yield i, {"image": image, "label": i % CLASSES}


def write_zip(path: Path, count: int, size: int) -> None:
    """Latents (8, size, size), as the original code stores them."""
    rng, labels, raw = np.random.default_rng(0), [], io.BytesIO()
    np.save(raw, first := np.zeros((8, size, size), np.float32))
    header = raw.getvalue()[: -first.nbytes]
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            name = f"{i // 1000:05d}/img{i:08d}.npy"
            latents = rng.standard_normal(first.shape, np.float32)
            archive.writestr(name, header + latents.tobytes())
            labels.append([name, i % CLASSES])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def write_png_zip(path: Path, count: int, size: int) -> None:
    """Pictures of smooth noise, as the original code stores them."""
    rng, labels = np.random.default_rng(0), []
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
            whole, name = io.BytesIO(), f"{i // 1000:05d}/img{i:08d}.png"
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(whole, "PNG")
            archive.writestr(name, whole.getvalue())
            labels.append([name, i % CLASSES])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def write_pngs(path: Path, count: int, size: int) -> None:
    """Pictures of smooth noise in folders by class."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        place = path / f"{i % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(place / f"{i}.png")


def config(kind: str, place: str, workers: int) -> data.DataConfig:
    """Of what the other functions wrote; `kind` is zip:..., tfds:COUNT or png:SIZE."""
    form, _, rest = kind.partition(":")
    reader = {"zip": Original(heldout=0.0), "tfds": Tfds()}.get(form)
    if form == "png":
        reader = Images(resolution=min(64, int(rest)), heldout=0.0)
    name = f"small_latents/{rest}" if form == "tfds" else place
    data_dir = place if form == "tfds" else ""
    channels = 3 if form == "png" or "png" in rest else 4
    fields = ("train", "train", (0.0,) * channels, (1.0,) * channels)
    return data.DataConfig(name, data_dir, *fields, reader, num_workers=workers)


def peak_mb() -> float:
    """Of this process."""
    # getrusage() would count that of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1e3


def measure(kind: str, place: str, workers: int) -> dict[str, float]:
    """What one process finds."""
    import grain  # noqa: F401  (its import is not the reader's)

    chosen, before = config(kind, place, workers), peak_mb()
    start = time.perf_counter()
    chosen.reader.open(chosen, "train", CLASSES)
    opened = time.perf_counter() - start
    batches = data.train_batches(chosen, batch_size=BATCH, seed=0, num_classes=CLASSES)
    next(batches)
    first = time.perf_counter() - start
    begin, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < SECONDS:
        count += len(next(batches)["label"])
    return {"open": opened, "first": first, "memory": peak_mb() - before,
            "rate": count / seconds}  # fmt: skip


def main() -> None:
    """Write, measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="10000,100000")
    parser.add_argument("--tfds_counts", default="10000,100000")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument(
        "--pytorch", metavar="PYTHON", help="an interpreter that has it"
    )
    options = parser.parse_args()
    if options.pytorch:
        beside(options.pytorch, options.counts)
        return
    if options.one:
        kind, place, workers = options.one
        print(json.dumps(measure(kind, place, int(workers))))
        return
    print("| data | open, s | first batch, s | memory, MB | examples/s |\n|-|-|-|-|-|")
    with tempfile.TemporaryDirectory() as directory:
        for kind, place, workers in _made(
            Path(directory), options.counts, options.tfds_counts
        ):
            name = kind + (f", {workers} workers" if workers != "0" else "")
            row(name, [sys.executable, __file__, "--one", kind, str(place), workers])


def row(name: str, command: list[str]) -> None:
    """Runs a measurement, and prints a line of the table."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    m = json.loads(done.stdout.splitlines()[-1])
    print(f"| {name} | {m['open']:.2f} | {m['first']:.2f} | {m['memory']:,.0f} "
          f"| {m['rate']:,.0f} |", flush=True)  # fmt: skip


def beside(python: str, counts: str) -> None:
    """ZIPs read by this project and by PyTorch's DataLoader, in turns, twice."""
    script = str(Path(__file__).with_name("data_pytorch.py"))
    print("| data | open, s | first batch, s | memory, MB | examples/s |\n|-|-|-|-|-|")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "data.zip")
        makers: dict[str, Callable[[], object]] = {
            f"zip:{count} small": functools.partial(write_zip, path, int(count), 4)
            for count in counts.split(",")
        }
        makers["zip:2000 full"] = lambda: write_zip(path, 2000, 64)
        makers["zip:20000 png"] = lambda: write_png_zip(path, 20_000, 64)
        for kind, make in makers.items():
            make()
            for _ in range(2):
                for workers in ("0", "2"):
                    name = f"{kind}, {workers} workers"
                    ours = [sys.executable, __file__, "--one", kind, str(path), workers]
                    row(f"{name}: edm_jax", ours)
                    row(f"{name}: PyTorch", [python, script, str(path), workers])
            path.unlink()


def _made(
    directory: Path, counts: str, tfds_counts: str
) -> Iterator[tuple[str, Path, str]]:
    for count in counts.split(","):
        path = directory / f"{count}.zip"
        write_zip(path, int(count), 4)
        yield f"zip:{count} small", path, "0"
        path.unlink()
    write_zip(directory / "full.zip", 2000, 64)
    for workers in ("0", "2"):
        yield "zip:2000 full", directory / "full.zip", workers
    for size, count in ((64, 30_000), (512, 500)):
        write_pngs(directory / f"{size}", count, size)
        for workers in ("0", "2"):
            yield f"png:{size}", directory / f"{size}", workers
    for count in tfds_counts.split(","):
        builder = SmallLatents(config=count, data_dir=directory)
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(sys.stderr):  # not into the table
            builder.download_and_prepare(file_format="array_record")
        yield f"tfds:{count}", directory, "0"


if __name__ == "__main__":
    main()
