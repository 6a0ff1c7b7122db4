"""Reading metrics.jsonl: whole where it is short, thinned before parsing where long."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax import files
from edm_jax.report.fields import Fields, in_range, is_count, opened
from edm_jax.report.runs import Damage, Json, Log, Name

KINDS = ("train", "dynamics", "heldout", "speed")
KEPT = 300  # records of a kind: more points cannot be seen
MOST_NAMES = 5_000  # quantities of a kind
# How RunDir.log begins a line, so that its kind and place are known unparsed.
_BEGINNING = re.compile(rb'\{"kind": "(\w+)", "step": \d+, "nimg": (\d{1,18})[,}]')

Line = tuple[int, int, bytes]  # nimg, its place in the file, its text
Found = dict[str, dict[Any, Line]]


def read_metrics(
    path: Path, damage: list[Damage], faults: list[str]
) -> tuple[dict[str, Log], list[dict[str, str]]]:
    """The records by kind, and the alerts, in order of nimg.

    A resumed run may log the same nimg twice: the later line counts. Of a kind with more
    lines than KEPT an even share of them is read, the first and the last among them; of
    alerts all are. A last line that a kill has torn is no damage.
    """
    found: Found = {kind: {} for kind in (*KINDS, "alert")}
    *lines, torn = opened(path, files.read_bytes, damage, b"").split(b"\n")
    for place, line in enumerate(lines, 1):
        _enter(found, place, line, faults)
    _enter(found, len(lines) + 1, torn, [])
    alerts = _sorted(found.pop("alert"))
    logs = {kind: _log(_thinned(_sorted(by)), faults) for kind, by in found.items()}
    return logs, [_alert(line, faults) for line in alerts]


def _enter(found: Found, place: int, line: bytes, faults: list[str]) -> None:
    """Sort a line by its kind and its nimg, parsed only if these are hidden."""
    beginning = _BEGINNING.match(line)
    if beginning and line.endswith(b"}"):
        kind, nimg = beginning[1].decode(), int(beginning[2])
    else:
        kind, nimg = _kind_and_place(place, line, faults)
    if kind in found:
        # Several alerts may be of the same moment.
        key = (nimg, line) if kind == "alert" else nimg
        found[kind][key] = nimg, place, line


def _kind_and_place(place: int, line: bytes, faults: list[str]) -> tuple[str, int]:
    """The kind and the nimg of a line; '' where it has none."""
    record = _parse(place, line, faults) if line.strip() else {}
    if not record:
        return "", 0
    kind, nimg = record.get("kind"), record.get("nimg")
    if not isinstance(kind, str):
        faults.append(f"line {place} is of no kind")
    elif not is_count(nimg):
        faults.append(f"line {place} does not say at how many images it was written")
    else:
        return kind, int(nimg or 0)
    return "", 0


def _sorted(by: dict[Any, Line]) -> list[Line]:
    return [by[key] for key in sorted(by)]


def _thinned(lines: list[Line]) -> list[Line]:
    stride = -(-len(lines) // KEPT) or 1
    kept = lines[::-1][::stride][::-1]
    return kept if kept[:1] == lines[:1] else lines[:1] + kept


def _parse(place: int, line: bytes, faults: list[str]) -> Json:
    """The record of a line; {} where it is torn or something else."""
    try:
        value = files.parse_json(line)
    except json.JSONDecodeError:
        faults.append(f"line {place} is not valid JSON")
        return {}
    except ValueError as error:
        faults.append(f"line {place}: {error}")
        return {}
    if isinstance(value, dict) and value:
        return value
    faults.append(f"line {place} is no record")
    return {}


def _log(lines: Iterable[Line], faults: list[str]) -> Log:
    places, records = [], []
    names: dict[Name, None] = {}
    for nimg, place, line in lines:
        if not (record := _parse(place, line, faults)):
            continue
        record.pop("kind")
        found: dict[Name, float | None] = {}
        wrong: list[str] = []
        numbers(record, (), found, wrong)
        faults += [f"line {place}: {fault}" for fault in wrong]
        if not found.keys() <= names.keys():
            if len(names.keys() | found.keys()) > MOST_NAMES:
                faults.append(f"line {place} is not read: it holds too many quantities")
                continue
            names |= dict.fromkeys(found)
        places.append(nimg)
        records.append(found)
    rows = [[record.get(name, math.nan) for name in names] for record in records]
    values = in_range(np.array(rows, np.float64).reshape(len(rows), len(names)))
    return Log(np.array(places, np.float64), dict(zip(names, values.T, strict=True)))


def numbers(
    record: Json | list, name: Name, found: dict[Name, float | None], faults: list[str]
) -> None:
    """Enter every number of a nested record by the keys that lead to it."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in items:
        kind = type(value)
        if kind is float or kind is int:
            found[(*name, key)] = value
        elif kind is dict or kind is list:
            numbers(value, (*name, key), found, faults)
        elif value is None:
            found[(*name, key)] = None
        else:
            where = ".".join(map(str, (*name, key)))
            faults.append(f"{where} is {files.json_kind(value)}, not a number")


def _alert(line: Line, faults: list[str]) -> dict[str, str]:
    nimg, place, text = line
    fields = Fields(_parse(place, text, faults), faults, f"line {place}: ")
    said = {key: fields.text(key) for key in ("about", "message")}
    return {"nimg": str(nimg)} | {key: text for key, text in said.items() if text}
