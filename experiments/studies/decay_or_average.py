"""Can an average of a run at constant rate replace a decay of the rate? On C and G.

Runs at constant rate are also measured with the averages that stand for a cosine decay, a
linear one, and a linear one over the last fifth (arXiv 2507.17634), and compared with runs
that have these decays, at the letter's own rate and at four times it:
`compare.py RUNS --columns=raw_loss,heldout_loss,decay_cosine,decay_linear,decay_wsd`.
The result of a decay is its raw weights. Only losses are measured, without samples.
"""

import configs
from edm_jax.studies import RunSpec, Variant, product, rates, runs_of

FACTORS = (1, 4)  # of the letter's own rate
SCHEDULE = "optimizer.schedule"
EVALUATORS = "evaluation.evaluators"
SCHEDULES = [
    Variant(
        "constant",
        {f"{SCHEDULE}.name": "constant", EVALUATORS: "heldout_loss,decay_averages"},
    ),
    *(
        Variant(name, {**fields, EVALUATORS: "heldout_loss"})
        for name, fields in {
            "cosine": {f"{SCHEDULE}.name": "cosine"},
            "linear": {f"{SCHEDULE}.name": "linear"},
            "wsd": {
                f"{SCHEDULE}.name": "warmup_stable_decay",
                f"{SCHEDULE}.tail": "linear",
                f"{SCHEDULE}.decay": 0.2,
            },
        }.items()
    ),
]


def runs(workload: str) -> list[RunSpec]:
    """A constant rate and three decays, at each rate, on each letter."""
    specs = []
    for letter in "cg":
        reference = f"{configs.letter_path(letter)}:{workload}"
        own = configs.load(reference).optimizer.alpha_ref
        specs += runs_of(letter, reference, product(rates(own, FACTORS), SCHEDULES))
    return specs
