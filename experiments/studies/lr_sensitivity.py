"""How sensitive each letter is to its learning rate, and which rate is its best.

Every letter with 1/8 to 8 times its own alpha_ref, so that letters can be compared at
their best rates (Wortsman et al., arXiv 2309.14322):
`compare.py RUNS --x=optimizer.alpha_ref`.
"""

import configs
from edm_jax.studies import RunSpec, runs_of, values

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def runs(workload: str) -> list[RunSpec]:
    """Seven rates for each letter."""
    specs = []
    for letter in configs.LETTERS:
        reference = f"{configs.letter_path(letter)}:{workload}"
        own = configs.load(reference).optimizer.alpha_ref
        rates = [float(f"{factor * own:.6g}") for factor in FACTORS]
        specs += runs_of(letter, reference, values("optimizer.alpha_ref", rates))
    return specs
