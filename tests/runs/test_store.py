"""Runs on an object store: copies, claims, and what a broken-off sending leaves."""

import json
import threading

import pytest

from edm_jax.runs import claims, store
from edm_jax.runs.store import MANIFEST, StoredRun


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Becomes another machine: with other files, on which other processes run."""

    def become(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        monkeypatch.setattr(claims, "_machine", lambda: name)

    become("first")
    return become


@pytest.fixture
def run(bucket, machine):
    return StoredRun(f"{bucket}/study/g")


def write(run, **texts):
    for name, text in texts.items():
        path = run.here / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(path):
    names = (p for p in path.rglob("*") if p.is_file())
    found = {p.relative_to(path).as_posix(): p.read_text() for p in names}
    return {k: v for k, v in found.items() if not k.startswith((".store", ".lock"))}


def test_another_machine_has_what_was_sent_and_no_more(run, machine):
    write(run, status="a", checkpoints__10__x="ten", claims__0001="mine")
    write(run, **{"metrics.partial": "half", "checkpoints__20-tmp__x": "half"})
    assert run.push(owns=True) and not run.push(owns=True)
    machine("second")
    assert contents(run.pull()) == {"status": "a", "checkpoints/10/x": "ten"}


def test_what_was_removed_here_is_removed_there(run, machine):
    write(run, status="a", checkpoints__10__x="ten")
    run.push(owns=True)
    (run.here / "checkpoints/10/x").unlink()
    write(run, checkpoints__20__x="twenty")
    run.push(owns=True)
    assert not run._fs.exists(run._path("checkpoints/10/x"))
    machine("second")
    assert contents(run.pull()) == {"status": "a", "checkpoints/20/x": "twenty"}


def test_nobody_sees_a_sending_that_broke_off(run, machine, monkeypatch):
    write(run, status="old", checkpoints__10__x="ten")
    run.push(owns=True)
    write(run, status="new", checkpoints__20__x="twenty", checkpoints__20__y="more")

    def fails(self, name, known):
        if name.endswith("y"):
            raise OSError("the network is away")
        return sent(self, name, known)

    sent = StoredRun._send
    monkeypatch.setattr(StoredRun, "_send", fails)
    with pytest.raises(OSError, match="away"):
        run.push(owns=True)
    monkeypatch.setattr(StoredRun, "_send", sent)
    first = run.here
    machine("second")
    assert contents(run.pull()) == {"status": "old", "checkpoints/10/x": "ten"}
    machine("first")
    assert contents(run.pull())["status"] == "new"  # it is ahead: nothing is lost
    assert run.push(owns=True)
    machine("second")
    assert contents(run.pull()) == contents(first)


def test_a_copy_that_another_machine_has_overtaken_is_replaced(run, machine):
    write(run, status="10", checkpoints__10__x="ten")
    run.push(owns=True)
    write(run, status="20", checkpoints__20__x="twenty")  # and this machine dies
    first = run.here
    machine("second")
    run.pull()
    write(run, status="30", checkpoints__30__x="thirty")
    run.push(owns=True)
    second = contents(run.here)
    machine("first")
    assert run.pull() == first
    assert contents(first) == second


def test_a_reader_without_checkpoints_neither_loses_nor_undoes_what_a_trainer_sends(
    run, machine
):
    write(run, metrics="1\n", checkpoints__10__x="ten")
    run.push(owns=True)
    machine("reader")
    assert contents(run.pull(without=("checkpoints/",))) == {"metrics": "1\n"}
    machine("first")
    write(run, metrics="1\n2\n", checkpoints__20__x="twenty")
    run.push(owns=True)
    machine("reader")
    write(run, evaluation="good")
    run.push()
    machine("third")
    assert contents(run.pull()) == {
        "metrics": "1\n2\n",
        "evaluation": "good",
        "checkpoints/10/x": "ten",
        "checkpoints/20/x": "twenty",
    }
    machine("reader")  # whose copy was behind when it sent
    assert contents(run.pull(without=("checkpoints/",)))["metrics"] == "1\n2\n"


def test_results_that_were_not_sent_stay_whatever_another_machine_sends(run, machine):
    write(run, metrics="1\n", checkpoints__10__x="ten")
    run.push(owns=True)
    machine("reader")
    run.pull(without=("checkpoints/",))
    write(run, sweep="half")  # interrupted before it is sent
    machine("first")
    write(run, metrics="1\n2\n")
    run.push(owns=True)
    machine("reader")
    run.pull(without=("checkpoints/",))
    assert contents(run.here) == {"metrics": "1\n2\n", "sweep": "half"}


def test_training_that_was_not_sent_stays_when_a_reader_sends_its_results(run, machine):
    write(run, status="10", checkpoints__10__x="ten")
    run.push(owns=True)
    write(run, status="20", checkpoints__20__x="twenty")  # the store is away
    machine("reader")
    run.pull()
    write(run, evaluation="good")
    run.push()
    machine("first")
    found = contents(run.pull())
    assert found["status"] == "20" and found["evaluation"] == "good"
    assert found["checkpoints/20/x"] == "twenty"


def test_a_reader_that_frees_its_disk_removes_no_checkpoint_there(run, machine):
    write(run, status="10", checkpoints__10__x="ten")
    run.push(owns=True)
    (run.here / "checkpoints/10/x").unlink()
    write(run, evaluation="good")
    run.push()
    machine("second")
    assert contents(run.pull())["checkpoints/10/x"] == "ten"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema": 1}',
        '{"schema": 1, "files": {"../../escaped": [1, "t"]}}',
        '{"schema": 1, "files": {"/escaped": [1, "t"]}}',
        '{"schema": 1, "files": {".store.json": [1, "t"]}}',
        '{"schema": 1, "files": {"status": 3}}',
        '{"schema": 2, "files": {}}',
    ],
)
def test_a_damaged_list_is_named_and_nothing_is_written(run, text):
    run._fs.pipe_file(run._path(MANIFEST), text.encode())
    with pytest.raises(ValueError, match=r"gs://bucket/run/study/g/store\.json"):
        run.pull()
    assert not run.here.exists()


def test_an_object_that_lost_bytes_is_named(run, machine):
    write(run, snapshots__a="whole")
    run.push(owns=True)
    run._fs.pipe_file(run._path("snapshots/a"), b"who")
    machine("second")
    with pytest.raises(ValueError, match=r"snapshots/a has 3 bytes of the 5"):
        run.pull()
    assert not (run.here / "snapshots/a").exists()


def test_one_machine_trains_a_run_at_a_time(run, machine):
    with run.training("first", lambda why: None) as here:
        assert here == run.here
        write(run, status="done")
        machine("second")
        with (
            pytest.raises(ValueError, match=r"in use by first on .* try again in 60 s"),
            run.training("second", lambda why: None),
        ):
            pass
        machine("first")
    machine("second")
    with run.training("second", lambda why: None) as here:
        assert contents(here) == {"status": "done"}


def test_a_dead_machines_claim_expires_and_the_machine_is_told(run, machine):
    told = threading.Event()
    first = run._claim("first", 0.3)
    machine("second")
    with pytest.raises(ValueError, match="in use by first"):
        run._claim("second")
    assert not threading.Event().wait(0.4)  # it renews nothing
    second = run._claim("second")
    assert second["number"] == first["number"] + 1
    run._renew(first | {"expiry_s": 0.06}, threading.Event(), lambda why: told.set())
    assert told.is_set()


def test_of_two_machines_at_once_one_gets_the_run(run, machine, monkeypatch):
    first = run._claim("first")
    run._put_claim(first, outcome="ended")
    seen = run._latest()
    machine("second")
    run._claim("second")
    machine("third")
    latest = StoredRun._latest
    monkeypatch.setattr(StoredRun, "_latest", lambda self: seen)  # from before
    with pytest.raises(ValueError, match="in use by"):
        run._claim("third")
    assert latest(run)[1]["by"] == "second"


def test_a_study_on_a_store_is_its_runs(run):
    for letter in "ba":
        each = StoredRun(run.url.removesuffix("g") + letter)
        write(each, status=letter)
        each.push(owns=True)
    study = run.url.removesuffix("/g")
    found = store.stored_runs(study)
    assert [each.url for each in found] == [f"{study}/a", f"{study}/b"]
    assert store.stored_runs(found[0].url) == [found[0]]
    assert json.loads(run._fs.cat_file(found[0]._path(MANIFEST)))["files"].keys() == {
        "status"
    }
    assert found[0].here.parts[-2:] == ("study", "a")
