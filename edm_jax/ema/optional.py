"""Packages that averages are made faster or stored elsewhere with, and stand-ins.

Rebuilding averages needs NumPy alone. With these it also reads object stores (etils and
fsspec) and bfloat16 snapshots (ml_dtypes), and verifies checksums 50 times as fast (xxhash).
"""

import contextlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = ["epath", "fsspec", "ml_dtypes", "one_blas_thread", "xxhash"]

if TYPE_CHECKING:
    import fsspec
    import ml_dtypes
    import xxhash
    from etils import epath
else:

    class _LocalPaths:
        @staticmethod
        def Path(path: Any) -> Path:
            if "://" in os.fspath(path):
                raise ImportError(
                    f"{path} is on an object store: pip install 'etils[epath]' fsspec, "
                    "and the store's own package."
                )
            return Path(path)

    def _found(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ImportError:
            return None

    epath = _found("etils.epath") or _LocalPaths
    fsspec = _found("fsspec")
    ml_dtypes = _found("ml_dtypes")
    if (xxhash := _found("xxhash")) is None:
        from edm_jax.ema import hashing as xxhash


def one_blas_thread() -> contextlib.AbstractContextManager[Any]:
    """Keeps BLAS from starting threads of its own, where threadpoolctl is installed."""
    try:
        import threadpoolctl
    except ImportError:
        return contextlib.nullcontext()
    return threadpoolctl.threadpool_limits(1, user_api="blas")
