"""TPUs by name: what each chip has, and topologies such as v5e:4x4."""

import math
import re
from typing import NamedTuple

from edm_jax import fields


class Chip(NamedTuple):
    """A TPU, and the dimensions of its topologies' names."""

    hbm_gib: float  # that programs can use, of all its devices
    dimensions: int
    example: str
    clock_ghz: float | None  # None where the vendor does not state it
    link_gb_per_s: float  # out of a chip, all its links together
    devices: int = 1  # as the compiler counts them


CHIPS = {
    "v4": Chip(32.0, 3, "v4:2x2x1", 1.05, 300, 2),
    "v5e": Chip(15.75, 2, "v5e:4x4", 1.5, 200),
    "v5p": Chip(95.0, 3, "v5p:2x2x1", 1.75, 600),
    "v6e": Chip(31.25, 2, "v6e:2x2", None, 400),
    "tpu7x": Chip(192.0, 3, "tpu7x:2x2x1", None, 600, 2),
}


class Topology(NamedTuple):
    """The chips of a slice: KIND:AxB or KIND:AxBxC."""

    kind: str
    sides: tuple[int, ...]

    @classmethod
    def of(cls, name: str) -> "Topology":
        """Raises ValueError for a name that is none."""
        kind, _, sides = name.partition(":")
        kind = "tpu7x" if kind == "7x" else kind
        listed = ", ".join(chip.example for chip in CHIPS.values())
        if kind not in CHIPS:
            near = fields.suggest(kind, CHIPS) if kind else ""
            raise ValueError(
                f"--topology={name!r} is not a topology, such as {listed}.{near}"
            )
        chip = CHIPS[kind]
        if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.dimensions - 1}}}", sides):
            raise ValueError(
                f"--topology={name!r}: the chips of a {kind} lie in {chip.dimensions} "
                f"dimensions, such as {chip.example}."
            )
        return cls(kind, tuple(map(int, sides.split("x"))))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def shape(self) -> str:
        """Such as '4x4'."""
        return "x".join(map(str, self.sides))

    @property
    def name(self) -> str:
        """As libtpu knows it."""
        return f"{self.kind}:{self.shape}"

    @property
    def chips(self) -> int:
        return math.prod(self.sides)
