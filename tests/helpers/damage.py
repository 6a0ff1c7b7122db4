"""Damaged files against every command that reads them.

    python tests/helpers/damage.py [--all] [--only=TEXT,TEXT] [--base=DIRECTORY]

A case is a command, a file that it reads, and a way to damage that: those of the test by
default, a multiple of them with --times, every one (hours) with --all. A command must end within seconds, with
status 0 or with one sentence and status 2; say which file is damaged where it cannot be
overlooked; print nothing that acts on a terminal; and leave all other files as they were.
"""

import argparse
import dataclasses
import fnmatch
import hashlib
import itertools
import json
import select
import stat
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
sys.path[:0] = [str(HELPERS), str(HELPERS.parents[1])]

import damage_ways
import driven_run
from damage_base import BEGUN, DONE
from damage_ways import Damage

PATIENCE_S = 600.0  # with a process that does not answer
TOGETHER = 30  # damaged runs of one comparison


@dataclasses.dataclass(frozen=True)
class Reader:
    """A command, and the files that it reads: patterns below its directory.

    takes: what is copied of the base for each case. reads: {pattern: form}; all files
    of a pattern with `*` are damaged alike. writes: patterns of what it may change.
    quiet: patterns of what may be damaged without a word, as nothing is lost by it.
    together: whether many damaged runs can be read at once. count: cases of a sample.
    """

    command: str
    takes: tuple[str, ...]
    reads: dict[str, str]
    writes: tuple[str, ...] = ()
    quiet: tuple[str, ...] = ()
    together: bool = False
    count: int = 8


def _run(run: str, **forms: str) -> dict[str, str]:
    return {
        f"{run}/{n.replace('__', '/').replace('_', '.')}": f for n, f in forms.items()
    }


_ALL = {"config_json": "json", "status_json": "json", "changes_json": "json"}
_PICKLES = "pickles/edm2-digits-0002097-0.050.pkl"
_PICTURE = "pictures/img00000003.png"
_PICTURES = {_PICTURE: "png", "pictures/labels.csv": "rows", "pictures": "place"}
_SNAPSHOT = f"{DONE}/snapshots/power-0.050-000000000640.safetensors"


def _data(name: str) -> dict[str, str]:
    here = f"data/{name}/1.0.0"
    return {
        f"{here}/dataset_info.json": "json",
        f"{here}/features.json": "json",
        f"{here}/{name}-train.array_record*": "bytes",
        f"{here}/{name}-test.array_record*": "bytes",
        here: "place",
    }


_CHECKPOINTS = {
    f"{BEGUN}/checkpoints/{step}/{name}": "bytes"
    for step in ("34", "*")
    for name in (
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
        "extra/metadata",
        "state/_METADATA",
        "state/manifest.ocdbt",
        "state/ocdbt.process_0/manifest.ocdbt",
        "state/ocdbt.process_0/d/*",
        "state/d/*",
    )
} | {
    f"{BEGUN}/checkpoints{below}": "place"
    for below in ("", "/34", "/*", "/34/state", "/34/extra", "/*/state")
}
_TRAIN = (
    *(f"{BEGUN}/{name}" for name in ("config.json", "status.json", "metrics.jsonl")),
    *(f"{BEGUN}/{name}" for name in ("provenance.json", "changes.json")),
    f"{BEGUN}/checkpoints/*",
    f"{BEGUN}/claims/*",
)
_EVALUATE = tuple(
    f"{DONE}/{name}" for name in ("status.json", "evaluation.json", "samples.png")
)
READERS = [
    Reader(
        "train",
        (BEGUN,),
        _run(BEGUN, **_ALL, provenance_json="json", metrics_jsonl="jsonl")
        | {f"{BEGUN}/claims/0001.json": "json"}
        | {f"{BEGUN}/{name}": "place" for name in ("claims", "snapshots")}
        | _CHECKPOINTS,
        _TRAIN,
        quiet=("*/checkpoints/*", "*/claims/*"),
        count=10,
    ),
    Reader(
        "train with data",
        (BEGUN, "data"),
        _data("digits"),
        _TRAIN,
        quiet=("*/features.json",),  # of a data set that this project's code describes
    ),
    Reader("train with file", (BEGUN, "user"), {"user/my_config.py": "code"}, _TRAIN),
    Reader("describe", ("user",), {"user/my_config.py": "code"}),
    Reader(
        "evaluate",
        (DONE,),
        _run(DONE, **_ALL, metrics_jsonl="jsonl")
        | {_SNAPSHOT: "safetensors", f"{DONE}/snapshots": "place"}
        | {f"{DONE}/samples.png": "place", f"{DONE}/evaluation.json": "place"},
        _EVALUATE,
        quiet=(f"{DONE}/samples.png", f"{DONE}/evaluation.json"),  # what it makes
    ),
    Reader("evaluate with data", (DONE, "data"), _data("mine"), _EVALUATE),
    Reader(
        "sample",
        (DONE,),
        _run(DONE, config_json="json")
        | {_SNAPSHOT: "safetensors"}
        | {f"{DONE}/samples": "place", f"{DONE}/snapshots": "place"},
        (f"{DONE}/samples/*",),
    ),
    Reader(
        "sample of weights",
        (DONE,),
        {f"{DONE}/reconstructed/power-0.070*": "safetensors"},
        (f"{DONE}/samples/*",),
    ),
    Reader(
        "sweep",
        (DONE,),
        _run(DONE, config_json="json", sweeps__points_json="json")
        | {_SNAPSHOT: "safetensors"}
        | {f"{DONE}/sweeps": "place", f"{DONE}/snapshots": "place"},
        (f"{DONE}/sweeps/*",),
    ),
    Reader(
        "sweep --guide",
        (DONE, BEGUN),
        {
            f"{BEGUN}/config.json": "json",
            f"{BEGUN}/snapshots/*": "safetensors",
            f"{DONE}/sweeps/guided-pixel_frechet-points.json": "json",
            f"{BEGUN}/snapshots": "place",
        },
        (f"{DONE}/sweeps/*",),
        count=6,
    ),
    *(
        Reader(
            f"{command}{of}",
            (data, "user"),
            reads,
            count=5,
        )
        for command in ("init_config", "show_data")
        for of, data, reads in (
            ("", "pictures", _PICTURES),
            (" of a ZIP", "original.zip", {"original.zip": "zip"}),
            (" of arrays", "arrays.npz", {"arrays.npz": "npz"}),
        )
    ),
    Reader(
        "evaluate images",
        ("pictures", "features"),
        {f"{_PICTURE}": "png", "features/tiny.safetensors": "bytes"}
        | {"features/statistics.npz": "npz", "features": "place"},
        count=6,
    ),
    Reader(
        "evaluate arrays",
        ("arrays.npz", "features"),
        {"arrays.npz": "npz", "features/statistics.pkl": "bytes"},
        count=6,
    ),
    Reader(
        "reconstruct",
        (DONE,),
        _run(DONE, config_json="json")
        | {_SNAPSHOT: "safetensors"}
        | {f"{DONE}/reconstructed/power-0.070*": "safetensors"}
        | {f"{DONE}/reconstructed/.reconstruct.journal.partial": "json"}
        | {f"{DONE}/reconstructed/.power-0.060*": "bytes"}
        | {f"{DONE}/reconstructed": "place", f"{DONE}/snapshots": "place"},
        (f"{DONE}/reconstructed/*",),
        # What is made again.
        quiet=(f"{DONE}/reconstructed/*",),
        count=20,
    ),
    Reader(
        "reconstruct profile",
        (DONE, "user"),
        {"user/table.csv": "rows", "user/mine.py": "code"},
        (f"{DONE}/reconstructed/*",),
    ),
    Reader(
        "reconstruct originals",
        ("pickles", "runs"),
        {_PICKLES: "bytes", "runs/original-edm2-digits/originals.json": "json"}
        | {f"runs/original-edm2-digits/{name}.json": "json" for name in ("config",)},
        ("runs/*",),
    ),
    Reader(
        "compare",
        (DONE,),
        _run(DONE, **_ALL, provenance_json="json", metrics_jsonl="jsonl")
        | _run(DONE, evaluation_json="json", samples_png="png", log_txt="text"),
        quiet=(f"{DONE}/log.txt",),  # it may hold anything
        together=True,
        count=30,
    ),
    Reader(
        "compare --follow",
        (DONE,),
        _run(DONE, config_json="json", metrics_jsonl="jsonl", samples_png="png"),
        together=True,
        count=30,
    ),
    Reader(
        "launch --dry_run",
        (DONE, BEGUN, "user"),
        _run(BEGUN, **_ALL, claims__0001_json="json", slurm_json="json")
        | _run(DONE, evaluation_json="json")
        | {f"{BEGUN}/claims": "place", "study": "place", BEGUN: "place"}
        | {"user/my_study.py": "code"},
        quiet=("*/claims",),  # as if there were none
    ),
    Reader(
        "launch",
        (DONE, BEGUN, "user"),
        _run(BEGUN, **_ALL, claims__0001_json="json", log_txt="text"),
        (f"{BEGUN}/status.json", f"{BEGUN}/config.json", f"{BEGUN}/changes.json"),
        quiet=("*/claims/*", "*/log.txt"),
    ),
]


@dataclasses.dataclass(frozen=True)
class Case:
    """A command on a damaged file."""

    reader: Reader
    file: str
    damage: Damage

    @property
    def name(self) -> str:
        return f"{self.reader.command} | {self.file} | {self.damage.name}"


UNDAMAGED = Damage("undamaged")


def cases(base: Path) -> Iterator[Case]:
    """Every command with nothing damaged, then each file in each way."""
    for reader in READERS:
        yield Case(reader, "", UNDAMAGED)
        for pattern, form in reader.reads.items():
            file = min(base.glob(pattern))
            for damage in damage_ways.every(file, form):
                yield Case(reader, pattern, damage)


def sampled(found: Iterable[Case], times: int = 1) -> list[Case]:
    """Some cases of each command, always the same: each file's in turn."""
    by_file: dict[tuple[str, str], list[Case]] = {}
    for case in found:
        by_file.setdefault((case.reader.command, case.file), []).append(case)
    chosen = []
    for reader in READERS:
        turns = [
            sorted(of_it, key=lambda case: zlib.crc32(case.name.encode()))
            for (command, _), of_it in by_file.items()
            if command == reader.command
        ]
        rounds = itertools.zip_longest(*turns)
        in_turn = [case for each in rounds for case in each if case]
        chosen += in_turn[: reader.count * times]
    return chosen


# What must be as before


def contents(directory: Path) -> dict[str, str]:
    """A digest of every file below, or what it is instead."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and path.lstat().st_size < 2**30:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not stat.S_ISDIR(mode) or not any(path.iterdir()):
            found[name] = f"{stat.S_IFMT(mode):o}"
    return found


def lost(case: Case, code: int, before: dict[str, str], after: dict[str, str]) -> str:
    """A file that the command lost or changed though it was not to; else ''."""
    for name, digest in before.items():
        damaged = bool(case.file) and (
            fnmatch.fnmatch(name, case.file) or name.startswith(f"{case.file}/")
        )
        kept = after.get(name) == digest
        writes = any(fnmatch.fnmatch(name, each) for each in case.reader.writes)
        # What is not whole, and old checkpoints, may go.
        may_go = damaged or "/checkpoints/" in name or name.endswith(".partial")
        if kept or writes and (name in after or may_go):
            continue
        if code == 0 and damaged and writes:
            continue
        return name
    return ""


# The process that runs the cases is another one: it may hang, or crash.


class Worker:
    """A process that makes `base` and runs cases, started again if it does not answer."""

    def __init__(self, base: Path):
        self._base = base
        self._process: subprocess.Popen[str] | None = self._start()

    def run(self, chosen: Sequence[Case]) -> Iterator[tuple[Case, str]]:
        """Each case, and what is wrong with it; '' where nothing is."""
        for batch in _batches(chosen):
            yield from self._run(batch)

    def _run(self, batch: Sequence[Case]) -> Iterator[tuple[Case, str]]:
        found = self._ask(batch)
        if isinstance(found, str) and len(batch) > 1:
            middle = len(batch) // 2
            yield from self._run(batch[:middle])
            yield from self._run(batch[middle:])
        else:
            answers = [found] if isinstance(found, str) else found
            yield from zip(batch, answers, strict=True)

    def _ask(self, batch: Sequence[Case]) -> str | list[str]:
        """What is wrong with all of them together, or with each."""
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            print(json.dumps([c.name for c in batch]), file=process.stdin, flush=True)
        except BrokenPipeError:
            return self._ended()
        if not select.select([process.stdout], [], [], PATIENCE_S)[0]:
            self.close()
            return "hangs, and cannot be interrupted"
        answer = process.stdout.readline()
        return json.loads(answer) if answer else self._ended()

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, str(HELPERS / "damage_worker.py"), str(self._base)]
        pipe = subprocess.PIPE
        environ = driven_run.one_device()
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environ
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        self._process = process
        return process

    def _ended(self) -> str:
        assert self._process
        code = self._process.wait()
        self.close()
        return f"crashes the process (status {code})"

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _batches(chosen: Sequence[Case]) -> Iterator[list[Case]]:
    """Cases that one command can run: a comparison of many damaged runs."""
    for reader in READERS:
        of_it = [case for case in chosen if case.reader is reader]
        size = TOGETHER if reader.together else 1
        yield from (of_it[i : i + size] for i in range(0, len(of_it), size))


def main() -> None:
    """Run the cases and print those that fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument(
        "--times", type=int, default=1, help="multiplies the number of cases"
    )
    parser.add_argument(
        "--only", default="", help="cases whose names hold one of these"
    )
    parser.add_argument("--base", type=Path, help="keep what is damaged here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = (options.base or Path(temporary) / "base").resolve()
        worker = Worker(base)
        words = options.only.split(",")
        found = (c for c in cases(base) if any(word in c.name for word in words))
        chosen = list(found) if options.all else sampled(found, options.times)
        failed, start = 0, time.monotonic()
        for case, wrong in worker.run(chosen):
            if wrong:
                failed += 1
                print(f"{case.name}: {wrong}", flush=True)
        worker.close()
    seconds = time.monotonic() - start
    print(f"{len(chosen)} cases in {seconds:.0f} s, {failed} failed.")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
