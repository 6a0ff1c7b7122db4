"""Optimizers on configs C and G, each with a few rates, to compare them at their best.

`compare.py RUNS --x=optimizer.alpha_ref --by=optimizer.method.name` draws the curves.
Rates are multiples of the letter's own, near those that each rule is known to need: a
third to a tenth of Adam's for Lion, more for SGD and Adagrad. Muon's update has Adam's RMS.
"""

import configs
from edm_jax.studies import RunSpec, Variant, product, rates, runs_of

# name: (fields of the method, factors of the letter's rate)
METHODS = {
    "adam": ({}, (1 / 3, 1, 3)),
    "adamw": ({}, (1 / 3, 1, 3)),
    "nadam": ({}, (1 / 3, 1, 3)),
    "amsgrad": ({}, (1 / 3, 1, 3)),
    "sgd": ({"nesterov": True}, (3, 10, 30, 100)),
    "rmsprop": ({}, (1 / 10, 1 / 3, 1)),
    "adagrad": ({}, (1, 3, 10)),
    "lion": ({}, (1 / 10, 1 / 3, 1)),
    "adafactor": ({}, (1 / 3, 1, 3)),
    "lamb": ({}, (1 / 3, 1, 3)),
    "muon": ({}, (1 / 3, 1, 3)),
    "schedule_free": ({}, (1 / 3, 1, 3, 10)),
}


def runs(workload: str) -> list[RunSpec]:
    """Each method that works with a letter, at each of its rates."""
    specs = []
    for letter in "cg":
        reference = f"{configs.letter_path(letter)}:{workload}"
        opt = configs.load(reference).optimizer
        for name, (fields, factors) in METHODS.items():
            # It recovers its averages from weights that forced normalization moves.
            if name == "schedule_free" and opt.forced_weight_norm:
                continue
            chosen = {"optimizer.method.name": name}
            chosen |= {f"optimizer.method.{k}": v for k, v in fields.items()}
            tried = rates(opt.alpha_ref, factors)
            specs += runs_of(letter, reference, product([Variant(name, chosen)], tried))
        # Prodigy finds its own rate.
        prodigy = {"optimizer.method.name": "prodigy", "optimizer.alpha_ref": 1.0}
        specs += runs_of(letter, reference, [Variant("prodigy", prodigy)])
    return specs
