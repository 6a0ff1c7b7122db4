"""Two real processes train one run, and say why if they cannot."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from driven_run import BATCH, ROOT, Driven, one_device

import configs
from edm_jax import data
from edm_jax.runs import claims, signals
from edm_jax.train import hosts

STEPS = 24
DRIVER = str(ROOT / "tests" / "helpers" / "driven_run.py")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    fields = {"data.data_dir": str(directory)}
    data.prepare(configs.load(f"{configs.letter_path('g')}:digits", fields).data)
    return directory


def finish(*processes):
    """Their exit statuses and outputs."""
    ended = [process.finish() for process in processes]
    return [status for status, *_ in ended], ["".join(said) for _, *said in ended]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def one(run, data_dir, *options):
    return finish(Driven(run, data_dir, STEPS, *options))


def two(run, data_dir, *options, only_second=()):
    """Two processes of one run; `only_second` are options for the second only."""
    address = f"--coordinator=127.0.0.1:{free_port()}"
    return finish(
        *(
            Driven(
                run,
                data_dir,
                STEPS,
                *options,
                *(only_second if index else ()),
                address,
                "--num_processes=2",
                f"--process_id={index}",
            )
            for index in (0, 1)
        )
    )


def records(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] != "speed"]


def assert_same_numbers(run, reference):
    """Asserts equal places of all records, and losses equal to 1e-5."""
    ours, theirs = records(run), records(reference)
    assert [(r["kind"], r["step"]) for r in ours] == [
        (r["kind"], r["step"]) for r in theirs
    ]
    for a, b in zip(ours, theirs, strict=True):
        for name in ("loss", "loss_per_element", "raw_loss_per_element"):
            if name in b:
                assert a[name] == pytest.approx(b[name], rel=1e-5), (name, a)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "done" and status["nimg"] == STEPS * BATCH
    names = [
        sorted(p.name for p in (r / "snapshots").iterdir()) for r in (run, reference)
    ]
    assert names[0] == names[1] and len(names[0]) == 4


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The run of one process."""
    whole = tmp_path_factory.mktemp("alone") / "run"
    statuses, outputs = one(whole, data_dir)
    assert statuses == [0], outputs
    return whole


@pytest.mark.slow
def test_two_processes_train_the_run_of_one_under_pmap(alone, data_dir, tmp_path):
    statuses, outputs = two(
        tmp_path / "run", data_dir, "--config.training.parallel=pmap"
    )
    assert statuses == [0, 0], outputs
    assert_same_numbers(tmp_path / "run", alone)
    # The first alone speaks of it.
    assert "Trained" in outputs[0] and "Trained" not in outputs[1]


@pytest.mark.slow
def test_a_signal_to_one_of_two_stops_both_one_resumes_and_two_resume_that(
    alone, data_dir, tmp_path
):
    """The state is sharded over both: they train the run of one so, too."""
    run = tmp_path / "run"
    sharded = "--config.training.sharding=full", "--shard_all"
    statuses, outputs = two(run, data_dir, *sharded, only_second=["--stop_at=10"])
    assert statuses == [75, 75], outputs
    status = json.loads((run / "status.json").read_text())
    # The other learns of it one step later.
    assert status["state"] == "preempted" and status["nimg"] == 11 * BATCH
    statuses, outputs = one(run, data_dir, *sharded, "--stop_at=17")
    assert statuses == [75], outputs
    assert json.loads((run / "status.json").read_text())["nimg"] == 17 * BATCH
    statuses, outputs = two(run, data_dir, *sharded)
    assert statuses == [0, 0], outputs
    assert "Trained" in outputs[0] and "Trained" not in outputs[1]
    assert_same_numbers(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "reason"),
    [(0, "not all of them joined"), (1, "process 0 does not answer")],
)
def test_a_process_that_waits_in_vain_says_why(data_dir, tmp_path, index, reason):
    (status,), (output,) = one(
        tmp_path / "run",
        data_dir,
        f"--coordinator=127.0.0.1:{free_port()}",
        "--num_processes=2",
        f"--process_id={index}",
        "--join_timeout_s=3",
    )
    assert status == 2
    assert "Waiting for 2 processes at 127.0.0.1" in output and reason in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_error_on_the_first_process_stops_the_others(data_dir, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").mkdir()  # cannot be written
    statuses, outputs = two(run, data_dir)
    assert all(status not in (0, 75) for status in statuses), outputs
    assert "metrics.jsonl" in outputs[0]


@pytest.mark.slow
def test_all_processes_are_refused_a_run_that_another_holds(data_dir, tmp_path):
    claim = claims.take(tmp_path / "run", "somebody")
    assert isinstance(claim, claims.Claim)
    statuses, outputs = two(tmp_path / "run", data_dir)
    assert statuses == [2, 2], outputs
    assert "is in use by somebody" in outputs[0]
    assert "process 0 failed: see its output" in outputs[1]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["claims"]


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_a_slurm_step_of_several_tasks_is_found_and_others_are_not():
    found = hosts.find_cluster(SLURM)
    assert found == hosts.Cluster(num_processes=4, process_id=3, local_devices=None)
    assert hosts.find_cluster(SLURM | {"SLURM_NTASKS": "1"}) is None
    # A shell of salloc has the job's variables, but is no task of a step.
    shell = {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}
    assert hosts.find_cluster(shell) is None
    assert hosts.find_cluster({}) is None


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, [4, 5, 6, 7]),
        ({"SLURM_GPUS_ON_NODE": "2"}, [1]),
        ({"CUDA_VISIBLE_DEVICES": "5"}, [0]),  # --gpus-per-task=1
        (
            {
                "SLURM_GPUS_ON_NODE": "8",
                "SLURM_STEP_TASKS_PER_NODE": "3,1",
                "SLURM_LOCALID": "0",
            },
            list(range(8)),
        ),
    ],
)
def test_tasks_of_a_node_share_its_gpus(environ, devices):
    assert hosts.slurm_devices(SLURM | environ) == devices


def test_every_process_alone_agrees_with_itself():
    assert hosts.agree(0.1) == [0.1]
    votes = hosts.AnyProcess()
    assert votes(True) and not votes(False)
    with pytest.raises(KeyError, match="mine"):
        hosts.first_alone(lambda: {}["mine"])


NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_noted_and_the_handlers_come_back(number, monkeypatch):
    monkeypatch.setattr(signals, "leave_terminal", lambda: None)
    before = [signal.getsignal(n) for n in NUMBERS]
    with hosts.stop_signals() as stopped:
        assert not stopped()
        signal.raise_signal(number)
        assert stopped()
    assert [signal.getsignal(n) for n in NUMBERS] == before


def test_a_hangup_that_is_ignored_stays_so(monkeypatch):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with hosts.stop_signals() as stopped:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped()
    finally:
        signal.signal(signal.SIGHUP, previous)


# Makes what it reads from the terminal of its session, then becomes the command.
ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_whose_terminal_is_lost_saves_and_says_preempted(data_dir, tmp_path):
    run = tmp_path / "run"
    terminal, its_end = pty.openpty()
    command = [sys.executable, DRIVER, str(run), str(data_dir), "3000"]
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *command],
        env=one_device(),
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
    )
    os.close(its_end)
    reader = threading.Thread(target=read_all, args=(terminal,), daemon=True)
    reader.start()
    deadline = time.monotonic() + 240
    log = run / "metrics.jsonl"
    while not (log.exists() and '"train"' in log.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)  # a shell sends it; the kernel does once more
    time.sleep(0.01)
    os.close(terminal)
    assert process.wait() == 75
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "preempted" and status["nimg"] % BATCH == 0
    step = status["nimg"] // BATCH
    assert (run / "checkpoints" / str(step) / "commit_success.txt").exists()


def read_all(terminal):
    with contextlib.suppress(OSError):
        while os.read(terminal, 4096):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once_even_in_a_long_call(number):
    # One long call outside Python, as compiling is: handlers wait for its end.
    program = (
        "import hashlib; from edm_jax.train import hosts\n"
        "with hosts.stop_signals():\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 128 + number
    assert time.monotonic() - began < 5
    process.stdout.close()


@pytest.mark.slow
def test_shares_of_the_processes_make_up_the_batch(data_dir):
    config = configs.load(
        f"{configs.letter_path('g')}:digits", {"data.data_dir": str(data_dir)}
    ).data

    def batch(**share):
        return next(data.train_batches(config, batch_size=16, seed=0, **share))

    whole = batch()
    parts = [batch(process_index=i, process_count=2) for i in (0, 1)]
    for name, rows in whole.items():
        together = np.concatenate([part[name] for part in parts])
        order = np.argsort(np.concatenate([part["index"] for part in parts]))
        np.testing.assert_array_equal(together[order], rows)
