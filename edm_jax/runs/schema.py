"""The schema of config.json: its version, and upgrades from older versions."""

import math
from collections.abc import Mapping
from typing import Any

from edm_jax import files

SCHEMA = 13
# {version: {field that it added: the value that older runs had}}; GROUP[NAME].FIELD is a
# field of one entry of a menu.
_ADDED = {
    3: {
        "network.noise_channels": 0,
        "network.embedding_channels": 0,
        "network.activation.name": "silu",
        "optimizer.warmup[linear].start": 0.0,
        "data.reader.name": "tfds",
        "evaluation.evaluators": "heldout_loss,sample_grid,pixel_frechet",
        "evaluation.sampler.name": "heun",
        "training.alert_z": math.inf,
        "training.alert_update": math.inf,
        "training.sharpness_iterations": 0,
        "optimizer.clip.name": "none",
        "optimizer.noise.name": "none",
        "optimizer.penalty.name": "none",
    },
    4: {"data.augment.name": "none", "network.dropout_resolutions": []},
    5: {"loss.label_dropout": 0.0},
    6: {"data.on_bad": "stop", "data.num_workers": 0},
    7: {"training.evaluate_mimg": math.inf},
    8: {
        "data.classes": [],
        "data.max_size": 0,
        "data.sampling.name": "uniform",
        "data.reader[tfds].resolution": 0,
        "data.reader[tfds].channels": 3,
        "data.reader[tfds].fit": "center",
        "data.reader[tfds].smallest": 0.8,
        "data.reader[tfds].background": 255,
        "data.reader[tfds].image": "",
        "data.reader[tfds].label": "",
        "evaluation.decoder.name": "none",
    },
    9: {"training.shards": 0},
    10: {"training.start.name": "scratch"},
    11: {"ema.keep.name": "all"},
    12: {"optimizer.groups": {}, "optimizer.depth_decay": 1.0},
    13: {"adapter.name": "none"},
}


def upgrade(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrades the fields of a config.json of any version to this version.

    Version 1 had no `schema`, and the optimizer's fields were not nested.

    Args:
        recorded: the contents of the file.

    Returns:
        The config's fields, without `schema`.

    Raises:
        files.Damaged: the file has a newer version.
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
    version = recorded.get("schema", 1)
    network = config.get("network")
    if version < 3 and isinstance(network, dict) and "silu" in network:
        config["network"] = _renamed(network)
    for added, fields in _ADDED.items():
        for field, value in fields.items() if version < added else ():
            _add(config, field.split("."), value)
    return config


def _add(group: Any, path: list[str], value: Any) -> None:
    """Sets a missing field; a group of the wrong type is left for RunConfig to refuse."""
    for place in path[:-1]:
        name, _, entry = place.rstrip("]").partition("[")
        group = group.setdefault(name, {}) if isinstance(group, dict) else None
        if entry and isinstance(group, dict) and group.get("name") != entry:
            return
    if isinstance(group, dict):
        group.setdefault(path[-1], value)


def _renamed(network: Mapping[str, Any]) -> dict[str, Any]:
    """Before version 3, `silu` also said whether it preserves magnitudes, and init='adm'
    implied zeros in the last layers."""
    fields = dict(network)
    fields["mp_activation"] = fields.pop("silu") == "mp_silu"
    fields["zero_last"] = fields.get("init") == "adm"
    return fields


def check(recorded: Mapping[str, Any], path: files.PathLike) -> None:
    """Raises files.Damaged if the file at `path` has a newer version."""
    version = recorded.get("schema", 1)
    if version not in range(1, SCHEMA + 1):
        reason = (
            f"has schema {version!r}, but this edm_jax reads up to {SCHEMA}: update it."
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
