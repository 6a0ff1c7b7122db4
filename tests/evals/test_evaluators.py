"""What evaluators measure, against values known beforehand."""

import types

import numpy as np
import pytest

from edm_jax import ema
from edm_jax.ema import snapshots
from edm_jax.evals.evaluators import DECAYS, DecayAverages

COUNT, STEP = 64, 1024


def test_averages_that_stand_for_decays_are_those_of_the_path(tmp_path):
    """Of weights that are the time trained, in closed form."""
    for i in range(1, COUNT + 1):
        for sigma_rel in (0.05, 0.10):
            profile = ema.PowerProfile(sigma_rel)
            # The mean of tau under (gamma + 1) tau^gamma.
            mean = i / COUNT * (profile.gamma + 1) / (profile.gamma + 2)
            meta = ema.SnapshotMeta(profile, i * STEP, STEP, "0" * 16)
            weights = {"w": np.full(8, mean, np.float32)}
            snapshots.write(tmp_path, weights, meta)
    subject = types.SimpleNamespace(
        stored=snapshots.list_snapshots(tmp_path),
        nimg=COUNT * STEP,
        heldout=types.SimpleNamespace(loss=lambda params: float(params["w"].mean())),
    )
    found = DecayAverages().evaluate(subject)
    # Both decays of the whole run are symmetric about its middle.
    expected = {"decay_cosine": 0.5, "decay_linear": 0.5, "decay_wsd": 0.9}
    assert expected.keys() == DECAYS.keys()
    for name, mean in expected.items():
        error = found[f"{name}_fit_error"]
        assert 0 < error < 0.2
        # A smooth path suffers far less than the white noise that the error stands for.
        assert found[name] == pytest.approx(mean, abs=0.1 * error)
