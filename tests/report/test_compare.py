"""Claims about what a comparison averages, tests, leaves out and reports."""

import csv
import io
import itertools
import json
import os
import re
import runpy
from pathlib import Path

import pytest
from scipy import stats

from edm_jax import report
from edm_jax.report import export, metrics
from edm_jax.report.columns import COLUMNS
from edm_jax.report.tables import ALL, METRICS

ROOT = Path(__file__).resolve().parents[2]
LOSS = COLUMNS["heldout_loss"]
TOTAL = 1000
DIGITS = {"name": "digits/1.0.0", "examples": {"train": 1438}, "bytes": 199339}
OTHER = {**DIGITS, "bytes": 5}
LOSSES = {
    "a": [0.50, 0.54, 0.47, 0.52],
    "b": [0.42, 0.45, 0.40, 0.43],
    "g": [0.49, 0.55, 0.47, 0.51],
}


def write_run(
    study: Path, name: str, loss: float = 0.5, seed: int = 0, letter="", **files
) -> Path:
    """Write one finished run; keywords replace fields of its files."""
    run = study / name
    run.mkdir(parents=True)
    letter = letter or re.split("[^a-z]", name)[0]
    contents = {
        "config": {"letter": letter, "title": f"Title {letter}", "seed": seed}
        | {"level": ord(letter), "data": {"name": "digits", "data_dir": ""}},
        "provenance": {"data": DIGITS, "git_commit": "0123abc", "params": 1000},
        "status": {"state": "done", "nimg": TOTAL, "total_nimg": TOTAL},
        "evaluation": {"nimg": TOTAL, "best": {"loss": loss, "sigma_rel": 0.1}},
    }
    for file, fields in contents.items():
        text = json.dumps({**fields, **files.get(file, {})})
        (run / f"{file}.json").write_text(text)
    return run


def write_seeds(study: Path, name: str, losses, **files) -> list[Path]:
    return [
        write_run(study, f"{name}-seed{seed}", loss, seed, **files)
        for seed, loss in enumerate(losses)
    ]


def entries_of(study: Path, baseline=None):
    return report.ladder(
        [report.load_run(r) for r in report.find_runs([study])], baseline
    )


def rows_of(study: Path, metrics=METRICS, baseline=None):
    return report.results_rows(entries_of(study, baseline), metrics)


def difference_of(rows, label, key="heldout_loss"):
    (row,) = [row for row in rows if row.entry.label == label and row.runs]
    return row.differences[key]


def comparison_of(rows) -> report.Comparison:
    entries = list({id(row.entry): row.entry for row in rows}.values())
    shown = [column for column in ALL if column.shown]
    return report.Comparison("study", entries, rows, ALL, shown)


def notes_of(rows) -> list[str]:
    return report.table_notes(comparison_of(rows))


def warnings_of(rows) -> list[str]:
    return report.table_warnings(comparison_of(rows))


def said(rows) -> str:
    return "\n".join(notes_of(rows))


@pytest.fixture
def study(tmp_path) -> Path:
    """Three configs with four seeds."""
    path = tmp_path / "study"
    for letter, losses in LOSSES.items():
        write_seeds(path, letter, losses)
    return path


def read_csv(rows) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.results_csv(comparison_of(rows)))))


# What is tested


def test_each_config_is_tested_against_the_baseline_in_pairs_of_seeds(study):
    rows = rows_of(study)
    for label in "BG":
        found = difference_of(rows, label)
        oracle = stats.ttest_rel(LOSSES[label.lower()], LOSSES["a"])
        assert (found.n, found.paired) == (4, True)
        assert found.p == pytest.approx(oracle.pvalue)
    assert set(rows[0].differences.values()) == {None}
    assert rows[0].is_baseline


def test_p_values_are_corrected_for_all_configs_and_metrics_of_the_table(study):
    for index, run in enumerate(sorted(study.iterdir())):
        evaluation = json.loads((run / "evaluation.json").read_text())
        evaluation["raw_loss"] = 1 + 0.01 * (index * 7 % 11)
        (run / "evaluation.json").write_text(json.dumps(evaluation))
    metrics = ("heldout_loss", "raw_loss")
    rows = rows_of(study, metrics)
    found = [difference_of(rows, label, key) for label in "BG" for key in metrics]
    smallest = min(found, key=lambda d: d.p)
    assert smallest.p_corrected == pytest.approx(4 * smallest.p)
    assert "corrected for all 4 comparisons of the table (Holm)" in said(rows)
    assert all(d.p_corrected >= d.p for d in found)


def test_the_star_marks_a_corrected_p_below_one_in_20_and_no_other(study):
    rows = rows_of(study)
    texts = {row.entry.label: row.difference_text(LOSS) for row in rows}
    assert texts["A"] == "—"
    assert re.fullmatch(r"−0\.0825 ± 0\.0\d+ \(p < 0\.001\) \*", texts["B"])
    assert re.fullmatch(r"−0\.0\d+ ± 0\.0\d+ \(p = 0\.\d+\)", texts["G"])
    assert "tested two-sided: a t-test paired by seed" in said(rows)
    assert "against A" in said(rows)


def test_seeds_that_are_not_common_are_compared_by_welchs_test(tmp_path):
    write_seeds(tmp_path, "a", LOSSES["a"])
    for seed, loss in enumerate(LOSSES["b"], start=4):
        write_run(tmp_path, f"b-seed{seed}", loss, seed)
    rows = rows_of(tmp_path)
    oracle = stats.ttest_ind(LOSSES["b"], LOSSES["a"], equal_var=False)
    assert difference_of(rows, "B").p == pytest.approx(oracle.pvalue)
    assert "Welch’s t-test" in said(rows)


def test_columns_that_no_run_measures_are_never_tested(tmp_path):
    write_seeds(tmp_path, "a", LOSSES["a"])
    for seed, params in enumerate((2000, 2001, 2003, 2009)):
        write_run(tmp_path, f"b-seed{seed}", 0.1, seed, provenance={"params": params})
    rows = rows_of(tmp_path, ("params",))
    found = difference_of(rows, "B", "params")
    assert found.mean == pytest.approx(1003.25)
    assert (found.p, found.half_width, found.significant) == (None, None, False)
    params = COLUMNS["params"]
    assert [row.text(params) for row in rows] == ["1,000", "2,003"]


def test_fewer_than_three_seeds_are_warned_of_in_one_sentence(study):
    assert "Fewer than" not in said(rows_of(study))
    write_seeds(study, "c", [0.3, 0.4])
    write_seeds(study, "d", [0.3])
    (warning,) = warnings_of(rows_of(study))
    assert warning.startswith("Fewer than 3 seeds (C: 2, D: 1)")
    assert warning.count(". ") == 0
    assert "because one seed says nothing about the spread: D." in said(rows_of(study))


def test_a_seed_that_is_not_a_number_is_told_and_makes_its_config_untested(study):
    write_seeds(study, "c", [0.3, float("nan"), 0.4])
    rows = rows_of(study)
    assert next(r for r in rows if r.entry.label == "C").text(LOSS) == "NaN"
    assert difference_of(rows, "C").p is None
    assert "c-seed1 counts in the means of C, but held-out loss is nan." in said(rows)
    assert "because a value is not finite: C." in said(rows)
    assert "all 2 comparisons" in said(rows)


def test_a_mean_of_fewer_seeds_than_the_row_states_their_number(tmp_path):
    for seed in range(3):
        raw = {"raw_loss": 1.0 + seed} if seed else {}
        best = {"best": {"loss": 0.5, "sigma_rel": 0.1}}
        write_run(tmp_path, f"a-seed{seed}", 0.5, seed, evaluation=best | raw)
    (row,) = rows_of(tmp_path)
    raw_loss = COLUMNS["raw_loss"]
    assert row.text(raw_loss) == "2.500 ± 6.4 (n = 2)"


# What is averaged


def test_runs_of_other_data_among_the_seeds_are_rows_of_their_own(study):
    write_run(study, "b-seed4", 99.0, 4, provenance={"data": OTHER})
    rows = rows_of(study)
    (b,) = [row for row in rows if row.entry.label == "B" and row.runs]
    assert (b.mean("heldout_loss"), len(b.runs)) == (pytest.approx(0.425), 4)
    (aside,) = [row for row in rows if row.state == "other data"]
    assert aside.message == "data.bytes: 199339 -> 5"
    assert aside.runs == []
    assert "b-seed4 is not counted: other data" in said(rows)


def test_the_baselines_data_count_even_where_most_seeds_have_others(tmp_path):
    write_seeds(tmp_path, "a", LOSSES["a"])
    write_seeds(tmp_path, "b", [0.1, 0.2, 0.3], provenance={"data": OTHER})
    write_run(tmp_path, "b-seed9", 0.4, 9)
    (b,) = [row for row in rows_of(tmp_path) if row.entry.label == "B" and row.runs]
    assert [run.name for run in b.runs] == ["b-seed9"]
    assert b.state == "done"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"provenance": {"data": OTHER}}, "data.bytes: 199339 -> 5"),
        ({"config": {"data": {"name": "cifar10"}}}, "data.name: digits -> cifar10"),
    ],
)
def test_a_config_of_other_data_has_numbers_and_no_test(study, files, message):
    write_seeds(study, "c", [0.1, 0.2, 0.3], **files)
    rows = rows_of(study)
    (c,) = [row for row in rows if row.entry.label == "C"]
    assert (c.state, c.message) == ("other data", message)
    assert c.mean("heldout_loss") == pytest.approx(0.2)
    assert c.differences["heldout_loss"] is None
    assert "Not tested against A, because the data differ: C." in said(rows)
    assert "all 2 comparisons" in said(rows)


def test_where_the_data_lie_and_how_a_run_ran_make_no_other_config(tmp_path):
    for seed, remat in enumerate((False, True)):
        data = {"name": "digits", "data_dir": f"/mnt/{seed}"}
        config = {"data": data, "training": {"remat": remat, "total_mimg": 1}}
        write_run(tmp_path, f"a-seed{seed}", 0.4, seed, config=config)
    assert [len(row.runs) for row in rows_of(tmp_path)] == [2]
    config["training"]["total_mimg"] = 2
    write_run(tmp_path, "a-longer", config=config)
    rows = rows_of(tmp_path)
    assert [len(row.runs) for row in rows] == [2, 1]
    assert rows[1].changed == ["training.total_mimg: 1 -> 2"]


def test_two_runs_of_the_same_seed_count_once(study):
    again = write_run(study, "b-again-seed0", 99.0, 0, letter="b")
    os.utime(again / "evaluation.json", (1, 1))
    rows = rows_of(study)
    (b,) = [row for row in rows if row.entry.label == "B" and row.runs]
    assert b.mean("heldout_loss") == pytest.approx(0.425)
    assert "b-again-seed0 is not counted: same seed: b-seed0 has seed 0" in said(rows)
    os.utime(study / "b-seed0/evaluation.json", (0, 0))
    (b,) = [r for r in rows_of(study) if r.entry.letter == "b" and r.runs]
    assert 99.0 in [run.evaluation.values[("best", "loss")] for run in b.runs]
    assert len(b.runs) == 4


def test_the_same_run_named_twice_is_read_once(study, monkeypatch):
    monkeypatch.chdir(study.parent)
    found = report.find_runs([study, Path("study"), study / ".." / "study" / "a-seed0"])
    assert len(found) == 12


def test_runs_of_other_code_are_averaged_with_a_warning(study):
    provenance = {"git_commit": "4567def"}
    write_run(study, "b-seed4", 0.4, 4, provenance=provenance)
    rows = rows_of(study)
    assert len(next(r for r in rows if r.entry.label == "B").runs) == 5
    (warning,) = warnings_of(rows)
    assert warning == (
        "The runs used different versions of the code: 0123abc (A, B, G), 4567def (B)."
    )


def test_a_run_that_does_not_record_its_data_is_named(study):
    write_run(study, "b-seed4", 0.4, 4, provenance={"data": None})
    (warning,) = warnings_of(rows_of(study))
    assert "do not record their data" in warning and ": b-seed4." in warning


def test_a_config_that_changed_while_it_trained_is_named(study):
    history = {"config_hash": "x", "changes": [{"nimg": 3, "changes": {"lr": [1, 2]}}]}
    (study / "g-seed1/changes.json").write_text(json.dumps(history))
    (warning,) = warnings_of(rows_of(study))
    assert warning == "g-seed1 was changed during training: lr."


@pytest.mark.parametrize("left", ["log.txt", ".lock"])
def test_a_directory_of_a_log_or_a_lock_alone_is_a_queued_run(study, left):
    (study / "c-seed0").mkdir()
    (study / "c-seed0" / left).write_text("")
    (study / "no-run").mkdir()
    for name in (left, "notes.txt"):
        (study / "no-run" / name).write_text("")
    rows = rows_of(study)
    assert [(r.entry.label, r.state) for r in rows if not r.runs] == [
        ("c-seed0", "queued")
    ]
    (study / "c-seed0/status.json").write_text('{"state": "queued"}')
    assert {row.state for row in rows_of(study)} == {"done", "queued"}
    assert "without results: c-seed0: queued." in said(rows_of(study))


# Which config is which


def test_a_letter_is_named_by_its_own_config_wherever_it_sorts(tmp_path):
    # "g-no-cat" sorts before "g-seed0".
    for name, level in (("g-no-cat", 1), ("g", 2), ("f", 3)):
        write_seeds(tmp_path, name, [0.1, 0.2], config={"level": level})
    rows = rows_of(tmp_path)
    assert [row.entry.label for row in rows] == ["F", "G", "g-no-cat"]
    assert [row.changed for row in rows] == [[], ["level: 3 -> 2"], ["level: 2 -> 1"]]
    assert rows[2].changed_from_baseline == ["level: 3 -> 1"]
    assert [row.paper[0] for row in rows] == [2.71, 2.56, None]


def test_a_study_of_altered_configs_alone_is_compared_with_its_first(tmp_path):
    for level, name in enumerate(("cosine", "linear", "sqrt")):
        write_seeds(tmp_path, f"g-{name}", [0.1], config={"level": level})
    rows = rows_of(tmp_path)
    assert [row.entry.label for row in rows] == ["g-cosine", "g-linear", "g-sqrt"]
    assert [row.paper for row in rows] == [(None, None)] * 3
    assert [row.changed for row in rows] == [[], ["level: 0 -> 1"], ["level: 0 -> 2"]]


def test_a_name_or_the_command_line_tells_an_altered_config_from_its_letters(tmp_path):
    command = ["train.py", "--config=g.py:digits", "--config.seed=3", "--run=x"]
    write_run(tmp_path / "1", "mine", letter="g", provenance={"command": command})
    assert [row.entry.label for row in rows_of(tmp_path / "1")] == ["G"]
    command.append("--config.network.cat=mp")
    write_run(tmp_path / "2", "mine", letter="g", provenance={"command": command})
    assert [row.entry.label for row in rows_of(tmp_path / "2")] == ["mine"]
    write_run(tmp_path / "3", "g-no-cat")
    assert [row.entry.label for row in rows_of(tmp_path / "3")] == ["g-no-cat"]


def test_seeds_that_found_their_own_rates_are_one_config(tmp_path):
    for seed, rate in enumerate((0.02, 0.03)):
        write_run(
            tmp_path / "study",
            f"g-seed{seed}",
            seed=seed,
            config={"optimizer": {"alpha_ref": rate}},
            provenance={"learning_rate": {"alpha_ref": rate}},
        )
    (row,) = rows_of(tmp_path / "study")
    assert len(row.entry.runs) == 2


def test_unlike_configs_of_one_name_are_told_apart_by_their_studies(tmp_path):
    for study, level in (("short", 1), ("long", 2), ("older", 3)):
        write_run(tmp_path / study, "g-cat", config={"level": level})
    runs = report.find_runs(tmp_path / s for s in ("short", "long", "older"))
    entries = report.ladder([report.load_run(run) for run in runs], "long/g-cat")
    labels = {entry.label: entry.is_baseline for entry in entries}
    assert labels == {"short/g-cat": False, "long/g-cat": True, "older/g-cat": False}
    with pytest.raises(ValueError, match="'g-cat' matches several configs"):
        report.ladder([report.load_run(run) for run in runs], "g-cat")


@pytest.mark.parametrize("name", ["b", "B", "b-seed2", "study/b-seed0"])
def test_the_baseline_is_named_by_letter_label_or_run(study, name):
    rows = rows_of(study, baseline=name)
    assert [row.is_baseline for row in rows] == [False, True, False]
    assert difference_of(rows, "A").mean == pytest.approx(0.0825)
    assert rows[0].changed_from_baseline == ["level: 98 -> 97"]


def test_a_baseline_without_results_leaves_the_others_untested(study):
    for run in study.glob("a-*"):
        (run / "status.json").write_text('{"state": "running"}')
    rows = rows_of(study)
    assert {value for row in rows for value in row.differences.values()} == {None}
    assert not any(row.is_baseline for row in rows)
    assert rows[-1].estimates["heldout_loss"].n == 4


# What is written


def test_the_csv_holds_mean_interval_n_difference_and_both_p_values(study):
    rows = rows_of(study)
    lines = {line["config"]: line for line in read_csv(rows)}
    b, found = lines["B"], difference_of(rows, "B")
    half_width = 3.182446 * stats.sem(LOSSES["b"])
    assert float(b["heldout_loss"]) == pytest.approx(0.425)
    assert float(b["heldout_loss_ci95"]) == pytest.approx(half_width, rel=1e-6)
    assert (b["heldout_loss_n"], b["heldout_loss_diff_n"]) == ("4", "4")
    assert float(b["heldout_loss_diff"]) == pytest.approx(-0.0825)
    assert float(b["heldout_loss_diff_ci95"]) == pytest.approx(found.half_width)
    assert float(b["heldout_loss_p"]) == pytest.approx(found.p)
    assert float(b["heldout_loss_p_holm"]) == pytest.approx(found.p_corrected)
    assert (b["heldout_loss_test"], b["baseline"]) == ("paired", "A")
    assert lines["A"]["heldout_loss_diff"] == b["sigma_rel_diff"] == ""


def test_markdown_and_latex_show_what_the_rows_say(study):
    write_run(study, "c-seed0", status={"state": "failed", "message": "50% & #1_x"})
    rows = rows_of(study)
    markdown = report.results_markdown(comparison_of(rows))
    tex = report.results_latex(comparison_of(rows))
    for row in rows[:2]:
        assert f"| {row.text(LOSS)} |" in markdown
        assert export.latex(row.text(LOSS)) in tex
        shown = row.difference_text(LOSS)
        assert shown.replace("*", "\\*").replace("<", "&lt;") in markdown
        assert export.latex(row.difference_text(LOSS)) in tex
    for note in notes_of(rows):
        assert note.replace("*", "\\*").replace("<", "&lt;") in markdown
        assert export.latex(note) in tex
    assert r"\emph{failed: 1,000 of 1,000 images: 50\% \& \#1\_x}" in tex


def test_markdown_and_latex_show_the_columns_that_were_asked_for(study, tmp_path):
    runs = [report.load_run(run) for run in report.find_runs([study])]
    chosen = "sigma_rel", "weight_growth"
    report.write(report.compare(runs, columns=chosen), tmp_path / "out")
    head = (tmp_path / "out" / "results.md").read_text().splitlines()[2]
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    assert cells[4:6] == ["best σ_rel", "weights grow by"]
    assert cells[6:] == ["held-out loss, against A", "state"]
    tex = (tmp_path / "out" / "results.tex").read_text()
    assert "raw weights" not in tex and "weights grow" in tex


def test_a_difference_over_fewer_seeds_than_a_mean_says_so(tmp_path):
    write_seeds(tmp_path / "study", "a", [0.30, 0.34])
    write_seeds(tmp_path / "study", "b", [0.28, 0.31, 0.36])
    rows = rows_of(tmp_path / "study")
    found = difference_of(rows, "B")
    assert found.mean == pytest.approx(-0.025) and found.n == 2
    text = next(r for r in rows if r.entry.label == "B").difference_text(LOSS)
    assert "(n = 2)" in text
    assert any(
        "not equal the difference of the means" in note for note in notes_of(rows)
    )


def test_a_name_that_latex_would_read_as_an_argument_is_guarded(tmp_path):
    write_run(tmp_path / "study", "a-seed0")
    run = write_run(tmp_path / "study", "b-seed0")
    run.rename(run.with_name("[b]-seed0"))
    text = report.results_latex(comparison_of(rows_of(tmp_path / "study")))
    assert not re.search(r"\\\n\[", text)


def test_every_line_of_a_latex_table_has_as_many_cells_as_columns(study):
    write_run(study, "c-seed0", status={"state": "failed", "message": "a & b"})
    text = report.results_latex(comparison_of(rows_of(study)))
    tables = re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", text, re.DOTALL)
    assert len(tables) == 1
    for columns, body in tables:
        lines = re.sub(r"\\shortstack\[r\]{(.|\n)*?}(?= &| \\\\)", "", body)
        for line in lines.splitlines():
            if not line.endswith(r"\\"):
                continue
            span = re.search(r"\\multicolumn{(\d+)}", line)
            cells = len(re.findall(r"(?<!\\)&", line)) + 1
            assert cells + (int(span[1]) - 1 if span else 0) == len(columns)
    assert text.count("{") == text.count("}")
    assert re.search(r"^% Needs .*booktabs", text)


def test_latex_specials_and_sigma_rel_are_escaped():
    assert export.latex("best σ_rel") == r"best $\sigma_\mathrm{rel}$"
    assert export.latex("a_b & 5% #1 $x$ {y} ~^") == (
        r"a\_b \& 5\% \#1 \$x\$ \{y\} \textasciitilde{}\textasciicircum{}"
    )
    assert export.latex("\\input{x}\n\ty\0") == r"\textbackslash{}input\{x\} y"
    assert export.latex("group -> none, −1 ± 2") == r"group $\to$ none, $-$1 $\pm$ 2"


@pytest.fixture
def command():
    return runpy.run_path(str(ROOT / "experiments/compare.py"))["main"]


def test_the_command_warns_on_stderr_and_writes_every_file(command, tmp_path, capsys):
    write_seeds(tmp_path / "study", "a", [0.1, 0.2])
    write_seeds(tmp_path / "study", "b", [0.2, 0.4])
    out = tmp_path / "out"
    arguments = ["--baseline=b", "--metric=heldout_loss,sigma_rel"]
    command([str(tmp_path / "study"), f"--out={out}", *arguments])
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("compare: warning: Fewer than 3 seeds (A: 2, B: 2)")
    assert {"results.csv", "results.md", "results.tex"} <= {
        p.name for p in out.iterdir()
    }
    first = next(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert (first["baseline"], first["sigma_rel_diff"]) == ("B", "0")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--baseline=aa",
            "There is no config 'aa'; there are A. Did you mean 'a'",
        ),
        ("--baseline=zz", "There is no config 'zz'; there are A.$"),
        ("--metric=heldout_los", "Did you mean 'heldout_loss'"),
        ("--columns=sigma", "Did you mean 'sigma_rel'"),
        (
            "--metric=heldout_loss,lpips",
            "--metric is 'lpips', but must be one of 'heldout_loss'",
        ),
    ],
)
def test_an_unknown_baseline_or_metric_is_refused_naming_what_there_is(
    command, tmp_path, argument, message
):
    write_seeds(tmp_path / "study", "a", [0.1, 0.2])
    with pytest.raises(ValueError, match=message):
        command([str(tmp_path / "study"), f"--out={tmp_path / 'out'}", argument])
    assert not (tmp_path / "out").exists()


# What is read


def write_metrics(run: Path, lines) -> None:
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_long_metrics_are_thinned_evenly_with_both_ends_and_all_alerts(tmp_path):
    run = write_run(tmp_path, "a-seed0")
    lines = []
    for step in range(3003):
        common = {"step": step, "nimg": 10 * step}
        lines.append(json.dumps({"kind": "train", **common, "loss": step}))
        lines.append(json.dumps({"kind": "dynamics", **common, "weights": {}}))
        alert = {"kind": "alert", **common, "about": "loss"}
        lines += [json.dumps({**alert, "message": m}) for m in "xy"]
    write_metrics(run, lines)
    read = report.load_run(run)
    steps = read.logs["train"].column("step").tolist()
    assert metrics.KEPT / 2 < len(steps) <= metrics.KEPT + 1
    assert len({b - a for a, b in itertools.pairwise(steps[1:])}) == 1
    assert (steps[0], steps[-1]) == (0, 3002)
    assert read.logs["dynamics"].column("step").tolist() == steps
    assert len(read.alerts) == 6006


def test_few_lines_are_all_read_whatever_their_spelling(tmp_path):
    run = write_run(tmp_path, "a-seed0")
    write_metrics(
        run,
        [
            '{"nimg": 20, "step": 2, "kind": "train", "loss": 2}',
            '{"kind":"train","step":1,"nimg":10,"loss":1}',
            '{"kind": "train", "step": 3, "nimg": 30, "loss": 3}',
            '{"kind": "train", "step": 3, "nimg": 30, "los',
            '{"kind": "train", "step": 4, "nimg": 40, "loss": }',
            '{"kind": "heldout", "step": 3, "nimg": 30, "loss": 5.0}',
            '{"kind": "speed", "step": 3, "nimg": 30, "images_per_s": 5.0}',
        ],
    )
    read = report.load_run(run)
    assert read.logs["train"].column("loss").tolist() == [1, 2, 3]
    assert read.logs["heldout"].column("loss").tolist() == [5.0]
    assert [str(damage) for damage in read.damage] == [
        "metrics.jsonl is damaged: line 4 is not valid JSON; line 5 is not valid JSON"
    ]


def test_the_logs_last_lines_are_read_whatever_its_bytes(tmp_path):
    run = write_run(tmp_path, "a-seed0")
    assert report.load_run(run).log_tail == ""
    text = b"".join(b"line %d\n\n" % i for i in range(100_000)) + b"\xff\xfe end"
    (run / "log.txt").write_bytes(text)
    tail = report.load_run(run).log_tail.splitlines()
    assert tail[0] == "line 99971"
    assert tail[-1] == "\ufffd\ufffd end"
    assert len(tail) == 30


def test_a_runs_seed_and_data_are_those_it_recorded(tmp_path):
    read = report.load_run(write_run(tmp_path, "a-seed7", seed=7))
    assert (read.seed, read.data) == (7, DIGITS)
