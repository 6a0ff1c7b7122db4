"""Calls to Optax as text: 'exponential_decay(init_value=1.0, transition_steps=1000)'."""

import ast
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from edm_jax.fields import suggest


def functions(*modules: ModuleType) -> dict[str, Callable[..., Any]]:
    """The public functions of modules by name; the first module with a name wins."""
    found: dict[str, Callable[..., Any]] = {}
    for module in modules:
        for name, value in inspect.getmembers(module, inspect.isfunction):
            if not name.startswith("_"):
                found.setdefault(name, value)
    return found


def arguments(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments."""
    return list(inspect.signature(function).parameters)


def parse(
    text: str, known: Mapping[str, Callable[..., Any]]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Parses a call whose keyword arguments are Python literals.

    Args:
        text: the call.
        known: the functions that it may name.

    Returns:
        The function and its keyword arguments.

    Raises:
        ValueError: `text` is not such a call, or the function has no such argument.
    """
    parsed = _parsed(text)
    if parsed is None:
        raise ValueError(
            f"{text!r} is not a call with named numbers, such as "
            "'NAME(first=1.0, second=2)'."
        )
    name, settings = parsed
    if name not in known:
        raise ValueError(f"Optax has no {name!r} to use here.{suggest(name, known)}")
    takes = arguments(known[name])
    for each in settings:
        if each not in takes:
            raise ValueError(
                f"{name} of Optax has no argument {each!r}; it has {', '.join(takes)}."
                f"{suggest(each, takes)}"
            )
    return known[name], settings


def _parsed(text: str) -> tuple[str, dict[str, Any]] | None:
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            return None
        if call.args or any(each.arg is None for each in call.keywords):
            return None
        return call.func.id, {
            str(each.arg): ast.literal_eval(each.value) for each in call.keywords
        }
    except (SyntaxError, ValueError):
        return None
