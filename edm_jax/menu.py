"""Choices by name. A menu is a dict from names to frozen dataclasses, its entries.

An entry's fields are the config's fields, its docstring is its documentation, and its
method does the work. A name may also be FILE.py:CLASS, an entry of the user's own.
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
Menu = Mapping[str, Any]  # of classes, or of what needs no settings


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


@dataclasses.dataclass(frozen=True)
class Own:
    """An entry of the user's own, which its file gives when it is used first.

    So what a run left is read without that file, unless it is needed.
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
    """The field holds an entry of a menu, and the config its name and fields.

    The menu is listed by the field's name, or by `title` where that says more.
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
        # Tuples, because it is hashed.
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
    """The field holds the name of an entry, which has no fields or takes its defaults.

    several: it holds one or more, separated by commas.
    """

    menu: Menu
    title: str = ""
    several: bool = False

    def convert(self, path: str, value: Any) -> Any:
        if isinstance(value, str):
            for name in value.split(",") if self.several else [value]:
                # The user's own file is read when it is used, as for `Own`.
                if ".py:" not in name:
                    entry(self.menu, path, name)
        return value


@dataclasses.dataclass(frozen=True)
class Choosable:
    """A field that chooses from a menu."""

    path: str  # dotted
    menu: Menu
    title: str
    kind: Any  # what an entry must be; None where the field holds a name alone
    several: bool = False  # names, separated by commas

    @property
    def flag(self) -> str:
        """The field that holds the name."""
        return self.path if self.kind is None else f"{self.path}.name"

    def whole(self, chosen: Any) -> Any:
        """A choice with all its fields, as the entry holds them.

        Raises:
            ValueError: there is no such entry, or its fields do not fit.
        """
        if self.kind is None:
            for name in str(chosen).split(",") if self.several else [chosen]:
                entry(self.menu, self.path, name)
            return chosen
        made = build(self.menu, self.path, chosen)
        fields.check(self.path, made, self.kind)
        return choice(chosen["name"], **fields.plain(made))


def choices(cls: type, path: str = "") -> dict[str, Choosable]:
    """{dotted field: its menu} of a settings dataclass and of those that it holds."""
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
    """A menu as lines: names, fields with their defaults, and first docstring lines."""
    lines = []
    for name, cls in menu.items():
        if not isinstance(cls, type):  # an entry without settings
            lines.append(f"{name}\n    {cls.about}")
            continue
        settings = ", ".join(
            f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}"
            for f in dataclasses.fields(cls)
            if f.name not in ("parent", "name")  # of every Flax module
        )
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        lines.append(f"{name}({settings})\n    {summary}")
    return "\n".join(lines)


# Once: the classes of a file stay the same, however often it is named.
_run = functools.cache(files.run_python)
