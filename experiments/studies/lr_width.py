"""Whether the best learning rate depends on the width of the network, on C and G.

Each at half and at twice the workload's channels, with five rates. For magnitude-preserving
layers the paper scales alpha_ref by 1 / sqrt(channels) (Table 6), which halves it here.
`compare.py RUNS --x=optimizer.alpha_ref --by=letter,network.model_channels`.
"""

import configs
from edm_jax.studies import RunSpec, Variant, product, rates, runs_of

WIDTHS = (1 / 2, 2)
FACTORS = (1, 2, 4, 8, 16)  # of the letter's own rate


def runs(workload: str) -> list[RunSpec]:
    """Every rate at both widths."""
    specs = []
    for letter in "cg":
        reference = f"{configs.letter_path(letter)}:{workload}"
        config = configs.load(reference)
        channels = [round(x * config.network.model_channels) for x in WIDTHS]
        widths = [Variant(f"mc{n}", {"network.model_channels": n}) for n in channels]
        tried = rates(config.optimizer.alpha_ref, FACTORS)
        specs += runs_of(letter, reference, product(widths, tried))
    return specs
