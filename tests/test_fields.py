"""Settings check their own types and ranges, one sentence for each fault."""

import dataclasses
import math
from typing import Literal

import pytest

from edm_jax import fields
from edm_jax.fields import Bound, Count, Fraction, Index, Positive, Settings, Share


@dataclasses.dataclass(frozen=True)
class Room(Settings):
    count: Count = 1
    index: Index = 0
    rate: Positive = 1.0
    limit: Bound = 1.0
    part: Fraction = 0.0
    share: Share = 0.0
    on: bool = False
    word: Literal["one", "other"] = "one"
    lengths: tuple[Positive, ...] = ()

    def faults(self):
        if self.count == 13:
            yield "count=13 is unlucky."


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("count", (1, 10**9), (0, -1, 1.5, True, "1", None)),
        ("index", (0, 7), (-1, 0.5)),
        ("rate", (1e-9, 3), (0, -1, math.inf, math.nan, True, "1")),
        ("limit", (1e-9, math.inf), (0, -1, math.nan)),
        ("part", (0, 0.999), (-0.1, 1, math.nan)),
        ("share", (0, 1), (-0.1, 1.1)),
        ("on", (True, False), (1, "True")),
        ("word", ("one", "other"), ("two", 1)),
        ("lengths", ((), (0.1, 2), [1]), ((0.1, 0), (math.nan,), ("a",), 0.1)),
    ],
)
def test_a_field_takes_its_range_and_nothing_else(field, good, bad):
    for value in good:
        assert isinstance(fields.make(Room, "room", {field: value}), Room)
    for value in bad:
        with pytest.raises(ValueError, match=rf"^room\.{field}( has|=)") as error:
            fields.make(Room, "room", {field: value})
        assert str(error.value).endswith((".", "?"))


def test_whole_numbers_become_floats_and_lists_tuples():
    room = fields.make(Room, "room", {"rate": 3, "lengths": [1, 2]})
    assert repr((room.rate, room.lengths)) == "(3.0, (1.0, 2.0))"


def test_unknown_and_missing_fields_and_contradictions_are_named():
    for values, message in [
        ({"cuont": 1}, r"no field 'room.cuont'.* Did you mean 'count'"),
        ({"count": 13}, r"^room\.count=13 is unlucky\.$"),
        ({"word": "oter"}, r"one of 'one', 'other'\. Did you mean 'other'"),
    ]:
        with pytest.raises(ValueError, match=message):
            fields.make(Room, "room", values)
    bare = dataclasses.make_dataclass("Bare", [("x", int)], frozen=True)
    with pytest.raises(ValueError, match="bare.x is missing"):
        fields.make(bare, "bare", {})
