"""Reading metrics.jsonl: whole where it is short, thinned before parsing where long."""

import json
import re
from pathlib import Path
from typing import Any

Record = dict[str, Any]

KINDS = ("train", "dynamics", "heldout", "speed", "alert")
KEPT = 300  # lines of a curve's kind: more points cannot be seen
# How RunDir.log begins a line, so that its kind and place are known unparsed.
_BEGINNING = re.compile(rb'\{"kind": "(\w+)", "step": \d+, "nimg": (\d+)[,}]')


def number(record: Record, *keys: str) -> float | None:
    """Follow keys into nested records; None unless a number lies there."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value


def read_metrics(path: Path) -> dict[str, list[Record]]:
    """Read metrics.jsonl by kind, in order of nimg; unreadable lines are skipped.

    A resumed run may log the same nimg twice: the later line counts. Of a kind with more
    lines than KEPT an even share of them is read, the first and the last among them; of
    alerts all are.
    """
    found: dict[str, dict[Any, bytes | Record]] = {kind: {} for kind in KINDS}
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _enter(found, line)
    return {
        kind: _parsed(by if kind == "alert" else _thinned(by))
        for kind, by in found.items()
    }


def _enter(found: dict[str, dict[Any, bytes | Record]], line: bytes) -> None:
    """Sort a line by its kind and its place, parsed only if these are hidden."""
    beginning = _BEGINNING.match(line)
    if beginning and line.endswith(b"}"):
        kind, nimg, record = beginning[1].decode(), float(beginning[2]), line
    else:
        record = _parse(line)
        kind, nimg = record.get("kind"), number(record, "nimg")
    if isinstance(kind, str) and kind in found and nimg is not None:
        # Several alerts may be of the same moment.
        found[kind][(nimg, line) if kind == "alert" else (nimg,)] = record


def _thinned(
    by: dict[Any, bytes | Record],
) -> dict[Any, bytes | Record]:
    keys = sorted(by)
    stride = -(-len(keys) // KEPT) or 1
    return {key: by[key] for key in keys[:1] + keys[::-1][::stride]}


def _parsed(by: dict[Any, bytes | Record]) -> list[Record]:
    lines = (by[key] for key in sorted(by))
    records = (_parse(s) if isinstance(s, bytes) else s for s in lines)
    return [record for record in records if record]


def _parse(line: bytes) -> Record:
    """The record of a line; {} where it is torn or something else."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
