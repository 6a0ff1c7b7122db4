"""Studies: lists of runs, their names, and what the shipped ones change."""

import itertools
from pathlib import Path

import pytest

import configs
from edm_jax import studies
from edm_jax.studies import SAME, RunSpec, Variant, tpu
from edm_jax.studies.task import Task
from experiments import launch

ROOT = Path(__file__).parents[2]
STUDIES = (
    "adapters",
    "betas",
    "decay_or_average",
    "ema_lengths",
    "ladder",
    "lr_sensitivity",
    "lr_width",
    "one_change",
    "optimizers",
    "regularizers",
    "schedules",
    "stabilizers",
    "t_ref",
)
BETA1 = studies.values("optimizer.method.beta1", (0.8, 0.9))
BETA2 = studies.values("optimizer.method.beta2", (0.95, 0.99, 0.999))


def test_values_are_named_by_field_and_value():
    assert [v.name for v in BETA1] == ["beta1=0.8", "beta1=0.9"]
    assert BETA1[0].fields == {"optimizer.method.beta1": 0.8}


def test_a_product_has_every_combination_once():
    combined = studies.product(BETA1, BETA2)
    assert len({tuple(sorted(v.fields.items())) for v in combined}) == 6
    found = [tuple(v.fields.values()) for v in combined]
    assert found == list(itertools.product((0.8, 0.9), (0.95, 0.99, 0.999)))
    assert combined[1].name == "beta1=0.8-beta2=0.99"


def test_zipped_axes_go_together_and_must_be_equally_long():
    pairs = studies.zipped(BETA1, BETA2[:2])
    assert [tuple(v.fields.values()) for v in pairs] == [(0.8, 0.95), (0.9, 0.99)]
    with pytest.raises(ValueError, match="equally long"):
        studies.zipped(BETA1, BETA2)


def test_one_at_a_time_is_the_config_and_each_change_alone():
    variants = studies.one_at_a_time(BETA1, BETA2)
    assert [len(v.fields) for v in variants] == [0, 1, 1, 1, 1, 1]


def test_two_values_for_one_field_are_refused():
    with pytest.raises(
        ValueError, match="both set optimizer.method.beta1: to 0.8 and to 0.9"
    ):
        studies.product(BETA1, BETA1)


def test_a_float_survives_being_written_as_an_override():
    rate = 0.1 + 0.2
    (spec,) = studies.runs_of("g", "x", [Variant("r", {"optimizer.alpha_ref": rate})])
    assert float(spec.overrides["optimizer.alpha_ref"]) == rate


def test_each_run_is_there_once_for_each_seed_round_by_round():
    specs = [RunSpec("a", "x", seeds=(0, 1)), RunSpec("b", "y", {"k": "v"}, seeds=(4,))]
    own = studies.by_seed(specs)
    assert [s.name for s in own] == ["a-seed0", "b-seed4", "a-seed1"]
    assert own[1].overrides == {"k": "v", "seed": "4"}
    asked = studies.by_seed(specs, [7, 8])
    assert [s.name for s in asked] == ["a-seed7", "b-seed7", "a-seed8", "b-seed8"]


def test_two_runs_of_one_name_are_refused():
    with pytest.raises(ValueError, match="Two runs of the study are called a"):
        studies.by_seed([RunSpec("a", "x"), RunSpec("a", "y")])


def differences(spec, letter, workload="digits"):
    changed = configs.flatten(configs.load(spec.config, spec.overrides))
    plain = configs.flatten(configs.load(f"{configs.letter_path(letter)}:{workload}"))
    # A schedule of another name has other fields.
    names = plain.keys() | changed.keys()
    return {name for name in names if changed.get(name) != plain.get(name)}


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("workload", ["digits", "imagenet512-s"])
def test_every_run_of_a_study_is_a_config_and_no_two_are_the_same(name, workload):
    _, runs = launch.load_study(name)
    found = [
        str(configs.flatten(configs.load(s.config, s.overrides)))
        for s in runs(workload)
    ]
    assert len(set(found)) == len(found) >= 7


def test_all_shipped_studies_are_tested():
    files = (ROOT / "experiments" / "studies").glob("[a-z]*.py")
    assert sorted(path.stem for path in files) == list(STUDIES)


def test_one_change_changes_one_feature_of_g_or_of_a():
    runs = {s.name: s for s in launch.load_study("one_change")[1]("digits")}
    assert differences(runs["g-minus-mp_cat"], "g") == {"network.cat"}
    assert differences(runs["a-plus-mp_cat"], "a") == {"network.cat"}
    assert differences(runs["g-minus-forced_weight_norm"], "g") == {
        "optimizer.forced_weight_norm"
    }
    # Without normalized weights their forced norm makes no sense either.
    assert "optimizer.forced_weight_norm" in differences(
        runs["g-minus-mp_weights"], "g"
    )
    assert "a-plus-forced_weight_norm" not in runs  # of weights not normalized
    assert "g-minus-rms_group_norm" not in runs  # F has removed it again
    for letter, sign in (("g", "minus"), ("a", "plus")):
        mine = [s for n, s in runs.items() if n.startswith(f"{letter}-{sign}")]
        assert len(mine) >= 15 and all(differences(s, letter) for s in mine)


def test_t_ref_spans_the_workloads_own_by_factors_of_two():
    runs = launch.load_study("t_ref")[1]("imagenet512-s")
    t_refs = [
        configs.load(s.config, s.overrides).optimizer.schedule.t_ref for s in runs
    ]
    assert t_refs[:-1] == [70000 * 2.0**i for i in range(-3, 4)]
    assert t_refs[-1] == float("inf")


def test_a_study_may_be_a_file_of_the_users_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from edm_jax.studies import RunSpec\n"
        "def runs(workload): return [RunSpec('x', f'c.py:{workload}')]\n"
    )
    name, runs = launch.load_study(str(path))
    assert name == "mine" and runs("digits") == [RunSpec("x", "c.py:digits")]
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match="no function runs"):
        launch.load_study(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match="'ladder'"):
        launch.load_study("lader")


def test_a_tpu_trains_on_all_workers_and_evaluates_on_the_first():
    task = Task("a", "runs/a", [["py", "train.py", "--run=a b"], ["py", "evaluate.py"]])
    (line,) = tpu.commands([task], "pod", "us-central2-b", Path("/here"), Path("/code"))
    train, evaluate = line.split(" && gcloud ")
    assert train.startswith("gcloud compute tpus tpu-vm ssh pod --zone=us-central2-b")
    assert "--worker=all" in train and "cd /code && .venv/bin/python train.py" in train
    assert "--worker=0" in evaluate and "evaluate.py" in evaluate


def test_nothing_is_changed_by_the_config_as_it_is():
    assert (SAME + BETA1[0]).name == "beta1=0.8"
    assert not SAME.fields


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("def runs(workload) return 3", "SyntaxError"),
        ("import nosuch_module", "nosuch_module"),
        ("def runs(workload): return None", "must return a list of RunSpec"),
        ("def runs(workload): return [3]", "must return a list of RunSpec"),
        ("def runs(workload): return undefined", "undefined"),
    ],
)
def test_what_is_wrong_in_a_study_is_said_with_its_file(tmp_path, text, sentence):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.py .*{sentence}"):
        launch.load_study(str(path))[1]("digits")


@pytest.mark.parametrize("name", ["", "../x", "a b", "-x", "a/b"])
def test_a_run_has_a_directory_of_its_own_in_the_study(name):
    with pytest.raises(ValueError, match="cannot name its directory"):
        studies.by_seed([RunSpec(name, "x")])


def test_a_seed_is_there_once_and_no_override():
    with pytest.raises(ValueError, match="Two runs of the study are called x-seed0"):
        studies.by_seed([RunSpec("x", "c", seeds=(0, 0))])
    with pytest.raises(ValueError, match="give it `seeds`"):
        studies.by_seed([RunSpec("x", "c", {"seed": "5"})])
