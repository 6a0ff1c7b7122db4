"""The ablation table: each letter's changes, the sizes, and refused settings."""

import json
import math
import pickle
import re

import jax
import ml_collections
import pytest

import configs
from configs.workloads import WORKLOADS
from edm_jax import files
from edm_jax.optim import chain

MEBI = 2**20 / 1e6

# Table 1 and Fig. 16-22: each letter's changes to the one before, as (before, after).
CHANGES = {
    "b": {
        "title": ("EDM baseline", "Minor improvements"),
        "optimizer.batch_size": (4096, 2048),
        "optimizer.alpha_ref": (1e-4, 2e-4),
        "optimizer.method.beta2": (0.999, 0.99),
        "loss.P_mean": (-1.2, -0.4),
        "loss.P_std": (1.2, 1.0),
        "loss.uncertainty": (False, True),
        "network.attention_resolutions": ((32, 16, 8), (16, 8)),
        "ema.halflives_mimg": ((50.0,), ()),
    },
    "c": {
        "title": ("Minor improvements", "Architectural streamlining"),
        "network.weights": ("biased", "plain"),
        "network.constant_channel": (False, True),
        "network.modulation": ("scale_shift", "scale"),
        "network.norm": ("group", "rms_group"),
        "network.attention": ("dot", "cosine"),
        "network.init": ("adm", "uniform"),
        "network.zero_last": (True, False),
        "network.unit_variance_label": (False, True),
        "network.noise_features": ("positional", "fourier"),
        "network.clamp": (math.inf, 256.0),
        "network.half_precision": ("partial", "full"),
    },
    "d": {
        "title": ("Architectural streamlining", "Magnitude-preserving learned layers"),
        "network.weights": ("plain", "mp"),
        "network.init": ("uniform", "normal"),
        "optimizer.alpha_ref": (2e-4, 0.01),
        "optimizer.loss_scale": (100.0, 1.0),
    },
    "e": {
        "title": (
            "Magnitude-preserving learned layers",
            "Control effective learning rate",
        ),
        "optimizer.forced_weight_norm": (False, True),
        "optimizer.schedule.name": ("constant", "inverse_sqrt"),
        "optimizer.schedule.t_ref": (None, 70000.0),
    },
    "f": {
        "title": ("Control effective learning rate", "Remove group normalizations"),
        "network.norm": ("rms_group", "none"),
        "network.pixel_norm": (False, True),
        "network.block": ("branch", "main_path"),
        "network.output_silu": (True, False),
        "network.embedding_layers": (2, 1),
    },
    "g": {
        "title": (
            "Remove group normalizations",
            "Magnitude-preserving fixed-function layers",
        ),
        "network.noise_features": ("fourier", "mp_fourier"),
        "network.mp_activation": (False, True),
        "network.add": ("sum", "mp_sum"),
        "network.cat": ("cat", "mp_cat"),
        "network.gain": (False, True),
        "network.dropout": (0.1, 0.0),
    },
}

# Table 6: channels, rate, dropout and duration in Mi images.
PRESETS = {
    "imagenet512-xxs": (64, 0.0170, 0.0, 2048),
    "imagenet512-xs": (128, 0.0120, 0.0, 2048),
    "imagenet512-s": (192, 0.0100, 0.0, 2048),
    "imagenet512-m": (256, 0.0090, 0.1, 2048),
    "imagenet512-l": (320, 0.0080, 0.1, 1792),
    "imagenet512-xl": (384, 0.0070, 0.1, 1280),
    "imagenet512-xxl": (448, 0.0065, 0.1, 896),
    "imagenet64-xs": (128, 0.0120, 0.0, 1024),
    "imagenet64-s": (192, 0.0100, 0.0, 1024),
    "imagenet64-m": (256, 0.0090, 0.1, 2048),
    "imagenet64-l": (320, 0.0080, 0.1, 1024),
    "imagenet64-xl": (384, 0.0070, 0.1, 640),
}


def load(letter, workload="digits-tiny", **overrides):
    """Overrides by field, dots written as two underscores."""
    overrides = {field.replace("__", "."): text for field, text in overrides.items()}
    return configs.load(f"{configs.letter_path(letter)}:{workload}", overrides)


@pytest.mark.parametrize("letter", CHANGES)
def test_each_letter_changes_exactly_what_the_paper_says(letter):
    parent = configs.parent_letter(letter)
    before, after = (
        configs.flatten(load(x, "imagenet512-s")) for x in (parent, letter)
    )
    changed = {
        field: (before.get(field), after.get(field))
        for field in before | after
        if before.get(field) != after.get(field)
    }
    assert changed == CHANGES[letter] | {"letter": (parent, letter)}


def test_config_a_is_the_papers_baseline():
    config = load("a", "imagenet512-s")
    expected = {
        "network": {"model_channels": 192, "channel_mult": (1, 2, 3, 4)}
        | {"blocks_per_level": 3, "head_channels": 64, "dropout": 0.1},
        "loss": {"sigma_data": 0.5, "uncertainty": False},
        "optimizer.schedule": {"name": "constant"},
        "optimizer.warmup": {"name": "linear", "rampup_mimg": 10.0},
        "optimizer.method": {"name": "adam", "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        "ema": {"sigma_rels": (0.05, 0.10), "halflife_rampup": 0.05},
        "training": {"duration_mimg": 2**31 / 1e6, "snapshot_mimg": 8 * MEBI},
    }
    flat = configs.flatten(config)
    for room, fields in expected.items():
        assert {field: flat[f"{room}.{field}"] for field in fields} == fields


@pytest.mark.parametrize(("workload", "values"), PRESETS.items())
def test_presets_are_the_papers(workload, values):
    config = load("g", workload)
    channels, alpha_ref, dropout, mebi_images = values
    assert config.network.model_channels == channels
    assert config.optimizer.alpha_ref == alpha_ref
    assert config.network.dropout == dropout
    assert config.training.duration_mimg * 1e6 == pytest.approx(mebi_images * 2**20)
    assert config.optimizer.batch_size == 2048
    noise = config.loss.P_mean, config.loss.P_std, config.optimizer.schedule.t_ref
    rgb = workload.startswith("imagenet64")
    assert noise == ((-0.8, 1.6, 35000.0) if rgb else (-0.4, 1.0, 70000.0))


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("letter", configs.LETTERS)
def test_every_letter_loads_on_every_workload_and_says_who_it_is(letter, workload):
    config = load(letter, workload)
    assert (config.letter, config.workload) == (letter, workload)
    # Each snapshot interval is at least one step.
    assert config.training.snapshot_mimg * 1e6 >= config.optimizer.batch_size


def test_configs_are_frozen_and_survive_json():
    config = load("a")
    with pytest.raises(AttributeError):
        config.network.channels = 3
    again = configs.from_json(json.loads(json.dumps(config.to_dict())), "config.json")
    assert again == config
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("network.dropout", "much", "network.dropout='much', but must be a number."),
        ("network.channels", True, "network.channels=True, but must be a whole"),
        (
            "network.channel_mult",
            [1, [2]],
            "network.channel_mult has [2], but each must be a whole number.",
        ),
        ("network.block", ["branch"], "network.block=['branch'], but must be text."),
        ("network", {}, "network.resolution is missing."),
        ("loss", None, "loss=None, but must be a group of fields."),
        ("optimizer.schedule", {"t_ref": 1}, "optimizer.schedule.name is missing."),
        ("optimizer.schedule", {"name": ["a"]}, "schedule.name is ['a'], but must be"),
        (
            "evaluation.num_steps",
            -1,
            "evaluation.num_steps=-1, but must be at least 2.",
        ),
    ],
)
def test_an_invalid_recorded_config_is_refused_naming_its_file(field, value, sentence):
    recorded = json.loads(json.dumps(load("a").to_dict()))
    group, _, name = field.partition(".")
    (recorded[group] if name else recorded)[name or group] = value
    with pytest.raises(files.Damaged, match="^run/config.json is damaged: ") as refusal:
        configs.from_json(recorded, "run/config.json")
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("def get_config(:", "fails: SyntaxError: invalid syntax"),
        ("\0", "fails: SyntaxError"),
        ("import no_such_module", "fails: ModuleNotFoundError"),
        ("raise SystemExit(0)", "fails: SystemExit: 0"),
        ("raise ValueError('x' * 10**6)", f"fails: ValueError: {'x' * 500}…"),
        ("get_config = 3", "has no function get_config(workload)."),
        ("def get_config(w): return w.digits", "fails: AttributeError"),
        ("get_config = dict", "fails: ValueError"),
        ("def get_config(w): return {}", "must return a ConfigDict from"),
        (
            "import ml_collections as m\ndef get_config(w): return m.ConfigDict()",
            "returns an invalid config: letter is missing.",
        ),
    ],
)
def test_a_config_file_that_fails_is_told_in_a_sentence_that_names_it(
    tmp_path, source, sentence
):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(files.Damaged, match=re.escape(f"{path} {sentence}")):
        configs.load(f"{path}:digits")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("network__dropout", "0.25", 0.25),
        ("network__dropout", "0", 0.0),
        ("network__channel_mult", "(1, 2, 2)", (1, 2, 2)),
        ("network__gain", "False", False),
        ("network__add", "sum", "sum"),
        ("optimizer__schedule__t_ref", "inf", math.inf),
        ("ema__sigma_rels", "(0.05, 0.2)", (0.05, 0.2)),
        ("ema__sigma_rels", "0.05,0.2", (0.05, 0.2)),
        ("ema__sigma_rels", "0.2", (0.2,)),
        ("training__remat", "true", True),
        ("training__remat", configs.NO_VALUE, True),
        ("network__gain", "false", False),
        ("optimizer__batch_size", "1e2", 100),
        ("optimizer__batch_size", "32.0", 32),
        ("data__data_dir", "'/a b'", "/a b"),
        ("data__data_dir", "3", "3"),
        ("loss__P_mean", "-0.4", -0.4),
    ],
)
def test_overrides_reach_their_field_and_only_it(field, text, value):
    before, after = load("g"), load("g", **{field: text})
    flat = configs.flatten(before) | {field.replace("__", "."): value}
    assert configs.flatten(after) == flat


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        (
            "network__drpout",
            "0.1",
            "no field 'network.drpout'. Did .* 'network.dropout'",
        ),
        ("dropout", "0.1", "no field 'dropout'. Did you mean 'network.dropout'"),
        ("network__weights", "mpp", "must be one of 'biased', 'plain', 'mp'. .* 'mp'"),
        ("network__norm", "rms_gruop", "Did you mean 'rms_group'"),
        ("network__noise_features", "mp-fourier", "Did you mean 'mp_fourier'"),
        ("network__compute_dtype", "bf16", "Did you mean 'bfloat16'"),
        ("network__dropout", "high", "high, but must be a number; it is now 0.0"),
        ("network__gain", "no", "no, but must be True or False; it is now True"),
        ("optimizer__batch_size", "32.5", "32.5, but must be a whole number"),
        ("network__channel_mult", "wide", "wide, but must be a tuple of numbers"),
        ("ema__sigma_rels", "(0.05, None)", "must be a tuple of numbers"),
        ("ema__sigma_rels", "('a',)", "must be a tuple of numbers"),
        ("network__dropout", "None", "None, but must be a number"),
        ("optimizer__batch_size", "True", "True, but must be a whole number"),
        ("optimizer__batch_size", "inf", "inf, but must be a whole number"),
        ("network__dropout", configs.NO_VALUE, "has no value, but must be a number"),
        ("data__data_dir", configs.NO_VALUE, "has no value, but must be text"),
    ],
)
def test_a_mistyped_override_is_told_the_nearest_right_one(field, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load("g", **{field: text})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("configs/config_h.py", FileNotFoundError, "config_a.py to config_g.py"),
        ("configs/confg_g.py", FileNotFoundError, "mean 'configs/config_g.py'"),
        ("cofigs/config_g.py", FileNotFoundError, "mean 'configs/config_g.py'"),
        ("{g}:digit", ValueError, "Did you mean 'digits'"),
        ("{g}:imagenet512-xxxl", ValueError, "Did you mean 'imagenet512-xxl'"),
        (configs.__file__, ValueError, r"no function get_config\(workload\)"),
    ],
)
def test_a_mistyped_reference_is_told_the_nearest_right_one(reference, error, message):
    with pytest.raises(error, match=message):
        configs.load(reference.format(g=configs.letter_path("g")))


@pytest.mark.parametrize(
    ("letter", "overrides", "reason"),
    [
        ("d", {"network__zero_last": "True"}, "divides each weight by its norm"),
        ("f", {"network__attention": "dot"}, "needs a normalized input"),
        ("a", {"network__gain": "True"}, "neither would get a gradient"),
        ("c", {"optimizer__forced_weight_norm": "True"}, "set network.weights='mp'"),
        ("g", {"network__channel_mult": "()"}, "whole number for each level"),
        ("g", {"network__channel_mult": "(1.5, 2)"}, "has 1.5, but each must be"),
        ("g", {"network__head_channels": "0"}, "must be at least 1"),
        ("g", {"network__num_classes": "-1"}, "num_classes=-1, but must be 0 or more"),
        ("g", {"network__cat_balance": "2.0"}, r"must be in \[0, 1\]"),
        (
            "g",
            {"loss__label_dropout": "0.1", "network__num_classes": "0"},
            "label_dropout hides classes",
        ),
        ("g", {"optimizer__method__beta2": "1.5"}, r"must be in \[0, 1\)"),
        ("g", {"ema__update_every": "0"}, "must be at least 1"),
        ("g", {"evaluation__sigma_rels": "(0.5,)"}, "evaluation.sigma_rels: .* 0.5"),
        ("g", {"ema__sigma_rels": "(0.05, 0.05)"}, "has 0.05 twice"),
        ("g", {"ema__sigma_rels": "(0.05, 0.05000000001)"}, "has 0.05 twice"),
        ("g", {"ema__sigma_rels": "(nan,)"}, "a tuple of numbers"),
        ("a", {"ema__halflives_mimg": "(1, 1.0)"}, "has 1 twice"),
        ("a", {"ema__halflives_mimg": "(0,)"}, "each must be positive and finite"),
        ("g", {"ema__update_every": "41"}, "more than the 40 steps"),
        ("g", {"training__duration_mimg": "1e-5"}, "10 images, less than one batch"),
        ("g", {"training__duration_mimg": "1e-6"}, "is 1 image, less than one batch"),
        ("g", {"optimizer__batch_size": "2048"}, "640 images, less than one batch"),
        ("g", {"optimizer__alpha_ref": "inf"}, "must be positive and finite"),
        ("g", {"optimizer__alpha_ref": "nan"}, "alpha_ref=nan, but must be positive"),
        ("g", {"optimizer__schedule__t_ref": "nan"}, "t_ref=nan, but must be"),
        ("g", {"optimizer__warmup__rampup_mimg": "inf"}, "must be positive and finite"),
        ("g", {"optimizer__method__eps": "-1e-8"}, "must be finite and not negative"),
        ("g", {"loss__P_mean": "nan"}, "P_mean=nan, but must be finite"),
        ("g", {"loss__P_mean": "inf"}, "must be finite"),
        ("g", {"evaluation__num_sigmas": "0"}, "must be at least 1"),
        ("g", {"evaluation__sigma_min": "80"}, "must be below sigma_max"),
        ("g", {"evaluation__num_steps": "1"}, "must be at least 2"),
        ("g", {"training__duration_mimg": "inf"}, "must be positive and finite"),
        ("g", {"seed": "-1"}, "^seed=-1, but must be 0 or more"),
        (
            "a",
            {
                "network__model_channels": "36",
                "network__channel_mult": "(1, 4)",
                "network__head_channels": "36",
            },
            "multiple of 32",
        ),
        ("g", {"network__resolution": "5"}, "resolution=5 must be a multiple of 2"),
        ("g", {"network__model_channels": "10"}, "must be a multiple of 4"),
        (
            "g",
            {"network__head_channels": "3"},
            "gives 5 heads for a level's 16 channels",
        ),
        (
            "g",
            {"network__noise_channels": "3"},
            "noise_channels=3, but must be even",
        ),
        ("g", {"network__embedding_layers": "3"}, "must be 1 or 2"),
        ("g", {"network__dropout": "1.0"}, r"must be in \[0, 1\)"),
        ("g", {"network__clamp": "0.0"}, "must be positive"),
        ("g", {"optimizer__alpha_ref": "-0.1"}, "must be positive"),
        ("g", {"optimizer__warmup__rampup_mimg": "0"}, "must be positive and finite"),
        ("g", {"training__parallel": "pjit"}, "must be one of 'jit', 'pmap'"),
        ("g", {"ema__sigma_rels": "(0.05, 0.3)"}, "ema.sigma_rels: .* 0.3"),
    ],
)
def test_an_invalid_combination_is_refused_with_its_reason(letter, overrides, reason):
    with pytest.raises(ValueError, match=reason) as error:
        load(letter, **overrides)
    assert "\n" not in str(error.value)


def test_inf_turns_a_bound_off():
    config = load("g", network__clamp="inf", training__snapshot_mimg="inf")
    assert config.network.clamp == config.training.snapshot_mimg == math.inf


def test_fields_chosen_for_another_duration_are_named():
    longer = load("a", training__duration_mimg="0.01", training__log_mimg="0.001")
    note = configs.duration_note(longer)
    assert "optimizer.warmup.rampup_mimg=0.00016" in note
    assert "ema.halflives_mimg=(0.00093,)" in note
    # Not what the user set, what the letter has otherwise, or at its own duration.
    assert "log_mimg" not in note and "t_ref" not in note
    assert "optimizer.schedule.t_ref=160.0" in configs.duration_note(
        load("g", training__duration_mimg="0.01")
    )
    assert configs.duration_note(load("a")) == ""


# Each change is a switch of its own: one left out of G, one added to an earlier letter.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("letter", "overrides"),
    [
        ("g", {"optimizer__forced_weight_norm": "False"}),
        ("g", {"network__add": "sum"}),
        ("g", {"network__cat": "cat", "network__mp_activation": "False"}),
        ("g", {"network__gain": "False", "network__dropout": "0.1"}),
        ("g", {"network__norm": "rms_group", "network__block": "branch"}),
        ("g", {"network__weights": "biased", "optimizer__forced_weight_norm": "False"}),
        ("e", {"network__pixel_norm": "True"}),
        ("a", {"network__weights": "plain", "network__num_classes": "0"}),
        ("b", {"network__noise_features": "mp_fourier", "network__add": "mp_sum"}),
        ("c", {"network__modulation": "scale_shift", "network__attention": "dot"}),
    ],
)
def test_a_valid_combination_runs(letter, overrides):
    model = load(letter, **overrides).model
    f, u, _ = jax.eval_shape(model.apply, model.shapes, *model.inputs(batch=2))
    assert (f.shape, u.shape) == ((2, 8, 8, 1), (2,))


def test_a_choice_by_name_has_its_entrys_fields_and_no_others():
    fields = {
        "optimizer__schedule__final": "0.01",
        "optimizer__schedule__name": "cosine",
    }
    chosen = load("g", **fields).to_dict()["optimizer"]["schedule"]
    assert chosen == {"name": "cosine", "final": 0.01, "end_mimg": 0.0}
    # Naming what is chosen already keeps the letter's values.
    same = load("g", optimizer__schedule__name="inverse_sqrt").optimizer.schedule
    assert same == load("g").optimizer.schedule
    assert same.t_ref == 160
    for change, message in [
        ({"optimizer__schedule__name": "cosin"}, "Did you mean 'cosine'"),
        (fields | {"optimizer__schedule__t_ref": "1"}, "t_ref' of 'cosine'"),
        ({"optimizer__schedule": "cosine"}, "mean 'optimizer.schedule.name'"),
        ({"optimizer__nonfinite": "stopp"}, "Did you mean 'stop'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load("g", **change)


def test_an_entry_may_come_from_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import dataclasses\nfrom edm_jax.fields import Settings, Share\n"
        "@dataclasses.dataclass(frozen=True)\nclass Half(Settings):\n"
        "    share: Share = 0.5\n    def factor(self, nimg, run):\n"
        "        return self.share + 0 * nimg\n"
    )
    name = {"optimizer__schedule__name": f"{file}:Half"}
    config = load("g", **name, optimizer__schedule__share="0.25")
    rate = chain.learning_rate(config.optimizer, 1.0)
    assert float(rate(1e6)) == pytest.approx(0.25 * config.optimizer.alpha_ref)
    with pytest.raises(ValueError, match="share=2.0, but must be in"):
        load("g", **name, optimizer__schedule__share="2")
    with pytest.raises(ValueError, match="defines no Haf"):
        load("g", optimizer__schedule__name=f"{file}:Haf")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load("g", optimizer__schedule__name="nowhere.py:Half")
    file.with_name("broken.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"broken.py fails: ZeroDivisionError"):
        load("g", optimizer__schedule__name=f"{tmp_path / 'broken.py'}:Half")


MINE = """
import dataclasses
import flax.linen as nn
import numpy as np
from edm_jax.fields import Positive, Settings

@dataclasses.dataclass(frozen=True)
class Cube(Settings):
    scale: Positive = 1.0
    def apply(self, x):
        return self.scale * x**3

@dataclasses.dataclass(frozen=True)
class Halves(Settings):
    def kernel(self, rng, shape, fan_in):
        return np.full(shape, 0.5)
    bias = label = kernel

class Doubled(nn.Module):
    def __call__(self, x):
        return 2 * x
"""


def test_a_networks_parts_may_come_from_a_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    config = load(
        "g",
        network__activation__name=f"{file}:Cube",
        network__activation__scale="2",
        network__init=f"{file}:Halves",
        network__norm=f"{file}:Doubled",
    )
    ops = config.model.spec.ops
    # E[x^6] = 15 for x ~ N(0, 1).
    assert float(ops.activation(2.0)) == pytest.approx(16 / (2 * 15**0.5), rel=1e-3)
    assert ops.norm(name="norm").apply({}, 3.0) == 6.0
    assert (config.model.init(0)["unet"]["out_conv"]["kernel"] == 0.5).all()
    recorded = json.loads(json.dumps(config.to_dict()))
    # What a run left is read without the file, unless it is used.
    file.unlink()
    again = configs.from_json(recorded, "config.json")
    assert again == config
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load("g", network__init="nowhere.py:Halves")


def test_flatten_takes_configs_and_dicts_alike():
    nested = {"a": 1, "b": {"c": (2,), "d": {"e": None}}}
    flat = {"a": 1, "b.c": (2,), "b.d.e": None}
    assert configs.flatten(nested) == flat
    assert configs.flatten(ml_collections.ConfigDict(nested)) == flat


def test_a_config_whose_model_was_built_goes_to_other_processes():
    config = configs.load(f"{configs.letter_path('g')}:digits")
    assert config.model is config.model
    assert pickle.loads(pickle.dumps(config)) == config
