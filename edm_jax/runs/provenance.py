"""The provenance of a run: code, versions, machine, command line."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "grain",
    "ml-collections",
    "numpy",
)
_MAX_DIFF = 200_000  # characters


def provenance() -> dict[str, Any]:
    """Versions, machine, commit with uncommitted changes, and command line."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    settings = ("XLA_", "JAX_", "LIBTPU_", "NCCL_", "CUDA_VISIBLE_DEVICES", "SLURM_JOB")
    driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "python": platform.python_version(),
        "versions": versions,
        **_code(),
        "host": platform.node(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu_driver": _output(driver).partition("\n")[0],
        "command": sys.argv,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(settings)
        },
    }


def _code() -> dict[str, str]:
    """The commit of this code, and its uncommitted diff and new files."""
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root)]
    # Installed inside another repository, this code has no commit of its own.
    if not (root / ".git").exists():
        return dict.fromkeys(
            ("git_commit", "git_changes", "git_diff", "git_untracked"), ""
        )
    whole = diff = _output([*git, "diff", "HEAD"])
    if len(diff) > _MAX_DIFF:
        diff = f"{diff[:_MAX_DIFF]}\n... {len(diff) - _MAX_DIFF:,} more characters"
    # Without tags, so that a commit is named by its hash.
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    changes = hashlib.sha256(whole.encode()).hexdigest()[:8] if whole else ""
    return {
        "git_commit": _output([*git, *describe]),
        "git_changes": changes,
        "git_diff": diff,
        "git_untracked": _output([*git, "ls-files", "--others", "--exclude-standard"]),
    }


def _output(command: Sequence[str]) -> str:
    """A command's output; '' if there is no such command, or it fails."""
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def utc_now() -> str:
    """The current time, in the format used in files."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
