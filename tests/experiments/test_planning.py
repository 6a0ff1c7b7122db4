"""What a launch would do with each run: told beforehand, and nothing lost."""

import json
import re
import sys

import pytest

import configs
from edm_jax.runs import claims
from edm_jax.runs.directory import RunDir, write_json
from edm_jax.studies import RunSpec, by_seed, local
from experiments import cli, launch, planning, train

G = f"{configs.letter_path('g')}:digits-tiny"


def planned(directory, *names, retry_failed=False, overrides=None, allow=""):
    specs = [RunSpec(name, G) for name in names]
    return planning.plan(
        "study", specs, directory, overrides or {}, retry_failed, allow
    )


def actions(*arguments, **options):
    return {plan.spec.name: plan.action for plan in planned(*arguments, **options)}


def make(directory, name, **status):
    run = RunDir(directory / name, configs.load(G))
    run.set_status(**status)
    return run.path


@pytest.mark.slow
def test_each_state_has_its_action(tmp_path):
    make(tmp_path, "begun", state="preempted", nimg=320)
    make(tmp_path, "broken", state="failed", message="no disk")
    done = make(tmp_path, "done", state="done", total_nimg=640)
    write_json(done / "evaluation.json", {"nimg": 640})
    claim = claims.take(make(tmp_path, "held", state="running"), "somebody")
    names = ("new", "begun", "broken", "done", "held")
    assert actions(tmp_path, *names) == {
        "new": "train",
        "begun": "resume",
        "broken": "failed before",
        "done": "done",
        "held": "held",
    }
    assert actions(tmp_path, "broken", retry_failed=True) == {"broken": "train"}
    sentences = list(planning.skipped(planned(tmp_path, *names), tmp_path))
    assert f"{tmp_path}: 1 runs are done (done)." in sentences
    broken = f"{tmp_path}/broken: failed before: no disk; --retry_failed runs it again."
    assert broken in sentences and len(sentences) == 2
    assert isinstance(claim, claims.Claim)


def test_damaged_files_beside_a_run_are_named_and_stop_nothing(tmp_path):
    run = make(tmp_path, "begun", state="preempted", nimg=320)
    (run / "status.json").write_text("[" * 5000)
    (run / "slurm.json").write_text('{"job": ["12"]}')
    plans = planned(tmp_path, "begun")
    (said,) = planning.unreadable(plans)
    assert f"{run}/status.json" in said and "resumes from its last checkpoint" in said
    assert plans[0].action == "train"


def test_planning_writes_nothing(tmp_path):
    plans = planned(tmp_path / "study", "a", "b")
    assert not (tmp_path / "study").exists()
    assert [plan.nimg for plan in plans] == [640, 640]
    assert plans[0].bytes == plans[1].bytes > 1e6


def test_a_changed_config_is_refused_with_its_difference_before_anything(tmp_path):
    path = make(tmp_path, "b", state="preempted", nimg=320)
    (path / "checkpoints" / "20").mkdir(parents=True)
    changed = {"optimizer.method.beta1": "0.8"}
    with pytest.raises(
        ValueError, match=r"optimizer.method.beta1 is 0.9 there and 0.8 here"
    ):
        planned(tmp_path, "a", "b", overrides=changed)
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="'optimizer.method.beta1'"):
        planned(tmp_path, "b", overrides=changed, allow="optimizer.method.betal1")
    plans = planned(tmp_path, "b", overrides=changed, allow="optimizer.method.beta1")
    (task,) = planning.open_runs(plans, "optimizer.method.beta1")
    assert "--allow=optimizer.method.beta1" in task.commands[0]
    assert json.loads((tmp_path / "b" / "changes.json").read_text())["changes"]


def test_a_run_that_failed_before_any_step_trains_with_the_corrected_config(tmp_path):
    make(tmp_path, "a", state="failed", message="no such data")
    assert actions(tmp_path, "a") == {"a": "failed before"}
    plans = planned(tmp_path, "a", overrides={"optimizer.method.beta1": "0.8"})
    assert plans[0].action == "train"
    (task,) = planning.open_runs(plans, "")
    assert task.status["state"] == "queued"
    assert (
        json.loads((task.path / "config.json").read_text())["optimizer"]["method"][
            "beta1"
        ]
        == 0.8
    )


def test_training_is_told_its_study_and_variant(tmp_path):
    specs = by_seed([RunSpec("g-long", G, seeds=(0, 3))])
    plans = planning.plan("ladder", specs, tmp_path, {}, False, "")
    for plan, task in zip(plans, planning.open_runs(plans, ""), strict=True):
        assert plan.path.name in ("g-long-seed0", "g-long-seed3")
        options = cli.parse_config(train.parser(), task.commands[0][2:])[0]
        assert (options.study, options.variant) == ("ladder", "g-long")


@pytest.mark.slow
def test_what_is_said_of_all_runs_is_of_no_field_that_the_study_sets(tmp_path):
    specs = [RunSpec("a", G, {"optimizer.method.beta1": "0.8"}), RunSpec("b", G)]
    for field in ("optimizer.method.beta1", "optimizer.method.beta2"):
        try:
            plans = planning.plan("s", specs, tmp_path, {field: "0.5"}, False, "")
        except ValueError as error:
            assert field == "optimizer.method.beta1" and "the study sets that" in str(
                error
            )
        else:
            assert [p.config.optimizer.method.beta2 for p in plans] == [0.5, 0.5]
            assert [p.config.optimizer.method.beta1 for p in plans] == [0.8, 0.9]


def test_a_longer_duration_resumes_a_done_run_unless_it_stopped_early(tmp_path):
    longer = {"training.duration_mimg": "0.00128"}
    for name, early in (("a", False), ("b", True)):
        path = make(
            tmp_path, name, state="done", nimg=640, total_nimg=640, stopped_early=early
        )
        write_json(path / "evaluation.json", {"nimg": 640})
    assert actions(tmp_path, "a", "b") == {"a": "done", "b": "done"}
    allow = "training.duration_mimg"
    found = actions(tmp_path, "a", "b", overrides=longer, allow=allow)
    assert found == {"a": "resume", "b": "done"}


@pytest.mark.parametrize("damage", ["", "[]", '{"state": '])
def test_a_damaged_status_is_rewritten_and_the_run_resumes(tmp_path, damage):
    path = make(tmp_path, "a", state="preempted", nimg=320)
    (path / "status.json").write_text(damage)
    plans = planned(tmp_path, "a")
    assert plans[0].action == "train"
    (task,) = planning.open_runs(plans, "")
    assert task.status["state"] == "queued"


def test_a_run_that_is_held_counts_as_not_ended_when_it_was_planned(tmp_path):
    claim = claims.take(make(tmp_path, "a", state="running"), "somebody")
    (task,) = planning.open_runs(planned(tmp_path, "a"), "")
    assert task.attempts == 0 and isinstance(claim, claims.Claim)


def test_opened_runs_are_queued_and_keep_what_they_had(tmp_path):
    make(tmp_path, "begun", state="preempted", nimg=320)
    make(tmp_path, "broken", state="failed", message="no disk")
    plans = planned(tmp_path, "new", "begun", "broken", retry_failed=True)
    tasks = {task.name: task for task in planning.open_runs(plans, "")}
    assert tasks["new"].status["state"] == "queued"
    assert tasks["broken"].status["state"] == "queued"
    assert tasks["begun"].status["nimg"] == 320
    train, evaluate = tasks["new"].commands
    assert f"--config={G}" in train and f"--run={tmp_path}/new" in train
    assert evaluate[1].endswith("evaluate.py")


def test_each_run_finds_a_rate_of_its_own_and_keeps_it(tmp_path):
    auto = {"optimizer.alpha_ref": "auto"}
    plans = planned(tmp_path, "new", overrides=auto)
    assert plans[0].searches and plans[0].action == "train"
    (task,) = planning.open_runs(plans, "")
    assert "--config.optimizer.alpha_ref=auto" in task.commands[0]
    # A config.json would be that of a run which has its rate.
    assert task.status["state"] == "queued"
    assert not (tmp_path / "new" / "config.json").exists()
    assert planned(tmp_path, "new", overrides=auto)[0].searches

    found = configs.load(G, {"optimizer.alpha_ref": "0.01234567"})
    RunDir(tmp_path / "new", found).set_status(state="preempted", nimg=320)
    (plan,) = planned(tmp_path, "new", overrides=auto)
    assert not plan.searches and plan.action == "resume"
    assert plan.config.optimizer.alpha_ref == 0.01234567


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["launch", *arguments])
    cli.run(launch.main)


@pytest.mark.slow
def test_a_dry_run_says_what_would_run_and_leaves_no_trace(
    monkeypatch, capsys, tmp_path
):
    directory = tmp_path / "study"
    options = ["--workload=digits-tiny", f"--runs={directory}", "--dry_run"]
    command(monkeypatch, "--seeds=0-2", *options)
    printed = capsys.readouterr().out
    assert printed.count(" train ") == 21 and "g-seed2" in printed
    assert "21 of 21 runs, 13,440 images" in printed
    assert "Nothing was started" in printed and not directory.exists()


@pytest.mark.slow
def test_a_dry_run_says_the_hours_and_what_they_cost(monkeypatch, capsys, tmp_path):
    options = "--workload=digits-tiny", f"--runs={tmp_path}/s", "--dry_run"
    monkeypatch.setattr(launch.hours, "chip_hours", lambda config, chip: 100.0)
    command(monkeypatch, *options, "--chip=H100", "--price_per_chip_hour=2.5")
    printed = capsys.readouterr().out
    assert printed.count(" 100 ") == 7 and "chip-hours" in printed
    assert "700 hours of H100, 1,750.00 at 2.5 an hour" in printed
    # A back-end knows its chip.
    command(monkeypatch, *options, "--backend=k8s", "--topology=v5e:4x4")
    assert "700 hours of v5e, without evaluation, at 50%" in capsys.readouterr().err
    monkeypatch.undo()
    command(monkeypatch, *options, "--chip=v5e")  # in float32
    assert "The peak of v5e is not stated" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_launch_says_how_long_it_took_and_what_comes_next(
    monkeypatch, capsys, tmp_path
):
    def all_done(tasks, *_):
        return {task.name: "done" for task in tasks}

    monkeypatch.setattr(local, "run", all_done)
    command(monkeypatch, "--workload=digits-tiny", f"--runs={tmp_path}/s")
    last = capsys.readouterr().out.splitlines()[-1]
    next_command = f"python experiments/compare.py {tmp_path}/s"
    assert re.fullmatch(rf"7 runs in \d+ s; next: {re.escape(next_command)}", last)


def test_tpu_commands_are_printed_for_every_run(monkeypatch, capsys, tmp_path):
    options = ["--workload=digits-tiny", f"--runs={tmp_path}/s", "--backend=tpu"]
    command(monkeypatch, *options, "--tpu=pod", "--zone=z", "--directory=/code")
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 7 and not (tmp_path / "s").exists()
    for letter, line in zip("abcdefg", lines):
        assert line.startswith("gcloud compute tpus tpu-vm ssh pod --zone=z")
        # Paths of the workers, not of this machine.
        assert "cd /code && .venv/bin/python experiments/train.py" in line
        assert f"--config=configs/config_{letter}.py:digits-tiny" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds=0-x"], "such as 0-2"),
        (["--seeds=1,1"], "names 1 twice"),
        (["--config.network.dropuot=0.1"], "'network.dropout'"),
        (["--study=missing.py"], "no study file missing.py"),
        (["--seeds=99999999999999999999"], "below 2^31"),
        (["--allow=nosuch"], "no field 'nosuch'"),
        pytest.param(
            ["--backend=slurm"], "There is no SLURM here", marks=pytest.mark.slow
        ),
        (["--chip=H10"], "Did you mean 'H100'"),
        (["--price_per_chip_hour=-1"], "finite and not negative"),
    ],
)
def test_a_wrong_input_is_one_sentence(
    monkeypatch, capsys, tmp_path, arguments, sentence
):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, f"--runs={tmp_path}/s", *arguments)
    assert not (tmp_path / "s").exists()
    assert stop.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert sentence in printed and "\n" not in printed
