"""Sweeps of guidance: where the optimum lies, and that nothing is measured twice."""

import math
import types

import numpy as np
import pytest

from edm_jax import ema, report
from edm_jax.ema import snapshots
from edm_jax.evals import guided_sweeps
from edm_jax.evals.guided_sweeps import Averages, Given, Grid, GuidedSweeps, Point
from edm_jax.evals.sweeps import Memory

LENGTHS = [0.05, 0.08, 0.1, 0.15]
AT = Point(0.05, 0.05, 2.0)


class Known:
    """Averages that are their own length, and how often they are asked for."""

    def at(self, sigma_rel):
        return sigma_rel


class Bowl:
    """A metric that is best at known lengths, strength and interval."""

    def __init__(self):
        self.points = []

    def sample(self, own, guides, weight, interval):
        self.points.append((own, guides, weight, interval))
        low, high = interval
        off = 0.0 if (low, high) == (0.0, math.inf) else 1 + abs(low - 0.5) - high / 100
        off = -1.0 if (low, high) == (0.5, 2.0) else off
        return np.array(
            10 * (own - 0.08) ** 2 + (guides - 0.15) ** 2 + (weight - 1.5) ** 2 + off
        )


def sweep(path, bowl, made_of=None):
    memory = Memory(path / "points.json", made_of or {"a": "b"})
    return GuidedSweeps(bowl.sample, float, Known(), Known(), memory)


def test_each_sweep_is_at_the_best_of_those_before_it(tmp_path):
    bowl = Bowl()
    measured = sweep(tmp_path, bowl)
    found = dict(
        guided_sweeps.grids(
            measured,
            ("lengths", "weights", "interval"),
            (LENGTHS, LENGTHS[1:]),
            [1.0, 1.5, 2.0],
            [0.5, 2.0],
            AT,
        )
    )
    assert found["lengths"].best[:2] == (0.08, 0.15)
    assert found["weights"].best[0] == 1.5
    assert found["weights"].at == Point(0.08, 0.15, 2.0)
    assert found["interval"].at == Point(0.08, 0.15, 1.5)
    assert found["interval"].best == (0.5, 2.0, pytest.approx(-1.0))
    # From 0, .5 and 2 to .5, 2 and everywhere, where the low end is the lower.
    value = np.array(found["interval"].value)
    assert np.isnan(value).tolist() == [
        [False, False, False],
        [True, False, False],
        [True, True, False],
    ]
    # w = 2 and the whole of the noise levels were measured before.
    assert len(bowl.points) == 12 + 2 + 5 == len(set(bowl.points))


def test_a_sweep_resumes_and_forgets_what_was_made_of_something_else(tmp_path):
    bowl = Bowl()

    class Stop(Exception):
        pass

    def interrupted(*point):
        if len(bowl.points) == 5:
            raise Stop
        return bowl.sample(*point)

    memory = Memory(tmp_path / "points.json", {"a": "b"})
    with pytest.raises(Stop):
        GuidedSweeps(interrupted, float, Known(), Known(), memory).lengths(
            LENGTHS, LENGTHS, AT
        )
    first = sweep(tmp_path, bowl).lengths(LENGTHS, LENGTHS, AT)
    assert len(bowl.points) == 16 == len(set(bowl.points))
    assert sweep(tmp_path, bowl).lengths(LENGTHS, LENGTHS, AT) == first
    assert len(bowl.points) == 16
    sweep(tmp_path, bowl, {"a": "c"}).lengths(LENGTHS[:1], LENGTHS[:1], AT)
    assert len(bowl.points) == 17


def test_averages_are_rebuilt_in_as_few_passes_as_memory_allows(tmp_path, monkeypatch):
    for nimg in (64, 128):
        for sigma_rel in (0.05, 0.10):
            meta = ema.SnapshotMeta(ema.PowerProfile(sigma_rel), nimg, 64, "c0ffee")
            snapshots.write(tmp_path, {"w": np.full(2, sigma_rel)}, meta)
    stored = ema.list_snapshots(tmp_path)
    passes, rebuilt = [], guided_sweeps.sweeps.rebuilt

    def counted(stored, lengths):
        passes.append(list(lengths))
        return rebuilt(stored, lengths)

    monkeypatch.setattr(guided_sweeps.sweeps, "rebuilt", counted)
    averages = Averages(stored, [0.05, 0.07, 0.10])
    found = [averages.at(s)["w"][0] for s in (0.05, 0.10, 0.05)]
    np.testing.assert_allclose(found, [0.05, 0.10, 0.05], rtol=1e-3)
    assert passes == [[0.05, 0.07, 0.10]]
    monkeypatch.setattr(guided_sweeps.sweeps, "REBUILD_BYTES", 1)
    Averages(stored, [0.05, 0.10]).at(0.10)
    assert passes[1:] == [[0.10]]


def test_the_best_is_the_lowest_that_is_finite():
    value = [[math.nan, 3.0], [math.inf, 2.0]]
    assert Grid([1.0, 2.0], [5.0, 6.0], value, AT).best == (2.0, 6.0, 2.0)
    with pytest.raises(ValueError, match="No point that was measured is finite"):
        Grid([1.0], [5.0], [[math.inf]], AT).best  # noqa: B018


def test_a_metric_is_a_field_of_an_evaluator():
    config = types.SimpleNamespace()
    samples = Given(config, np.zeros(2))
    mean = types.SimpleNamespace(
        evaluate=lambda subject: {
            "what": "mean",
            "mean": float(subject.images.mean()),
            "twice": 2 * float(subject.images.mean()),
        }
    )
    images = np.full((2, 1, 1, 1), 3.0)
    assert samples.measure(mean, "", images) == 3.0
    assert samples.measure(mean, "twice", images) == 6.0
    assert samples.measure(mean, "", images * np.nan) == math.inf
    with pytest.raises(ValueError, match="measures mean, twice, and no 'half'"):
        samples.measure(mean, "half", images)


def test_the_figure_rings_each_optimum():
    value = [[3.0, 2.0], [math.nan, 1.0], [4.0, 5.0]]
    grid = {"x": [0.05, 0.1, 0.15], "y": [0.1, math.inf], "value": value, "fixed": "w"}
    curve = {"x": [1.0, 2.0, 3.0], "y": [0.0], "value": [[3.0], [1.0], [2.0]]}
    grids = {
        "lengths": grid | {"best": (0.1, math.inf, 1.0)},
        "weights": curve | {"best": (2.0, 0.0, 1.0), "fixed": ""},
    }
    drawing = report.draw_guided("a guided by b", "distance", grids)
    heat, line, *_ = drawing.figure.axes
    rings = [[*map(float, axes.lines[-1].get_xydata()[0])] for axes in (heat, line)]
    assert rings == [[1.0, 1.0], [2.0, 1.0]]
    shown = heat.images[0].get_array()
    assert shown[1, 1] == 1.0 and shown[0, 2] == 4.0  # rows are y
    assert drawing.render("png").startswith(b"\x89PNG")
