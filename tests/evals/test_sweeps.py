"""Sweeps of EMA length: where the optimum lies, per time and per part of the network."""

import json
import os

import jax
import numpy as np
import pytest

from edm_jax import ema, report
from edm_jax.ema import snapshots
from edm_jax.evals import sweeps

BATCH, COUNT = 64, 64
LENGTHS = [round(0.01 * i, 3) for i in range(3, 25)]
NAMES = {
    "unet": {
        "enc_8x8_block0": {"kernel": np.zeros(1)},
        "out_conv": {"kernel": np.zeros(1)},
    }
}


@pytest.fixture
def stored(tmp_path):
    """Averages of weights that are the time itself: an average is then its mean time.

    (γ+1)/(γ+2) of the time trained, for a power function.
    """
    for i in range(COUNT):
        nimg = (i + 1) * BATCH
        for sigma_rel in (0.05, 0.10):
            gamma = ema.gamma_from_sigma_rel(sigma_rel)
            mean = np.array([nimg * (gamma + 1) / (gamma + 2)])
            tree = jax.tree.map(lambda _, mean=mean: mean, NAMES)
            meta = ema.SnapshotMeta(ema.PowerProfile(sigma_rel), nimg, BATCH, "c0ffee")
            snapshots.write(tmp_path / "snapshots", tree, meta)
    return ema.list_snapshots(tmp_path / "snapshots")


class Parabola:
    """A held-out loss whose best mean time of each part is known, and how often asked."""

    def __init__(self, **best):
        self.best, self.calls = best, 0

    def loss(self, params):
        self.calls += 1
        unet = params["unet"]
        return sum(
            (float(unet[part]["kernel"][0]) / (COUNT * BATCH) - best) ** 2
            for part, best in self.best.items()
        )


def mean_time(sigma_rel):
    gamma = ema.gamma_from_sigma_rel(sigma_rel)
    return (gamma + 1) / (gamma + 2)


def curve(x, y):
    return sweeps.Curve(1024, sweeps.WHOLE, None, list(x), list(y), [0.0] * len(x))


def test_a_parabola_is_fitted_exactly():
    x = np.linspace(0.02, 0.2, 10)
    found = sweeps.optimum(curve(x, 3 + (x - 0.087) ** 2))
    assert found.sigma_rel == pytest.approx(0.08)
    assert found.fitted_sigma_rel == pytest.approx(0.087)
    assert found.fitted_loss == pytest.approx(3)


@pytest.mark.parametrize(
    "y", [[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5.5], [1, 1, 0, 1, np.nan, 1]]
)
def test_no_optimum_is_claimed_at_an_edge_or_in_what_is_not_finite(y):
    found = sweeps.optimum(curve([0.1, 0.11, 0.12, 0.13, 0.14, 0.15], y))
    assert found.sigma_rel == [0.1, 0.11, 0.12, 0.13, 0.14, 0.15][int(np.nanargmin(y))]
    assert found.fitted_sigma_rel is None


def test_an_empty_curve_is_refused():
    with pytest.raises(ValueError, match="No length was measured"):
        sweeps.optimum(curve([], []))


def test_the_best_length_of_all_weights_is_found(stored, tmp_path):
    heldout = Parabola(enc_8x8_block0=mean_time(0.083))
    measured = sweeps.Sweeps(heldout, stored, tmp_path / "points.json")
    found = measured.lengths(LENGTHS)
    assert found.sigma_rel == LENGTHS
    assert sweeps.optimum(found).sigma_rel == 0.08
    assert sweeps.optimum(found).fitted_sigma_rel == pytest.approx(0.083, abs=1e-3)


@pytest.mark.slow
def test_lengths_that_the_snapshots_cannot_express_are_not_measured(stored, tmp_path):
    measured = sweeps.Sweeps(Parabola(), stored, tmp_path / "points.json")
    assert measured.lengths([0.004, 0.05, 0.285]).sigma_rel == [0.05]
    assert sweeps.keep_expressible(stored, [0.004, 0.285]) == [0.05, 0.10]


@pytest.mark.slow
def test_lengths_that_are_left_out_are_named(stored, caplog):
    assert sweeps.keep_expressible(stored, [0.004, 0.05, 0.1, 0.285]) == [0.05, 0.1]
    said = "Left out sigma_rel = 0.004, 0.285: the snapshots cannot express them."
    assert caplog.messages == [said]
    caplog.clear()
    sweeps.keep_expressible(stored, [0.05, 0.1])
    assert not caplog.messages


@pytest.mark.slow
def test_the_best_length_moves_over_the_training_as_it_must(stored, tmp_path):
    # Half of the time of .2: right in the middle, too early for any length at the end.
    heldout = Parabola(enc_8x8_block0=mean_time(0.2) / 2)
    measured = sweeps.Sweeps(heldout, stored, tmp_path / "points.json")
    curves = measured.over_time(LENGTHS, times=2)
    assert [each.nimg for each in curves] == [COUNT // 2 * BATCH, COUNT * BATCH]
    assert sweeps.optimum(curves[0]).sigma_rel == 0.2
    assert sweeps.optimum(curves[1]).sigma_rel == LENGTHS[-1]


@pytest.mark.slow
def test_each_part_is_swept_with_the_others_fixed(stored, tmp_path):
    best = {"enc_8x8_block0": 0.06, "out_conv": 0.15}
    heldout = Parabola(**{part: mean_time(s) for part, s in best.items()})
    groups = sweeps.levels(NAMES)
    assert groups == {
        "enc_8x8": ["unet/enc_8x8_block0/kernel"],
        "out_conv": ["unet/out_conv/kernel"],
    }
    measured = sweeps.Sweeps(heldout, stored, tmp_path / "points.json")
    first, second = measured.by_group(groups, LENGTHS, fixed=0.1)
    assert (first.group, sweeps.optimum(first).sigma_rel) == ("enc_8x8", 0.06)
    assert (second.group, sweeps.optimum(second).sigma_rel) == ("out_conv", 0.15)
    assert first.fixed == 0.1
    # The other part stays at .1, whose loss is the floor of the curve.
    floor = (mean_time(0.1) - mean_time(0.15)) ** 2
    assert min(first.loss) == pytest.approx(floor, rel=1e-2)


@pytest.mark.slow
def test_a_length_of_the_others_that_cannot_be_expressed_is_refused(stored, tmp_path):
    measured = sweeps.Sweeps(Parabola(), stored, tmp_path / "points.json")
    with pytest.raises(ValueError, match="cannot express sigma_rel = 0.001"):
        measured.by_group(sweeps.levels(NAMES), LENGTHS, fixed=0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ['{"points": {', "[]", '{"snapshots": MADE, "points": []}', "PIPE"]
    + ['{"snapshots": MADE, "points": {"[4096, \\"all weights\\", null, 0.03]": "x"}}'],
)
def test_a_damaged_memory_is_measured_again(stored, tmp_path, text):
    memory = tmp_path / "points.json"
    made_of = {each.path.name: each.checksum for each in stored}
    if text == "PIPE":
        os.mkfifo(memory)
    else:
        memory.write_text(text.replace("MADE", json.dumps(made_of)))
    heldout = Parabola()
    sweeps.Sweeps(heldout, stored, memory).lengths(LENGTHS[:3])
    assert heldout.calls == 3


@pytest.mark.slow
def test_a_sweep_measures_nothing_twice(stored, tmp_path):
    heldout = Parabola(out_conv=mean_time(0.1))
    for lengths, calls in ((LENGTHS[:10], 10), (LENGTHS, len(LENGTHS))):
        measured = sweeps.Sweeps(heldout, stored, tmp_path / "points.json")
        measured.lengths(lengths)
        assert heldout.calls == calls
    # Other snapshots are another run.
    again = sweeps.Sweeps(heldout, stored[2:], tmp_path / "points.json")
    again.lengths(LENGTHS)
    assert heldout.calls == 2 * len(LENGTHS)


def test_tensors_are_picked_by_a_pattern():
    found = sweeps.tensors(NAMES, "out_.*kernel$")
    assert found == {"unet/out_conv/kernel": ["unet/out_conv/kernel"]}
    with pytest.raises(ValueError, match="No tensor's name matches 'conv9'"):
        sweeps.tensors(NAMES, "conv9")
    with pytest.raises(ValueError, match="not a regular expression"):
        sweeps.tensors(NAMES, "(")


@pytest.mark.slow
def test_the_three_figures_are_drawn(stored, tmp_path):
    heldout = Parabola(enc_8x8_block0=mean_time(0.06), out_conv=mean_time(0.15))
    measured = sweeps.Sweeps(heldout, stored, tmp_path / "points.json")
    curves = (
        [measured.lengths(LENGTHS)],
        measured.over_time(LENGTHS, 3),
        measured.by_group(sweeps.levels(NAMES), LENGTHS, 0.1),
    )
    words = [
        [c._asdict() | {"optimum": sweeps.optimum(c)._asdict()} for c in each]
        for each in curves
    ]
    drawings = report.draw_sweeps("G", *json.loads(json.dumps(words)))
    assert [d.name for d in drawings] == ["ema_length", "training_time", "groups"]
    for drawing in drawings:
        assert drawing.render("png").startswith(b"\x89PNG")
    panels = drawings[2].figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["enc_8x8", "out_conv"]
    (line, ring, *_) = panels[0].lines
    np.testing.assert_allclose(line.get_xdata(), LENGTHS)
    assert ring.get_xdata()[0] == 0.06
