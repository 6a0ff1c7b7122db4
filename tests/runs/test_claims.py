"""Claims: one holder at a time, whatever dies, and no theft from a live holder."""

import contextlib
import errno
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from edm_jax.runs import claims
from edm_jax.runs.claims import Claim


def mine(run, **options):
    claim = claims.take(run, "me", **options)
    assert isinstance(claim, Claim)
    return claim


def test_a_run_is_claimed_once_and_again_after_it_was_released(tmp_path):
    first = mine(tmp_path)
    refused = claims.take(tmp_path, "you")
    assert isinstance(refused, dict) and refused["by"] == "me"
    assert claims.holder(tmp_path)["by"] == "me"
    first.release("done")
    assert claims.holder(tmp_path) == {}
    mine(tmp_path)
    assert claims.count(tmp_path) == 2


CONTEND = """
import pathlib, sys
from edm_jax.runs import claims
runs = [pathlib.Path(name) for name in sys.argv[2:]]
print("ready", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    pass
mine = [run for run in runs if isinstance(claims.take(run, "racer"), claims.Claim)]
print(*mine, flush=True)
sys.stdin.read()  # holds on to what it has
"""


@pytest.mark.parametrize("before", ["nothing", "expired"])
def test_only_one_of_many_processes_gets_a_run(tmp_path, before):
    runs = [tmp_path / str(number) for number in range(30)]
    if before == "expired":
        for run in runs:
            forget(mine(run, expiry_s=0.5))
    arguments = [str(tmp_path / "gate"), *map(str, runs)]
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CONTEND, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    (tmp_path / "gate").touch()
    won = [racer.stdout.readline().split() for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(itertools.chain(*won)) == sorted(map(str, runs))


def forget(claim):
    """Makes the holder look as if it had last been seen long ago, on another machine."""
    fields = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps(fields | {"machine": "elsewhere"}))
    os.utime(claim.path, (time.time() - 1000,) * 2)


def test_a_claim_that_is_not_renewed_expires_and_its_holder_is_told(tmp_path):
    claim = mine(tmp_path, expiry_s=0.06)
    forget(claim)
    other = mine(tmp_path)
    time.sleep(0.02)
    assert not claim.renew()
    assert other.renew()
    # What the old holder says when it ends does not give the run away.
    claim.release("done")
    assert claims.holder(tmp_path)["pid"] == os.getpid()


def test_a_claim_that_is_renewed_lasts_beyond_its_expiry(tmp_path):
    claim = mine(tmp_path, expiry_s=0.5)
    fields = json.loads(claim.path.read_text())
    # Nobody here can see whether a process of another machine lives.
    claim.path.write_text(json.dumps(fields | {"machine": "elsewhere"}))
    stop = threading.Event()

    def renew():
        while not stop.wait(0.02):
            claim.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    time.sleep(1.2)
    refused = claims.take(tmp_path, "you")
    stop.set()
    thread.join()
    assert isinstance(refused, dict)


def test_the_claim_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path):
    take = (
        "from edm_jax.runs import claims; import pathlib, os; "
        f"claims.take(pathlib.Path({str(tmp_path)!r}), 'dead'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", take], check=True)
    assert claims.count(tmp_path) == 1
    mine(tmp_path)


def test_claims_of_dead_processes_on_another_machine_must_expire(tmp_path):
    claim = mine(tmp_path)
    fields = json.loads(claim.path.read_text()) | {"machine": "other", "pid": 2**22 + 1}
    claim.path.write_text(json.dumps(fields))
    assert isinstance(claims.take(tmp_path, "you"), dict)


def test_who_held_a_run_stays_on_record(tmp_path):
    mine(tmp_path).release("preempted")
    mine(tmp_path).release("done")
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("claims/0*"))]
    assert [r["outcome"] for r in records] == ["preempted", "done"]
    assert records[0]["start_time"] <= records[0]["end_time"]
    assert claims.who(records[0]).startswith("me on ")


def test_a_live_holder_of_this_machine_keeps_its_claim_whatever_the_clock_says(
    tmp_path,
):
    claim = mine(tmp_path)
    for seconds in (-1e6, 1e6):
        os.utime(claim.path, (time.time() + seconds,) * 2)
        assert isinstance(claims.take(tmp_path, "you"), dict)


def test_a_process_that_took_over_the_number_of_a_dead_one_is_not_its_holder(tmp_path):
    claim = mine(tmp_path)
    fields = json.loads(claim.path.read_text()) | {"process_start": "1"}
    claim.path.write_text(json.dumps(fields))
    assert claims.holder(tmp_path) == {}


def test_a_claim_from_the_future_expires_as_one_of_the_past_does(tmp_path):
    claim = mine(tmp_path)
    forget(claim)
    os.utime(claim.path, (time.time() + 3 * 86400,) * 2)
    mine(tmp_path)


def test_a_holder_whose_directory_was_begun_anew_stops_and_leaves_it_alone(tmp_path):
    first = mine(tmp_path, expiry_s=0.06)
    shutil.rmtree(tmp_path / "claims")
    second = mine(tmp_path)
    assert second.path == first.path
    time.sleep(0.02)
    assert not first.renew()
    first.release("done")
    assert claims.holder(tmp_path)["id"] == second.fields["id"]


def test_without_hard_links_one_process_still_gets_the_claim(tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(os, "link", link)
    mine(tmp_path)
    assert isinstance(claims.take(tmp_path, "you"), dict)


@pytest.mark.parametrize("damage", ["", "[]", '{"x": 1}'])
def test_a_damaged_claim_holds_until_it_expires(tmp_path, damage):
    claim = mine(tmp_path)
    (tmp_path / "claims" / "0001 (copy).json").write_text("{}")
    claim.path.write_text(damage)
    assert isinstance(claims.take(tmp_path, "you"), dict)
    os.utime(claim.path, (time.time() - 1000,) * 2)
    mine(tmp_path)


@pytest.mark.parametrize("expiry_s", ["text", None, [], math.nan, math.inf, -1])
def test_a_claim_with_damaged_fields_holds_as_long_as_any(tmp_path, expiry_s):
    claim = mine(tmp_path)
    damaged = {"machine": "elsewhere", "expiry_s": expiry_s, "by": [], "host": {}}
    claim.path.write_text(json.dumps(claim.fields | damaged))
    with pytest.raises(ValueError, match="by another process on another host"):
        hold(tmp_path).__enter__()
    os.utime(claim.path, (time.time() - 1000,) * 2)
    mine(tmp_path)


# Held while a block runs


def hold(run, **options):
    return claims.held(run, "me", on_loss=lambda _: None, **options)


def test_a_run_is_held_while_the_block_runs_and_then_free(tmp_path):
    with hold(tmp_path):
        assert claims.holder(tmp_path)["by"] == "me"
        with pytest.raises(ValueError, match="is in use by me on") as refusal:
            hold(tmp_path).__enter__()
    assert "died" not in str(refusal.value)  # it is seen to live
    assert claims.holder(tmp_path) == {} and claims.count(tmp_path) == 1


@pytest.mark.parametrize(
    ("leaves_with", "outcome"),
    [(None, "done"), (SystemExit(75), "preempted"), (ValueError("no"), "failed")],
)
def test_how_a_block_ended_stays_on_record(tmp_path, leaves_with, outcome):
    with contextlib.suppress(SystemExit, ValueError), hold(tmp_path):
        if leaves_with:
            raise leaves_with
    record = json.loads((tmp_path / "claims" / "0001.json").read_text())
    assert record["outcome"] == outcome


def on_another_machine(run):
    """Makes the run's holder look like a process on another machine."""
    path = run / "claims" / "0001.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"machine": "elsewhere"}))


def test_a_held_run_is_renewed_however_long_the_block_is_busy(tmp_path):
    with hold(tmp_path, expiry_s=0.3):
        on_another_machine(tmp_path)
        deadline = time.monotonic() + 0.9
        while time.monotonic() < deadline:  # busy: it never gives way by itself
            pass
        assert isinstance(claims.take(tmp_path, "you"), dict)


def test_a_refusal_says_when_the_claim_of_another_machine_expires(tmp_path):
    with hold(tmp_path):
        on_another_machine(tmp_path)
        with pytest.raises(ValueError, match=r"If it has died, try again in 60 s\."):
            hold(tmp_path).__enter__()


def test_a_holder_whose_claim_passed_to_another_is_told(tmp_path):
    told = []
    with claims.held(tmp_path, "me", on_loss=told.append, expiry_s=0.1):
        shutil.rmtree(tmp_path / "claims")
        other = claims.take(tmp_path, "you")
        assert isinstance(other, Claim)
        deadline = time.monotonic() + 5
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    (sentence,) = told
    assert "was taken over by you on" in sentence
    assert claims.holder(tmp_path)["by"] == "you"


def test_the_claim_of_a_task_covers_its_command_and_no_other_run(tmp_path, monkeypatch):
    task, other = mine(tmp_path / "a"), mine(tmp_path / "b")
    monkeypatch.setenv(claims.CLAIM, task.fields["id"])
    with hold(tmp_path / "a"):
        assert claims.is_free(tmp_path / "a")
    assert claims.count(tmp_path / "a") == 1 and task.renew()
    assert not claims.is_free(tmp_path / "b")
    with pytest.raises(ValueError, match="is in use by me"):
        hold(tmp_path / "b").__enter__()
    assert other.renew()
