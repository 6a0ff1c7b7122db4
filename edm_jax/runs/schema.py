"""The form of config.json: its version, and older ones brought up to it."""

import math
from collections.abc import Mapping
from typing import Any

from edm_jax import files

SCHEMA = 2


def upgrade(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json of any version, as this version has them.

    Version 1 had no `schema`, and all fields of the optimizer side by side.

    Args:
        recorded: what the file holds.

    Returns:
        The config's fields, without `schema`.

    Raises:
        files.Damaged: the file is of a newer version.
    """
    check(recorded, "config.json")
    config = {key: value for key, value in recorded.items() if key != "schema"}
    optimizer = config.get("optimizer")
    if (
        recorded.get("schema", 1) == 1
        and isinstance(optimizer, dict)
        and "decay" in optimizer
    ):
        config["optimizer"] = _nested(optimizer, _duration(config))
    if isinstance(network := config.get("network"), dict):
        config["network"] = _NEW_IN_NETWORK | network
    return config


# Fields that came later, with what they had been until then: widths that follow from the
# other sizes.
_NEW_IN_NETWORK = {"noise_channels": 0, "embedding_channels": 0}


def check(recorded: Mapping[str, Any], path: files.PathLike) -> None:
    """Raises files.Damaged where the file at `path` is of a newer version."""
    version = recorded.get("schema", 1)
    if version not in range(1, SCHEMA + 1):
        reason = (
            f"has schema {version!r}, and this edm_jax reads up to {SCHEMA}: update it."
        )
        raise files.Damaged(path, reason)


def _duration(config: Mapping[str, Any]) -> Any:
    training = config.get("training")
    return training.get("duration_mimg") if isinstance(training, dict) else None


def _nested(flat: Mapping[str, Any], duration_mimg: Any) -> dict[str, Any]:
    fields = dict(flat)
    decay, t_ref = fields.pop("decay"), fields.pop("t_ref", math.inf)
    end, rampup = fields.pop("decay_end_mimg", 0.0), fields.pop("rampup_mimg", 0.0)
    if decay == "inverse_sqrt":
        constant = t_ref == math.inf
        schedule = {"name": "constant"} if constant else {"name": decay, "t_ref": t_ref}
    else:
        end_mimg = 0.0 if end == duration_mimg else end
        schedule = {"name": decay, "final": 0.0, "end_mimg": end_mimg}
    ramp = {"name": "linear", "rampup_mimg": rampup} if rampup else {"name": "none"}
    moments = {k: fields.pop(k) for k in ("beta1", "beta2", "eps") if k in fields}
    return {
        **fields,
        "schedule": schedule,
        "warmup": ramp,
        "method": {"name": "adam", **moments},
    }
