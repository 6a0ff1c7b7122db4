"""What a study is made of: named runs, and the combinators that make lists of them."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAME = re.compile(r"\w[\w.=+,-]*")


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """A run of a study: its name there, a config reference, and overrides of it.

    seeds: one run for each, or for each that a launch asks for instead. variant: of a
    run that `by_seed` made, the name without the seed.
    """

    name: str
    config: str
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named change of a config: dotted fields and their values."""

    name: str
    fields: Mapping[str, Any]

    def __add__(self, other: "Variant") -> "Variant":
        """Both changes; raises ValueError where they set a field to two values."""
        for field, value in other.fields.items():
            if self.fields.get(field, value) != value:
                raise ValueError(
                    f"{self.name} and {other.name} both set {field}: to "
                    f"{self.fields[field]!r} and to {value!r}."
                )
        name = "-".join(part for part in (self.name, other.name) if part)
        return Variant(name, {**self.fields, **other.fields})


SAME = Variant("", {})  # the config as it is


def values(field: str, settings: Iterable[Any]) -> list[Variant]:
    """A variant for each value of a field, named by both: 'beta2=0.95'.

    A menu's field is called as the menu is: 'schedule=cosine'.
    """
    short = field.removesuffix(".name").rpartition(".")[2]
    return [
        Variant(
            f"{short}={v:.6g}" if isinstance(v, float) else f"{short}={v}", {field: v}
        )
        for v in settings
    ]


def rates(own: float, factors: Iterable[float]) -> list[Variant]:
    """Learning rates as multiples of a config's own, named by the factor: 'rate-x4'."""
    return [
        Variant(f"rate-x{x:.3g}", {"optimizer.alpha_ref": float(f"{x * own:.4g}")})
        for x in factors
    ]


def product(*axes: Sequence[Variant]) -> list[Variant]:
    """Every combination of one variant from each axis, the last axis running fastest."""
    return [sum(chosen, SAME) for chosen in itertools.product(*axes)]


def zipped(*axes: Sequence[Variant]) -> list[Variant]:
    """The first variants of all axes together, then the second, ...

    Raises ValueError where the axes differ in length.
    """
    lengths = sorted({len(axis) for axis in axes})
    if len(lengths) > 1:
        raise ValueError(f"zipped axes must be equally long; these have {lengths}.")
    return [sum(chosen, SAME) for chosen in zip(*axes, strict=True)]


def one_at_a_time(*axes: Sequence[Variant]) -> list[Variant]:
    """The config as it is, then each variant of each axis alone."""
    return [SAME, *itertools.chain(*axes)]


def runs_of(name: str, config: str, variants: Iterable[Variant]) -> list[RunSpec]:
    """A run of `config` for each variant, named NAME or NAME-VARIANT."""
    specs = []
    for variant in variants:
        whole = "-".join(part for part in (name, variant.name) if part)
        texts = {field: _text(value) for field, value in variant.fields.items()}
        specs.append(RunSpec(whole, config, texts))
    return specs


def by_seed(
    specs: Sequence[RunSpec], seeds: Sequence[int] | None = None
) -> list[RunSpec]:
    """Each run once for each seed, named NAME-seedN, seed by seed.

    A study that is stopped early then has whole rounds. Raises ValueError where two
    runs share a name, or a name cannot be a directory's.
    """
    for spec in specs:
        if not _NAME.fullmatch(spec.name):
            raise ValueError(
                f"The run name {spec.name!r} cannot name its directory: begin with a "
                "letter, digit or _, and use letters, digits and . _ = + , - only."
            )
        if "seed" in spec.overrides:
            raise ValueError(f"{spec.name} overrides seed: give it `seeds` instead.")
    rounds = itertools.zip_longest(*(seeds or spec.seeds for spec in specs))
    found = [
        dataclasses.replace(
            spec,
            name=f"{spec.name}-seed{seed}",
            overrides={**spec.overrides, "seed": str(seed)},
            seeds=(seed,),
            variant=spec.name,
        )
        for each in rounds
        for spec, seed in zip(specs, each, strict=True)
        if seed is not None
    ]
    names = [spec.name for spec in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two runs of the study are called {', '.join(twice)}.")
    return found


def _text(value: Any) -> str:
    """As an override on the command line."""
    return value if isinstance(value, str) else str(value).replace(" ", "")
