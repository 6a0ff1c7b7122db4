"""Launching: every task once, no more at a time than asked, no failure hidden."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from driven_run import ROOT

from edm_jax.runs import claims, signals
from edm_jax.runs.directory import read_json, write_json
from edm_jax.studies import local
from edm_jax.studies.task import LOG, Task, is_done


class Quiet:
    """A display that keeps what it was told."""

    def __init__(self):
        self.ended, self.held = {}, set()
        self.stopped = False

    def show(self, task, note, where=""):
        if note == "held":
            self.held.add(task.name)
        elif note != "running":
            self.ended[task.name] = note

    def stopping(self):
        self.stopped = True


FINISH = (
    "(run / 'status.json').write_text(json.dumps({'state': 'done', 'total_nimg': 1}));"
    "(run / 'evaluation.json').write_text(json.dumps({'nimg': 1}));"
)


def task(tmp_path, name, *programs, **fields):
    """A task of Python programs; each may write into its run directory, `run`."""
    run = tmp_path / name
    prelude = f"import json, os, pathlib, sys, time; run = pathlib.Path({str(run)!r})\n"
    commands = [[sys.executable, "-c", prelude + program] for program in programs]
    return Task(name, str(run), commands, **fields)


def launch(tasks, count, **options):
    display = Quiet()
    outcomes = local.run(tasks, local.cpu_slots(count), display, **options)
    return outcomes, display


@pytest.mark.slow
def test_every_command_runs_once_and_in_order(tmp_path):
    append = "open(run / 'order', 'a').write('{}')"
    tasks = [
        task(tmp_path, name, append.format(1), append.format(2)) for name in ("a", "b")
    ]
    outcomes, display = launch(tasks, 2)
    assert outcomes == display.ended == {"a": "done", "b": "done"}
    for each in tasks:
        assert (each.path / "order").read_text() == "12"


@pytest.mark.slow
def test_no_more_tasks_run_at_a_time_than_there_are_slots(tmp_path):
    program = (
        "start = time.time(); time.sleep(0.5);"
        "(run / 'span').write_text(json.dumps([start, time.time()]))"
    )
    tasks = [task(tmp_path, str(i), program) for i in range(4)]
    launch(tasks, 2)
    spans = [json.loads((each.path / "span").read_text()) for each in tasks]
    running = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(running) == 2


@pytest.mark.slow
def test_a_failed_run_is_told_with_its_last_lines_and_the_others_finish(tmp_path):
    bad = task(tmp_path, "bad", "sys.exit('the disk is full')", "(run / 'n').touch()")
    good = task(tmp_path, "good", "(run / 'ok').touch()")
    outcomes, _ = launch([bad, good], 1)
    assert outcomes == {"bad": "failed", "good": "done"}
    assert (good.path / "ok").exists() and not (bad.path / "n").exists()
    assert bad.log_tail(1) == "the disk is full"
    status = read_json(bad.path / "status.json")
    assert status["state"] == "failed" and status["message"] == "the disk is full"


def test_a_run_that_is_killed_is_told_by_its_signal(tmp_path):
    killed = task(tmp_path, "a", "os.kill(os.getpid(), 9)")
    launch([killed], 1)
    assert killed.status == {"state": "failed", "message": "killed by SIGKILL"}


@pytest.mark.slow
def test_fail_fast_preempts_the_others_and_begins_no_more(tmp_path):
    slow = task(
        tmp_path,
        "slow",
        "try: (run / 'started').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt: (run / 'saved').touch(); sys.exit(75)",
    )
    wait = "while not pathlib.Path(run.parent, 'slow', 'started').exists(): pass\n"
    bad = task(tmp_path, "bad", wait + "sys.exit('no')")
    outcomes, display = launch(
        [slow, bad, task(tmp_path, "later", "0")], 2, fail_fast=True
    )
    assert outcomes == {"slow": "preempted", "bad": "failed"} and display.stopped
    assert (slow.path / "saved").exists() and slow.status["state"] == "preempted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_is_passed_on_and_waited_for(tmp_path, monkeypatch, number):
    # Standard error and output may be the terminal of whoever tests.
    monkeypatch.setattr(signals, "leave_terminal", lambda: None)
    program = (
        "(run / 'started').touch()\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(0.5); (run / 'saved').touch(); sys.exit(1)"
    )
    running, waiting = task(tmp_path, "a", program), task(tmp_path, "b", program)

    def interrupt():
        while not (running.path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    display = Quiet()
    with pytest.raises(KeyboardInterrupt):
        local.run([running, waiting], local.cpu_slots(1), display)
    assert display.stopped and (running.path / "saved").exists()
    assert claims.holder(running.path) == {}
    assert not waiting.path.exists()


COUNTED = (
    "open(run / 'times', 'a').write('x'); (run / 'started').touch(); time.sleep(0.4);"
    + FINISH
)


@pytest.mark.slow
def test_two_launchers_at_once_run_every_run_once(tmp_path):
    names = [str(i) for i in range(6)]
    outcomes = {}

    def one(who):
        tasks = [task(tmp_path, n, COUNTED, by=who) for n in names]
        outcomes[who] = in_thread(tasks)

    def in_thread(tasks):
        launcher = local._Launch(tasks, local.cpu_slots(2), Quiet())
        while launcher.go_on():
            time.sleep(0.02)
        return launcher.outcomes

    threads = [threading.Thread(target=one, args=(who,)) for who in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert (tmp_path / name / "times").read_text() == "x"
    assert outcomes["one"] == outcomes["two"] == dict.fromkeys(names, "done")


@pytest.mark.slow
def test_what_failed_in_another_launcher_meanwhile_is_not_run_again(tmp_path):
    mine = task(tmp_path, "a", "(run / 'again').touch()")
    theirs = task(tmp_path, "a", "sys.exit('no')")
    launch([theirs], 1)
    assert launch([mine], 1)[0] == {"a": "failed"}
    assert not (mine.path / "again").exists()
    retried = task(tmp_path, "a", FINISH, attempts=claims.count(mine.path))
    assert launch([retried], 1)[0] == {"a": "done"}


def test_runs_of_a_killed_launcher_save_and_are_free(tmp_path):
    program = (
        "(run / 'started').touch()\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: (run / 'saved').touch(); sys.exit(75)"
    )
    child = task(tmp_path, "a", program)
    script = f"import subprocess; subprocess.run({child.process_command()!r})"
    launcher = subprocess.Popen([sys.executable, "-c", script])
    wait_for(lambda: (child.path / "started").exists())
    launcher.kill()
    launcher.wait()
    wait_for(lambda: claims.holder(child.path) == {})
    assert (child.path / "saved").exists() and child.status["state"] == "preempted"


def test_a_run_does_not_outlive_the_task_that_holds_its_claim(tmp_path):
    child = task(
        tmp_path, "a", "(run / 'pid').write_text(str(os.getpid())); time.sleep(60)"
    )
    holder = subprocess.Popen(child.process_command())
    wait_for(lambda: (child.path / "pid").exists() and (child.path / "pid").read_text())
    holder.kill()
    holder.wait()
    pid = int((child.path / "pid").read_text())
    wait_for(lambda: not alive(pid))
    assert claims.holder(child.path) == {}


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_is_done_when_evaluated_at_its_end(tmp_path):
    assert not is_done(tmp_path)
    write_json(tmp_path / "status.json", {"state": "done", "total_nimg": 640})
    assert not is_done(tmp_path)  # trained only
    write_json(tmp_path / "evaluation.json", {"nimg": 320})
    assert not is_done(tmp_path)  # evaluated half way
    write_json(tmp_path / "evaluation.json", {"nimg": 640})
    assert is_done(tmp_path)


def test_a_done_run_is_not_run_again(tmp_path):
    first = task(tmp_path, "a", COUNTED)
    launch([first], 1)
    outcomes, _ = launch([first], 1)
    assert first() == "done"  # nor by a back-end that does not look first
    assert outcomes == {"a": "done"} and (first.path / "times").read_text() == "x"


def test_cores_are_shared_out_whole_and_even(monkeypatch):
    monkeypatch.setattr(local, "_cores", lambda: {0, 1, 2, 3})
    assert [slot.cores for slot in local.cpu_slots(2)] == [(0, 2), (1, 3)]
    assert [slot.cores for slot in local.cpu_slots(5)] == [(0, 1, 2, 3)] * 5


def test_each_run_sees_its_own_gpus_and_shares_their_memory(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    alone = local.gpu_slots(["0", "1", "2", "3"], 4)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in alone] == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert all("XLA_PYTHON_CLIENT_MEM_FRACTION" not in s.environment for s in alone)
    packed = local.gpu_slots(["0", "1"], 6)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in packed] == list("010101")
    fractions = {s.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for s in packed}
    assert fractions == {"0.250"}  # of three, which share what one would take
    wide = local.gpu_slots(["4", "5", "6", "7"], 2, gpus_per_run=2)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in wide] == ["4,5", "6,7"]
    with pytest.raises(ValueError, match="--gpus_per_run=8, but there are 4 here"):
        local.gpu_slots(["0", "1", "2", "3"], 1, gpus_per_run=8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert local.visible_gpus(["0", "1"]) == ["3", "5"]


def test_a_log_is_appended_to(tmp_path):
    each = task(tmp_path, "a", "print('one')", "print('two')")
    launch([each], 1)
    assert (each.path / LOG).read_text().split() == ["one", "two"]


def test_a_run_that_cannot_be_claimed_fails_with_the_reason(tmp_path):
    each = task(tmp_path, "a", FINISH)
    each.path.mkdir()
    (each.path / "claims").write_text("a file where a directory belongs")
    outcomes, _ = launch([each], 1)
    assert outcomes == {"a": "failed"}
    assert "could not be claimed" in each.status["message"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["launch.py", "--workload=digits-tiny", "--dry_run"],
        ["launch.py", "--workload=digits-tiny", "--backend=tpu"],
        ["describe.py", "--config=configs/config_g.py:digits-tiny"],
        ["train.py", "--help"],
    ],
    ids=" ".join,
)
def test_a_reader_that_leaves_ends_a_command_quietly(tmp_path, command):
    name, *options = command
    options += [f"--runs={tmp_path}/s"] if name == "launch.py" else []
    process = subprocess.Popen(
        [sys.executable, ROOT / "experiments" / name, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(60), said) == (0, "")
    process.stderr.close()
