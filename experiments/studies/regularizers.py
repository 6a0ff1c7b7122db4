"""One regularizer at a time on A and G, against memorizing the training images.

Dropout, everywhere or only at the lowest resolution; flips, about which the network is not
told; EDM's augmentation, about which it is told, with and without flips. Augmentations that
do not suit the data, such as flips of digits, are left out.
"""

import configs
from edm_jax.studies import RunSpec, Variant, runs_of

OFF = {"network.dropout": 0.0}
AUGMENTS = ("flip", "edm_unflipped", "edm")


def runs(workload: str) -> list[RunSpec]:
    """A and G without regularizers, and with each one that suits the data."""
    specs = []
    for letter in "ag":
        reference = f"{configs.letter_path(letter)}:{workload}"
        net = configs.load(reference).network
        lowest = net.resolution >> (len(net.channel_mult) - 1)
        low = {"network.dropout": 0.1, "network.dropout_resolutions": (lowest,)}
        variants = [
            Variant("plain", OFF),
            Variant("dropout", {"network.dropout": 0.1}),
            Variant("dropout-low", low),
            *(Variant(name, OFF | {"data.augment.name": name}) for name in AUGMENTS),
        ]
        specs += [s for s in runs_of(letter, reference, variants) if _suits(s)]
    return specs


def _suits(spec: RunSpec) -> bool:
    try:
        configs.load(spec.config, spec.overrides)
    except ValueError:
        return False
    return True
