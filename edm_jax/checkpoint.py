"""Everything that a run needs to go on exactly; the only file that knows Orbax."""

from pathlib import Path

import orbax.checkpoint as ocp

from edm_jax.train_step import TrainState


class Checkpoints:
    """The last two states of a run, written in the background."""

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest state, placed as `like` is; None where there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        target = ocp.args.StandardRestore(like._asdict())
        return TrainState(**self._manager.restore(step, args=target))

    def save(self, step: int, state: TrainState) -> None:
        """Stores the state after `step` steps, unless that is there already."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))

    def close(self) -> None:
        """Waits for the last save; raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.close()
