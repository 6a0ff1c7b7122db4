"""A trace of some training steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from typing import Any

import jax

_STEPS_BEFORE = 5  # leave out compilation and the first few steps


class Profile:
    """Traces `steps` steps into a directory, shortly after the start; 0 traces none."""

    def __init__(self, directory: Path, steps: int):
        self._directory, self._steps = directory, steps
        self._seen = 0

    def before_step(self) -> None:
        """Starts the trace if it is time."""
        self._seen += 1
        if self._steps and self._seen == _STEPS_BEFORE + 1:
            jax.profiler.start_trace(str(self._directory))

    def after_step(self, result: Any) -> None:
        """Ends the trace if it is time; `result` is the step's output, to wait for."""
        if self._steps and self._seen == _STEPS_BEFORE + self._steps:
            self.close(result)

    def close(self, result: Any = None) -> None:
        """Ends a trace in progress."""
        if self._steps and self._seen > _STEPS_BEFORE:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            self._steps = 0
