"""What tests in one process compile, shared by configs that compile the same."""

import contextlib
import dataclasses
import functools

import pytest

from edm_jax.evals import heldout
from edm_jax.train import loop

# Of a config's `training` fields, those that the host alone looks at.
HOST = (
    *("snapshot_mimg", "snapshot_dir", "log_mimg", "probe_mimg", "checkpoint_mimg"),
    *("keep_checkpoints", "keep_checkpoint_mimg", "patience_mimg"),
)


def cached(make_trainer):
    """`make_trainer`, which makes one trainer of configs that compile the same."""
    trainers = {}

    def same_trainer(config, *rest):
        fields = config.to_dict() | {"data": None, "evaluation": None}
        training = {k: v for k, v in fields["training"].items() if k not in HOST}
        key = str(fields | {"training": training})
        if key not in trainers:
            trainers[key] = make_trainer(config, *rest)
        return dataclasses.replace(trainers[key], config=config)

    return same_trainer


@contextlib.contextmanager
def shared_steps():
    """Within it, trainings of one network and optimizer trace and compile once.

    Whether a step that is compiled anew gives the same numbers, as in a process that
    resumes a run, is for tests/train/test_survival.py to say.
    """
    begin, forwards = heldout.Inference.__init__, {}

    @functools.wraps(begin)
    def same_forward(self, denoiser, batch_size):
        begin(self, denoiser, batch_size)
        key = repr(denoiser), batch_size
        self._forward = forwards.setdefault(key, self._forward)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_trainer", cached(loop.make_trainer))
        patch.setattr(heldout.Inference, "__init__", same_forward)
        yield
