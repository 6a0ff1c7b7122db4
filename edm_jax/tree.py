"""Nested dicts and their flat form, {'outer/inner': leaf}."""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Any, separator: str = "/", prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {'outer/inner': leaf}, in their order.

    Args:
        tree: a dict, or anything else with `items()`, of trees and leaves. An empty dict
            leaves no trace.
        separator: goes between the names.
        prefix: goes before every name.

    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if hasattr(value, "items"):
            flat |= flatten(value, separator, f"{prefix}{name}{separator}")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """{'outer/inner': leaf} -> nested dicts.

    The inverse of `flatten` where no name is empty or holds the separator.

    Raises:
        ValueError: a name has an empty part, or is both a leaf and a dict.
    """
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *outer, name = path.split(separator)
        node = nested
        for key in outer:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node
        if not all([*outer, name]) or not isinstance(node, dict) or name in node:
            raise ValueError(
                f"{path[:60]!r} has an empty part, or is both a leaf and a dict."
            )
        node[name] = leaf
    return nested
