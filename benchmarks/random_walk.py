"""Error of post-hoc reconstruction of a random walk, against averages tracked directly.

    python benchmarks/random_walk.py

A walk of 4,096 updates, tracked at every length directly (float64), and from 32, 128 and
512 float32 snapshots of {.05, .10}. Prints the relative RMS error of each length, beside
that of the paper's normal equations solved as they stand, and how far the profiles of
averages updated every 4 and 10 steps are from those updated at each.
"""

import numpy as np

from edm_jax import ema

UPDATES, BATCH, UNITS = 4096, 2048, 2000
TRACKED = (0.05, 0.10)
LENGTHS = (0.03, 0.05, 0.08, 0.10, 0.15, 0.20, 0.25)
COUNTS = (32, 128, 512)

Stored = list[tuple[int, float, np.ndarray]]  # (nimg, sigma_rel, weights)


def walk() -> tuple[dict[float, np.ndarray], dict[int, Stored]]:
    """Averages tracked directly, and the snapshots of each count."""
    rng = np.random.default_rng(0)
    theta = rng.standard_normal(UNITS)
    lengths = sorted({*LENGTHS, *TRACKED})
    averages = {s: np.zeros(UNITS) for s in lengths}
    stored: dict[int, Stored] = {count: [] for count in COUNTS}
    for update in range(1, UPDATES + 1):
        theta = theta + rng.standard_normal(UNITS) / np.sqrt(UPDATES)
        nimg = update * BATCH
        for s, average in averages.items():
            weight = ema.power_weight(BATCH, nimg, ema.gamma_from_sigma_rel(s))
            average += weight * (theta - average)
        for count in COUNTS:
            if update % (UPDATES // count) == 0:
                for s in TRACKED:
                    stored[count].append((nimg, s, averages[s].astype(np.float32)))
    return averages, stored


def plain_coefficients(profiles: list[tuple[int, float]], sigma_rel: float):
    """Alg. 3 to the letter, solve(A, b), of (nimg, sigma_rel)."""
    t, gamma = np.array([(t, ema.gamma_from_sigma_rel(s)) for t, s in profiles]).T
    gram = ema.inner_product(t[:, None], gamma[:, None], t, gamma)
    target = t[-1], ema.gamma_from_sigma_rel(sigma_rel)
    x = np.linalg.solve(gram, ema.inner_product(t, gamma, *target))
    return x / x.sum()


def plain(stored: Stored, sigma_rel: float) -> np.ndarray:
    """What these coefficients make, added up in float64."""
    x = plain_coefficients([(t, s) for t, s, _ in stored], sigma_rel)
    weights = np.stack([w for _, _, w in stored], axis=1).astype(np.float64)
    return (weights @ x).astype(np.float32)


def four_lengths() -> str:
    """What the two solves need for .08 from 256 snapshots of four lengths."""
    tracked = (0.03, 0.05, 0.10, 0.20)
    profiles = [((i + 1) * BATCH, s) for i in range(256) for s in tracked]
    (ours,) = ema.solve(
        [(t, ema.PowerProfile(s)) for t, s in profiles],
        [(profiles[-1][0], ema.PowerProfile(0.08))],
    )
    theirs = np.abs(plain_coefficients(profiles, 0.08)).sum()
    return (
        f"256 snapshots of {tracked} to .08: sum |x| {ours.sum_abs:.1f}, plain "
        f"{theirs:.0f}"
    )


def profile_difference(every: int, sigma_rel: float) -> float:
    """Largest difference of the mass up to any time, from updates at each step."""
    gamma = ema.gamma_from_sigma_rel(sigma_rel)
    ends = BATCH * every * np.arange(1, UPDATES // every + 1)
    mass = np.zeros(len(ends))
    for i, end in enumerate(ends):
        weight = ema.power_weight(every * BATCH, end, gamma)
        mass *= 1 - weight
        mass[i] = weight
    exact = (ends / ends[-1]) ** (gamma + 1)
    return float(np.max(np.abs(np.cumsum(mass) - exact)))


def main() -> None:
    """Measure and print, in Markdown."""
    averages, stored = walk()
    print("| σ_rel | " + " | ".join(f"{n} snapshots | plain" for n in COUNTS) + " |")
    print("|-|" + "-|-|" * len(COUNTS))
    made = {}
    for count in COUNTS:
        trees = [(t, s, {"w": w}) for t, s, w in stored[count]]
        made[count] = ema.reconstruct_trees(trees, LENGTHS)
    worse = 0
    for s in LENGTHS:
        cells, direct = [], averages[s]
        for count in COUNTS:
            ours = made[count][s].params["w"]
            errors = [
                np.linalg.norm(w - direct) / np.linalg.norm(direct)
                for w in (ours, plain(stored[count], s))
            ]
            worse += errors[0] > 1.001 * errors[1]
            cells += [f"{error:.2e}" for error in errors]
        print(f"| {s:.2f} | " + " | ".join(cells) + " |")
    print(f"\nworse than the plain solve by more than 0.1%: {worse} of 21")
    print(four_lengths())
    for every in (1, 4, 10):
        difference = max(profile_difference(every, s) for s in LENGTHS)
        print(f"updated every {every} steps: mass differs by at most {difference:.1e}")


if __name__ == "__main__":
    main()
