"""Adapters on a magnitude-preserving base: one class, taught to a network that lacks it.

The base is config G trained without class 3, which must be there first:

    python experiments/train.py --config=configs/config_g.py:digits \\
        --config.data.classes=0,1,2,4,5,6,7,8,9 --run=runs/digits-without-3

Every run is taught class 3 from all its training images for a sixteenth of the base's
duration: the whole network, or an adapter of rank 4, each at a few rates around its own.
Compare them at their best rate, by the loss of the class (`heldout_loss`), that of the
other classes (`others_loss`), and `drift`.
"""

import configs
from configs.workloads import get_workload
from edm_jax.studies import RunSpec, Variant, product, rates, runs_of

TAUGHT = 3
RANK = 4
# {name: factors of the base's rate}
FACTORS = {
    "none": (1 / 30, 1 / 10, 1 / 3),
    "lora": (1 / 3, 1, 3),
    "dora": (1 / 3, 1, 3),
    "sphere": (1 / 3, 1, 3),
    "normalized": (1 / 3, 1, 3),
    "rotation": (1 / 10, 1 / 3, 1),
}


def runs(workload: str) -> list[RunSpec]:
    """Each adapter, and none, at each of its rates."""
    reference = f"{configs.letter_path('g')}:{workload}"
    own = configs.load(reference).optimizer.alpha_ref
    duration = get_workload(workload).duration_mimg / 16
    common = {
        "training.start.name": "weights",
        "training.start.source": f"runs/{workload}-without-{TAUGHT}",
        "data.classes": (TAUGHT,),
        "training.duration_mimg": duration,
        "training.snapshot_mimg": duration / 8,
        "training.probe_mimg": duration / 4,
        "training.log_mimg": duration / 16,
        "training.checkpoint_mimg": duration,
        "optimizer.schedule.name": "constant",
        "optimizer.warmup.name": "none",
        "evaluation.evaluators": "heldout_loss,fine_tuning",
        "evaluation.sigma_rels": (0.05, 0.1, 0.15),
    }
    specs = []
    for name, factors in FACTORS.items():
        fields = {**common, "adapter.name": name}
        if name != "none":
            fields["adapter.rank"] = RANK
        variant = Variant("full" if name == "none" else name, fields)
        specs += runs_of("", reference, product([variant], rates(own, factors)))
    return specs
