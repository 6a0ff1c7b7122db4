"""What a run directory promises: identity, whole files, a log that resumes cleanly."""

import json
import os

import pytest

import configs
from edm_jax import run_dir
from edm_jax.run_dir import RunDir

REFERENCE = str(configs.letter_path("g")) + ":digits-tiny"


def config(**overrides):
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return configs.load(REFERENCE, dotted)


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "study" / "run", config())


def log_steps(run, *steps):
    for step in steps:
        run.log("train", step, step * 16, loss=1 / step)


def steps_of(run, kind="train"):
    return [record["step"] for record in run.records(kind)]


def test_config_is_recorded_and_reads_back_as_the_same_config(run):
    recorded = run_dir.read_json(run.path / "config.json")
    assert configs.from_json(recorded).to_dict() == config().to_dict()
    assert run_dir.config_hash(configs.from_json(recorded)) == run.config_hash


def test_the_same_config_opens_a_run_again(run):
    run.set_status(state="preempted", nimg=160)
    again = RunDir(run.path, config())
    assert again.config_hash == run.config_hash
    assert again.status["state"] == "preempted" and again.status["nimg"] == 160


def test_a_changed_config_is_refused_with_every_changed_field_named(run):
    before = (run.path / "config.json").read_bytes()
    changed = config(optimizer__alpha_ref="0.5", network__channel_mult="(1,)")
    with pytest.raises(ValueError) as refusal:
        RunDir(run.path, changed)
    message = str(refusal.value)
    assert "optimizer.alpha_ref is 0.03 there and 0.5 here" in message
    assert "network.channel_mult is [1, 2] there and [1] here" in message
    assert "network.dropout" not in message
    assert (run.path / "config.json").read_bytes() == before


def test_config_hash_ignores_where_and_how_a_run_runs_and_nothing_else():
    base = run_dir.config_hash(config())
    free = config(
        data__data_dir="'/elsewhere'",
        training__snapshot_dir="'gs://elsewhere'",
        training__checkpoint_mimg="0.5",
        training__keep_checkpoints="7",
        training__keep_checkpoint_mimg="1.0",
        training__microbatches="2",
        training__sharding="'full'",
        training__remat="True",
    )
    assert run_dir.config_hash(free) == base
    assert run_dir.config_hash(config(training__parallel="'pmap'")) == base
    flat = configs.flatten(config().to_dict())
    assert run_dir.FREE < flat.keys()
    flat = {field: flat[field] for field in flat.keys() - run_dir.FREE}
    hashes = {base}
    for field, value in flat.items():
        changed = config().copy_and_resolve_references().unlock()
        other = {
            bool: lambda v: not v,
            str: lambda v: v + "x",
            tuple: lambda v: (*v, 1),
        }.get(type(value), lambda v: v + 1 if abs(v) < 1e30 else 1.0)
        changed.update_from_flattened_dict({field: other(value)})
        hashes.add(run_dir.config_hash(changed))
    assert len(hashes) == 1 + len(flat)


def test_status_begins_queued_and_keeps_the_fields_it_is_not_given(run):
    assert run.status == {"state": "queued", "stage": "train"}
    run.set_status(state="running", nimg=16, total_nimg=640)
    run.set_status(nimg=32)
    on_disk = run_dir.read_json(run.path / "status.json")
    assert on_disk == run.status
    assert on_disk == {
        "state": "running",
        "stage": "train",
        "nimg": 32,
        "total_nimg": 640,
    }


def test_hurried_status_updates_are_written_at_most_once_a_second(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_dir.time, "monotonic", lambda: now[0])
    run.set_status(nimg=0)
    for nimg in range(1, 30):  # 1.5 seconds
        now[0] += 0.05
        run.set_status(nimg=nimg, now=False)
    assert 19 <= run_dir.read_json(run.path / "status.json")["nimg"] <= 22
    # Nothing is lost: the next one that counts writes all.
    run.set_status(state="done")
    assert run_dir.read_json(run.path / "status.json")["nimg"] == 29


def test_status_can_be_changed_from_outside_the_run(run):
    run.set_status(state="running", nimg=16)
    run_dir.update_status(run.path, state="failed", message="killed")
    on_disk = run_dir.read_json(run.path / "status.json")
    assert (on_disk["state"], on_disk["nimg"]) == ("failed", 16)


def test_records_are_told_apart_by_kind_and_kept_in_order(run):
    log_steps(run, 1, 2)
    run.log("heldout", 2, 32, loss_per_element=0.5)
    log_steps(run, 3)
    assert steps_of(run) == [1, 2, 3]
    (probe,) = run.records("heldout")
    assert probe == {"kind": "heldout", "step": 2, "nimg": 32, "loss_per_element": 0.5}


def test_floats_are_logged_to_the_last_bit(run):
    run.log("train", 1, 16, loss=0.1 + 0.2)
    assert run.records("train")[0]["loss"] == 0.1 + 0.2


def test_a_run_without_metrics_has_no_records(run):
    assert run.records("train") == []
    run.forget_after(0)
    assert run.records("train") == []


def test_a_line_torn_by_a_kill_is_dropped_and_not_continued(run):
    log_steps(run, 1, 2)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 3, "lo')
    assert steps_of(run) == [1, 2]
    run.forget_after(2)
    log_steps(run, 3)
    assert steps_of(run) == [1, 2, 3]


def test_resuming_forgets_what_came_after_the_checkpoint_and_only_that(run):
    log_steps(run, 1, 2, 3)
    run.log("heldout", 3, 48, loss_per_element=0.5)
    log_steps(run, 4)
    before = (run.path / "metrics.jsonl").read_text().splitlines()
    run.forget_after(2)
    assert (run.path / "metrics.jsonl").read_text().splitlines() == before[:2]
    assert run.records("heldout") == []


def test_json_is_written_whole_or_not_at_all(run, monkeypatch):
    path = run.path / "evaluation.json"
    run_dir.write_json(path, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ValueError, match="at a bad moment"):
            run_dir.write_json(path, {"loss": 2.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    run_dir.write_json(path, {"loss": 3.0})
    assert json.loads(path.read_text()) == {"loss": 3.0}


def fail(*_):
    raise ValueError("died at a bad moment")


def test_provenance_has_versions_and_keeps_the_first_start(run, monkeypatch):
    run.record_provenance(params=123, devices=["cpu"])
    path = run.path / "provenance.json"
    first = run_dir.read_json(path)
    assert first["params"] == 123 and first["versions"]["jax"].count(".") == 2
    monkeypatch.setattr(run_dir, "_utc_now", lambda: "later")
    run.record_provenance(params=123, devices=["cpu", "cpu"])
    second = run_dir.read_json(path)
    assert second["start_time"] == first["start_time"] != "later"
    assert second["devices"] == ["cpu", "cpu"]
