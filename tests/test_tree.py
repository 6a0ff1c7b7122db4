"""Nested dicts, flattened and nested again."""

import ml_collections
import pytest

from edm_jax import tree

NESTED = {"a": {"b": 1, "c": {"d": [2, 3]}}, "e": None}
FLAT = {"a/b": 1, "a/c/d": [2, 3], "e": None}


def test_flattening_and_nesting_are_inverses():
    assert tree.flatten(NESTED) == FLAT and list(tree.flatten(NESTED)) == list(FLAT)
    assert tree.unflatten(FLAT) == NESTED
    dotted = {name.replace("/", "."): leaf for name, leaf in FLAT.items()}
    assert tree.flatten(ml_collections.ConfigDict(NESTED), ".") == dotted
    assert tree.unflatten(dotted, ".") == NESTED
    assert tree.flatten({"a": {}}) == {} == tree.flatten({})


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["a//b"], [""], ["/a"]])
def test_a_name_without_a_place_of_its_own_is_refused(names):
    with pytest.raises(ValueError, match="has an empty part"):
        tree.unflatten(dict.fromkeys(names, 1))
