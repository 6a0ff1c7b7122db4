"""Adam's two betas on config G, around the paper's 0.9 and 0.99 (App. B.2)."""

import configs
from edm_jax.studies import RunSpec, product, runs_of, values

BETA1 = values("optimizer.method.beta1", (0.8, 0.9, 0.95))
BETA2 = values("optimizer.method.beta2", (0.95, 0.99, 0.999))


def runs(workload: str) -> list[RunSpec]:
    """Every pair of the two."""
    reference = f"{configs.letter_path('g')}:{workload}"
    return runs_of("g", reference, product(BETA1, BETA2))
