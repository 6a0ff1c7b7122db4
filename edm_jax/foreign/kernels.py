"""What a stored file is an average of: the weight that it gives to each past moment.

Stated as P(τ), the share of all weights up to and including time τ. A checkpoint of plain
weights is 0 before its time and 1 from then on; an average that a training loop updates
follows from the loop's own decays, exactly, whatever their schedule.
"""

import dataclasses
import functools
from typing import Protocol

import numpy as np

_MAX_UPDATES = 2**25


class Kernel(Protocol):
    """An average stored at time t."""

    @property
    def label(self) -> str: ...
    def share(self, tau: np.ndarray, t: float) -> np.ndarray:
        """P(τ): the weight of all moments up to τ, for τ of any shape."""
        ...


@dataclasses.dataclass(frozen=True)
class Plain:
    """The weights themselves, at time t."""

    @property
    def label(self) -> str:
        return "weights"

    def share(self, tau: np.ndarray, t: float) -> np.ndarray:
        return np.where(tau >= t, 1.0, 0.0)


class Decay(Protocol):
    """A rule of decays: ln β of the c-th call, c = 1, 2, …; −inf where it copies."""

    @property
    def label(self) -> str: ...
    def log(self, call: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Power:
    """β = (1 − 1/(c+1))^(γ+1), as ema-pytorch's KarrasEMA; its first call copies.

    The rule is for an update at every call. Used at every k-th, as `update_every` does
    without adapting it, the average is nearly that of γ' = (γ+1)/k − 1.
    """

    gamma: float

    @property
    def label(self) -> str:
        return f"gamma {self.gamma:.4g}"

    def log(self, call: np.ndarray) -> np.ndarray:
        return np.where(
            call <= 1, -np.inf, (self.gamma + 1) * np.log1p(-1 / (call + 1))
        )


@dataclasses.dataclass(frozen=True)
class Traditional:
    """A constant decay behind a warm-up, of n = c − update_after − 1; copies where n <= 0.

    warmup 'inverse' is 1 − (1 + n/inv_gamma)^−power, as ema-pytorch's EMA, timm's and
    diffusers' (use_ema_warmup); 'tenths' is (1 + n)/(10 + n), as diffusers' without it;
    'none' is 1. β is that, at most `decay` and at least `min_decay`.

    Raises:
        ValueError: a value is out of range.
    """

    decay: float = 0.9999
    warmup: str = "inverse"
    update_after: int = 0
    min_decay: float = 0.0
    inv_gamma: float = 1.0
    power: float = 2 / 3

    def __post_init__(self) -> None:
        if not (0 <= self.min_decay <= 1 and 0 < self.decay < 1):
            raise ValueError(f"decay = {self.decay}: choose one between 0 and 1.")
        if self.warmup not in ("inverse", "tenths", "none"):
            raise ValueError(
                f"warmup = {self.warmup!r}: choose inverse, tenths or none."
            )
        if not (self.inv_gamma > 0 and self.power > 0):
            raise ValueError("inv_gamma and power must be above 0.")

    @property
    def label(self) -> str:
        return f"decay {self.decay:g}"

    def log(self, call: np.ndarray) -> np.ndarray:
        n = np.maximum(call - self.update_after - 1.0, 0.0)
        warm = {
            "inverse": 1 - (1 + n / self.inv_gamma) ** -self.power,
            "tenths": (1 + n) / (10 + n),
            "none": np.ones_like(n),
        }[self.warmup]
        beta = np.maximum(np.minimum(warm, self.decay), self.min_decay)
        with np.errstate(divide="ignore"):
            return np.where(n > 0, np.log(beta), -np.inf)


@dataclasses.dataclass(frozen=True)
class Tracked:
    """An average that a loop calls at the times start + 1, start + 2, …

    Of these calls the first and then every `every`-th update it.
    """

    decay: Decay
    every: int = 1
    start: int = 0

    @property
    def label(self) -> str:
        every = f", every {self.every}" if self.every > 1 else ""
        return f"{self.decay.label}{every}"

    def share(self, tau: np.ndarray, t: float) -> np.ndarray:
        """exp of the sum of ln β over the updates after τ and up to t."""
        before = self._updates(np.minimum(np.asarray(tau, np.float64), t))
        last = int(self._updates(np.asarray(t, np.float64)))
        sums, copies = _sums(self.decay, self.every, last)
        kept = copies[before] == copies[last]
        return np.where(kept, np.exp(sums[last] - sums[before]), 0.0)

    def _updates(self, time: np.ndarray) -> np.ndarray:
        """How many updates there were up to a time."""
        calls = np.floor((time - self.start - 1) / self.every).astype(np.int64) + 1
        return np.maximum(calls, 0)


def _sums(decay: Decay, every: int, updates: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of ln β, and numbers of copies, over the first 0, 1, … updates."""
    if updates > _MAX_UPDATES:
        raise ValueError(
            f"{updates:,} updates are too many: give times in optimizer steps, and "
            "update_every."
        )
    # The next power of two, so that the files of a series share one table.
    return _table(decay, every, 1 << max(updates, 1).bit_length())


@functools.lru_cache(maxsize=8)
def _table(decay: Decay, every: int, updates: int) -> tuple[np.ndarray, np.ndarray]:
    log = decay.log(1.0 + every * np.arange(updates, dtype=np.float64))
    copied = np.isneginf(log)
    sums = np.cumsum(np.where(copied, 0.0, log))
    return np.append(0.0, sums), np.append(0, np.cumsum(copied))
