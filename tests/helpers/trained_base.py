"""A short run of config G for others to start from, and commands run in this process."""

import sys

import pytest
from driven_run import arguments

from edm_jax import data
from experiments import cli, train


def run(command, monkeypatch, *options):
    """Runs a command with these arguments."""
    monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, options)])
    command.main()


def trained_base(place, steps):
    """The run, trained in `place`."""
    with pytest.MonkeyPatch.context() as patch:
        command = arguments(place / "run", place / "tfds", steps)
        data.prepare(cli.parse_config(train.parser(), command)[1].data)
        run(train, patch, *command)
    return place / "run"
