"""Learning-rate schedules and warm-ups on configs C and G.

C's weights grow, which decays its effective rate by itself; G's are forced to keep their
norm, so that its schedule is all the decay there is. Each schedule is as long as the run,
at the config's own alpha_ref.
"""

import configs
from edm_jax.studies import SAME, RunSpec, Variant, runs_of

_SHAPE = "optimizer.schedule"
SHAPES = [
    SAME,  # constant for C, Eq. 67 for G
    Variant("constant", {f"{_SHAPE}.name": "constant"}),
    Variant("cosine", {f"{_SHAPE}.name": "cosine"}),
    Variant("linear", {f"{_SHAPE}.name": "linear"}),
    Variant("polynomial", {f"{_SHAPE}.name": "polynomial"}),
    Variant("step", {f"{_SHAPE}.name": "step", f"{_SHAPE}.multiplier": 0.3}),
    Variant("exponential", {f"{_SHAPE}.name": "exponential"}),
    Variant("restarts", {f"{_SHAPE}.name": "cosine_restarts"}),
    Variant("cyclical", {f"{_SHAPE}.name": "cyclical"}),
    *(
        Variant(
            f"stable_decay-{tail}",
            {f"{_SHAPE}.name": "warmup_stable_decay", f"{_SHAPE}.tail": tail},
        )
        for tail in ("linear", "cosine", "sqrt")
    ),
    Variant("plateau", {f"{_SHAPE}.name": "plateau"}),
    # It has a warm-up of its own.
    Variant(
        "one_cycle",
        {f"{_SHAPE}.name": "one_cycle", "optimizer.warmup.name": "none"},
    ),
]
WARMUPS = [
    Variant(f"warmup-{name}", {"optimizer.warmup.name": name})
    for name in ("none", "cosine", "exponential")
]


def runs(workload: str) -> list[RunSpec]:
    """Every schedule with the config's warm-up, and every warm-up with its schedule."""
    specs = []
    for letter in "cg":
        reference = f"{configs.letter_path(letter)}:{workload}"
        rampup = configs.load(reference).optimizer.warmup.rampup_mimg
        ramps = [
            each
            if each.fields["optimizer.warmup.name"] == "none"
            else each + Variant("", {"optimizer.warmup.rampup_mimg": rampup})
            for each in WARMUPS
        ]
        own = configs.load(reference).optimizer.schedule
        shapes = [
            each
            for each in SHAPES
            if not (each.name == "constant" and type(own).__name__ == "Constant")
        ]
        specs += runs_of(letter, reference, [*shapes, *ramps])
    return specs
