"""Run directories: identity, complete files, and a log that resumes cleanly."""

import contextlib
import io
import json
import os
import shutil

import ml_collections
import pytest

import configs
from edm_jax.runs import claims, directory
from edm_jax.runs.directory import RunDir

REFERENCE = str(configs.letter_path("g")) + ":digits-tiny"


def config(**overrides):
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return configs.load(REFERENCE, dotted)


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "study" / "run", config())


@pytest.fixture
def trained(run):
    """A run that has a checkpoint."""
    (run.checkpoints / "12").mkdir(parents=True)
    return run


def log_steps(run, *steps):
    for step in steps:
        run.log("train", step, step * 16, loss=1 / step)


def steps_of(run, kind="train"):
    return [record["step"] for record in run.records(kind)]


def test_config_is_recorded_and_reads_back_as_the_same_config(run):
    recorded = directory.read_json(run.path / "config.json")
    assert configs.from_json(recorded, "").to_dict() == config().to_dict()
    assert directory.config_hash(configs.from_json(recorded, "")) == run.config_hash


def test_the_same_config_opens_a_run_again(run):
    run.set_status(state="preempted", nimg=160)
    again = RunDir(run.path, config())
    assert again.config_hash == run.config_hash
    assert again.status["state"] == "preempted" and again.status["nimg"] == 160


def test_a_changed_config_is_refused_with_every_changed_field_named(trained):
    run = trained
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
    base = directory.config_hash(config())
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
    assert directory.config_hash(free) == base
    assert directory.config_hash(config(training__parallel="'pmap'")) == base
    decoded = config(evaluation__decoder__name="vae")
    assert directory.FREE < configs.flatten(decoded.to_dict()).keys()
    assert directory.config_hash(decoded) == base
    flat = configs.flatten(config().to_dict())
    flat = {field: flat[field] for field in flat.keys() - directory.FREE}
    hashes = {base}
    for field, value in flat.items():
        changed = ml_collections.ConfigDict(config().to_dict())
        other = {
            bool: lambda v: not v,
            str: lambda v: v + "x",
            tuple: lambda v: (*v, 1),
        }.get(type(value), lambda v: v + 1 if abs(v) < 1e30 else 1.0)
        changed.update_from_flattened_dict({field: other(value)})
        hashes.add(directory.config_hash(changed))
    assert len(hashes) == 1 + len(flat)


def test_status_begins_queued_and_keeps_the_fields_it_is_not_given(run):
    assert run.status == {"state": "queued", "stage": "train"}
    run.set_status(state="running", nimg=16, total_nimg=640)
    run.set_status(nimg=32)
    on_disk = directory.read_json(run.path / "status.json")
    assert on_disk == run.status
    assert on_disk == {
        "state": "running",
        "stage": "train",
        "nimg": 32,
        "total_nimg": 640,
    }


def test_hurried_status_updates_are_written_at_most_once_a_second(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(directory.time, "monotonic", lambda: now[0])
    run.set_status(nimg=0)
    for nimg in range(1, 30):  # 1.5 seconds
        now[0] += 0.05
        run.set_status(nimg=nimg, now=False)
    assert 19 <= directory.read_json(run.path / "status.json")["nimg"] <= 22
    # Nothing is lost: the next one that counts writes all.
    run.set_status(state="done")
    assert directory.read_json(run.path / "status.json")["nimg"] == 29


def test_status_can_be_changed_from_outside_the_run(run):
    run.set_status(state="running", nimg=16)
    directory.update_status(run.path, state="failed", message="killed")
    on_disk = directory.read_json(run.path / "status.json")
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


def test_a_damaged_line_is_left_out_and_told_once(run, caplog):
    run.log("speed", 1, 16)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write("1e999\n")
    assert len(run.records("speed")) == 1 and run.records("heldout") == []
    assert caplog.text.count("metrics.jsonl") == 1


def test_opening_a_run_does_not_rewrite_its_config(run, tmp_path):
    place = run.path / "config.json"
    place.write_text(f"{place.read_text()} ")
    before = place.read_bytes()
    RunDir(run.path, config())
    assert place.read_bytes() == before


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
    directory.write_json(path, {"loss": 1.0})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ValueError, match="at a bad moment"):
            directory.write_json(path, {"loss": 2.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    directory.write_json(path, {"loss": 3.0})
    assert json.loads(path.read_text()) == {"loss": 3.0}


def fail(*_):
    raise ValueError("died at a bad moment")


def test_provenance_has_versions_and_keeps_the_first_start(run, monkeypatch):
    run.record_provenance(params=123, devices=["cpu"])
    path = run.path / "provenance.json"
    first = directory.read_json(path)
    assert first["params"] == 123 and first["versions"]["jax"].count(".") == 2
    monkeypatch.setattr(directory, "utc_now", lambda: "later")
    run.record_provenance(params=123, devices=["cpu", "cpu"])
    second = directory.read_json(path)
    assert second["start_time"] == first["start_time"] != "later"
    assert second["devices"] == ["cpu", "cpu"]


def test_a_start_states_the_images_that_the_run_resumed_from(run):
    run.set_status(nimg=320)  # the last that was trained before a kill
    run.record_provenance(nimg=0)
    run.record_provenance(nimg=192)
    starts = directory.read_json(run.path / "provenance.json")["starts"]
    assert [start["nimg"] for start in starts] == [0, 192]


def test_a_run_records_the_study_it_belongs_to_and_keeps_it(run):
    run.record_provenance()
    path = run.path / "provenance.json"
    assert directory.read_json(path)["study"] is None
    run.study = {"name": "ladder", "variant": "g"}
    run.record_provenance()
    again = RunDir(run.path, config())  # resumed by hand
    again.record_provenance()
    assert directory.read_json(path)["study"] == {"name": "ladder", "variant": "g"}


# Damaged files


@pytest.fixture
def warnings(caplog):
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"7", b'{"kind": "train", "nimg": 48}', b"\xff", b"[" * 100_000],
)
def test_a_damaged_line_costs_that_line_alone_and_is_kept_aside(run, warnings, line):
    log_steps(run, 1, 2)
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    log_steps(run, 4)
    damaged = path.read_bytes()
    assert steps_of(run) == [1, 2, 4]
    run.forget_after(4)
    lines = path.read_text().splitlines()
    assert [json.loads(text)["step"] for text in lines] == [1, 2, 4]
    read, said = warnings()
    assert read.startswith(f"{path}: line 3 is damaged (")
    assert said.startswith(read.removesuffix(" It is left out."))
    assert said.endswith(
        "The other 3 lines are kept; the old file is now metrics.jsonl.damaged."
    )
    assert (run.path / "metrics.jsonl.damaged").read_bytes() == damaged


def test_metrics_that_vanished_are_not_gone_on_without(run):
    log_steps(run, 1, 2)
    path = run.path / "metrics.jsonl"
    path.unlink()
    run.forget_after(-1)  # a run that starts
    path.unlink()
    with pytest.raises(ValueError, match=f"restore it, or .*: touch {path}"):
        run.forget_after(2)
    path.touch()
    run.forget_after(2)


@pytest.mark.parametrize("content", ["", "[]", '{"starts": 7}', '{"starts": [1]}'])
def test_a_damaged_provenance_is_kept_aside_and_a_new_one_started(
    run, warnings, content
):
    path = run.path / "provenance.json"
    path.write_text(content)
    run.record_provenance(params=1)
    assert len(directory.read_json(path)["starts"]) == 1
    (said,) = warnings()
    assert said.startswith(str(path)) and said.endswith(
        "kept as provenance.json.damaged; a new one is started."
    )
    assert (run.path / "provenance.json.damaged").read_text() == content


@pytest.mark.parametrize("name", ["config.json", "changes.json"])
@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_run_that_cannot_tell_which_it_is_says_what_to_do(run, name, content):
    log_steps(run, 1)
    (run.path / name).write_text(content)
    with pytest.raises(
        ValueError, match=f"{name} is damaged: .* Restore it, or delete"
    ):
        RunDir(run.path, config())
    (run.path / name).unlink()
    RunDir(run.path, config())


@pytest.mark.parametrize("name", ["config.json", "changes.json"])
def test_an_object_of_another_form_is_damage_too(run, name):
    (run.path / name).write_text("{}" if name == "config.json" else '{"changes": 7}')
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        RunDir(run.path, config())


@pytest.mark.parametrize("content", ["", "[]", '{"state": '])
def test_a_damaged_status_is_told_and_written_anew(run, warnings, content):
    (run.path / "status.json").write_text(content)
    assert RunDir(run.path, config()).status["state"] == "queued"
    (said,) = warnings()
    assert "status.json is damaged" in said and said.endswith("It is rewritten.")


def test_fields_of_a_status_that_are_of_a_wrong_type_are_left_out(run):
    odd = {"state": 7, "nimg": "many", "images_per_s": [], "stage": "train", "x": 1}
    directory.write_json(run.path / "status.json", odd)
    assert directory.read_status(run.path) == {"stage": "train", "x": 1}


# A directory that was never trained in


@pytest.mark.parametrize("left", ["nothing", "a probe of step 0", "a torn line"])
def test_a_run_that_failed_before_its_first_step_is_taken_over(run, left):
    run.set_status(state="failed", message="no data")
    if left != "nothing":
        run.log("heldout", 0, 0, loss_per_element=1.0)
    if left == "a torn line":
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('{"kind": "tr')
    new = config(optimizer__alpha_ref="0.5", optimizer__batch_size="32")
    again = RunDir(run.path, new)
    assert again.is_taken_over and recorded(again).to_dict() == new.to_dict()
    assert again.config_hash == directory.config_hash(new)
    assert not (run.path / "changes.json").exists()


@pytest.mark.parametrize("left", ["metrics", "a checkpoint", "a snapshot", "damage"])
def test_a_run_of_which_anything_is_left_is_not_taken_over(run, tmp_path, left):
    if left == "metrics":
        log_steps(run, 1)
    elif left == "damage":
        (run.path / "metrics.jsonl").write_text("?\n")
    else:
        place = run.checkpoints if left == "a checkpoint" else run.snapshots
        (place / "12").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a run with another config"):
        RunDir(run.path, config(optimizer__alpha_ref="0.5"))


def test_snapshots_that_lie_elsewhere_count_as_training(run, tmp_path):
    where = {"training__snapshot_dir": str(tmp_path / "large")}
    moved = RunDir(run.path, config(**where))
    (moved.snapshots / "a.safetensors").touch()
    other = {"training__snapshot_dir": str(tmp_path / "other"), "seed": "3"}
    with pytest.raises(ValueError, match="holds a run with another config"):
        RunDir(run.path, config(**other))


# Changes of the config


def recorded(run):
    return configs.from_json(directory.read_json(run.path / "config.json"), run.path)


def test_an_allowed_change_is_recorded_and_the_run_keeps_its_identity(trained):
    run = trained
    run.set_status(state="running", nimg=160)
    new = config(optimizer__nonfinite="skip")
    again = RunDir(run.path, new, allow=["optimizer.nonfinite", "data"])
    assert again.config_hash == run.config_hash != directory.config_hash(new)
    assert recorded(again).to_dict() == new.to_dict()
    assert directory.read_json(run.path / "changes.json") == {
        "config_hash": run.config_hash,
        "changes": [
            {"nimg": 160, "changes": {"optimizer.nonfinite": ["zero", "skip"]}}
        ],
    }


def test_after_an_allowed_change_the_new_config_is_the_run_s(trained):
    run = trained
    new = config(optimizer__nonfinite="skip")
    RunDir(run.path, new, allow=["optimizer.nonfinite"])
    before = (run.path / "changes.json").read_bytes()
    assert RunDir(run.path, new).config_hash == run.config_hash
    assert (run.path / "changes.json").read_bytes() == before
    with pytest.raises(ValueError, match="nonfinite is 'skip' there and 'zero' here"):
        RunDir(run.path, config())


def test_allowed_changes_are_recorded_one_after_the_other(trained):
    run = trained
    run.set_status(nimg=16)
    first = {"optimizer__nonfinite": "skip"}
    RunDir(run.path, config(**first), allow=["optimizer.nonfinite"])
    run.set_status(nimg=32)
    second = first | {"optimizer__alpha_ref": "0.5", "seed": "3"}
    last = RunDir(run.path, config(**second), allow=["optimizer.alpha_ref", "seed"])
    history = directory.read_json(run.path / "changes.json")
    assert history["config_hash"] == last.config_hash == run.config_hash
    assert history["changes"] == [
        {"nimg": 16, "changes": {"optimizer.nonfinite": ["zero", "skip"]}},
        {"nimg": 32, "changes": {"optimizer.alpha_ref": [0.03, 0.5], "seed": [0, 3]}},
    ]


def test_a_refusal_says_what_to_allow_and_that_works(trained):
    run = trained
    new = config(optimizer__alpha_ref="0.5", network__dropout="0.2", seed="3")
    with pytest.raises(ValueError) as refusal:
        RunDir(run.path, new, allow=["seed"])
    message = str(refusal.value)
    assert "seed is" not in message
    _, fields = message.rstrip(".").split("or accept them with --allow=")
    assert fields.split(",") == ["network.dropout", "optimizer.alpha_ref", "seed"]
    assert not (run.path / "changes.json").exists()
    assert recorded(run).to_dict() == config().to_dict()
    RunDir(run.path, new, allow=fields.split(","))


def test_the_batch_size_of_a_run_never_changes(trained):
    run = trained
    before = (run.path / "config.json").read_bytes()
    new = config(optimizer__batch_size="32", seed="3")
    for allow in ([], ["optimizer.batch_size"], ["optimizer.batch_size", "seed"]):
        with pytest.raises(ValueError) as refusal:
            RunDir(run.path, new, allow)
        assert "optimizer.batch_size cannot change" in str(refusal.value)
        assert "--allow" not in str(refusal.value)
    assert (run.path / "config.json").read_bytes() == before
    assert not (run.path / "changes.json").exists()


def test_paths_and_execution_may_change_without_allow(run, tmp_path):
    free = {
        "data__data_dir": "/elsewhere",
        "data__num_workers": "2",
        "training__snapshot_dir": str(tmp_path / "large"),
        "training__checkpoint_mimg": "0.5",
        "training__keep_checkpoints": "7",
        "training__keep_checkpoint_mimg": "1.0",
        "training__parallel": "pmap",
        "training__sharding": "state",
        "training__microbatches": "2",
        "training__remat": "True",
        "training__alert_z": "5.0",
        "training__alert_update": "0.25",
        "training__sharpness_iterations": "10",
        "training__evaluate_mimg": "0.5",
        "evaluation__decoder__name": "vae",
    }
    # Those that need another field as well.
    more = {"decoder.weights", "decoder.pixels"}
    more = {f"evaluation.{name}" for name in more} | {"training.shards"}
    named = {name.replace("__", ".") for name in free}
    assert named == directory.FREE - more
    for name, value in free.items():
        new = config(**{name: value})
        again = RunDir(run.path, new)
        assert again.config_hash == run.config_hash
        assert recorded(again).to_dict() == new.to_dict() != config().to_dict()
    assert not (run.path / "changes.json").exists()


def test_a_change_is_dated_by_the_checkpoint_that_the_run_resumes_from(trained):
    trained.set_status(nimg=320)
    new = config(optimizer__nonfinite="skip")
    again = RunDir(trained.path, new, allow=["optimizer.nonfinite"])
    again.record_provenance(nimg=192)
    (change,) = directory.read_json(trained.path / "changes.json")["changes"]
    assert change["nimg"] == 192


# A full disk, and processes that do not write


def test_a_full_disk_leaves_no_empty_directory(small_disk):
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    path = small_disk / "study" / "run"
    for make in (lambda: RunDir(path, config()), lambda: claims.take(path, "me")):
        with pytest.raises(OSError, match="No space left") as full:
            make()
        assert full.value.filename.startswith(str(path))
        assert list(small_disk.iterdir()) == [filler]


def assert_log_is_whole_and_goes_on(run):
    text = (run.path / "metrics.jsonl").read_text()
    assert text.endswith("\n") and [json.loads(line) for line in text.splitlines()]
    steps = steps_of(run)
    run.log("train", 1000, 16000, loss=0.5)
    assert steps_of(run) == [*steps, 1000]


def test_a_full_disk_leaves_no_partial_line(small_disk):
    run, mirrored = RunDir(small_disk / "run", config()), []
    run.mirror = mirrored.append
    directory.write_json(run.path / "small.json", {"a": 1})
    filler, pages = small_disk / "filler", 2 * 4096
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - pages))
    with pytest.raises(OSError, match="No space left on device: .*metrics.jsonl"):
        for step in range(1, 1000):
            run.log("train", step, step * 16, loss=[1 / step] * 7)
    assert 20 < len(steps_of(run)) == len(mirrored) < 999
    # Other files are written whole or stay as they were.
    with pytest.raises(OSError, match="No space left on device"):
        directory.write_json(run.path / "small.json", {"a": [2.0] * 10_000})
    assert directory.read_json(run.path / "small.json") == {"a": 1}
    filler.unlink()
    assert_log_is_whole_and_goes_on(run)


@pytest.mark.parametrize("raises", [False, True])
def test_half_a_line_is_removed_again(run, monkeypatch, raises):
    log_steps(run, 1, 2)

    class Half(io.FileIO):
        """A file on a disk that fills up in the middle of a line."""

        def __init__(self, path, mode, buffering):
            super().__init__(path, mode)

        def write(self, line):
            count = super().write(line[: len(line) // 2])
            if raises:
                raise OSError("the disk is gone")
            return count

    with monkeypatch.context() as patch:
        patch.setattr(directory, "open", Half, raising=False)
        with pytest.raises(OSError, match="is gone" if raises else "No space left"):
            log_steps(run, 3)
    assert steps_of(run) == [1, 2]
    assert_log_is_whole_and_goes_on(run)


def all_calls(run):
    run.mirror = lambda record: pytest.fail("mirrored")
    run.set_status(state="running", nimg=16)
    run.record_provenance(params=1)
    run.log("train", 1, 16, loss=1.0)
    run.forget_after(0)
    assert run.status["nimg"] == 16


def test_a_process_that_does_not_write_writes_nothing(tmp_path):
    run = RunDir(tmp_path / "study" / "run", config(), writing=False)
    all_calls(run)
    assert list(tmp_path.iterdir()) == []
    assert run.config_hash == directory.config_hash(config())


def test_a_process_that_does_not_write_leaves_a_run_as_it_is(trained):
    run = trained
    log_steps(run, 1, 2)
    run.set_status(state="running", nimg=32)

    def everything():
        return {
            place: (place.stat().st_mtime_ns, place.is_file() and place.read_bytes())
            for place in [run.path, *run.path.rglob("*")]
        }

    before = everything()
    new = config(optimizer__nonfinite="skip")
    other = RunDir(run.path, new, allow=["optimizer.nonfinite"], writing=False)
    all_calls(other)
    assert other.config_hash == run.config_hash
    assert everything() == before
    with pytest.raises(ValueError, match="optimizer.nonfinite"):
        RunDir(run.path, new, writing=False)
    assert everything() == before
