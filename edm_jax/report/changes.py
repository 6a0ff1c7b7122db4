"""What differs between two configs, field by field."""

import json
from typing import Any

from edm_jax import files, tree
from edm_jax.report.runs import Json

IGNORED = ("letter", "title")


def _compact(value: Any) -> str:
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_compact, value))})"
    if isinstance(value, float) and value == round(value, 0) and abs(value) < 1e15:
        return str(int(value))
    return json.dumps(value).replace("Infinity", "inf")


def config_diff(before: Json, after: Json) -> list[str]:
    """List the fields that differ, as 'network.norm: group -> rms_group'.

    The letter and the title are not compared; a field that only one side has
    stands as '(absent)' on the other.
    """
    old, new = (
        {name: _compact(value) for name, value in tree.flatten(side, ".").items()}
        for side in (before, after)
    )
    names = [*new, *(name for name in old if name not in new)]
    sides = {name: (old.get(name), new.get(name)) for name in names}
    return [
        files.printable(f"{name}: {was or '(absent)'} -> {now or '(absent)'}")
        for name, (was, now) in sides.items()
        if was != now and name not in IGNORED
    ]
