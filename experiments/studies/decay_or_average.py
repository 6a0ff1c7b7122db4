"""Does an average of a run at constant rate replace the decay of the rate? On C and G.

A run at constant rate is also measured by the averages that stand for a cosine decay, a
linear one, and a linear one of the last fifth (arXiv 2507.17634), beside runs that really
decay so:
`compare.py RUNS --columns=raw_loss,heldout_loss,decay_cosine,decay_linear,decay_wsd`.
A decay's own result is its raw weights.
"""

import configs
from edm_jax.studies import RunSpec, Variant, runs_of

SCHEDULE = "optimizer.schedule"
DECAYS = [
    Variant("cosine", {f"{SCHEDULE}.name": "cosine"}),
    Variant("linear", {f"{SCHEDULE}.name": "linear"}),
    Variant(
        "wsd",
        {
            f"{SCHEDULE}.name": "warmup_stable_decay",
            f"{SCHEDULE}.tail": "linear",
            f"{SCHEDULE}.decay": 0.2,
        },
    ),
]


def runs(workload: str) -> list[RunSpec]:
    """A constant rate and three decays, on each."""
    specs = []
    for letter in "cg":
        reference = f"{configs.letter_path(letter)}:{workload}"
        evaluators = configs.load(reference).evaluation.evaluators
        constant = {
            f"{SCHEDULE}.name": "constant",
            "evaluation.evaluators": f"{evaluators},decay_averages",
        }
        specs += runs_of(letter, reference, [Variant("constant", constant), *DECAYS])
    return specs
