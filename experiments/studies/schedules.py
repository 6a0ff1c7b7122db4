"""Every learning-rate schedule on config G: each decay, with and without a ramp."""

import math

import configs
from edm_jax.studies import SAME, RunSpec, Variant, product, runs_of

DECAYS = [
    SAME,  # Eq. 67
    Variant("constant", {"optimizer.t_ref": math.inf}),
    Variant("cosine", {"optimizer.decay": "cosine"}),
    Variant("linear", {"optimizer.decay": "linear"}),
]
RAMPS = [SAME, Variant("no_ramp", {"optimizer.rampup_mimg": 0.0})]


def runs(workload: str) -> list[RunSpec]:
    """Four decays, twice."""
    reference = f"{configs.letter_path('g')}:{workload}"
    return runs_of("g", reference, product(DECAYS, RAMPS))
