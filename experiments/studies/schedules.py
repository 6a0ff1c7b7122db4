"""Learning-rate schedules and warm-ups on configs C and G, at four times the letter's rate.

C's weights grow, which already decays its effective rate; G's are forced to keep their
norm, so only its schedule decays the rate. Each schedule is as long as the run. A decay
needs a higher initial rate than a constant schedule, so all start from a rate near the
best one that `lr_sensitivity` finds on digits.
"""

import configs
from configs.workloads import get_workload
from edm_jax.studies import RunSpec, Variant, product, rates, runs_of

FACTOR = 4  # of the letter's own rate
_SHAPE = "optimizer.schedule"
SHAPES = [
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
    # one_cycle includes a warm-up.
    Variant(
        "one_cycle",
        {f"{_SHAPE}.name": "one_cycle", "optimizer.warmup.name": "none"},
    ),
]


def runs(workload: str) -> list[RunSpec]:
    """Every schedule with the config's warm-up, and every warm-up with its schedule."""
    budget = get_workload(workload)
    decay = {f"{_SHAPE}.name": "inverse_sqrt", f"{_SHAPE}.t_ref": budget.t_ref}
    rampup = {"optimizer.warmup.rampup_mimg": budget.rampup_mimg}
    variants = [
        *SHAPES,
        Variant("inverse_sqrt", decay),  # Eq. 67
        Variant("warmup-none", {"optimizer.warmup.name": "none"}),
        *(
            Variant(f"warmup-{name}", {"optimizer.warmup.name": name, **rampup})
            for name in ("cosine", "exponential")
        ),
    ]
    specs = []
    for letter in "cg":
        reference = f"{configs.letter_path(letter)}:{workload}"
        high = rates(configs.load(reference).optimizer.alpha_ref, (FACTOR,))
        specs += runs_of(letter, reference, product(high, variants))
    return specs
