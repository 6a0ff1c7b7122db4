"""Every learning-rate schedule on config G: each decay, with and without a ramp."""

import configs
from edm_jax.studies import SAME, RunSpec, Variant, product, runs_of

DECAYS = [
    SAME,  # Eq. 67
    Variant("constant", {"optimizer.schedule.name": "constant"}),
    Variant("cosine", {"optimizer.schedule.name": "cosine"}),
    Variant("linear", {"optimizer.schedule.name": "linear"}),
]
RAMPS = [SAME, Variant("no_ramp", {"optimizer.warmup.name": "none"})]


def runs(workload: str) -> list[RunSpec]:
    """Four decays, twice."""
    reference = f"{configs.letter_path('g')}:{workload}"
    return runs_of("g", reference, product(DECAYS, RAMPS))
