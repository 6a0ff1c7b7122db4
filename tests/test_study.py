"""Launching: every job once, no more at a time than asked, no failure hidden."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from edm_jax import study
from edm_jax.run_dir import read_json, write_json


class Quiet:
    """A display that keeps how each job ended."""

    def __init__(self):
        self.ended = {}
        self.stopped = False

    def show(self, job, note):
        if note != "running":
            self.ended[job.name] = note

    def stopping(self):
        self.stopped = True


def job(tmp_path, name, *programs):
    """A job of Python programs; each may write into its run directory, `run`."""
    run = tmp_path / name
    prelude = f"import json, pathlib, sys, time; run = pathlib.Path({str(run)!r})\n"
    commands = [[sys.executable, "-c", prelude + program] for program in programs]
    return study.Job(name, run, commands)


def test_every_command_runs_once_and_in_order(tmp_path):
    append = "open(run / 'order', 'a').write('{}')"
    jobs = [
        job(tmp_path, name, append.format(1), append.format(2)) for name in ("a", "b")
    ]
    display = Quiet()
    assert study.run_local(jobs, 2, display) == []
    assert display.ended == {"a": "done", "b": "done"}
    for each in jobs:
        assert (each.run / "order").read_text() == "12"


def test_no_more_jobs_run_at_a_time_than_there_are_workers(tmp_path):
    program = (
        "start = time.time(); time.sleep(0.5);"
        "(run / 'span').write_text(json.dumps([start, time.time()]))"
    )
    jobs = [job(tmp_path, str(i), program) for i in range(4)]
    study.run_local(jobs, 2, Quiet())
    spans = [json.loads((each.run / "span").read_text()) for each in jobs]
    running = [sum(a <= start < b for a, b in spans) for start, _ in spans]
    assert max(running) == 2


def test_a_failed_run_is_told_with_its_last_lines_and_the_others_finish(tmp_path):
    bad = job(tmp_path, "bad", "sys.exit('the disk is full')", "(run / 'next').touch()")
    good = job(tmp_path, "good", "(run / 'ok').touch()")
    display = Quiet()
    failed = study.run_local([bad, good], 1, display)
    assert [each.name for each in failed] == ["bad"]
    assert display.ended == {"bad": "failed", "good": "done"}
    assert (good.run / "ok").exists() and not (bad.run / "next").exists()
    assert bad.log_tail(1) == "the disk is full"
    status = read_json(bad.run / "status.json")
    assert status["state"] == "failed" and status["message"] == "the disk is full"


def test_an_interrupt_is_passed_on_and_waited_for(tmp_path):
    program = (
        "(run / 'started').touch()\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(0.5); (run / 'saved').touch(); sys.exit(1)"
    )
    running, waiting = job(tmp_path, "a", program), job(tmp_path, "b", program)

    def interrupt():
        while not (running.run / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    display = Quiet()
    with pytest.raises(KeyboardInterrupt):
        study.run_local([running, waiting], 1, display)
    assert display.stopped and (running.run / "saved").exists()
    assert not waiting.run.exists()


def test_a_run_is_done_when_evaluated_at_its_end(tmp_path):
    assert not study.is_done(tmp_path)
    write_json(tmp_path / "status.json", {"state": "done", "total_nimg": 640})
    assert not study.is_done(tmp_path)  # trained only
    write_json(tmp_path / "evaluation.json", {"nimg": 320})
    assert not study.is_done(tmp_path)  # evaluated half way
    write_json(tmp_path / "evaluation.json", {"nimg": 640})
    assert study.is_done(tmp_path)


def test_cores_are_shared_out_whole_and_even():
    assert study._parts([0, 1, 2, 3], 2) == [(0, 2), (1, 3)]
    assert study._parts([0, 1], 3) == [(0, 1)] * 3
