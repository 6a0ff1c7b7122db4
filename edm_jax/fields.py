"""Settings that check themselves: frozen dataclasses whose annotations are their bounds.

@dataclasses.dataclass(frozen=True)
class Heun(Settings):
    num_steps: Count
    sigma_max: Positive = 80.0
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal


def suggest(word: str, words: Iterable[str]) -> str:
    """' Did you mean ...?' for a mistyped word, or '' if no word is similar."""
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


class Fault(ValueError):
    """A value that its field does not accept; the text begins with the field's name."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `closed` says which ends are included."""

    low: float
    high: float
    closed: str  # "[]", "[)", "(]" or "()"
    text: str  # completes "must be ..." in messages

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (self.closed[0] == "[" and value == self.low)
        below = value < self.high or (self.closed[1] == "]" and value == self.high)
        return above and below


_INF = math.inf
Finite = Annotated[float, Range(-_INF, _INF, "()", "finite")]
Positive = Annotated[float, Range(0, _INF, "()", "positive and finite")]
NotNegative = Annotated[float, Range(0, _INF, "[)", "finite and not negative")]
# Intervals and limits that inf turns off.
Bound = Annotated[float, Range(0, _INF, "(]", "positive; inf turns it off")]
Fraction = Annotated[float, Range(0, 1, "[)", "in [0, 1)")]
Share = Annotated[float, Range(0, 1, "[]", "in [0, 1]")]
Count = Annotated[int, Range(1, _INF, "[)", "at least 1")]
Several = Annotated[int, Range(2, _INF, "[)", "at least 2")]
Index = Annotated[int, Range(0, _INF, "[)", "0 or more")]


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Text that must be one of `words`, such as the keys of a table."""

    words: Collection[str]

    def __hash__(self) -> int:
        return hash(tuple(self.words))


class Choice:
    """An annotation of a field whose value is chosen by name; see `menu`."""

    def convert(self, path: str, value: Any) -> Any:
        """Turns what the config holds at `path` into the field's value."""
        raise NotImplementedError

    def check(self, field: str, value: Any, kind: Any) -> None:
        """Raises Fault if the value is not of the field's type."""
        _check_type(field, value, kind)

    def plain(self, value: Any) -> Any:
        """Turns the field's value into what a config holds; the inverse of `convert`."""
        return value


class Settings:
    """Base of frozen dataclasses that check their fields on construction."""

    def __post_init__(self) -> None:
        for field, hint in hints(type(self)).items():
            check(field, getattr(self, field), hint)
        for fault in self.faults():
            raise Fault(fault)

    def faults(self) -> Iterator[str]:
        """Yields contradictions as sentences that begin with a field's name."""
        return iter(())


def check(field: str, value: Any, hint: Any) -> None:
    """Raises Fault if a value has the wrong type or is outside its range."""
    kind, notes = hint, ()
    if typing.get_origin(hint) is Annotated:
        kind, *notes = typing.get_args(hint)
    for note in notes:
        if isinstance(note, Choice):
            note.check(field, value, kind)
            return
    if typing.get_origin(kind) is Literal:
        words = typing.get_args(kind)
        if value not in words:
            raise Fault(f"{field}={value!r}, {one_of(value, words)}")
        return
    if typing.get_origin(kind) is tuple:
        _check_type(field, value, tuple)
        for each in value:
            check(f"{field} has {each!r}, but each", each, typing.get_args(kind)[0])
        return
    if isinstance(kind, type):
        _check_type(field, value, kind)
    is_nan = isinstance(value, float) and math.isnan(value)
    for note in notes:
        if isinstance(note, OneOf) and value not in note.words:
            raise Fault(f"{field}={value!r}, {one_of(value, note.words)}")
        if isinstance(note, Range) and (is_nan or value not in note):
            said = field if " has " in field else f"{field}={value}, but"
            raise Fault(f"{said} must be {note.text}.")


def one_of(value: Any, words: Iterable[str]) -> str:
    """'but must be one of ...' for a word that is not among them."""
    words = list(words)
    listed = ", ".join(map(repr, words))
    return f"but must be one of {listed}.{suggest(value, words)}"


_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a tuple",
}


def _check_type(field: str, value: Any, kind: type) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if isinstance(value, bool) and kind in (int, float):
        fits = False
    if not fits:
        said = field if " has " in field else f"{field}={value!r}, but"
        raise Fault(f"{said} must be {_NAMES.get(kind, kind.__name__)}.")


def make(cls: type, path: str, values: Mapping[str, Any]) -> Any:
    """Makes a settings dataclass from a config's fields at `path`, such as 'optimizer'.

    Whole numbers become floats where the field is a float, lists become tuples, and
    groups of fields become the settings class in the annotation.

    Args:
        cls: the dataclass.
        path: where its fields are in the config; '' is the config itself.
        values: the fields.

    Returns:
        An instance of `cls`.

    Raises:
        ValueError: a field is missing or unknown, or its value is invalid.
    """
    known = hints(cls)
    prefix = f"{path}." if path else ""
    for name in values:
        if name not in known:
            has = f"; {path} has {', '.join(known) or 'none'}" if len(known) < 8 else ""
            near = suggest(name, known)
            raise ValueError(f"There is no field {prefix + name!r}{has}.{near}")
    for field in dataclasses.fields(cls):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise ValueError(f"{prefix}{field.name} is missing.")
    try:
        return cls(
            **{k: _converted(prefix + k, v, known[k]) for k, v in values.items()}
        )
    except Fault as fault:
        raise ValueError(f"{prefix}{fault}") from None


def plain(settings: Any) -> dict[str, Any]:
    """Turns a settings dataclass into nested dicts; the inverse of `make`."""
    found = {}
    for name, hint in hints(type(settings)).items():
        value = getattr(settings, name)
        for note in getattr(hint, "__metadata__", ()):
            if isinstance(note, Choice):
                value = note.plain(value)
        found[name] = plain(value) if isinstance(value, Settings) else value
    return found


def hints(cls: type) -> dict[str, Any]:
    """{field: annotation} of a dataclass, with the metadata of Annotated."""
    found = typing.get_type_hints(cls, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(cls)}


def _converted(path: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Annotated:
        kind, *notes = typing.get_args(hint)
        for note in notes:
            if isinstance(note, Choice):
                return note.convert(path, value)
        return _converted(path, value, kind)
    if isinstance(hint, type) and issubclass(hint, Settings):
        if isinstance(value, hint):
            return value
        if not hasattr(value, "items"):
            raise ValueError(f"{path}={value!r}, but must be a group of fields.")
        return make(hint, path, dict(value.items()))
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        each = typing.get_args(hint)[0]
        return tuple(_converted(path, v, each) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def number_list(option: str, text: str) -> list[float]:
    """'0.05,0.13' or '0.010,0.015,...,0.250' as numbers; raises ValueError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        if parts[-2:-1] != ["..."]:
            return [_finite(part) for part in parts]
        *first, before, start = (_finite(part) for part in parts[:-2])
        stop, step = _finite(parts[-1]), start - before
        count = round((stop - start) / step)
        if count < 1 or abs(start + count * step - stop) > 1e-6 * abs(step):
            raise ValueError
        # Rounded as a person would write them.
        rest = [float(f"{start + i * step:.10g}") for i in range(1, count + 1)]
        return [*first, before, start, *rest]
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"{option}={text!r} is not a list of numbers, such as 1,2 or 0.02,0.04,...,0.2."
        ) from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value
