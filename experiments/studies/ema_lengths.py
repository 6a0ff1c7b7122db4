"""How rate and duration move the best EMA length of config G (Fig. 5a, 5c).

It also shows whether it matters which lengths are stored: runs that differ only in
`sigma_rels` have the same weights, so they differ only in the reconstruction.
"""

import configs
from edm_jax.studies import RunSpec, Variant, one_at_a_time, runs_of

STORED = [
    Variant("stored-.05", {"ema.sigma_rels": (0.05,)}),
    Variant("stored-.03-.10", {"ema.sigma_rels": (0.03, 0.10)}),
    Variant("stored-.05-.20", {"ema.sigma_rels": (0.05, 0.20)}),
    Variant("stored-.03-.08-.20", {"ema.sigma_rels": (0.03, 0.08, 0.20)}),
]


def runs(workload: str) -> list[RunSpec]:
    """G unchanged, then with one change each."""
    reference = f"{configs.letter_path('g')}:{workload}"
    config = configs.load(reference)
    rate, duration = config.optimizer.alpha_ref, config.training.duration_mimg
    rates = [
        Variant(f"rate-x{factor}", {"optimizer.alpha_ref": factor * rate})
        for factor in (0.5, 2)
    ]
    durations = [
        Variant(f"duration-x{factor}", {"training.duration_mimg": factor * duration})
        for factor in (0.25, 0.5)
    ]
    return runs_of("g", reference, one_at_a_time(STORED, rates, durations))
