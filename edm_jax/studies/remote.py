"""The tasks of a study on machines that hold the project, and the runs, elsewhere."""

import dataclasses
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from edm_jax.studies.task import EXIT, Task

RUNS = "/runs"  # where those machines see the directories of studies
COORDINATOR_PORT = 12345
# What a task ends with that saved, and may begin again at once.
PREEMPTED = sorted((EXIT["preempted"], EXIT["held"]))
# One host of a TPU slice, four chips, without the others; evaluation takes no more.
ONE_TPU_HOST = {
    "TPU_PROCESS_BOUNDS": "1,1,1",
    "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1",
    "TPU_VISIBLE_CHIPS": "0,1,2,3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def moved(
    task: Task,
    project: Path,
    python: str,
    join: str = "",
    alone: Mapping[str, str] | None = None,
) -> Task:
    """A task as another machine runs it, from its own copy of the project.

    Args:
        task: Training and evaluation, as this machine would run them.
        project: Where the project lies here.
        python: What runs it there.
        join: Options of training on several hosts, as the shell there expands them.
        alone: Environment variables of evaluation, which the first host does alone.

    Raises:
        ValueError: The run's config is not part of the project.
    """
    run = f"{RUNS}/{task.path.absolute().parent.name}/{task.path.name}"
    train, evaluate = (
        [
            python,
            *(
                word.replace(f"--run={task.run}", f"--run={run}").replace(
                    f"{project}/", ""
                )
                for word in command[1:]
            ),
        ]
        for command in task.commands
    )
    config = next(word for word in train if word.startswith("--config="))
    if Path(config.partition("=")[2]).is_absolute():
        raise ValueError(
            f"{task.name} uses {config}, which lies outside {project}: other machines "
            "get only that directory."
        )
    if join:
        train = ["sh", "-c", f'exec "$@" {join}', "train", *train]
    if alone:
        evaluate = ["env", *(f"{k}={v}" for k, v in alone.items()), *evaluate]
    return dataclasses.replace(
        task, run=run, commands=[train, evaluate], by=job_name(task), attempts=0
    )


def job_name(task: Task) -> str:
    """The study and the run as a label of DNS, at most 40 characters."""
    name = f"{task.path.absolute().parent.name}-{task.name}"
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if label == name and len(label) <= 40 and label[0].isalpha():
        return label
    # What makes the names of two runs differ may be gone.
    return f"r-{label[:29].rstrip('-')}-{zlib.crc32(name.encode()):08x}"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(documents: Iterable[Mapping[str, Any]]) -> str:
    """One YAML stream."""
    return yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        explicit_start=True,
        allow_unicode=True,
        width=2**30,
    )
