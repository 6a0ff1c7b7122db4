"""Commands that run the tasks of a study on Cloud TPU pods, to be run by a person."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from edm_jax.studies import remote
from edm_jax.studies.task import Task


def commands(
    tasks: Sequence[Task], name: str, zone: str, here: Path, there: Path
) -> list[str]:
    """One line a task: training on all workers, then evaluation on the first.

    here, there: where this project lies, on this machine and on the workers, which must
    see one file system for the runs.
    """
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, f"--zone={zone}"]
    lines = []
    for task in tasks:
        parts = []
        for command, workers in zip(task.commands, ("all", "0"), strict=True):
            alone = remote.ONE_TPU_HOST.items() if workers == "0" else ()
            prefix = ["env", *(f"{k}={v}" for k, v in alone)] if alone else []
            words = [*prefix, ".venv/bin/python", *command[1:]]
            words = [word.replace(f"{here}/", "") for word in words]
            inside = f"cd {shlex.quote(str(there))} && {shlex.join(words)}"
            parts.append(
                shlex.join([*ssh, f"--worker={workers}", f"--command={inside}"])
            )
        lines.append(" && ".join(parts))
    return lines
