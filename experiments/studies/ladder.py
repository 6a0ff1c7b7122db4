"""The ladder of paper Table 1: configs A to G, each the one before plus its changes."""

import configs
from edm_jax.studies import RunSpec


def runs(workload: str) -> list[RunSpec]:
    """One run per letter."""
    return [
        RunSpec(letter, f"{configs.letter_path(letter)}:{workload}")
        for letter in configs.LETTERS
    ]
