"""Choices by name. A menu is a dict from names to frozen dataclasses, its entries.

An entry's fields are the config's fields, its docstring is its documentation, and its
method does the work. A name may also be FILE.py:CLASS, an entry of the user's own.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

from edm_jax import fields, files
from edm_jax.fields import suggest

__all__ = ["Entry", "Word", "build", "choice", "choices", "describe", "suggest"]
Menu = Mapping[str, type]


def choice(name: str, **settings: Any) -> dict[str, Any]:
    """What a config holds for a choice: the entry's name and the fields that are set."""
    return {"name": name, **settings}


def entry(menu: Menu, path: str, name: str) -> type:
    """The class that a name stands for.

    Args:
        menu: the built-in entries.
        path: the config's field, such as 'optimizer.schedule', for messages.
        name: a key of the menu, or FILE.py:CLASS.

    Raises:
        ValueError: there is no such entry.
        FileNotFoundError: there is no such file.
    """
    if name in menu:
        return menu[name]
    file, colon, attribute = name.rpartition(":")
    if colon and file.endswith(".py"):
        if not os.path.exists(file):
            raise FileNotFoundError(f"There is no file {file!r} for {path}={name!r}.")
        found = _run(file).get(attribute)
        if found is None:
            raise ValueError(f"{path}={name!r}: {file} defines no {attribute}.")
        return found
    raise ValueError(
        f"{path} is {name!r}, but takes one of {', '.join(map(repr, menu))}, or "
        f"FILE.py:NAME.{suggest(name, menu)}"
    )


def build(menu: Menu, path: str, chosen: Any) -> Any:
    """The entry that a config chooses, with its fields.

    Args:
        menu: the built-in entries.
        path: the config's field, for messages.
        chosen: `choice(...)`, the name alone, or an entry, which is returned.

    Raises:
        ValueError: there is no such entry, or its fields do not fit.
    """
    if dataclasses.is_dataclass(chosen):
        return chosen
    if isinstance(chosen, str):
        return fields.make(entry(menu, path, chosen), path, {})
    settings = dict(chosen)
    return fields.make(
        entry(menu, f"{path}.name", settings.pop("name")), path, settings
    )


def whole(menu: Menu, path: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A choice with all its fields, as the entry holds them."""
    return {"name": chosen["name"], **dataclasses.asdict(build(menu, path, chosen))}


@dataclasses.dataclass(frozen=True)
class Entry(fields.Choice):
    """The field holds an entry of a menu, and the config its name and fields."""

    menu: Menu

    def convert(self, path: str, value: Any) -> Any:
        return build(self.menu, path, value)


@dataclasses.dataclass(frozen=True)
class Word(fields.Choice):
    """The field holds the name of an entry, which has no fields or takes its defaults."""

    menu: Menu

    def convert(self, path: str, value: Any) -> Any:
        if isinstance(value, str):
            entry(self.menu, path, value)
        return value


def choices(cls: type, path: str) -> dict[str, Menu]:
    """{dotted field: menu} of the entries that a settings dataclass chooses."""
    return {
        f"{path}.{name}": note.menu
        for name, hint in fields.hints(cls).items()
        for note in getattr(hint, "__metadata__", ())
        if isinstance(note, Entry)
    }


def describe(menu: Menu) -> str:
    """A menu as lines: names, fields with their defaults, and first docstring lines."""
    lines = []
    for name, cls in menu.items():
        settings = ", ".join(
            f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}"
            for f in dataclasses.fields(cls)
        )
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        lines.append(f"{name}({settings})\n    {summary}")
    return "\n".join(lines)


# Once: the classes of a file stay the same, however often it is named.
_run = functools.cache(files.run_python)
