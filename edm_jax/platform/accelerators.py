"""Which accelerator this machine has, whether or not JAX can use it."""

import functools
import logging
import os

import jax

_log = logging.getLogger(__name__)

_CUDA = (
    "pip install -U 'jax[cuda12]' installs it, and needs an NVIDIA driver from 525 on"
)
# {platform: how to install the plugin that JAX lacks}
INSTALL = {
    "cuda": _CUDA,
    "gpu": _CUDA,
    "tpu": "pip install -U 'jax[tpu]' installs it, on a TPU machine",
}
# Device files that a driver makes.
_DEVICE_FILES = {
    "gpu": ("/dev/nvidiactl", "/dev/nvidia0"),
    "tpu": ("/dev/accel0", "/dev/vfio/0"),
}


class _PluginErrors(logging.Filter):
    """Captures errors of plugins that do not load, which JAX logs with a stack trace."""

    said = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if "plugin configuration error" not in str(record.msg):
            return True
        error = record.exc_info[1] if record.exc_info else record.getMessage()
        self.said = self.said or " ".join(str(error).split())
        return False


_plugin_errors = _PluginErrors()


def keep_plugin_errors() -> None:
    """Silences JAX about plugins that do not load; `plugin_error` returns the error."""
    logging.getLogger("jax._src.xla_bridge").addFilter(_plugin_errors)


def plugin_error() -> str:
    """Why a plugin did not load, such as an old driver; '' if none failed."""
    return _plugin_errors.said


def present() -> str | None:
    """'gpu', 'tpu' or None, found by their drivers' files without starting JAX."""
    for kind, names in _DEVICE_FILES.items():
        if any(map(os.path.exists, names)):
            return kind
    return None


def uses_cpu_only() -> bool:
    """Whether JAX computes on the CPU by request or for lack of an accelerator."""
    asked = _asked()
    return asked == "cpu" if asked else present() is None


def _asked() -> str | None:
    """JAX_PLATFORMS, or the setting that replaced it."""
    return jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def warn_if_idle(used: str) -> None:
    """Warns once if the CPU computes although nobody asked for it.

    Args:
        used: the platform of the devices that compute.
    """
    kind = present()
    if used == "cpu" and kind and not _asked():
        _log.warning(
            "This machine has a %s, but JAX computes on the CPU: %s. %s. "
            "JAX_PLATFORMS=cpu silences this.",
            kind.upper(),
            plugin_error().rstrip(".")
            or "its plugin is not installed, or cannot start",
            INSTALL[kind],
        )
