"""EMA profiles: the weight of each moment of the training in an average (App. C).

NumPy float64 only. Time is counted in training images (nimg); any other unit works if it
is used consistently.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np

from edm_jax.ema import quadrature
from edm_jax.ema.power import SIGMA_REL_SHORTEST, gamma_from_sigma_rel
from edm_jax.ema.quadrature import Moments

NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


class Profile:
    """A density over (0, t]: the weight that an average at time t gives to each moment.

    Subclasses are frozen dataclasses, entries of `grammar.PROFILES`.
    """

    kind: ClassVar[str]
    form: ClassVar[str]  # how a command names it

    @classmethod
    def parse(cls, words: str) -> Self:
        """Reads what follows the entry's name and colon; raises ValueError."""
        raise NotImplementedError

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

    def moments(self, t: float) -> Moments:
        """Its mass, mean age and width at time t, the last two as fractions of t."""
        return quadrature.moments(self, t)

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
    form: ClassVar[str] = "power:SIGMA_REL"

    @classmethod
    def parse(cls, words: str) -> Self:
        return cls(*_numbers(rf"({NUMBER})", words, cls.form))

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

    def moments(self, t: float) -> Moments:
        del t
        return Moments(1.0, 1 / (self.gamma + 2), self.sigma_rel)

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
    form: ClassVar[str] = "halflife:MIMG[,RAMPUP]"

    @classmethod
    def parse(cls, words: str) -> Self:
        pattern = rf"({NUMBER})(?:,({NUMBER}|inf))?"
        return cls(*_numbers(pattern, words, cls.form))

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

    From a fixed image on, it is stochastic weight averaging (SWA, arXiv 1803.05407).

    Raises:
        ValueError: the window is empty or starts before 0.
    """

    start_nimg: float
    stop_nimg: float | None = None
    kind: ClassVar[str] = "uniform"
    form: ClassVar[str] = "uniform:FROM[-TO]"

    @classmethod
    def parse(cls, words: str) -> Self:
        pattern = rf"({NUMBER})(?:-({NUMBER})?)?"
        return cls(*_numbers(pattern, words, cls.form))

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
class LatestProfile(Profile):
    """Uniform average of the last last_nimg images, or of all where there are fewer.

    LAWA (arXiv 2209.14981) averages the last k checkpoints: where these are E images
    apart they stand for the last k·E images.

    Raises:
        ValueError: last_nimg is not positive and finite.
    """

    last_nimg: float
    kind: ClassVar[str] = "lawa"
    form: ClassVar[str] = "lawa:LAST"

    def __post_init__(self) -> None:
        if not 0 < self.last_nimg < math.inf:
            raise ValueError(
                f"The last {self.last_nimg} images: choose a finite number above 0."
            )

    @classmethod
    def parse(cls, words: str) -> Self:
        return cls(*_numbers(rf"({NUMBER})", words, cls.form))

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """1/last_nimg over (t − last_nimg, t]."""
        tau, start = np.asarray(tau, np.float64), self._start(t)
        return np.where((tau > start) & (tau <= t), 1 / (t - start), 0.0)

    def edges(self, t: float) -> Sequence[float]:
        return [self._start(t)]

    @property
    def label(self) -> str:
        return f"lawa-{self.last_nimg:.17g}"

    def _start(self, t: float) -> float:
        return max(t - self.last_nimg, 0.0)


@dataclasses.dataclass(frozen=True)
class DecayProfile(Profile):
    """The average of a run at constant rate that stands for a decay of the rate.

    Suppose that the rate were multiplied by λ(τ), which falls from 1 at `start` to 0, and
    that the updates dU/dτ did not change. Then, by parts,
    θ(t) = θ(start) + ∫λ dU = ∫(−dλ/dτ) θ dτ, so each moment's weight is how much λ falls
    there; for checkpoints, w_i = λ_i − λ_(i+1) (WSM, arXiv 2507.17634). A real decay
    changes the updates, because it takes them at other weights.

    shape, for p = (τ − start) / (t − start): linear is λ = 1 − p, a uniform average;
    cosine is λ = (1 + cos πp) / 2, a half-wave sin πp; 1-sqrt is λ = 1 − √p (arXiv
    2405.18392), which falls in a straight line up to p = 1/64, because −dλ/dp = 1/(2√p)
    is not square-integrable at 0 [choice: as 64 checkpoints would]. fraction is the
    decay's part of the training.

    Raises:
        ValueError: the shape is unknown, or the fraction is not in (0, 1].
    """

    shape: str
    fraction: float = 1.0
    kind: ClassVar[str] = "decay"
    form: ClassVar[str] = "decay:cosine|linear|1-sqrt|wsd[:FRACTION]"

    @classmethod
    def parse(cls, words: str) -> Self:
        shapes = "|".join([*_DECAYS, "wsd"])
        found = re.fullmatch(rf"({shapes})(?::({NUMBER}))?", words)
        if found is None:
            raise ValueError(f"write {cls.form}.")
        shape, fraction = found.groups()
        # Warmup-stable-decay is constant up to a linear tail (arXiv 2405.18392).
        usual = 0.2 if shape == "wsd" else 1.0
        shape = "linear" if shape == "wsd" else shape
        return cls(shape, float(fraction) if fraction else usual)

    def __post_init__(self) -> None:
        if self.shape not in _DECAYS:
            *most, last = _DECAYS
            raise ValueError(
                f"shape = {self.shape!r}: choose {', '.join(most)} or {last}."
            )
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
        start = self._start(t)
        bend = [start + _STRAIGHT * (t - start)] * (self.shape == "1-sqrt")
        return [start, *bend]

    @property
    def label(self) -> str:
        fraction = "" if self.fraction == 1 else f"-{decimal(self.fraction)}"
        return f"decay-{self.shape}{fraction}"

    def _start(self, t: float) -> float:
        return (1 - self.fraction) * t


_STRAIGHT = 1 / 64  # of the decay by 1 − √p
# −dλ/dp of each shape of a decay λ(p) from 1 to 0.
_DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": np.ones_like,
    "cosine": lambda part: math.pi / 2 * np.sin(math.pi * part),
    "1-sqrt": lambda part: np.where(
        part < _STRAIGHT, _STRAIGHT**-0.5, 0.5 / np.sqrt(np.maximum(part, _STRAIGHT))
    ),
}


def _numbers(pattern: str, words: str, form: str) -> list[float]:
    """The numbers in the groups of a pattern; raises ValueError where it does not match."""
    found = re.fullmatch(pattern, words)
    if found is None:
        raise ValueError(f"write {form}.")
    return [float(each) for each in found.groups() if each is not None]


def decimal(value: float) -> str:
    """Three decimals, or as many as the value needs."""
    short = f"{value:.3f}"
    return short if float(short) == value else repr(float(value))
