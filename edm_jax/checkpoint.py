"""Everything that a run needs to go on exactly; the only file that knows Orbax."""

from pathlib import Path

import orbax.checkpoint as ocp

from edm_jax.train_step import TrainState

# Metrics of the steps since the last line of the log, which averages them.
Unlogged = list[dict[str, float]]


class Checkpoints:
    """The last two states of a run, written in the background."""

    def __init__(self, directory: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self._manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def restore(self, like: TrainState) -> tuple[TrainState, Unlogged]:
        """The newest state, placed as `like` is, and the metrics that no line has yet.

        `like` and none where there is no checkpoint.
        """
        step = self._manager.latest_step()
        if step is None:
            return like, []
        target = ocp.args.Composite(
            state=ocp.args.StandardRestore(like._asdict()),
            unlogged=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=target)
        return TrainState(**restored["state"]), restored["unlogged"]["metrics"]

    def save(self, step: int, state: TrainState, unlogged: Unlogged) -> None:
        """Stores what there is after `step` steps, unless that is there already."""
        if self._manager.latest_step() != step:
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state._asdict()),
                unlogged=ocp.args.JsonSave({"metrics": unlogged}),
            )
            self._manager.save(step, args=items)

    def close(self) -> None:
        """Waits for the last save; raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.close()
