"""EMA profiles: the weight of each moment of the training in an average (App. C).

NumPy float64 only. Time is counted in training images (nimg); any other unit works if it
is used consistently.
"""

import dataclasses
import functools
import hashlib
import json
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from edm_jax.ema.power import SIGMA_REL_SHORTEST, gamma_from_sigma_rel


class Profile:
    """A density over (0, t]: the weight that an average at time t gives to each moment.

    Subclasses are frozen dataclasses.
    """

    kind: ClassVar[str]

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Weight per image at time t of the weights at time τ, up to a factor."""
        raise NotImplementedError

    def edges(self, t: float) -> Sequence[float]:
        """Times at which the density or its slope jumps."""
        del t
        return ()

    def missing_mass(self, t: float) -> float:
        """The weight that an average at time t gives to the initial weights, at time 0."""
        del t
        return 0.0

    @property
    def label(self) -> str:
        """A few characters for file names and tables, such as power-0.050."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PowerProfile(Profile):
    """Power-function profile p(τ) ∝ τ^γ on (0, t]; its length σ_rel is relative to t.

    Raises:
        ValueError: σ_rel is outside [0.0001, 0.28867).
    """

    sigma_rel: float
    kind: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        if 0 < self.sigma_rel < SIGMA_REL_SHORTEST:
            raise ValueError(
                f"sigma_rel = {self.sigma_rel} averages over almost nothing: choose "
                f"{SIGMA_REL_SHORTEST} or more."
            )
        gamma_from_sigma_rel(self.sigma_rel)

    @functools.cached_property
    def gamma(self) -> float:
        """The exponent γ."""
        return gamma_from_sigma_rel(self.sigma_rel)

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Weight per image (γ+1) τ^γ / t^(γ+1) at time t of the weights at time τ."""
        age = np.asarray(tau, np.float64) / t
        inside = (age >= 0) & (age <= 1)
        gamma = self.gamma
        return np.where(inside, (gamma + 1) / t * np.clip(age, 0, 1) ** gamma, 0.0)

    @property
    def label(self) -> str:
        return f"power-{decimal(self.sigma_rel)}"


@dataclasses.dataclass(frozen=True)
class TraditionalProfile(Profile):
    """Exponential profile of half-life min(halflife, rampup·nimg) (App. B.1).

    halflife_mimg is in millions of images; rampup is a fraction of the images so far, at
    most 1, or inf for a constant half-life. Its density over (0, t] has the mass
    1 − 2^(−t/halflife); the rest is on the initial weights.

    Raises:
        ValueError: either is out of range.
    """

    halflife_mimg: float
    rampup: float = 0.05
    kind: ClassVar[str] = "traditional"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.halflife_mimg) and self.halflife_mimg > 0):
            raise ValueError(
                f"halflife_mimg = {self.halflife_mimg}: choose a finite value above 0."
            )
        if not (0 < self.rampup <= 1 or self.rampup == math.inf):
            raise ValueError(
                f"rampup = {self.rampup}: choose a fraction above 0 and up to 1, or inf."
            )

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Weight per image at time t of the weights at time τ, in closed form.

        rate(τ)·exp(−∫_τ^t rate) with rate(s) = ln 2 / min(halflife, rampup·s): a power of
        τ up to the knee at halflife/rampup, an exponential after it.
        """
        tau = np.asarray(tau, np.float64)
        inside = (tau > 0) & (tau <= t)
        tau = np.where(inside, tau, t)
        halflife, knee = self.halflife_mimg * 1e6, self._knee
        ramp = np.log(np.minimum(t, knee) / np.minimum(tau, knee)) / self.rampup
        flat = (np.maximum(t, knee) - np.maximum(tau, knee)) / halflife
        rate = math.log(2) / np.minimum(halflife, self.rampup * tau)
        return np.where(inside, rate * np.exp2(-ramp - flat), 0.0)

    def edges(self, t: float) -> Sequence[float]:
        """The knee, and times some half-lives before t, so that none is too short to see."""
        back = t - self.halflife_mimg * 1e6 * np.array([1, 2, 4, 8, 16, 32, 64])
        return [self._knee, *back[back > 0]]

    def missing_mass(self, t: float) -> float:
        """2^(−t/halflife) for a constant half-life; 0 with a rampup."""
        constant = self.rampup == math.inf
        return 2.0 ** -(t / (self.halflife_mimg * 1e6)) if constant else 0.0

    @property
    def label(self) -> str:
        rampup = "" if self.rampup == 0.05 else f"-{decimal(self.rampup)}"
        return f"traditional-{decimal(self.halflife_mimg)}{rampup}"

    @property
    def _knee(self) -> float:
        # Not 0 for a constant half-life, because we take its logarithm.
        return max(self.halflife_mimg * 1e6 / self.rampup, 1e-300)


@dataclasses.dataclass(frozen=True)
class UniformProfile(Profile):
    """Uniform average over (start_nimg, stop_nimg]; None is the time of the average.

    Raises:
        ValueError: the window is empty or starts before 0.
    """

    start_nimg: float
    stop_nimg: float | None = None
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        stop = math.inf if self.stop_nimg is None else self.stop_nimg
        if not 0 <= self.start_nimg < stop:
            raise ValueError(
                f"A uniform average over ({self.start_nimg}, {self.stop_nimg}] contains "
                "no images: choose a start of 0 or more, before the stop."
            )

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """1/(stop − start) inside the window, 0 outside."""
        tau = np.asarray(tau, np.float64)
        stop = self._stop(t)
        inside = (tau > self.start_nimg) & (tau <= stop)
        return np.where(inside, 1 / (stop - self.start_nimg), 0.0)

    def edges(self, t: float) -> Sequence[float]:
        return self.start_nimg, self._stop(t)

    @property
    def label(self) -> str:
        stop = "" if self.stop_nimg is None else f"-{self.stop_nimg:.17g}"
        return f"uniform-{self.start_nimg:.17g}{stop}"

    def _stop(self, t: float) -> float:
        if self.start_nimg >= t:
            raise ValueError(
                f"The window from nimg = {self.start_nimg:.0f} starts after the time of "
                f"the average, {t:.0f}: choose an earlier start."
            )
        return t if self.stop_nimg is None else min(t, self.stop_nimg)


@dataclasses.dataclass(frozen=True)
class TableProfile(Profile):
    """Piecewise linear weights through points (nimg, weight), zero outside them.

    Only the ratios of the weights matter.

    Raises:
        ValueError: nimg does not rise from 0 or more, or the weights are not finite, are
            negative, or are all zero.
    """

    nimg: tuple[float, ...]
    weight: tuple[float, ...]
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        object.__setattr__(self, "nimg", tuple(map(float, self.nimg)))
        object.__setattr__(self, "weight", tuple(map(float, self.weight)))
        x, w = np.array(self.nimg), np.array(self.weight)
        if len(x) < 2 or len(x) != len(w):
            raise ValueError(
                "A table of weights needs two points (nimg, weight) or more."
            )
        if not (np.isfinite(x).all() and x[0] >= 0 and (np.diff(x) > 0).all()):
            raise ValueError(
                "A table's nimg must be 0 or more, and rise from row to row."
            )
        if not (np.isfinite(w).all() and (w >= 0).all() and w.any()):
            raise ValueError(
                "A table's weights must be finite and 0 or more, and not all zero."
            )

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Linear between the points."""
        tau = np.asarray(tau, np.float64)
        ratio = np.array(self.weight) / max(self.weight)  # huge weights would overflow
        weight = np.interp(tau, self.nimg, ratio, left=0.0, right=0.0)
        return np.where(tau <= t, weight, 0.0)

    def edges(self, t: float) -> Sequence[float]:
        return self.nimg

    @property
    def label(self) -> str:
        points = json.dumps([self.nimg, self.weight]).encode()
        return f"table-{hashlib.sha256(points).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class FunctionProfile(Profile):
    """Weights from a named function of τ in nimg (an array), up to a factor.

    A file stores only its name.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray] | None = None
    kind: ClassVar[str] = "function"

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """The function's values up to t; raises ValueError if they are not weights."""
        if self.function is None:
            raise ValueError(
                f"Only the name of the function {self.name!r} was stored: pass the "
                "function itself."
            )
        tau = np.asarray(tau, np.float64)
        try:
            returned = np.asarray(self.function(tau), np.float64)
            weight = np.broadcast_to(returned, tau.shape)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"The function {self.name!r} of an array of nimg failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise ValueError(
                f"The weights that {self.name!r} returns must all be finite and at least "
                "0."
            )
        return np.where(tau <= t, weight, 0.0)

    def edges(self, t: float) -> Sequence[float]:
        """A grid, because a function may jump anywhere."""
        return [*(t * np.arange(1, 2049) / 2048)]

    @property
    def label(self) -> str:
        safe = "".join(c if c.isalnum() or c in "._" else "-" for c in self.name)
        return f"function-{safe}"


@dataclasses.dataclass(frozen=True)
class DecayProfile(Profile):
    """The average of a run at constant rate that stands for a decay of the rate.

    Suppose that the rate were multiplied by λ(τ), which falls from 1 at `start` to 0, and
    that the updates dU/dτ did not change. Then, by parts,
    θ(t) = θ(start) + ∫λ dU = ∫(−dλ/dτ) θ dτ, so each moment's weight is how much λ falls
    there; for checkpoints, w_i = λ_i − λ_(i+1) (WSM, arXiv 2507.17634). A real decay
    changes the updates, because it takes them at other weights.

    shape, for p = (τ − start) / (t − start): linear is λ = 1 − p, a uniform average;
    cosine is λ = (1 + cos πp) / 2, a half-wave sin πp. fraction is the decay's part of the
    training.

    Raises:
        ValueError: the shape is unknown, or the fraction is not in (0, 1].
    """

    shape: str
    fraction: float = 1.0
    kind: ClassVar[str] = "decay"

    def __post_init__(self) -> None:
        if self.shape not in _DECAYS:
            raise ValueError(f"shape = {self.shape!r}: choose {' or '.join(_DECAYS)}.")
        if not 0 < self.fraction <= 1:
            raise ValueError(
                f"fraction = {self.fraction}: choose one above 0 and up to 1."
            )

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """−dλ/dτ at time τ."""
        start = self._start(t)
        part = (np.asarray(tau, np.float64) - start) / (t - start)
        inside = (part > 0) & (part <= 1)
        fall = _DECAYS[self.shape](np.clip(part, 0, 1))
        return np.where(inside, fall / (t - start), 0.0)

    def edges(self, t: float) -> Sequence[float]:
        return [self._start(t)]

    @property
    def label(self) -> str:
        fraction = "" if self.fraction == 1 else f"-{decimal(self.fraction)}"
        return f"decay-{self.shape}{fraction}"

    def _start(self, t: float) -> float:
        return (1 - self.fraction) * t


# −dλ/dp of each shape of a decay λ(p) from 1 to 0.
_DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": np.ones_like,
    "cosine": lambda part: math.pi / 2 * np.sin(math.pi * part),
}


AnyProfile = (
    PowerProfile
    | TraditionalProfile
    | UniformProfile
    | TableProfile
    | FunctionProfile
    | DecayProfile
)
_KINDS: dict[str, Any] = {each.kind: each for each in typing.get_args(AnyProfile)}


def to_fields(profile: AnyProfile) -> dict[str, Any]:
    """A profile as JSON fields; the inverse of `from_fields`, except for functions."""
    fields = {f.name: getattr(profile, f.name) for f in dataclasses.fields(profile)}
    fields.pop("function", None)
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
    return kind(**rest)


def _is_a(annotation: Any, value: Any) -> bool:
    """Whether a JSON value fits a field's annotation."""
    if annotation == tuple[float, ...]:
        return isinstance(value, list) and all(_is_a(float, each) for each in value)
    # Not isinstance: in Python a bool is an int.
    numeric = annotation in (float, float | None) and type(value) in (int, float)
    absent = annotation == float | None and value is None
    return numeric or absent or (annotation is str and isinstance(value, str))


def decimal(value: float) -> str:
    """Three decimals, or as many as the value needs."""
    short = f"{value:.3f}"
    return short if float(short) == value else repr(float(value))
