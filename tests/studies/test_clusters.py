"""Studies on Kubernetes and by SkyPilot: valid documents, whose commands run the runs.

Kubernetes' and SkyPilot's own schemas lie beside this file; where SkyPilot is installed
it reads its documents itself.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import jsonschema
import pytest
import yaml

from edm_jax.runs import claims
from edm_jax.studies import jobset, remote, sky
from edm_jax.studies.task import Task
from experiments import launch

HERE = Path(__file__).parent


def check(document, schema):
    jsonschema.Draft202012Validator(json.loads((HERE / schema).read_text())).validate(
        document
    )


def launched(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["launch.py", "--workload=digits-tiny", *options])
    launch.main()


def printed(monkeypatch, capsys, tmp_path, *options):
    launched(monkeypatch, f"--runs={tmp_path}/s", "--dry_run", *options)
    said = capsys.readouterr()
    assert "7 of 7 runs" in said.err and not (tmp_path / "s").exists()
    return list(yaml.safe_load_all(said.out))


def pod(document):
    (job,) = document["spec"]["replicatedJobs"]
    return job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("options", "hosts", "limits"),
    [
        ([], 1, None),
        (["--topology=v5e:1x1"], 1, {"google.com/tpu": 1}),
        (["--topology=v5p:2x2x4"], 4, {"google.com/tpu": 4}),
        (["--topology=v6e:2x4", "--chips_per_host=8"], 1, {"google.com/tpu": 8}),
        (["--gpus=8", "--hosts=2"], 2, {"nvidia.com/gpu": 8}),
    ],
)
def test_a_manifest_is_a_jobset_of_one_pod_a_host(
    monkeypatch, capsys, tmp_path, options, hosts, limits
):
    found = printed(monkeypatch, capsys, tmp_path, "--backend=k8s", *options)
    assert len({each["metadata"]["name"] for each in found}) == 7
    for letter, each in zip("abcdefg", found, strict=True):
        check(each, "jobset_schema.json")
        job, spec = pod(each)
        assert job["completions"] == job["parallelism"] == hosts
        (container,) = spec["containers"]
        assert container.get("resources", {}).get("limits") == limits
        # Nothing of this machine, whose paths mean nothing there.
        assert str(remote.__file__).rpartition("/edm_jax/")[0] not in str(each)
        assert f"--config=configs/config_{letter}.py:digits-tiny" in str(container)
    if options[:1] == ["--topology=v5p:2x2x4"]:
        assert spec["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
            "cloud.google.com/gke-tpu-topology": "2x2x4",
        }


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ([], "MOUNT_CACHED"),
        (["--accelerators=H100:8", "--infra=gcp/us-central1"], "MOUNT_CACHED"),
        (["--accelerators=H100:8", "--nodes=2", "--bucket=gs://b/runs"], "MOUNT"),
        (["--accelerators=tpu-v5litepod-8", "--no-spot"], "MOUNT_CACHED"),
        (["--accelerators=tpu-v5litepod-16"], "MOUNT"),
    ],
)
def test_a_document_is_a_task_of_skypilot(monkeypatch, capsys, tmp_path, options, mode):
    monkeypatch.setenv("HOME", str(tmp_path))  # SkyPilot's own files
    found = printed(monkeypatch, capsys, tmp_path, "--backend=sky", *options)
    assert len({each["name"] for each in found}) == 7
    for each in found:
        check(each, "sky_schema.json")
        assert each["resources"]["use_spot"] == ("--no-spot" not in options)
        assert each["file_mounts"]["/runs"]["mode"] == mode
        subprocess.run(["sh", "-n", "-c", each["setup"] + each["run"]], check=True)
    if importlib.util.find_spec("sky"):
        assert len(sky.validate(found)) == 7


def test_what_skypilot_does_not_take_is_told_with_the_reason():
    pytest.importorskip("sky")
    with pytest.raises(ValueError, match="does not take a: .*nowhere"):
        sky.validate([{"name": "a", "resources": {"infra": "nowhere"}}])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["k8s", "--topology=v5e:4x4", "--gpus=8"], "leave out gpus and hosts"),
        (["k8s", "--topology=v5e:3x3"], "has 9 chips"),
        (["k8s", "--topology=v5x:4x4"], "is not a topology"),
        (["k8s", "--volume=My Runs"], "is not a name that Kubernetes allows"),
        (["k8s", "--node_selector=spot"], "LABEL=VALUE"),
        (["k8s", "--hosts=0"], "at least 1"),
        (["k8s", "--image="], "image is empty"),
        (["sky", "--bucket=/mnt/runs"], "must begin with one of gs://"),
        (["sky", "--accelerators=8 x H100"], "such as H100:8"),
        (["sky", "--accelerators=tpu-v4-8", "--nodes=2"], "one TPU slice"),
    ],
)
def test_a_wrong_option_is_one_sentence(monkeypatch, options, sentence):
    with pytest.raises(ValueError, match=sentence) as told:
        launched(monkeypatch, f"--backend={options[0]}", *options[1:], "--dry_run")
    assert "\n" not in str(told.value)


def test_a_config_that_other_machines_do_not_get_is_refused(tmp_path):
    other = tmp_path / "mine.py"
    task = Task("a", "runs/s/a", [["python", "train.py", f"--config={other}"], ["e"]])
    with pytest.raises(ValueError, match="lies outside"):
        jobset.manifest(task, jobset.Resources(), tmp_path / "project")


def test_names_of_runs_become_labels_that_differ():
    names = ["a", "A", "a_b", "a.b", "rate=0.1,x", "x" * 60, "x" * 61, "7"]
    labels = [remote.job_name(Task(n, f"runs/s/{n}", [])) for n in names]
    assert len(set(labels)) == len(names) and labels[0] == "s-a"
    for label in labels:
        # With -hosts-0-0 they name pods, of at most 63 characters.
        assert len(label) <= 40 and label[0].isalpha() and label[-1] != "-"
        assert label.replace("-", "").isalnum() and label == label.lower()


# Stands for train.py; with --wait it ends when it is told to.
TRAIN = """
import json, pathlib, sys, time
run = pathlib.Path(next(a[6:] for a in sys.argv if a.startswith("--run=")))
number = next((a[13:] for a in sys.argv if a.startswith("--process_id=")), "0")
(run / f"train-{number}").write_text(" ".join(sys.argv))
if "--wait" in sys.argv:
    try: time.sleep(60)
    except KeyboardInterrupt: sys.exit(75)
while not (run / "train-1").exists(): time.sleep(0.05)
"""
EVALUATE = """
import json, os, pathlib, sys
run = pathlib.Path(next(a[6:] for a in sys.argv if a.startswith("--run=")))
(run / "evaluated").write_text(os.environ.get("TPU_PROCESS_BOUNDS", ""))
(run / "evaluation.json").write_text(json.dumps({"nimg": 1}))
(run / "status.json").write_text(json.dumps({"state": "done", "total_nimg": 1}))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of two commands, and a task of them."""
    for name, text in (("train", TRAIN), ("evaluate", EVALUATE)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(remote, "RUNS", str(tmp_path / "there"))
    (tmp_path / "there" / "s" / "a").mkdir(parents=True)

    def task(*options):
        train = f"{tmp_path}/train.py", f"--config={tmp_path}/g.py:x", "--run=runs/s/a"
        evaluate = f"{tmp_path}/evaluate.py", "--run=runs/s/a"
        commands = [[sys.executable, *train, *options], [sys.executable, *evaluate]]
        return Task("a", "runs/s/a", commands, nimg=1)

    return tmp_path, task


def pods(document, place, hosts):
    """Its containers, as Kubernetes would start them."""
    [container] = pod(document)[1]["containers"]
    python, *words = (word.replace("$$(", "$(") for word in container["command"])
    assert python == "python"
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": os.fspath(ROOT), "PATH": paths}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=place,
            env=environment | {"JOB_COMPLETION_INDEX": str(i)},
        )
        for i in range(hosts)
    ]


ROOT = HERE.parents[1]


def test_every_host_trains_and_the_first_one_evaluates(project):
    place, task = project
    document = jobset.manifest(task(), jobset.Resources(hosts=2), place)
    assert [each.wait(60) for each in pods(document, place, 2)] == [0, 0]
    run = place / "there" / "s" / "a"
    assert (run / "evaluated").read_text() == ""
    for i in range(2):
        words = (run / f"train-{i}").read_text().split()
        assert words[-2:] == ["--num_processes=2", f"--process_id={i}"]
        assert words[-3] == "--coordinator=s-a-hosts-0-0.s-a:12345"
    assert claims.count(run) == 1
    # Started again, it finds that all is done.
    assert [each.wait(60) for each in pods(document, place, 2)] == [0, 0]


def test_an_evicted_pod_saves_and_ends_with_a_status_that_counts_as_no_failure(project):
    place, task = project
    document = jobset.manifest(task("--wait"), jobset.Resources(), place)
    [container] = pods(document, place, 1)
    deadline = time.monotonic() + 60
    while not (place / "there" / "s" / "a" / "train-0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    container.send_signal(signal.SIGTERM)
    status = container.wait(60)
    job, _ = pod(document)
    assert status in job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    (rule,) = document["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"


def test_evaluation_on_a_slice_of_many_hosts_takes_one(project):
    place, task = project
    slice_ = jobset.Resources(topology="v5e:4x4")
    document = jobset.manifest(task(), slice_, place)
    (place / "there" / "s" / "a" / "train-1").touch()
    [first] = pods(document, place, 1)
    assert first.wait(60) == 0
    assert (place / "there" / "s" / "a" / "evaluated").read_text() == "1,1,1"


def test_kubectl_gets_the_manifests(monkeypatch, capsys, tmp_path):
    fake = tmp_path / "bin" / "kubectl"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\ncat > {tmp_path}/taken; echo "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    launched(monkeypatch, f"--runs={tmp_path}/s", "--backend=k8s")
    assert capsys.readouterr().out == "apply -f -\n"
    taken = list(yaml.safe_load_all((tmp_path / "taken").read_text()))
    assert len(taken) == 7 and not (tmp_path / "s").exists()
    fake.write_text("#!/bin/sh\necho 'no such kind' >&2; exit 1\n")
    with pytest.raises(OSError, match="kubectl refuses: no such kind"):
        jobset.apply("")
    fake.unlink()
    monkeypatch.setenv("PATH", str(fake.parent))
    with pytest.raises(OSError, match="kubectl was not found"):
        jobset.apply("")


def test_skypilot_is_given_managed_jobs(monkeypatch, capsys, tmp_path):
    taken = []
    module, jobs = types.ModuleType("sky"), types.ModuleType("sky.jobs")
    module.__spec__ = ModuleSpec("sky", None)
    module.Task = types.SimpleNamespace(from_yaml_config=lambda each: each)
    module.stream_and_get = lambda request: ([request], None)
    jobs.launch = lambda task, name: taken.append((task["name"], name)) or len(taken)
    monkeypatch.setitem(sys.modules, "sky", module)
    monkeypatch.setitem(sys.modules, "sky.jobs", jobs)
    launched(monkeypatch, f"--runs={tmp_path}/s", "--backend=sky")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Submitted s-a-seed0 as job 1." and len(lines) == 8
    assert len(taken) == 7 and all(task == name for task, name in taken)


def test_without_skypilot_the_command_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(sky.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[sky\]'"):
        list(sky.submit([]))
