"""Claims about results against a field of the config, and about users' own columns."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import config_of, rewrite, write_run

from edm_jax import report
from edm_jax.report import by_field
from experiments import compare as command

RATES = (0.01, 0.02, 0.04, 0.08)
LOSSES = {"a": (0.9, 0.5, 0.4, 5.0), "g": (0.6, 0.5, 0.4, 0.3)}
X = "optimizer.alpha_ref"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two letters at four rates and two seeds; A diverges at the last."""
    path = tmp_path_factory.mktemp("runs") / "study"
    for letter, losses in LOSSES.items():
        for rate, loss in zip(RATES, losses, strict=True):
            for seed in range(2):
                run = write_run(path, letter, f"{letter}-{rate}-seed{seed}")
                config = config_of(letter) | {"seed": seed}
                config["optimizer"]["alpha_ref"] = rate
                rewrite(run / "config.json", **config)
                best = {"sigma_rel": 0.1, "loss": loss + 0.02 * seed}
                rewrite(run / "evaluation.json", best=best, untrained_loss=1.0)
    return path


@pytest.fixture(scope="module")
def runs(whole):
    return [report.load_run(run) for run in report.find_runs([whole])]


@pytest.fixture
def study(whole, tmp_path):
    """A copy to change."""
    return Path(shutil.copytree(whole, tmp_path / "study"))


def compared(study, **options) -> report.Comparison:
    return report.compare(
        [report.load_run(run) for run in report.find_runs([study])], **options
    )


def test_sensitivity_is_the_mean_of_the_capped_losses_less_the_best(runs):
    found = report.compare(runs, x=X).by_field
    # By hand: A's mean losses .91 .51 .41 5.01, the last capped at 1; G's .61 ... .31.
    assert found.sensitivity("A") == pytest.approx((0.91 + 0.51 + 0.41 + 1) / 4 - 0.41)
    assert found.sensitivity("G") == pytest.approx(
        (0.61 + 0.51 + 0.41 + 0.31) / 4 - 0.31
    )
    assert [found.best(name).x for name in "AG"] == [0.04, 0.08]
    (_, rows) = found.table()
    assert [row[2] for row in rows] == ["0.04", "0.08 (at the edge)"]


def test_a_failed_run_counts_with_the_initial_loss(study):
    for run in study.glob("a-0.02-*"):
        rewrite(run / "status.json", state="failed")
    found = compared(study, x=X).by_field
    assert found.sensitivity("A") == pytest.approx((0.91 + 1 + 0.41 + 1) / 4 - 0.41)
    assert [p.source for p in found.lines["A"]].count("failed") == 1


def test_only_losses_have_a_sensitivity(runs):
    found = report.compare(runs, x=X, y="params").by_field
    assert found.sensitivity("A") is None
    assert found.best("A").y == pytest.approx(461_234 + ord("a"))


def test_each_line_has_its_band_and_a_ring_at_its_best(runs):
    (panel,) = report.compare(runs, x=X).by_field.chart().panels
    a, g = panel.lines
    np.testing.assert_allclose(a.x, RATES)
    np.testing.assert_allclose(g.y, np.array(LOSSES["g"]) + 0.01)
    np.testing.assert_allclose(g.high - g.low, 0.02)
    rings = [(mark.label, mark.x) for mark in panel.marks if mark.kind == "ring"]
    assert rings == [("A: best", 0.04), ("G: best", 0.08)]


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ((1, 2, 4, 8), True),
        ((0.003, 0.01, 0.03, 0.06, 0.12), True),
        ((1, 2, 3, 4), False),
        ((0, 1, 10, 100), False),
        ((-1, 1, 10), False),
        ((1, 10), True),
        ((1, 2), False),
        ((1,), False),
    ],
)
def test_the_axis_is_logarithmic_where_values_are_spaced_so(values, is_log):
    assert by_field.is_log(values) == is_log


def test_a_run_that_is_not_evaluated_shows_the_loss_it_logged_and_how_to(study):
    for run in study.glob("g-0.04-*"):
        (run / "evaluation.json").unlink()
    comparison = compared(study, x=X)
    (row, _) = [r for r in comparison.rows if r.state == "not evaluated"]
    logged = report.load_run(run).logs["heldout"].column("loss_per_element")[-1]
    heldout = report.COLUMNS["heldout_loss"]
    assert row.text(heldout) == f"{logged:.4f} (logged)"
    assert f"experiments/evaluate.py --run={study}/g-0.04-seed0" in row.message
    assert row.mean("heldout_loss") is None
    (point,) = [p for p in comparison.by_field.lines["G"] if p.x == 0.04]
    assert (point.source, point.values) == ("logged", [logged, logged])
    marks = comparison.by_field.chart().panels[0].marks
    assert [mark.x for mark in marks if mark.kind == "hollow"] == [0.04]
    assert "(logged)" in report.results_markdown(comparison)
    assert "(logged)" in report.results_latex(comparison)


def test_fields_that_vary_within_a_letter_are_columns_of_every_table(runs):
    comparison = report.compare(runs)
    assert comparison.fields == [X]  # of A and G themselves much more differs
    lines = list(csv.DictReader(report.results_csv(comparison).splitlines()))
    assert [float(line[X]) for line in lines] == [*RATES, *RATES]
    head = report.results_markdown(comparison).splitlines()[2]
    assert "| alpha_ref |" in head
    assert "alpha\\_ref" in report.results_latex(comparison)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": "optimizer.alpha_reff"}, "Did you mean 'optimizer.alpha_ref'"),
        ({"x": "network.norm"}, "--x=network.norm is group in a-0.01"),
        ({"x": X, "by": ["network.nom"]}, "Did you mean 'network.norm'"),
        ({"x": X, "y": "heldout"}, "--y is 'heldout', but must be one of"),
        ({"x": "loss.P_std"}, "both have loss.P_std = 1.2: add to --by=letter"),
    ],
)
def test_an_unknown_field_or_two_configs_of_one_value_are_refused(
    runs, options, message
):
    with pytest.raises(ValueError, match=message):
        report.compare(runs, **options)


def test_there_is_a_line_for_each_value_of_a_field(study):
    for run in study.glob("g-*"):
        config = json.loads((run / "config.json").read_text())
        config["network"]["cat"] = 2 if "0.01" in run.name else 3
        rewrite(run / "config.json", **config)
    lines = compared(study, x=X, by=["letter", "network.cat"]).by_field.lines
    assert {k: len(v) for k, v in lines.items()} == {
        "A, cat = 1": 4,
        "G, cat = 2": 1,
        "G, cat = 3": 3,
    }


@pytest.mark.slow
def test_the_command_writes_the_curves_as_pictures_and_csv_and_on_the_page(
    study, tmp_path
):
    out = tmp_path / "out"
    command.main([str(study), f"--out={out}", f"--x={X}"])
    assert {f"by_field.{form}" for form in ("png", "pdf", "svg")} <= {
        path.name for path in (out / "figures").iterdir()
    }
    lines = list(csv.DictReader((out / "by_field.csv").read_text().splitlines()))
    assert [float(line["y"]) for line in lines[4:]] == pytest.approx(
        [0.61, 0.51, 0.41, 0.31]
    )
    assert {line["best_x"] for line in lines} == {"0.04", "0.08"}
    assert float(lines[0]["sensitivity"]) == pytest.approx(0.2975)
    assert 'data-plot="by_field/0/0"' in (out / "index.html").read_text()


OWN = """
from edm_jax import report

def ratio(run):
    return run.evaluation.values["raw_loss", ] / run.evaluation.values["best", "loss"]

gain = report.Column("gain", "raw over best", 3, "how much averaging helps", ratio)
broken = report.Column("broken", "broken", 3, "", lambda run: run.nothing)
other = 3
"""


def test_a_column_of_ones_own_is_a_column_like_the_others(runs, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(OWN)
    comparison = report.compare(runs, columns=["heldout_loss", f"{mine}:gain"])
    row = comparison.rows[-1]
    raw = report.COLUMNS["raw_loss"].of(row.runs[0])
    assert row.mean("gain") == pytest.approx((raw / 0.30 + raw / 0.32) / 2)
    (line, *_) = csv.DictReader(report.results_csv(comparison).splitlines())
    assert line["gain_n"] == "2"
    assert "raw over best" in report.results_markdown(comparison)
    with pytest.raises(ValueError, match=r"mine.py:broken.* fails: AttributeError"):
        report.compare(runs, columns=[f"{mine}:broken"])
    with pytest.raises(ValueError, match=r"is not a report.Column"):
        report.compare(runs, columns=[f"{mine}:other"])
    assert dataclasses.is_dataclass(report.Column)
