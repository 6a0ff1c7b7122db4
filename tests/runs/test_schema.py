"""config.json of older versions is read as today's; a newer one is refused."""

import json
import math

import pytest

import configs
from edm_jax.runs import directory, schema
from edm_jax.runs.directory import RunDir

DURATION = 0.00064
FLAT = {
    "decay": "inverse_sqrt",
    "t_ref": 160.0,
    "decay_end_mimg": DURATION,
    "rampup_mimg": 0.00016,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-8,
}


def version_1(config, **flat):
    """A config as version 1 wrote it, with the optimizer's fields not nested."""
    fields = json.loads(json.dumps(config.to_dict()))
    for name in ("schedule", "warmup", "method"):
        del fields["optimizer"][name]
    fields["optimizer"] |= FLAT | flat
    return version_2(fields)


def version_2(fields):
    """Undoes version 3's renaming: one word for the activation, zeros by init."""
    network = fields["network"]
    preserving = network.pop("mp_activation")
    network["silu"] = "mp_silu" if preserving else "silu"
    for name in ("activation", "zero_last", "noise_channels", "embedding_channels"):
        del network[name]
    for name in ("clip", "noise", "penalty"):
        del fields["optimizer"][name]
    fields["optimizer"].get("warmup", {}).pop("start", None)
    return version_3(fields)


def version_3(fields):
    """Removes the fields that version 4 added."""
    del fields["data"]["augment"], fields["network"]["dropout_resolutions"]
    return version_4(fields)


def version_4(fields):
    """Removes the fields that version 5 added."""
    del fields["loss"]["label_dropout"]
    return version_6(fields)


def version_6(fields):
    """Removes the fields that version 7 added."""
    del fields["training"]["evaluate_mimg"]
    return version_9(fields)


def version_9(fields):
    """Removes the fields that version 10 added."""
    del fields["training"]["start"]
    return version_12(fields)


def version_12(fields):
    """Removes the fields that version 13 added."""
    del fields["adapter"]
    return fields


def load(letter, **overrides):
    overrides = {field.replace("__", "."): text for field, text in overrides.items()}
    return configs.load(f"{configs.letter_path(letter)}:digits-tiny", overrides)


@pytest.mark.parametrize(
    ("letter", "flat", "overrides"),
    [
        ("g", {}, {}),
        ("c", {"t_ref": math.inf}, {}),
        ("g", {"rampup_mimg": 0.0}, {"optimizer__warmup__name": "none"}),
        ("g", {"decay": "cosine"}, {"optimizer__schedule__name": "cosine"}),
        (
            "g",
            {"decay": "linear", "decay_end_mimg": 0.5},
            {
                "optimizer__schedule__name": "linear",
                "optimizer__schedule__end_mimg": "0.5",
            },
        ),
    ],
)
def test_version_1_reads_as_the_config_that_does_the_same_today(
    letter, flat, overrides
):
    today = load(letter, **overrides)
    old = configs.from_json(version_1(today, **flat), "config.json")
    assert old.to_dict() == today.to_dict()


@pytest.mark.parametrize("letter", configs.LETTERS)
@pytest.mark.parametrize(
    ("version", "made"),
    [(2, version_2), (3, version_3), (4, version_4), (6, version_6)],
)
def test_later_versions_read_as_the_same_letter_today(letter, version, made):
    today = load(letter)
    old = made(json.loads(json.dumps(today.to_dict()))) | {"schema": version}
    assert configs.from_json(old, "config.json") == today


def test_a_run_of_version_1_continues_under_its_own_identity(tmp_path):
    config, path = load("g"), tmp_path / "run"
    path.mkdir()
    directory.write_json(path / "config.json", version_1(config))
    assert RunDir(path, config, writing=False).config_hash not in (
        "",
        directory.config_hash(config),
    )
    before = RunDir(path, config).config_hash
    assert directory.read_json(path / "config.json")["schema"] == schema.SCHEMA
    assert RunDir(path, config).config_hash == before


def test_older_runs_had_no_monitor_that_came_later():
    today = json.loads(json.dumps(load("g").to_dict()))
    later = {"alert_z": math.inf, "alert_update": math.inf, "sharpness_iterations": 0}
    for name in later:
        del today["training"][name]
    old = configs.from_json({"schema": 2, **version_2(today)}, "config.json").training
    assert {name: getattr(old, name) for name in later} == later


def test_a_newer_version_is_refused(tmp_path):
    newer = schema.SCHEMA + 1
    with pytest.raises(ValueError, match=f"schema {newer}, but this edm_jax reads up"):
        schema.upgrade({"schema": newer})
