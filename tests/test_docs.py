"""Every command of README.md and docs/ runs, on the smallest workload.

Blocks marked `sh` are run in the order they stand, after Python blocks that begin with
the name of their file were written there; blocks marked `console`, whose lines
begin with a prompt, need hardware or files that a test does not have.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The smallest workload has 640 images, where digits has 40,000.
SMALLER = [
    (r":digits\b(?!-)", ":digits-tiny"),
    (r":toy\b(?!-)", ":toy-tiny"),
    (r"--workload=digits\b(?!-)", "--workload=digits-tiny"),
    (r"\b(ladder|t_ref)-digits\b(?!-)", r"\1-digits-tiny"),
    (r"\bruns/digits-g\b", "runs/digits-tiny-g"),
    (r"--seeds=0-2", "--seeds=0"),
    (r"--seeds=0-99", "--seeds=0-9"),
    (r"--score=10000", "--score=40"),
    (r"000000040000", "000000000640"),
    (r"halflife:0.002", "halflife:0.0001"),
    (r"uniform:20000", "uniform:320"),
    (r"keep_checkpoint_mimg=0.01", "checkpoint_mimg=0.00032"),
    (r"@30016", "@320"),
]


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return re.findall(
        rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL
    )


def commands(page):
    """The commands of a page's sh blocks, one string each, without comments."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Where a user types: the commands and configs at hand, the runs elsewhere."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("configs", "experiments", "benchmarks", "edm_jax"):
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.mark.skipif(
    "EDM_JAX_TEST_DOCS" not in os.environ, reason="takes minutes: make docs"
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(page, clone):
    for block in blocks(page, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            (clone / name[1]).write_text(block, encoding="utf-8")
    for words in commands(page):
        if words[0] == "make":  # as continuous integration does
            assert re.search(
                rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE
            )
            continue
        assert words[0] == ".venv/bin/python", words
        command = shlex.join(words[1:])
        for pattern, replacement in SMALLER:
            command = re.sub(pattern, replacement, command)
        done = subprocess.run(
            [sys.executable, *shlex.split(command)],
            cwd=clone,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_pictures_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_readme_can_be_read_to_its_end():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1050
