"""Profiles by name: their menu, their words on a command line, their fields in files."""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from edm_jax.ema.given import FunctionProfile, TableProfile
from edm_jax.ema.profiles import (
    NUMBER,
    DecayProfile,
    LatestProfile,
    PowerProfile,
    Profile,
    TraditionalProfile,
    UniformProfile,
)
from edm_jax.ema.quadrature import Moments
from edm_jax.fields import suggest

OneProfile = (
    PowerProfile
    | TraditionalProfile
    | UniformProfile
    | LatestProfile
    | DecayProfile
    | TableProfile
    | FunctionProfile
)
PROFILES: dict[str, type[OneProfile]] = {
    "power": PowerProfile,
    "halflife": TraditionalProfile,
    "uniform": UniformProfile,
    "lawa": LatestProfile,
    "decay": DecayProfile,
    "table": TableProfile,
    "function": FunctionProfile,
}
_SYNONYMS = {"exponential": "halflife", "swa": "uniform"}
_LONGEST_LABEL = 120  # characters, in a file's name


@dataclasses.dataclass(frozen=True)
class MixedProfile(Profile):
    """A sum of profiles Σ w_i p_i, each p_i scaled to unit mass; Σ w_i = 1.

    Negative weights extrapolate: 2 p_short − p_long lies beyond p_short as seen from
    p_long. The weights given are divided by their sum.

    Raises:
        ValueError: there are no parts or as many weights, or these are not finite or do
            not have a positive sum.
    """

    weights: tuple[float, ...]
    parts: tuple[OneProfile, ...]
    kind: ClassVar[str] = "mixed"
    form: ClassVar[str] = "A*PROFILE+B*PROFILE"

    def __post_init__(self) -> None:
        weights = np.array(self.weights, np.float64)
        if not len(weights) or len(weights) != len(self.parts):
            raise ValueError("A sum of profiles needs one weight for each of them.")
        total = weights.sum()
        if not (np.isfinite(weights).all() and total > 1e-9 * np.abs(weights).sum()):
            raise ValueError(
                f"The weights of a sum of profiles add up to {total:.6g}, but only a "
                "positive sum makes an average: write 2*power:0.02-power:0.1, for one."
            )
        if any(isinstance(part, MixedProfile) for part in self.parts):
            raise ValueError("A sum of profiles cannot hold another sum.")
        object.__setattr__(self, "weights", tuple((weights / total).tolist()))
        object.__setattr__(self, "parts", tuple(self.parts))

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Σ w_i p_i(τ), which has unit mass."""
        densities = [part.density(tau, t) / part.moments(t).mass for part in self.parts]
        return np.tensordot(self.weights, densities, 1)

    def edges(self, t: float) -> Sequence[float]:
        return [edge for part in self.parts for edge in part.edges(t)]

    def missing_mass(self, t: float) -> float:
        """Σ |w_i| times that of each part."""
        each = [part.missing_mass(t) for part in self.parts]
        return float(np.abs(self.weights) @ each)

    def moments(self, t: float) -> Moments:
        """Those of the sum; the width is NaN where negative weights leave none."""
        _, age, width = np.transpose([part.moments(t) for part in self.parts])
        mean = float(np.dot(self.weights, age))
        square = float(np.dot(self.weights, width**2 + age**2)) - mean**2
        return Moments(1.0, mean, math.sqrt(square) if square >= 0 else math.nan)

    @property
    def label(self) -> str:
        pairs = zip(self.weights, self.parts, strict=True)
        label = "mixed" + "".join(f"{w:+.4g}x{part.label}" for w, part in pairs)
        # Weights of more digits need a name of their own, too.
        exact = repr((self.weights, [part.label for part in self.parts])).encode()
        digest = hashlib.sha256(exact).hexdigest()[:8]
        if len(label) > _LONGEST_LABEL:
            return f"mixed-{digest}"
        rounded = any(float(f"{w:.4g}") != w for w in self.weights)
        return f"{label}-{digest}" if rounded else label


AnyProfile = OneProfile | MixedProfile
_KINDS: dict[str, Any] = {
    each.kind: each for each in (*PROFILES.values(), MixedProfile)
}


def parse(text: str) -> AnyProfile:
    """Reads a profile, such as 'power:0.1', 'decay:cosine' or '2*power:.02-power:.1'.

    In a sum each weight stands before its profile; they are divided by their sum.

    Raises:
        ValueError: the words are none of the menu's; Damaged, for a user's file.
    """
    names = "|".join([*PROFILES, *_SYNONYMS])
    term = rf"(?:^|(?<=.)(?=[+-]))\s*([+-]?)\s*(?:({NUMBER})\s*\*\s*)?({names}):"
    found = list(re.finditer(term, text))
    if not found or found[0].start():
        said = re.match(r"\s*[+-]?[^:*]*", text)
        near = suggest(said[0] if said else text, [*PROFILES, *_SYNONYMS])
        forms = ", ".join(each.form for each in PROFILES.values())
        raise ValueError(
            f"write {forms}, or a sum such as 2*power:0.02-power:0.1.{near}"
        )
    ends = [*(each.start() for each in found[1:]), len(text)]
    weights, parts = [], []
    for each, end in zip(found, ends, strict=True):
        sign, weight, name = each.groups()
        weights.append(float(f"{sign}{weight or 1}"))
        kind = PROFILES[_SYNONYMS.get(name, name)]
        parts.append(kind.parse(text[each.end() : end].strip()))
    mixed = MixedProfile(tuple(weights), tuple(parts))
    return parts[0] if len(parts) == 1 else mixed


def to_fields(profile: AnyProfile) -> dict[str, Any]:
    """A profile as JSON fields; the inverse of `from_fields`, except for functions."""
    fields = {f.name: getattr(profile, f.name) for f in dataclasses.fields(profile)}
    fields.pop("function", None)
    if isinstance(profile, MixedProfile):
        fields["parts"] = [to_fields(part) for part in profile.parts]
    return {"kind": profile.kind} | fields


def from_fields(fields: dict[str, Any]) -> AnyProfile:
    """The profile that `to_fields` wrote; raises ValueError for anything else."""
    rest = dict(fields)
    if (kind := _KINDS.get(str(rest.pop("kind", None)))) is None:
        raise ValueError(f"its profile is not one of {', '.join(_KINDS)}")
    types = {f.name: f.type for f in dataclasses.fields(kind) if f.name != "function"}
    for name in types.keys() ^ rest.keys():
        raise ValueError(f"the fields of its {kind.kind} profile are not {[*types]}")
    for name, value in rest.items():
        if not _is_a(types[name], value):
            raise ValueError(f"the {name} of its {kind.kind} profile has a wrong type")
    if kind is MixedProfile:
        held = rest["parts"]
        if any(part.get("kind") == MixedProfile.kind for part in held):
            raise ValueError("its mixed profile holds another")
        parts: Any = tuple(from_fields(part) for part in held)
        return MixedProfile(tuple(map(float, rest["weights"])), parts)
    return kind(**rest)


def _is_a(annotation: Any, value: Any) -> bool:
    """Whether a JSON value fits a field's annotation."""
    if annotation == tuple[float, ...]:
        return isinstance(value, list) and all(_is_a(float, each) for each in value)
    if annotation == tuple[OneProfile, ...]:
        return isinstance(value, list) and all(isinstance(part, dict) for part in value)
    # Not isinstance: in Python a bool is an int.
    numeric = annotation in (float, float | None) and type(value) in (int, float)
    absent = annotation == float | None and value is None
    return numeric or absent or (annotation is str and isinstance(value, str))
