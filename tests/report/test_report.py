"""Claims about the comparison: what it computes, what it refuses to show."""

import csv
import io
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from page_reader import Page
from synthetic_runs import (
    CHANGES,
    TOTAL,
    config_of,
    rewrite,
    samples_png,
    write_run,
)

from edm_jax import report
from edm_jax.report import figures
from edm_jax.report.columns import COLUMNS, GROWTH, format_number
from edm_jax.report.curves import traditional_sigma_rel
from edm_jax.report.runs import Log

ROOT = Path(__file__).resolve().parents[2]


def rows_of(*runs: Path) -> list:
    return report.results_rows(report.ladder([report.load_run(run) for run in runs]))


def compared(path: Path) -> report.Comparison:
    return report.compare([report.load_run(run) for run in report.find_runs([path])])


def read_csv(out: Path) -> list[dict[str, str]]:
    text = (out / "results.csv").read_bytes().decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A ladder as a study leaves it: E was killed, F failed, the rest is done."""
    path = tmp_path_factory.mktemp("runs") / "digits-ladder"
    for letter in "abcdefg":
        write_run(path, letter)
    late = {"nimg": 600_000, "stage": "train"}
    rewrite(path / "digits-e-s0/status.json", state="preempted", **late)
    failed = {"state": "failed", "message": "loss is not finite in enc.8x8_block0"}
    rewrite(path / "digits-f-s0/status.json", **failed, **late)
    return path


@pytest.fixture(scope="module")
def out(study) -> Path:
    out = study / "report"
    report.write(compared(study), out)
    return out


def test_metrics_that_evaluators_logged_are_drawn_each_in_a_panel(tmp_path):
    for seed, offset in ((0, 0.0), (1, 2.0)):
        run = write_run(tmp_path / "runs", "g", f"digits-g-s{seed}")
        rewrite(run / "config.json", seed=seed)
        with open(run / "metrics.jsonl", "a") as file:
            for step, nimg in ((1, 500_000), (2, TOTAL)):
                found = {"fd_effnetlite0": 9 - step + offset, "own_metric": step}
                record = {"kind": "evaluation", "step": step, "nimg": nimg, **found}
                file.write(json.dumps(record | {"num_samples": 4}) + "\n")
    entries = compared(tmp_path / "runs").entries
    (chart,) = figures.metrics(entries)
    titles = [panel.title for panel in chart.panels]
    assert titles == ["FD-EffNetLite0 (not FID)", "own metric"]
    line = chart.panels[0].lines[0]
    np.testing.assert_allclose(line.x, [500, 1500])  # thousands of images
    np.testing.assert_allclose(line.y, [9, 8])  # the mean over both seeds
    np.testing.assert_allclose([line.low, line.high], [[8, 7], [10, 9]])
    assert not figures.metrics(compared(write_run(tmp_path / "none", "a")).entries)


def test_quality_stands_against_diversity_where_both_were_evaluated(tmp_path):
    for seed, offset in ((0, 0.0), (1, 0.2)):
        run = write_run(tmp_path / "runs", "g", f"digits-g-s{seed}")
        rewrite(run / "config.json", seed=seed)
        found = {"precision_effnetlite0": 0.5 + offset, "recall_effnetlite0": 0.25}
        rewrite(run / "evaluation.json", **found, coverage_effnetlite0=0.5)
        with open(run / "metrics.jsonl", "a") as file:
            for step, nimg in ((1, 500_000), (2, TOTAL)):
                logged = {
                    "precision_effnetlite0": 0.1 * step,
                    "recall_effnetlite0": 0.5,
                }
                record = {"kind": "evaluation", "step": step, "nimg": nimg, **logged}
                file.write(json.dumps(record) + "\n")
    (chart,) = figures.quality(compared(tmp_path / "runs").entries)  # no density
    (panel,) = chart.panels
    assert (chart.x, panel.y) == ("recall", "precision")
    path, end, _, other = panel.lines
    np.testing.assert_allclose([path.x, path.y], [[0.5, 0.5], [0.1, 0.2]])
    np.testing.assert_allclose([end.x, end.y, other.y], [[0.25], [0.5], [0.7]])
    (mean,) = panel.marks
    np.testing.assert_allclose([mean.x, mean.y], [0.25, 0.6])
    assert not figures.quality(compared(write_run(tmp_path / "none", "a")).entries)


def test_config_diff_is_computed_exactly_from_the_two_configs():
    diffs = {
        after: report.config_diff(config_of(before), config_of(after))
        for before, after in zip("abcdef", "bcdefg", strict=True)
    }
    assert diffs["c"] == [
        "network.conv: biased -> plain",
        "network.norm: group -> rms_group",
    ]
    assert "network.attention: (32, 16, 8) -> (16, 8)" in diffs["b"]
    assert "optimizer.alpha_ref: 0.0001 -> 0.0002" in diffs["b"]
    assert "optimizer.t_ref: inf -> 70000" in diffs["e"]
    assert "optimizer.forced_weight_norm: (absent) -> true" in diffs["e"]
    back = report.config_diff(config_of("e"), config_of("d"))
    assert "optimizer.forced_weight_norm: true -> (absent)" in back
    for letter, changes in CHANGES.items():
        assert {line.split(":")[0] for line in diffs[letter]} == set(changes)


def test_config_diff_ignores_letter_and_title_alone():
    renamed = {**config_of("a"), "letter": "z", "title": "other", "seed": 1}
    assert report.config_diff(config_of("a"), renamed) == ["seed: 0 -> 1"]


def log_of(kind, nimg, **groups) -> Log:
    values = {(kind, group, "mean"): np.array(v) for group, v in groups.items()}
    return Log(np.array(nimg, float), values)


def test_growth_is_last_over_first_of_each_group():
    log = log_of("weights", [0, 1, 2], enc_8x8=[2.0, 9.0, 3.0], dec_8x8=[0.0, 9.0, 1.0])
    assert report.growth(log, "weights") == {"enc_8x8": 1.5}
    assert report.growth(log[:1], "weights") == {}


def test_growth_may_leave_out_the_first_part_of_the_training():
    log = log_of("activations", [0, 20, 30, 100], enc_8x8=[1.0, 3.0, 4.0, 6.0])
    assert report.growth(log, "activations", since=0.25) == {"enc_8x8": 1.5}
    assert report.growth(log, "activations", since=0.2) == {"enc_8x8": 2.0}


def test_the_row_shows_the_group_that_grows_most(study):
    rows = rows_of(*(study / f"digits-{letter}-s0" for letter in "dg"))
    assert rows[0].mean("weight_growth") == pytest.approx(6.5)
    # The first group moves most; 0.999 is the farthest, so the largest is another.
    assert 0.999 < rows[1].mean("weight_growth") < 1.0


def test_a_torn_last_line_of_the_metrics_is_ignored(tmp_path):
    run = write_run(tmp_path, "g")
    whole = report.load_run(run)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "step": 61, "nimg": 152\xff')
    torn = report.load_run(run)
    assert torn.damage == []
    for kind in ("train", "heldout"):
        assert torn.logs[kind].nimg.tolist() == whole.logs[kind].nimg.tolist()
        for name, values in whole.logs[kind].values.items():
            np.testing.assert_array_equal(torn.logs[kind].column(*name), values)


def test_a_resumed_run_counts_the_later_of_two_records_of_the_same_image(tmp_path):
    run = write_run(tmp_path, "g")
    again = {"kind": "heldout", "step": 1, "nimg": 0, "loss_per_element": 7.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    heldout = report.load_run(run).logs["heldout"]
    assert heldout.column("loss_per_element")[0] == 7.0
    assert len(heldout) == 61


@pytest.mark.parametrize("state", ["queued", "running", "preempted", "failed"])
def test_an_unfinished_run_shows_its_state_and_no_numbers(tmp_path, state):
    run = write_run(tmp_path, "c", state=state, nimg=700, message="out of memory")
    (row,) = rows_of(run)
    assert row.state == state
    assert "out of memory" in row.message
    assert "700 of 1,500,000 images" in row.message
    assert set(row.estimates.values()) == {None}


def test_an_evaluation_of_fewer_images_than_were_trained_gives_no_numbers(tmp_path):
    run = write_run(tmp_path, "c")
    rewrite(run / "evaluation.json", nimg=TOTAL // 2)
    (row,) = rows_of(run)
    assert {k for k, found in row.estimates.items() if found} == {"logged_loss"}
    assert "evaluation.json is for 750,000 images" in row.message


def test_seeds_are_averaged_and_an_unfinished_seed_is_not(tmp_path):
    runs = [write_run(tmp_path, "g", f"g-s{seed}") for seed in range(3)]
    for seed, run in enumerate(runs):
        rewrite(run / "config.json", seed=seed)
        rewrite(
            run / "evaluation.json", best={"sigma_rel": 0.1, "loss": 2.0 + 2 * seed}
        )
    rewrite(runs[2] / "status.json", state="running")
    mean, unfinished = rows_of(*runs)
    assert mean.mean("heldout_loss") == 3.0
    # s / sqrt(n) is 1, and the t-quantile of one degree of freedom 12.706.
    assert mean.estimates["heldout_loss"].half_width == pytest.approx(12.706, abs=1e-3)
    assert unfinished.mean("heldout_loss") is None


def test_an_altered_config_has_its_own_row_and_is_compared_with_its_letter(tmp_path):
    runs = [write_run(tmp_path, letter) for letter in "fg"]
    runs.append(write_run(tmp_path, "g", "g-without-mp-cat"))
    altered = config_of("g")
    altered["network"]["cat"] = 1
    rewrite(runs[2] / "config.json", **altered)
    rows = rows_of(*runs)
    assert [row.entry.label for row in rows] == ["F", "G", "g-without-mp-cat"]
    assert rows[1].changed == ["network.cat: 1 -> mp"]
    assert rows[2].changed == ["network.cat: mp -> 1"]
    assert rows[2].paper == (None, None)


def test_csv_markdown_and_page_agree_on_every_number(out):
    columns = [column for column in COLUMNS.values() if column.shown]
    plain = [column for column in columns if column.key not in GROWTH]
    lines = read_csv(out)
    markdown = (out / "results.md").read_text(encoding="utf-8")
    tables = [
        [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]
        for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
        for table in [table.splitlines()[2:]]
    ]
    page = Page(out / "index.html").lines
    assert len(lines) == len(tables[0]) == 7
    done = [index for index, line in enumerate(lines) if line["state"] == "done"]
    assert len(done) == 5
    for index in done:
        cells = [(lines[index][column.key], column.form) for column in columns]
        texts = [format_number(float(x) if x else None, form) for x, form in cells]
        assert tables[0][index][4:-2] == texts
        assert [page[index][c.heading] for c in plain] == texts[: len(plain)]
        grown = page[7 + done.index(index)]
        shown = [grown[COLUMNS[key].heading] for key in GROWTH]
        assert shown == [f"× {text}" for text in texts[len(plain) :]]


def test_unfinished_runs_have_no_number_in_any_table(out):
    for line in read_csv(out):
        if line["state"] != "done":
            assert all(line[key] == "" for key in COLUMNS)
            assert line["message"].startswith("train, 600,000 of 1,500,000 images")
    e, f = Page(out / "index.html").lines[4:6]
    assert set(e) == {"FID, paper", "σ_rel, paper", "state"}
    assert f["state"] == "failed"
    assert "loss is not finite in enc.8x8_block0" in (out / "index.html").read_text()


def test_the_papers_numbers_are_those_of_table_1(out):
    fids = [line["paper_fid"] for line in read_csv(out)]
    assert fids == ["8", "7.24", "6.96", "3.75", "3.02", "2.71", "2.56"]
    shown = [line["FID, paper"] for line in Page(out / "index.html").lines[:7]]
    assert shown[0] == "8.00"


def test_runs_with_missing_empty_and_foreign_files_are_rendered(tmp_path):
    bare = tmp_path / "study/queued"
    bare.mkdir(parents=True)
    (bare / "config.json").write_text("")
    run = write_run(tmp_path / "study", "a")
    (run / "samples.png").write_bytes(samples_png(np.random.default_rng(0))[:200])
    (run / "metrics.jsonl").write_text("[1]\nnull\n{}\n")
    (run / "evaluation.json").write_text('{"nimg": 1')
    assert report.load_run(run).samples is None
    report.write(compared(tmp_path / "study"), tmp_path / "out")
    report.write_figures(compared(tmp_path / "study"), tmp_path / "out")
    first, second = read_csv(tmp_path / "out")
    assert first["state"] == second["state"] == "damaged"
    assert first["message"] == (
        "evaluation.json is damaged: it is not valid JSON (Expecting ',' delimiter: line 1 column 11 (char 10)); samples.png is damaged: it is "
        "not a whole PNG; metrics.jsonl is damaged: line 1 is not a record; line 2 is not a "
        "record; line 3 is not a record"
    )
    assert second["message"] == "config.json is damaged: it is empty"
    assert list((tmp_path / "out/figures").iterdir()) == []


def test_a_diverged_run_shows_nan_and_its_finite_records_are_drawn(tmp_path):
    run, nan = write_run(tmp_path, "b"), float("nan")
    rewrite(
        run / "evaluation.json", best={"sigma_rel": 0.05, "loss": nan}, raw_loss=nan
    )
    records = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records[90:]:
        record |= {"loss": nan, "loss_per_element": nan, "weights": {}}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    report.write(compared(run), tmp_path / "out")
    report.write_figures(compared(run), tmp_path / "out")
    page = Page(tmp_path / "out/index.html").lines[0]
    assert page["held-out loss"] == "NaN"
    assert read_csv(tmp_path / "out")[0]["raw_loss"] == "nan"
    nimg, values = report.load_run(run).logs["heldout"].curve("loss_per_element")
    assert len(nimg) == 30
    assert np.isfinite(values).all()
    assert (tmp_path / "out/figures/loss.png").exists()


def test_a_traditional_ema_stands_at_the_relative_deviation_of_its_half_life():
    # App. C: a half-life of 50 Mimg at 2147.48 Mimg is sigma_rel = .03359.
    assert traditional_sigma_rel(50, 0.05, 2147.48) == pytest.approx(0.03359, abs=1e-5)
    # A half-life that is always ln 2 / (γ + 1) of the time is the power function t^γ.
    gamma = 6.937204
    rampup = np.log(2) / (gamma + 1)
    assert traditional_sigma_rel(50, rampup, 10) == pytest.approx(0.1, abs=1e-6)


def test_the_command_writes_the_page_and_names_a_path_that_holds_no_run(
    tmp_path, capsys
):
    main = runpy.run_path(str(ROOT / "experiments/compare.py"))["main"]
    write_run(tmp_path / "study", "a")
    main([str(tmp_path / "study"), f"--out={tmp_path / 'out'}"])
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'out/index.html'}\n"
    with pytest.raises(
        FileNotFoundError, match="nothing-here is not a run and contains none"
    ):
        main([str(tmp_path / "nothing-here")])
