"""What keeps A and G from learning their images by heart, one at a time.

Dropout everywhere and at the lowest resolution only; flips, which the network is not told
of; EDM's augmentation, of which it is told, with flips and without. What does not suit
the data, such as flips of digits, is left out.
"""

import configs
from edm_jax.studies import RunSpec, Variant, runs_of

OFF = {"network.dropout": 0.0}
AUGMENTS = ("flip", "edm_unflipped", "edm")


def runs(workload: str) -> list[RunSpec]:
    """A and G without any, and with each that suits the data."""
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
