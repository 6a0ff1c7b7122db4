"""SLURM: a preempted run saves, is queued again, and goes on; none is run twice.

Against a real cluster of this machine where Debian's slurm-wlm is installed, and against
submitit's stand-in everywhere.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import slurm_machine

from edm_jax.runs import claims
from edm_jax.studies import slurm
from edm_jax.studies.task import Task

submitit = pytest.importorskip("submitit")
# A real cluster requeues after two minutes.
pytestmark = pytest.mark.slow

# Counts to 40, a tenth of a second each; what it has counted survives an interrupt.
# One that waits for an interrupt does not end before it.
COUNT = """
import json, pathlib, sys, time
run = pathlib.Path({run!r})
seen = run / "seen"
count = int(seen.read_text()) if seen.exists() else 0
open(run / "starts", "a").write(f"{{count}} ")
(run / "status.json").write_text(json.dumps(dict(state="running", total_nimg=40)))
try:
    while count < {stop}:
        time.sleep(0.1)
        waits = {waits} and len((run / "starts").read_text().split()) == 1
        count = min(count + 1, {stop} - waits)
except KeyboardInterrupt:
    seen.write_text(str(count))
    sys.exit(75)
seen.write_text(str(count))
"""
FINISH = """
import json, pathlib

run = pathlib.Path({run!r})
(run / "evaluation.json").write_text(json.dumps(dict(nimg=40)))
(run / "status.json").write_text(json.dumps(dict(state="done", total_nimg=40)))
"""


@pytest.fixture(scope="module", params=["local", "slurm"])
def cluster(request, tmp_path_factory):
    if request.param == "local":
        yield "local"
        return
    if why := slurm_machine.missing():
        pytest.skip(why)
    # Sockets have short names: not under pytest's deep directories.
    with slurm_machine.cluster(tmp_path_factory.mktemp("c", numbered=True)):
        yield "slurm"


def counting(tmp_path, name, stop=40, waits=False):
    run = tmp_path / name
    run.mkdir()
    fields = {"run": str(run), "stop": stop, "waits": waits}
    programs = [text.format(**fields) for text in (COUNT, FINISH)]
    return Task(name, str(run), [[sys.executable, "-c", text] for text in programs])


def submit(tasks, tmp_path, cluster):
    resources = slurm.Resources(time_min=60)
    return slurm.submit(tasks, tmp_path / "jobs", resources, "test", cluster)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_every_task_of_an_array_runs_to_its_end(tmp_path, cluster):
    tasks = [counting(tmp_path, name, stop=2) for name in "abc"]
    jobs = submit(tasks, tmp_path, cluster)
    assert [job.result() for job in jobs] == ["done"] * 3
    for task in tasks:
        assert task.status["state"] == "done"
        assert (task.path / "starts").read_text() == "0 "


def test_a_preempted_run_is_queued_again_and_goes_on_where_it_was(tmp_path, cluster):
    task = counting(tmp_path, "a", waits=True)
    (job,) = submit([task], tmp_path, cluster)
    wait_for((task.path / "starts").exists)
    time.sleep(1)
    if cluster == "local":  # submitit's stand-in loses its own interrupt
        os.kill(claims.holder(task.path)["pid"], signal.SIGUSR2)
    else:  # to all processes of the job, as SLURM's own notice is
        subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    assert job.result() == "done"
    first, second = map(int, (task.path / "starts").read_text().split())
    assert first == 0 < second < 40
    assert (task.path / "seen").read_text() == "40"
    outcomes = [json.loads(p.read_text()) for p in sorted(task.path.glob("claims/0*"))]
    assert [o["outcome"] for o in outcomes] == ["preempted", "done"]


def test_a_failed_task_fails_its_job_and_says_why(tmp_path, cluster):
    run = tmp_path / "a"
    run.mkdir()
    task = Task("a", str(run), [[sys.executable, "-c", "raise SystemExit('no data')"]])
    (job,) = submit([task], tmp_path, cluster)
    assert "no data" in str(job.exception())
    assert task.status == {"state": "failed", "message": "no data"}


def test_queued_runs_are_known_by_their_jobs(tmp_path, cluster):
    if cluster == "local":
        pytest.skip("squeue knows real jobs only")
    tasks = [counting(tmp_path, name) for name in "abc"]
    jobs = submit(tasks, tmp_path, cluster)
    mine = {slurm.job_of(task.path) for task in tasks}
    assert mine == {job.job_id for job in jobs} <= slurm.live_jobs()
    for job in jobs:
        job.result()
    wait_for(lambda: not mine & slurm.live_jobs())


def test_without_submitit_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[slurm\]'"):
        slurm.check()


def test_a_job_waits_for_who_holds_its_run(tmp_path, cluster):
    task = counting(tmp_path, "a", stop=2)
    claim = claims.take(task.path, "a node that failed")
    assert isinstance(claim, claims.Claim)
    (job,) = submit([task], tmp_path, cluster)
    time.sleep(3)
    assert not (task.path / "starts").exists()
    claim.release("preempted")
    assert job.result() == "done"


def test_the_other_nodes_of_a_job_train_along_and_evaluate_nothing(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "1")
    commands = [[sys.executable, "-c", f"print('{word}')"] for word in ("one", "two")]
    task = Task("a", str(tmp_path), commands)
    claim = claims.take(tmp_path, "SLURM job 7")  # by the job's first process
    assert isinstance(claim, claims.Claim)
    assert slurm.SlurmTask(task)() == "done"
    assert (tmp_path / "log-1.txt").read_text().split() == ["one"]
    assert claims.count(tmp_path) == 1


def test_the_other_nodes_leave_a_run_that_somebody_else_has_done(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_PROCID", "1")
    (tmp_path / "status.json").write_text('{"state": "done", "total_nimg": 40}')
    (tmp_path / "evaluation.json").write_text('{"nimg": 40}')
    task = Task("a", str(tmp_path), [[sys.executable, "-c", "print(1)"]])
    assert slurm.SlurmTask(task)() == "done"
    assert not (tmp_path / "log-1.txt").exists()
