"""Studies: what they are made of, who may run what, and where it runs."""

from edm_jax.studies.plan import (
    SAME,
    RunSpec,
    Variant,
    by_seed,
    one_at_a_time,
    product,
    rates,
    runs_of,
    values,
    zipped,
)

__all__ = [
    "SAME",
    "RunSpec",
    "Variant",
    "by_seed",
    "one_at_a_time",
    "product",
    "rates",
    "runs_of",
    "values",
    "zipped",
]
