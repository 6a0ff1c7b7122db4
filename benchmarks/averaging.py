"""Averages of weights beside one another: on a quadratic, and on digits.

    python benchmarks/averaging.py

Each loop runs at a constant rate and stores its weights at intervals, and two power
functions. Then what each recipe makes of them, all at the end: the last weights, the best
checkpoint, a traditional EMA tracked at one length, LAWA and SWA of the checkpoints, and
averages made afterwards, from the two power functions and from the checkpoints alone. Of
these, and of the checkpoints, the validation set chooses; the table shows the test set.
NumPy, seconds.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sklearn.datasets import load_digits

from edm_jax.ema import PowerProfile
from edm_jax.foreign import solving
from edm_jax.foreign.kernels import Plain, Power, Tracked

STEPS, EVERY, SEEDS = 4000, 100, 5
LENGTHS = (0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25)
DECAY = 0.999  # of the EMA that is tracked
GAMMAS = tuple(PowerProfile(s).gamma for s in (0.05, 0.1))

Loss = Callable[[np.ndarray], float]


@dataclass
class Task:
    """A loop: initial weights, one noisy gradient, and losses to choose and to judge by."""

    weights: np.ndarray
    gradient: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    choose: Loss
    judge: Loss
    rate: float


@dataclass
class Record:
    """What a loop stored, and the EMA it tracked."""

    checkpoints: dict[int, np.ndarray] = field(default_factory=dict)
    averages: list[tuple[int, Tracked, np.ndarray]] = field(default_factory=list)
    tracked: np.ndarray | None = None


def quadratic(rng: np.random.Generator) -> Task:
    """½ Σ h (w - w*)², curvatures from 1 to 1e-3, gradients with noise √h."""
    size = 200
    h = np.geomspace(1e-3, 1, size)
    noise = np.sqrt(h)

    def gradient(w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return h * w + noise * rng.standard_normal(size)

    def loss(w: np.ndarray) -> float:
        return float(0.5 * (h * w**2).sum())

    return Task(rng.standard_normal(size) * 3, gradient, loss, loss, 0.1)


def digits(rng: np.random.Generator) -> Task:
    """Cross-entropy of a network of 64, 32 and 10 units on 8x8 digits; batches of 16."""
    x, y = load_digits(return_X_y=True)
    x = np.hstack([x / 8 - 1, np.ones((len(x), 1))])
    order = rng.permutation(len(x))
    train, valid, test = order[:900], order[900:1350], order[1350:]
    cut = 65 * 32

    def forward(w: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden = np.maximum(x @ w[:cut].reshape(65, 32), 0)
        logits = hidden @ w[cut:].reshape(32, 10)
        logits = logits - logits.max(axis=1, keepdims=True)
        return hidden, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def loss(rows: np.ndarray) -> Loss:
        return lambda w: float(
            -forward(w, x[rows])[1][np.arange(len(rows)), y[rows]].mean()
        )

    def gradient(w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rows = rng.choice(train, 16)
        hidden, logs = forward(w, x[rows])
        error = (np.exp(logs) - np.eye(10)[y[rows]]) / len(rows)
        back = (error @ w[cut:].reshape(32, 10).T) * (hidden > 0)
        return np.append((x[rows].T @ back).ravel(), (hidden.T @ error).ravel())

    start = np.append(
        rng.standard_normal(cut) / 8, rng.standard_normal(320) / np.sqrt(32)
    )
    return Task(start, gradient, loss(valid), loss(test), 0.1)


def run(task: Task, rng: np.random.Generator) -> Record:
    """Trains, in twelve lines, and stores what the recipes need."""
    record, w = Record(), task.weights.copy()
    powers = [w.copy() for _ in GAMMAS]
    record.tracked = w.copy()
    for step in range(1, STEPS + 1):
        w -= task.rate * task.gradient(w, rng)
        record.tracked += (1 - DECAY) * (w - record.tracked)
        for gamma, average in zip(GAMMAS, powers, strict=True):
            beta = (1 - 1 / (step + 1)) ** (gamma + 1) if step > 1 else 0.0
            average += (1 - beta) * (w - average)
        if step % EVERY == 0:
            record.checkpoints[step] = w.copy()
            for gamma, average in zip(GAMMAS, powers, strict=True):
                record.averages.append((step, Tracked(Power(gamma)), average.copy()))
    return record


def recipes(task: Task, record: Record) -> dict[str, np.ndarray]:
    """The weights of each recipe, at the end."""
    points = list(record.checkpoints.values())
    plain = [(float(step), Plain()) for step in record.checkpoints]
    stored = [(float(step), kernel) for step, kernel, _ in record.averages]
    held = np.stack([average for *_, average in record.averages])
    targets = [(float(STEPS), PowerProfile(s)) for s in LENGTHS]
    afterwards = [s.coefficients @ held for s in solving.solve(stored, targets)]
    alone = [s.coefficients @ np.stack(points) for s in solving.solve(plain, targets)]
    return {
        "last weights": points[-1],
        "best checkpoint": min(points, key=task.choose),
        f"EMA of decay {DECAY}": record.tracked,
        "LAWA, the last 5": np.mean(points[-5:], axis=0),
        "SWA, the second half": np.mean(points[len(points) // 2 :], axis=0),
        "afterwards, from two averages": min(afterwards, key=task.choose),
        "afterwards, from checkpoints": min(alone, key=task.choose),
    }


def main() -> None:
    """Print a table for each task: mean over seeds, and its standard error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="(%(default)s)")
    options = parser.parse_args()
    for name, make in (("quadratic", quadratic), ("digits", digits)):
        found: dict[str, list[float]] = {}
        for seed in range(options.seeds):
            rng = np.random.default_rng(seed)
            task = make(rng)
            record = run(task, rng)
            for recipe, weights in recipes(task, record).items():
                found.setdefault(recipe, []).append(task.judge(weights))
        print(f"{name}, {options.seeds} seeds: loss")
        for recipe, losses in found.items():
            error = np.std(losses, ddof=1) / np.sqrt(len(losses))
            print(f"  {recipe:30} {np.mean(losses):.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
