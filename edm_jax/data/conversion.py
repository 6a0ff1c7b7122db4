"""Data sets made once from pictures, arrays or latents: as TFDS data, or the original ZIP.

The work is done in parts. What is finished of them lies in OUT.unfinished, and is taken
over by the same call after any interruption; OUT itself is whole or absent.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import xxhash

from edm_jax import files
from edm_jax.data.order import epoch_order

if TYPE_CHECKING:
    from edm_jax.data.readers import Rows

_PART_BYTES, _MOST, _FEWEST, _PARTS = 2**28, 4096, 16, 16
_BATCH = 4  # images that are encoded at a time
OnProgress = Callable[[int, int], object]
Encode = Callable[[np.ndarray], np.ndarray]


class Source(NamedTuple):
    """A split that is converted."""

    name: str
    rows: "Rows"
    shape: tuple[int, ...]  # of what is stored, (H, W, C)
    dtype: np.dtype
    is_moments: bool  # whether images (H, W, 8) are a VAE's means and deviations
    classes: list[str] | None  # names
    num_classes: int  # 0: no labels


@dataclasses.dataclass
class Done:
    """What was made."""

    examples: dict[str, int]  # by split
    contents: str  # a fingerprint, of any order and form
    skipped: list[str]


class Form(Protocol):
    """How examples are stored."""

    shuffles: bool  # whether the examples' order may be changed

    def name(self, part: "Part") -> str:
        """Of a part's file."""
        ...

    def write(self, path: Path, examples: Iterator["Example"]) -> None:
        """Writes a part."""
        ...

    def finish(self, work: Path, out: Path, records: "Records", made: Done) -> None:
        """Makes OUT of finished parts."""
        ...


class Example(NamedTuple):
    """One example."""

    row: int
    image: np.ndarray  # (H, W, C)
    label: int


class Part(NamedTuple):
    """Some rows of a split."""

    split: str
    number: int
    among: int  # of the split's parts
    rows: np.ndarray

    @property
    def place(self) -> str:
        """'00003-of-00016'."""
        return f"{self.number:05d}-of-{self.among:05d}"


def convert(
    sources: list[Source],
    form: Form,
    out: Path,
    made_of: dict[str, Any],
    *,
    workers: int,
    on_bad: str = "stop",
    encode: Encode | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Done:
    """Converts splits, or resumes an interrupted conversion.

    Args:
        sources: the splits.
        form: what is made of them.
        out: a new file or folder.
        made_of: what the contents depend on; other contents are not mixed with them.
        workers: threads.
        on_bad: 'stop' or 'skip'.
        encode: (n, H, W, C) uint8 images to (n, h, w, 8) means and deviations.
        on_progress: takes the examples done and their number.

    Raises:
        FileExistsError: OUT is there, or the unfinished part of another conversion.
        ValueError: an example is bad, or none is good.
        OSError: the disk is full or failing; the same call resumes.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: remove it, or name another.")
    work = out.with_name(f"{out.name}.unfinished")
    _claim(work, made_of, out)
    parts = [part for i, each in enumerate(sources) for part in _parts(each, i, form)]
    by_name = {each.name: each for each in sources}
    total, finished = sum(len(part.rows) for part in parts), 0
    found: dict[str, dict[str, Any]] = {}
    waiting = []
    for part in parts:
        if (record := _record(work / form.name(part), on_bad)) is None:
            waiting.append(part)
        else:
            found[form.name(part)], finished = record, finished + len(part.rows)
    on_progress(finished, total)
    stop, lock = threading.Event(), threading.Lock()

    def one_done() -> None:
        nonlocal finished
        if stop.is_set():
            raise _Stopped
        with lock:
            finished += 1
            on_progress(finished, total)

    # One batch at a time, for the memory that it takes.
    alone = threading.Lock()

    def encoded(images: np.ndarray) -> np.ndarray:
        assert encode is not None
        with alone:
            return encode(images)

    def make(part: Part) -> None:
        path, source = work / form.name(part), by_name[part.split]
        found[path.name] = _make(
            source, part, form, path, on_bad, encode and encoded, one_done
        )

    with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as threads:
        futures = [threads.submit(make, part) for part in waiting]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            threads.shutdown(cancel_futures=True)
            raise
    records = [(part, found[form.name(part)]) for part in parts]
    made = Done(
        {each.name: 0 for each in sources},
        f"{sum(int(r['contents'], 16) for _, r in records) % 2**128:032x}",
        [why for _, r in records for why in r["skipped"]],
    )
    for part, record in records:
        made.examples[part.split] += record["examples"]
    for split, count in made.examples.items():
        if not count:
            last = made.skipped[-1] if made.skipped else "there are none."
            raise ValueError(f"No example of the split {split!r} is good: {last}")
    form.finish(work, out, records, made)
    return made


class _Stopped(Exception):
    """Another part has failed."""


def _claim(work: Path, made_of: dict[str, Any], out: Path) -> None:
    plan = work / "plan.json"
    if work.is_dir() and not plan.exists() and not any(work.iterdir()):
        work.rmdir()  # as a kill may leave it
    if not work.exists():
        work.mkdir(parents=True)
        files.write_json(plan, made_of)
    found = files.read_json(plan) if plan.exists() else None
    if found != json.loads(json.dumps(made_of)):
        differ = sorted(k for k in made_of if (found or {}).get(k) != made_of[k])
        raise FileExistsError(
            f"{work} holds the unfinished part of another conversion (another "
            f"{', '.join(differ) or 'kind'}): repeat that one, remove it, or name "
            f"another --out than {out}."
        )


def _parts(source: Source, place: int, form: Form) -> list[Part]:
    count = len(source.rows)
    rows = epoch_order(0, place, count) if form.shuffles else np.arange(count)
    size = min(
        _PART_BYTES // max(source.rows.image_bytes, 1), _MOST, -(-count // _PARTS)
    )
    pieces = np.split(rows, range(max(size, _FEWEST), count, max(size, _FEWEST)))
    return [Part(source.name, i, len(pieces), piece) for i, piece in enumerate(pieces)]


Records = list[tuple[Part, dict[str, Any]]]  # parts, and what is known of each


def beside(path: Path) -> Path:
    """Where a finished part's record is."""
    return path.with_name(f"{path.name}.json")


def _record(path: Path, on_bad: str) -> dict[str, Any] | None:
    """What is known of a finished part."""
    record = beside(path)
    if not (path.exists() and record.exists()):
        return None
    with contextlib.suppress(ValueError):
        found = files.read_json(record)
        whole = found.get("bytes") == path.stat().st_size
        if whole and not (found["skipped"] and on_bad == "stop"):
            return found
    return None


def _make(
    source: Source,
    part: Part,
    form: Form,
    path: Path,
    on_bad: str,
    encode: Encode | None,
    one_done: Callable[[], None],
) -> dict[str, Any]:
    """Writes a part, and then its record, which says that it is whole."""
    record = {"examples": 0, "contents": 0, "skipped": [], "labels": []}

    def good() -> Iterator[Example]:
        for row in part.rows.tolist():
            try:
                image, label = source.rows.read(np.array([row]))
            except ValueError as error:
                if on_bad == "stop":
                    raise
                record["skipped"].append(str(error))
                one_done()
            else:
                yield Example(row, image[0], int(label[0]))

    def stored() -> Iterator[Example]:
        for example in good() if encode is None else _encoded(good(), encode):
            record["examples"] += 1
            record["contents"] += digest(example)
            record["labels"].append([example.row, example.label])
            yield example
            one_done()

    temporary = path.with_name(f"{path.name}.writing")
    form.write(temporary, stored())
    os.replace(temporary, path)
    record["contents"] = f"{record['contents'] % 2**128:032x}"
    record["bytes"] = path.stat().st_size
    files.write_json(beside(path), record)
    return record


def _encoded(examples: Iterator[Example], encode: Encode) -> Iterator[Example]:
    """Means and deviations of images, a batch at a time, the last one filled up."""
    held: list[Example] = []

    def flush() -> Iterator[Example]:
        images = np.stack([each.image for each in held])
        filled = images[np.arange(_BATCH) % len(held)]
        moments = encode(filled)[: len(held)]
        for example, each in zip(held, moments, strict=True):
            yield example._replace(image=each)
        held.clear()

    for example in examples:
        held.append(example)
        if len(held) == _BATCH:
            yield from flush()
    if held:
        yield from flush()


def digest(example: Example) -> int:
    """128 bits of an example's contents: shape, type, values and label."""
    image = np.ascontiguousarray(example.image)
    form = f"{image.shape} {image.dtype} {example.label}"
    return xxhash.xxh3_128_intdigest(form.encode() + image.tobytes())
