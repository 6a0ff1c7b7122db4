"""What tests in one process compile, shared by configs that compile the same."""

import contextlib
import dataclasses
import functools

import jax
import pytest

from edm_jax.evals import generation, heldout
from edm_jax.train import finder, loop
from edm_jax.train.diagnosis import Diagnosis
from edm_jax.train.trainer import make_trainer

# Of a config's `training` fields, those that the host alone looks at.
HOST = (
    *("snapshot_mimg", "snapshot_dir", "log_mimg", "probe_mimg", "checkpoint_mimg"),
    *("keep_checkpoints", "keep_checkpoint_mimg", "patience_mimg"),
)


def cached(make_trainer):
    """`make_trainer`, which makes one trainer of configs that compile the same."""
    trainers = {}

    def same_trainer(config, **more):
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        training = {k: v for k, v in vars(config.training).items() if k not in HOST}
        fields |= {"data": config.data.augment, "evaluation": None}
        key = repr((fields | {"training": training}, more))
        if key not in trainers:
            trainers[key] = make_trainer(config, **more)
        return dataclasses.replace(trainers[key], config=config)

    return same_trainer


@functools.cache
def _trainers(devices):
    here = jax.devices()[:devices]
    return cached(functools.partial(make_trainer, devices=here))


_COMPILED = {}  # by class and what it was made of


def _sharing(patch, kind, key, *names, **fixed):
    """Makes objects of a class with equal keys share what they compiled."""
    begin = kind.__init__

    @functools.wraps(begin)
    def __init__(self, *arguments, **more):
        begin(self, *arguments, **fixed | more)
        place = kind, str(fixed), key(*arguments, **more)
        parts = {name: getattr(self, name) for name in names}
        vars(self).update(_COMPILED.setdefault(place, parts))

    patch.setattr(kind, "__init__", __init__)


def _of_arguments(*arguments, **more):
    return repr((arguments, more))


def _of_diagnosis(trainer, agree):
    del agree
    return repr((trainer.denoiser, trainer.config.loss, trainer.config.data.augment))


@contextlib.contextmanager
def shared_steps(devices=1):
    """Within it, what trains and samples the same network traces and compiles once.

    So it does in all files of a process. It uses one device, as 8 simulated ones take far longer: that the numbers are the same
    is for tests/train/test_parallel.py to say. Whether a step that is compiled anew gives
    the same numbers, as in a process that resumes a run, is for
    tests/train/test_survival.py.
    """
    here = jax.devices()[:devices]
    with pytest.MonkeyPatch.context() as patch:
        for user in (loop, finder):
            patch.setattr(user, "make_trainer", _trainers(devices))
        networks = heldout.Inference, "_forward", "_statistics"
        for kind, *names in (networks, (generation.Generator, "_sample")):
            _sharing(patch, kind, _of_arguments, *names, devices=here)
        _sharing(patch, Diagnosis, _of_diagnosis, "_outputs")
        yield
