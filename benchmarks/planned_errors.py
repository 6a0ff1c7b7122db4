"""Planned errors of averages beside measured ones: python benchmarks/planned_errors.py.

A random walk and white noise of 2,048 steps against `ema.plan`'s predictions, in uniform,
geometric and thinned snapshots of {.05, .10}, updated at every step or every fourth.
--weights=OUT.npz adds weights that benchmarks/record_weights.py recorded. These do not
walk at random, so the plan's residual e is weighed with how far the weights at two times
are apart, D(i, j): the error is √(−½ Σ e_i e_j D(i, j)), with D measured on one half of
the weights and the error on the other. Prints Markdown, in float64.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from edm_jax import ema
from edm_jax.ema import plan
from edm_jax.ema.plan import Plan

STEPS, UNITS = 2048, 2000
TRACKED = (0.05, 0.10)
LENGTHS = (0.02, 0.03, 0.07, 0.15, 0.20, 0.25)


def reconstructed(path: np.ndarray, planned: Plan) -> dict[float, np.ndarray]:
    """Averages of each length made from what the plan stores."""
    averages, trees = {s: np.zeros(path.shape[1]) for s in TRACKED}, []
    times, every = set(planned.times), round(planned.update_interval)
    for i, weights in enumerate(path, 1):
        for s, average in averages.items():
            if i % every == 0:
                gamma = ema.gamma_from_sigma_rel(s)
                average += ema.power_weight(every, i, gamma) * (weights - average)
            if i in times:
                trees.append((i, s, {"w": average.copy()}))
    made = ema.reconstruct_trees(trees, LENGTHS, max_error=math.inf)
    return {s: made[s].params["w"] for s in LENGTHS}


def direct(path: np.ndarray, sigma_rel: float) -> np.ndarray:
    """The average of all weights."""
    ends = np.arange(len(path) + 1) / len(path)
    return np.diff(ends ** (ema.gamma_from_sigma_rel(sigma_rel) + 1)) @ path


def residual(planned: Plan, sigma_rel: float) -> np.ndarray:
    """What the plan's average weighs each step more than it should."""
    stored, end = planned.stored(planned.end), planned.end
    (found,) = ema.solve(stored, [(end, ema.PowerProfile(sigma_rel))])
    edges = np.arange(end + 1)
    mass = -((edges / end) ** (ema.gamma_from_sigma_rel(sigma_rel) + 1))
    for x, (time, profile) in zip(found.coefficients, stored, strict=True):
        mass += x * np.minimum(edges / time, 1.0) ** (profile.gamma + 1)
    return np.diff(mass)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def plans(steps: int) -> dict[str, Plan]:
    """The plans that are measured, by name."""
    whole = [tuple(map(float, range(k, steps + 1, k))) for k in (64, 16)]
    ratios = sorted({float(round(t)) for t in plan.geometric(steps, 40)})
    late = tuple(t for t in whole[1] if t > steps / 2 or t % 128 == 0)
    named = {
        "32 uniform": whole[0],
        "128 uniform": whole[1],
        "in ratios": tuple(ratios),
    }
    named |= {"thinned": late}
    found = {name: Plan(TRACKED, times) for name, times in named.items()}
    return found | {"every 4th step": Plan(TRACKED, whole[0], update_interval=4)}


def synthetic() -> None:
    """Prints measured errors relative to planned ones."""
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((STEPS, UNITS))
    walk = np.cumsum(steps, axis=0) / math.sqrt(STEPS)
    print("| snapshots | weights |" + "".join(f" {s:g} |" for s in LENGTHS))
    print("|-|-|" + "-|" * len(LENGTHS))
    worst = 1.0
    for name, planned in plans(STEPS).items():
        predicted = plan.predict(planned, LENGTHS)
        for kind, path in (("walk", walk), ("noise", steps)):
            if kind == "noise" and planned.update_interval > 1:
                continue  # an average of fewer of them is another one
            made, cells = reconstructed(path, planned), ""
            for each in predicted:
                exact = direct(path, each.sigma_rel)
                error = rms(made[each.sigma_rel] - exact)
                expected = each.walk_error
                if kind == "noise":
                    error, expected = error / rms(exact), each.fit_error
                ratio = error / expected
                worst = max(worst, ratio, 1 / ratio)
                cells += f" {expected:.1e} ({ratio:.2f}) |"
            print(f"| {name} | {kind} |{cells}")
    print(f"\nPlanned error (measured / planned); the worst is {worst:.3f}.")


def recorded(file: Path) -> None:
    """The same of recorded weights, whose motion is measured on half of them."""
    path = np.load(file)["path"].astype(np.float64)
    steps, units = path.shape
    shuffled = path[:, np.random.default_rng(0).permutation(units)]
    known, other = shuffled[:, : units // 2], shuffled[:, units // 2 :]
    square = np.mean(known**2, axis=1)
    apart = square[:, None] + square - 2 * known @ known.T / known.shape[1]
    print(f"\n{steps} steps of {units} weights:\n")
    print("| snapshots |" + "".join(f" {s:g} |" for s in LENGTHS))
    print("|-|" + "-|" * len(LENGTHS))
    worst = 1.0
    for count in (16, 32, 64):
        times = sorted(
            {float(math.ceil(steps * (i + 1) / count)) for i in range(count)}
        )
        planned = Plan(TRACKED, tuple(times))
        made, cells = reconstructed(other, planned), ""
        for s in LENGTHS:
            e = residual(planned, s)
            expected = math.sqrt(-0.5 * e @ apart @ e)
            ratio = rms(made[s] - direct(other, s)) / expected
            worst = max(worst, ratio, 1 / ratio)
            cells += f" {expected:.1e} ({ratio:.2f}) |"
        print(f"| {count} uniform |{cells}")
    print(
        f"\nPlanned error of a weight (measured / planned); the worst is {worst:.3f}."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="of record_weights.py")
    options = parser.parse_args()
    synthetic()
    if options.weights:
        recorded(options.weights)


if __name__ == "__main__":
    main()
