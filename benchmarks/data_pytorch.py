"""Batches of PyTorch's DataLoader from a ZIP of the original code's layout, as JSON.

    python benchmarks/data_pytorch.py FILE.zip WORKERS

Run by data.py --pytorch with an interpreter that has PyTorch, NumPy and Pillow: seconds
until the data set is open, those until the first batch, the peak memory of all processes
over what the first had before, and examples per second.
"""

import io
import json
import os
import re
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

BATCH, SECONDS = 256, 4.0


class Archive(torch.utils.data.Dataset):
    """Labelled files of a ZIP, which every process opens for itself."""

    def __init__(self, path):
        self.path, self.opened = path, None
        with zipfile.ZipFile(path) as archive:
            endings = (".png", ".npy")
            self.names = sorted(n for n in archive.namelist() if n.endswith(endings))
            self.labels = dict(json.loads(archive.read("dataset.json"))["labels"])

    def __len__(self):
        return len(self.names)

    def __getitem__(self, row):
        if self.opened is None:
            self.opened = zipfile.ZipFile(self.path)
        name = self.names[row]
        raw = self.opened.read(name)
        if name.endswith(".png"):
            image = np.asarray(Image.open(io.BytesIO(raw))).transpose(2, 0, 1)
            return torch.from_numpy(image.astype(np.float32)), self.labels[name]
        moments = torch.from_numpy(np.load(io.BytesIO(raw)))
        mean, std = moments.chunk(2)
        return mean + std * torch.randn_like(mean), self.labels[name]


def memory_mb():
    """Peak of this process and those it started."""
    peak = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            status = (place / "status").read_text()
        except OSError:
            continue
        own = re.search(r"^Pid:\t(\d+)$", status, re.MULTILINE)[1]
        parent = re.search(r"^PPid:\t(\d+)$", status, re.MULTILINE)[1]
        if str(os.getpid()) in (own, parent) and "VmHWM" in status:
            peak += int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e3
    return peak


def main():
    """Measure, and print."""
    path, workers = sys.argv[1], int(sys.argv[2])
    before, start = memory_mb(), time.perf_counter()
    data = Archive(path)
    opened = time.perf_counter() - start

    def batches():
        while True:
            yield from torch.utils.data.DataLoader(
                data, BATCH, shuffle=True, num_workers=workers, drop_last=True
            )

    stream = batches()
    next(stream)
    first = time.perf_counter() - start
    begin, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < SECONDS:
        count += len(next(stream)[1])
    memory = memory_mb() - before
    found = {"open": opened, "first": first, "memory": memory, "rate": count / seconds}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
