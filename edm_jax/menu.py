"""Choices by name. A menu is a dict from names to frozen dataclasses, its entries.

An entry's fields are the config's fields, its docstring is its documentation, and its
method does the work. A name may also be FILE.py:CLASS, for a class in the user's file.
"""

import dataclasses
import functools
import os
import typing
from collections.abc import Mapping
from typing import Any

from edm_jax import fields, files
from edm_jax.fields import suggest

__all__ = [
    "Choosable",
    "Entry",
    "Word",
    "build",
    "choice",
    "choices",
    "describe",
    "suggest",
]
Menu = Mapping[str, Any]  # of classes, or of objects that need no settings


def choice(name: str, **settings: Any) -> dict[str, Any]:
    """A choice as a config holds it: the entry's name and the fields to set."""
    return {"name": name, **settings}


def entry(menu: Menu, path: str, name: str) -> type:
    """Returns the class that a name selects.

    Args:
        menu: the built-in entries.
        path: the config's field, such as 'optimizer.schedule', for messages.
        name: a key of the menu, or FILE.py:CLASS.

    Raises:
        ValueError: there is no such entry.
        FileNotFoundError: there is no such file.
    """
    if isinstance(name, str) and name in menu:
        return menu[name]
    file, colon, attribute = str(name).rpartition(":")
    if colon and file.endswith(".py"):
        if not os.path.exists(file):
            raise FileNotFoundError(f"There is no file {file!r} for {path}={name!r}.")
        found = _run(file).get(attribute)
        if found is None:
            raise ValueError(f"{path}={name!r}: {file} defines no {attribute}.")
        return found
    raise ValueError(
        f"{path} is {name!r}, but must be one of {', '.join(map(repr, menu))}, or "
        f"FILE.py:NAME.{suggest(name, menu)}"
    )


def build(menu: Menu, path: str, chosen: Any) -> Any:
    """Makes the entry that a config chooses, with its fields.

    Args:
        menu: the built-in entries.
        path: the config's field, for messages.
        chosen: `choice(...)`, the name alone, or an entry, which is returned unchanged.

    Raises:
        ValueError: there is no such entry, or a field is unknown, missing or invalid.
    """
    if dataclasses.is_dataclass(chosen):
        return chosen
    if isinstance(chosen, str):
        return fields.make(entry(menu, path, chosen), path, {})
    settings = dict(chosen)
    return fields.make(
        entry(menu, f"{path}.name", settings.pop("name")), path, settings
    )


@dataclasses.dataclass(frozen=True)
class Own:
    """An entry from the user's file, which is loaded on first use.

    An old run can thus be read without that file, as long as the entry is not used.
    """

    path: str  # the config's field, for messages
    name: str
    settings: tuple[tuple[str, Any], ...]

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(_built(self), attribute)


@functools.cache
def _built(own: Own) -> Any:
    return build({}, own.path, choice(own.name, **dict(own.settings)))


@dataclasses.dataclass(frozen=True, eq=False)
class Entry(fields.Choice):
    """The field holds an entry of a menu; the config holds the entry's name and fields.

    The menu is listed under the field's name, or under `title` if one is given.
    """

    menu: Menu
    title: str = ""

    def convert(self, path: str, value: Any) -> Any:
        settings = {"name": value} if isinstance(value, str) else value
        if not hasattr(settings, "items"):
            return settings
        settings = dict(settings.items())
        if "name" not in settings:
            raise ValueError(f"{path}.name is missing.")
        name = settings.pop("name")
        if not isinstance(name, str) or ".py:" not in name:
            return build(self.menu, path, choice(name, **settings))
        # Tuples, because an Own is hashed.
        held = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return Own(path, name, tuple(held.items()))

    def check(self, field: str, value: Any, kind: Any) -> None:
        if not isinstance(value, Own):
            super().check(field, value, kind)

    def plain(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Own):
            return choice(value.name, **dict(value.settings))
        names = {cls: name for name, cls in self.menu.items()}
        return choice(names[type(value)], **fields.plain(value))


@dataclasses.dataclass(frozen=True, eq=False)
class Word(fields.Choice):
    """The field holds the name of an entry, whose fields keep their defaults.

    With `several` it holds one or more names, separated by commas.
    """

    menu: Menu
    title: str = ""
    several: bool = False

    def convert(self, path: str, value: Any) -> Any:
        if isinstance(value, str):
            for name in value.split(",") if self.several else [value]:
                # As for `Own`, the user's file is read only when it is used.
                if ".py:" not in name:
                    entry(self.menu, path, name)
        return value


@dataclasses.dataclass(frozen=True)
class Choosable:
    """A field that chooses from a menu."""

    path: str  # dotted
    menu: Menu
    title: str
    kind: Any  # the type of its entries; None where the field holds only a name
    several: bool = False  # names, separated by commas

    @property
    def flag(self) -> str:
        """The field that holds the name."""
        return self.path if self.kind is None else f"{self.path}.name"

    def whole(self, chosen: Any) -> Any:
        """The choice with all its fields, defaults included.

        Raises:
            ValueError: there is no such entry, or a field is unknown, missing or invalid.
        """
        if self.kind is None:
            for name in str(chosen).split(",") if self.several else [chosen]:
                entry(self.menu, self.path, name)
            return chosen
        made = build(self.menu, self.path, chosen)
        fields.check(self.path, made, self.kind)
        return choice(chosen["name"], **fields.plain(made))


def choices(cls: type, path: str = "") -> dict[str, Choosable]:
    """{dotted field: its menu} of a settings dataclass and the ones nested in it."""
    found = {}
    for name, hint in fields.hints(cls).items():
        dotted = f"{path}.{name}" if path else name
        if isinstance(hint, type) and issubclass(hint, fields.Settings):
            found |= choices(hint, dotted)
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Entry | Word):
                kind = typing.get_args(hint)[0] if isinstance(note, Entry) else None
                title = note.title or name
                several = isinstance(note, Word) and note.several
                found[dotted] = Choosable(dotted, note.menu, title, kind, several)
    return found


def describe(menu: Menu) -> str:
    """Lists a menu: names, fields with their defaults, and first docstring lines."""
    lines = []
    for name, cls in menu.items():
        if not isinstance(cls, type):  # an entry without settings
            lines.append(f"{name}\n    {cls.about}")
            continue
        settings = ", ".join(
            f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}"
            for f in dataclasses.fields(cls)
            if f.name not in ("parent", "name")  # every Flax module has these
        )
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        lines.append(f"{name}({settings})\n    {summary}")
    return "\n".join(lines)


# Cached, so that a file named twice gives the same classes.
_run = functools.cache(files.run_python)
