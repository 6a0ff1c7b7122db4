"""When the learning rate starts to decay, on config G (Eq. 67, Fig. 13).

t_ref is 1/8 to 8 times the workload's own, or infinite. Each value changes the learning
rate at the end of the training, and with it the best EMA length.
"""

import math

import configs
from edm_jax.studies import RunSpec, runs_of, values

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, math.inf)


def runs(workload: str) -> list[RunSpec]:
    """One run for each t_ref."""
    reference = f"{configs.letter_path('g')}:{workload}"
    t_ref = configs.load(reference).optimizer.schedule.t_ref
    settings = [factor * t_ref for factor in FACTORS]
    return runs_of("g", reference, values("optimizer.schedule.t_ref", settings))
