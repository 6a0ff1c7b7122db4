"""Reads metrics.jsonl; long files are thinned before parsing."""

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

KINDS = ("train", "dynamics", "heldout", "evaluation")
KEPT = 300  # records of a kind: more points would not be visible
MOST_NAMES = 5_000  # quantities of a kind
# The start of a line by RunDir.log, which gives kind and nimg without parsing.
_BEGINNING = re.compile(rb'\{"kind": "(\w+)", "step": \d+, "nimg": (\d{1,18})[,}]')

Line = tuple[int, int, bytes]  # nimg, its place in the file, its text


def read_metrics(
    path: Path, damage: list[Damage], faults: list[str]
) -> tuple[dict[str, Log], list[dict[str, str]]]:
    """Reads the records by kind, and the alerts, in order of nimg.

    A resumed run may log the same nimg twice: the later line counts. If a kind has more
    lines than KEPT, an even share of them is read, including the first and the last;
    alerts are all read. An incomplete last line, left by a kill, is not damage.
    """
    found: dict[str, dict[Any, Line]] = {kind: {} for kind in (*KINDS, "alert")}
    lines = opened(path, files.read_bytes, damage, b"").split(b"\n")
    for place, line in enumerate(lines, 1):
        told = faults if place < len(lines) else []
        kind, nimg = _kind_and_nimg(place, line, told)
        if kind in found:
            # Several alerts may have the same nimg.
            key = (nimg, line) if kind == "alert" else nimg
            found[kind][key] = nimg, place, line
    by_kind = {kind: [by[key] for key in sorted(by)] for kind, by in found.items()}
    alerts = [_alert(line, faults) for line in by_kind.pop("alert")]
    return {k: _log(_thinned(each), faults) for k, each in by_kind.items()}, alerts


def _kind_and_nimg(place: int, line: bytes, faults: list[str]) -> tuple[str, int]:
    """The kind and nimg of a line, parsed only if necessary; '' if it has none."""
    beginning = _BEGINNING.match(line)
    if beginning and line.endswith(b"}"):
        return beginning[1].decode(), int(beginning[2])
    if record := _parse(place, line, faults) if line.strip() else {}:
        kind, nimg = record.get("kind"), record.get("nimg")
        if isinstance(kind, str) and is_count(nimg):
            return kind, int(nimg or 0)
        unplaced = "has no valid nimg"
        wrong = unplaced if isinstance(kind, str) else "has no kind"
        faults.append(f"line {place} {wrong}")
    return "", 0


def _thinned(lines: list[Line]) -> list[Line]:
    stride = -(-len(lines) // KEPT) or 1
    kept = lines[::-1][::stride][::-1]
    return kept if kept[:1] == lines[:1] else lines[:1] + kept


def _parse(place: int, line: bytes, faults: list[str]) -> Json:
    """The record in a line; {} if it is incomplete or something else."""
    try:
        value = files.parse_json(line)
    except json.JSONDecodeError:
        faults.append(f"line {place} is not valid JSON")
    except ValueError as error:
        faults.append(f"line {place}: {error}")
    else:
        if isinstance(value, dict) and value:
            return value
        faults.append(f"line {place} is not a record")
    return {}


def _log(lines: Iterable[Line], faults: list[str]) -> Log:
    places, records = [], []
    names: dict[Name, None] = {}
    for nimg, place, line in lines:
        if not (record := _parse(place, line, faults)):
            continue
        record.pop("kind")
        wrong: list[str] = []
        found = numbers(record, wrong)
        faults += [f"line {place}: {fault}" for fault in wrong]
        if len(names.keys() | found.keys()) > MOST_NAMES:
            faults.append(f"line {place} is left out: it holds too many quantities")
            continue
        names |= dict.fromkeys(found)
        places.append(nimg)
        records.append(found)
    rows = [[record.get(name, math.nan) for name in names] for record in records]
    values = in_range(np.array(rows, np.float64).reshape(len(rows), len(names)))
    return Log(np.array(places, np.float64), dict(zip(names, values.T, strict=True)))


def numbers(
    record: Json | list, faults: list[str], name: Name = ()
) -> dict[Name, float | None]:
    """Every number of a nested record by the keys that lead to it."""
    found: dict[Name, float | None] = {}
    for key, value in record.items() if isinstance(record, dict) else enumerate(record):
        if isinstance(value, dict | list):
            found |= numbers(value, faults, (*name, key))
        elif value is None or type(value) in (int, float):
            found[(*name, key)] = value
        else:
            where = ".".join(map(str, (*name, key)))
            faults.append(f"{where} is {files.json_kind(value)}, not a number")
    return found


def _alert(line: Line, faults: list[str]) -> dict[str, str]:
    nimg, place, text = line
    fields = Fields(_parse(place, text, faults), faults, f"line {place}: ")
    said = {key: fields.text(key) for key in ("about", "message")}
    return {"nimg": str(nimg)} | {key: text for key, text in said.items() if text}
