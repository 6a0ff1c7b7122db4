"""The tasks of a study as SkyPilot's managed jobs, which begin again when preempted."""

import contextlib
import dataclasses
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edm_jax.fields import Count, Index, Settings
from edm_jax.studies import remote
from edm_jax.studies.task import Task

_STORES = ("gs", "s3", "r2", "cos", "nebius")
_PYTHON = ".venv/bin/python"
_RANK = "SKYPILOT_NODE_RANK"


@dataclasses.dataclass(frozen=True)
class Resources(Settings):
    """What one run asks for, in SkyPilot's words."""

    accelerators: str = ""  # of a node: H100:8, or a slice: tpu-v5litepod-16
    nodes: Count = 1
    infra: str = ""  # such as gcp, gcp/us-central1 or k8s; '' is where it costs least
    spot: bool = True
    bucket: str = ""  # gs://BUCKET/PATH that holds the runs; '' has one made
    max_restarts: Index = 10  # after failures; preemptions do not count

    def faults(self) -> Iterator[str]:
        """What contradicts itself."""
        if self.accelerators and not re.fullmatch(
            r"[A-Za-z][\w.-]*(:\d+)?", self.accelerators
        ):
            yield (
                f"accelerators={self.accelerators!r} is not NAME or NAME:COUNT, such as "
                "H100:8 or tpu-v5litepod-16."
            )
        if self.is_tpu and self.nodes > 1:
            yield f"nodes={self.nodes}, but a run takes one TPU slice: name a larger."
        scheme = self.bucket.partition("://")[0]
        if self.bucket and scheme not in _STORES:
            stores = ", ".join(f"{store}://" for store in _STORES)
            yield f"bucket={self.bucket!r}, but must begin with one of {stores}."

    @property
    def is_tpu(self) -> bool:
        """Whether the accelerator is a TPU slice."""
        return self.accelerators.lower().startswith("tpu")

    @property
    def chip(self) -> str:
        """Such as H100 or v5e; '' for none."""
        if size := re.fullmatch(r"tpu-(v\w+)-\d+", self.accelerators.lower()):
            return size[1].replace("litepod", "e")
        return self.accelerators.partition(":")[0].partition("-")[0]

    @property
    def has_many_hosts(self) -> bool:
        """Whether a run is several processes: slices of more than 8 have hosts of 4."""
        size = re.search(r"^tpu-v\w+-(\d+)$", self.accelerators.lower())
        return self.nodes > 1 or bool(size and int(size[1]) > 8)


def document(task: Task, resources: Resources, project: Path) -> dict[str, Any]:
    """SkyPilot's task; raises ValueError where the run's config is not in the project."""
    join, alone = "", {}
    if resources.is_tpu and resources.has_many_hosts:
        alone = remote.ONE_TPU_HOST
    elif resources.nodes > 1:
        first = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
        join = (
            f"--coordinator={first}:{remote.COORDINATOR_PORT} "
            f"--num_processes=$SKYPILOT_NUM_NODES --process_id=${_RANK}"
        )
    there = remote.moved(task, project, _PYTHON, join, alone)
    extra = "tpu" if resources.is_tpu else "cuda" if resources.accelerators else ""
    wanted: dict[str, Any] = {
        "infra": resources.infra,
        "accelerators": resources.accelerators,
    }
    wanted = {k: v for k, v in wanted.items() if v} | {
        "use_spot": resources.spot,
        "job_recovery": {
            "max_restarts_on_errors": resources.max_restarts,
            "recover_on_exit_codes": remote.PREEMPTED,
        },
    }
    return {
        "name": remote.job_name(task),
        "workdir": str(project),
        "num_nodes": resources.nodes,
        "resources": wanted,
        "file_mounts": {remote.RUNS: _store(task, resources)},
        "setup": _setup(extra),
        "run": shlex.join(there.process_command(_PYTHON, _RANK)) + "\n",
    }


def _store(task: Task, resources: Resources) -> dict[str, str]:
    """A bucket that every machine of a run sees."""
    # Cached writes are faster and may be partial; several hosts must see one another's.
    mode = "MOUNT" if resources.has_many_hosts else "MOUNT_CACHED"
    if resources.bucket:
        return {"source": resources.bucket, "mode": mode}
    study = re.sub(r"[^a-z0-9]+", "-", task.path.absolute().parent.name.lower())
    return {"name": f"edm-jax-{study.strip('-')}"[:60].rstrip("-"), "mode": mode}


def _setup(extra: str) -> str:
    # The versions of constraints.txt are Python 3.11's.
    project = f".[{extra}]" if extra else "."
    return (
        "[ -x .venv/bin/python ] || {\n"
        "  python3 -m pip install --quiet uv\n"
        "  python3 -m uv venv --quiet --seed --python 3.11 .venv\n"
        "}\n"
        f".venv/bin/python -m pip install --quiet -c constraints.txt -e '{project}'\n"
    )


def validate(documents: list[dict[str, Any]]) -> list[Any]:
    """SkyPilot's tasks of the documents; [] where it is not installed.

    Raises ValueError, with what SkyPilot says, for a document that it does not take.
    """
    if importlib.util.find_spec("sky") is None:
        return []
    tasks = []
    # It prints as it reads, where the documents may be printed.
    with contextlib.redirect_stdout(sys.stderr):
        sky = importlib.import_module("sky")
        for each in documents:
            try:
                tasks.append(sky.Task.from_yaml_config(dict(each)))
            except Exception as error:  # of many types
                said = f"SkyPilot does not take {each['name']}: {error}"
                raise ValueError(said) from error
    return tasks


def submit(documents: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Submits managed jobs: their names and numbers.

    Raises ImportError without SkyPilot, OSError with what it says where it fails.
    """
    if importlib.util.find_spec("sky") is None:
        raise ImportError("--backend=sky needs SkyPilot: pip install -e '.[sky]'.")
    tasks = validate(documents)
    sky, jobs = map(importlib.import_module, ("sky", "sky.jobs"))
    for each, task in zip(documents, tasks, strict=True):
        try:
            numbers, _ = sky.stream_and_get(jobs.launch(task, name=each["name"]))
        except Exception as error:  # of many types
            raise OSError(
                f"SkyPilot does not launch {each['name']}: {error}"
            ) from error
        yield each["name"], numbers[0] if numbers else "?"
