"""The ladder of paper Table 1: config_a ... config_g, and what they are trained on.

`load` turns `configs/config_g.py:digits` and overrides into a locked ConfigDict.
"""

import ast
import importlib.util
import pathlib
from collections.abc import Mapping

import ml_collections

from edm_jax import menu
from edm_jax.models import ops

LETTERS = "abcdefg"


def load(
    reference: str, overrides: Mapping[str, str] | None = None
) -> ml_collections.ConfigDict:
    """The config of 'PATH.py:WORKLOAD' with dotted overrides, checked and locked.

    Raises ValueError or FileNotFoundError, one sentence that names the nearest right
    word, for a mistyped file, workload, field or value and for a contradiction.
    """
    path, _, workload = reference.partition(":")
    config = _get_config_function(pathlib.Path(path))(workload or "digits")
    for field, text in (overrides or {}).items():
        _override(config, field, text)
    ops.resolve_network(config)
    return config.lock()


def from_json(fields: Mapping) -> ml_collections.ConfigDict:
    """The locked config of a run's config.json, whose lists are tuples again."""

    def tuples(value):
        if isinstance(value, Mapping):
            return {key: tuples(each) for key, each in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ml_collections.ConfigDict(tuples(fields)).lock()


def letter_path(letter: str) -> pathlib.Path:
    """The file of a letter of the ladder."""
    return pathlib.Path(__file__).parent / f"config_{letter}.py"


def parent_letter(letter: str) -> str | None:
    """The letter before in the ladder; None before A."""
    return LETTERS[LETTERS.index(letter) - 1] if letter in tuple(LETTERS[1:]) else None


def _get_config_function(path: pathlib.Path):
    if not path.is_file():
        here = sorted(pathlib.Path(__file__).parent.glob("config_*.py"))
        near = menu.suggest(path.name, [p.name for p in here])
        raise FileNotFoundError(
            f"There is no config file {str(path)!r}; this project's are "
            f"{here[0].parent.name}/config_a.py to config_g.py.{near}"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} has no function get_config(workload).")
    return module.get_config


def _override(config: ml_collections.ConfigDict, field: str, text: str) -> None:
    flat = flatten(config)
    if field in ("letter", "workload"):
        raise ValueError(
            f"{field!r} follows from --config=FILE:WORKLOAD; name it there."
        )
    if field not in flat:
        near = menu.suggest(field, list(flat))
        raise ValueError(f"There is no field {field!r}.{near}")
    try:
        value = float(text) if text in ("inf", "-inf") else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text  # a bare word is a string
    old = flat[field]
    # ConfigDict would take None for anything and a bool for an int.
    fits = value is not None and isinstance(value, bool) == isinstance(old, bool)
    try:
        if not fits:
            raise TypeError
        config.update_from_flattened_dict({field: value})
    except (TypeError, ValueError):
        raise ValueError(
            f"{field}={text} is a {type(value).__name__}, but the field holds a "
            f"{type(old).__name__}, now {old!r}."
        ) from None


def flatten(config: Mapping, prefix: str = "") -> dict[str, object]:
    """{'network.dropout': 0.1, ...}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (Mapping, ml_collections.ConfigDict)):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
