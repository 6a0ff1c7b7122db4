"""Eight simulated devices, warnings as errors, and a compilation cache between runs."""

import gc
import os
import signal
import subprocess
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFileSystem

# Before JAX is imported, and for the processes that tests start. Most of a cold run is
# compiling, which takes a quarter of the time where the programs may be slow.
COMPILE_FAST = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if metadata.version("jaxlib") < "0.12":  # later, XLA ends a process that names it
    COMPILE_FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *COMPILE_FAST])
# Fewer threads than devices can deadlock a collective.
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "xla")
)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ.setdefault("MPLBACKEND", "agg")

import jax

# Here alone: the processes that tests start have one device, and start in less time.
jax.config.update("jax_num_cpu_devices", 8)
# Under nohup, or in the background of a shell, the processes that tests start would
# ignore the signals that some tests send.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# JAX makes many objects and few cycles: at its usual rate, collection takes a fifth of
# the time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays():
    """No collection looks again at what earlier files imported and compiled."""
    gc.collect()
    gc.freeze()


# Whatever comes last keeps one process busy while the other has nothing left to do.
FIRST = (
    "train/test_parallel.py",
    "experiments/test_damage.py",
    "train/test_hosts.py",
    "train/test_survival.py",
    "train/test_nonfinite.py",
    "train/test_loop.py",
    "train/test_checkpoint.py",
    "experiments/test_init_config.py",
    "train/test_finder.py",
    "optim/test_plateau.py",
    "train/test_branch.py",
    "models/test_unet.py",
    "ema/test_ema.py",
)


def pytest_collection_modifyitems(items):
    """The files that take longest come first."""
    names = [str(Path(__file__).parent / name) for name in FIRST]
    rank = {name: place for place, name in enumerate(names)}
    items.sort(key=lambda item: rank.get(str(item.path), len(FIRST)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Names that are not UTF-8 may be logged, but pytest-xdist cannot send them."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode())
        for title, text in report.sections
    ]
    return report


@pytest.fixture
def bucket():
    """A place on gs://, where a memory file system stands in for the object store."""
    fsspec.register_implementation("gs", ObjectStore, clobber=True)
    fsspec.register_implementation("gcs", ObjectStore, clobber=True)
    fsspec_backend._get_filesystem.cache_clear()
    ObjectStore.store.clear()
    return "gs://bucket/run"


class ObjectStore(MemoryFileSystem):
    """Names objects as Google Cloud Storage does: no leading slash."""

    protocol = ("gs", "gcs")
    root_marker = ""
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return os.fspath(path).removeprefix("gs://").strip("/")


@pytest.fixture
def mount(tmp_path):
    """Mounts a disk of so many MB, where this machine lets us."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(megabytes):
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"]
        try:
            subprocess.run([*command, str(place)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a file system takes root")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(mount):
    """A disk of 1 MB."""
    return mount(1)
