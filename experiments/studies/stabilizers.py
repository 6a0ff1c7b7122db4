"""One stabilizer at a time on config A, at a rate high enough to hurt.

Clipping, noise, penalties, a longer warm-up and a shorter memory, compared with A at
FACTOR times its own rate without any of them; A at its own rate is the reference. The
limits are chosen by A's gradients there on digits: their RMS is 0.25 at first and 0.04 in
the median, which is a norm of 110 and 17 over 192,017 parameters.
"""

import configs
from edm_jax.studies import SAME, RunSpec, Variant, product, rates, runs_of

FACTOR = 120  # of A's own alpha_ref
STABILIZERS = [
    Variant("plain", {}),
    # Half the median norm; Adam is only affected by variations of the norm.
    Variant(
        "global_norm",
        {"optimizer.clip.name": "global_norm", "optimizer.clip.limit": 8.0},
    ),
    Variant("agc", {"optimizer.clip.name": "agc"}),
    Variant("zclip", {"optimizer.clip.name": "zclip"}),
    Variant("unit_norm", {"optimizer.clip.name": "unit_norm"}),
    Variant(
        "decay",
        {"optimizer.penalty.name": "weight_decay", "optimizer.penalty.strength": 0.1},
    ),
    Variant("beta2", {"optimizer.method.beta2": 0.95}),
    Variant("value", {"optimizer.clip.name": "value", "optimizer.clip.limit": 0.1}),
    Variant(
        "block_rms", {"optimizer.clip.name": "block_rms", "optimizer.clip.limit": 0.04}
    ),
    # A quarter of the median RMS.
    Variant("noise", {"optimizer.noise.name": "annealed", "optimizer.noise.eta": 1e-4}),
    # A fortieth of it, and as much for weights of 0.1.
    Variant("l1", {"optimizer.penalty.name": "l1", "optimizer.penalty.strength": 1e-3}),
    Variant("l2", {"optimizer.penalty.name": "l2", "optimizer.penalty.strength": 1e-2}),
]


def runs(workload: str) -> list[RunSpec]:
    """A as it is, and A at the high rate with each stabilizer."""
    reference = f"{configs.letter_path('a')}:{workload}"
    config = configs.load(reference)
    high = rates(config.optimizer.alpha_ref, (FACTOR,))
    longer = min(4 * config.optimizer.warmup.rampup_mimg, config.training.duration_mimg)
    warmup = Variant("warmup", {"optimizer.warmup.rampup_mimg": longer})
    return runs_of("a", reference, [SAME, *product(high, [*STABILIZERS, warmup])])
