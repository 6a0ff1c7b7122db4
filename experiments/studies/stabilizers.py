"""One stabilizer at a time on config A, at a rate high enough to hurt.

Clipping, noise and penalties against 30 times A's own rate, and without any; A at its own
rate is the reference.
"""

import configs
from edm_jax.studies import SAME, RunSpec, Variant, product, rates, runs_of

FACTOR = 30  # of A's own alpha_ref
STABILIZERS = [
    Variant("plain", {}),
    Variant("value", {"optimizer.clip.name": "value", "optimizer.clip.limit": 0.01}),
    Variant(
        "global_norm",
        {"optimizer.clip.name": "global_norm", "optimizer.clip.limit": 1.0},
    ),
    Variant(
        "block_rms", {"optimizer.clip.name": "block_rms", "optimizer.clip.limit": 0.01}
    ),
    Variant("agc", {"optimizer.clip.name": "agc"}),
    Variant("zclip", {"optimizer.clip.name": "zclip"}),
    Variant("unit_norm", {"optimizer.clip.name": "unit_norm"}),
    Variant("noise", {"optimizer.noise.name": "annealed", "optimizer.noise.eta": 1e-6}),
    Variant(
        "decay",
        {"optimizer.penalty.name": "weight_decay", "optimizer.penalty.strength": 0.1},
    ),
    Variant("l1", {"optimizer.penalty.name": "l1", "optimizer.penalty.strength": 1e-5}),
    Variant("l2", {"optimizer.penalty.name": "l2", "optimizer.penalty.strength": 1e-4}),
    Variant("beta2", {"optimizer.method.beta2": 0.95}),
    Variant("skip", {"optimizer.nonfinite": "skip"}),
]


def runs(workload: str) -> list[RunSpec]:
    """A as it is, and A at the high rate with each stabilizer."""
    reference = f"{configs.letter_path('a')}:{workload}"
    high = rates(configs.load(reference).optimizer.alpha_ref, (FACTOR,))
    return runs_of("a", reference, [SAME, *product(high, STABILIZERS)])
