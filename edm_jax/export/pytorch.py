"""The network as a PyTorch module: one file of Python, which needs PyTorch alone.

torch_denoiser.py beside this file is the module. Here its two tables are filled in: the
words and sizes of the network, and its topology as data.
"""

import math
from pathlib import Path
from typing import Any

from edm_jax import fields
from edm_jax.diffusion import Denoiser
from edm_jax.export.bundle import Bundle
from edm_jax.files import printable, read_bytes, write_text
from edm_jax.models import activations, topology
from edm_jax.models.layers import NORMS
from edm_jax.models.ops import NetworkConfig

_TEMPLATE = Path(__file__).with_name("torch_denoiser.py")
# Fields of a config's network that the module looks at.
_FIELDS = (
    *("resolution", "channels", "num_classes", "head_channels", "block", "weights"),
    *("norm", "pixel_norm", "attention", "modulation", "noise_features"),
    *("embedding_layers", "unit_variance_label", "constant_channel", "output_silu"),
    *("add", "cat", "residual_balance", "embedding_balance", "cat_balance", "gain"),
    *("dropout", "dropout_resolutions", "half_precision"),
)


def write_pytorch(
    path: Path, network: NetworkConfig, denoiser: Denoiser, found: Bundle
) -> None:
    """Writes the module.

    Args:
        path: the file of Python.
        network: the config's `network` fields.
        denoiser: the network itself.
        found: its weights, and the config of the run.

    Raises:
        ValueError: an operation of the network is defined in a file of the user's.
    """
    write_text(path, module(network, denoiser, found))


def module(network: NetworkConfig, denoiser: Denoiser, found: Bundle) -> str:
    """The text of the module; raises as `write_pytorch`."""
    elements = [
        (each.name, each.features_in, each.features, each.resample, each.attention,
         each.takes_skip)
        for each in topology.elements(network)
    ]  # fmt: skip
    meta, config = found.meta, found.config
    comes_from = (
        f"# Config {config['letter']}, {config['title']}, on {config['workload']}; the "
        f"average {meta.profile.label} at {meta.nimg:,} images."
    )
    text = read_bytes(_TEMPLATE).decode()
    net = _literal(_settings(network, denoiser, config["data"]))
    for blank, filled in (
        ("\nNET = {}\n", f"\n{printable(comes_from)}\nNET = {net}\n"),
        ("\nELEMENTS = []\n", f"\nELEMENTS = {_literal(elements)}\n"),
    ):
        assert text.count(blank) == 1
        text = text.replace(blank, filled)
    return text


def _settings(
    network: NetworkConfig, denoiser: Denoiser, data: dict[str, Any]
) -> dict[str, Any]:
    spec, activation = denoiser.model.spec, network.activation
    names = {cls: name for name, cls in activations.ACTIVATIONS.items()}
    if type(activation) not in names or network.norm not in NORMS:
        raise ValueError(
            "The network has an operation from a file of yours (network.activation or "
            "network.norm), which the PyTorch module cannot hold: export the other forms."
        )
    magnitude = activations.magnitude(activation) if network.mp_activation else 1.0
    return {field: getattr(network, field) for field in _FIELDS} | {
        "window": network.window,
        "noise_channels": spec.noise_channels,
        "embedding_channels": spec.embedding_channels,
        "activation": {
            "name": names[type(activation)],
            **fields.plain(activation),
        },
        "activation_magnitude": magnitude,
        "clamp": None if math.isinf(network.clamp) else network.clamp,
        "augment_labels": spec.augment_labels,
        "uncertainty": spec.logvar,
        "sigma_data": denoiser.sigma_data,
        "raw_mean": tuple(data["raw_mean"]),
        "raw_std": tuple(data["raw_std"]),
    }


def _literal(value: Any) -> str:
    """A dict or a list as Python, an item a line."""
    if isinstance(value, dict):
        return "{\n" + "".join(f"    {k!r}: {v!r},\n" for k, v in value.items()) + "}"
    return "[\n" + "".join(f"    {each!r},\n" for each in value) + "]"
