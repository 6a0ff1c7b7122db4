"""Claims about runs with damaged files: they are named and do not affect other runs."""

import csv
import html
import io
import itertools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from page_reader import Page
from PIL import Image
from synthetic_runs import config_of, rewrite, write_run

from edm_jax import report
from edm_jax.report import drawing, export

ROOT = Path(__file__).resolve().parents[2]
FILES = ("config", "status", "provenance", "evaluation", "changes")


def compared(study: Path) -> report.Comparison:
    runs = [report.load_run(run) for run in report.find_runs([study])]
    return report.compare(runs, "A")


@pytest.fixture
def study(tmp_path) -> Path:
    """One intact run, and one to damage."""
    path = tmp_path / "study"
    write_run(path, "a")
    write_run(path, "b")
    (path / "digits-b-s0/changes.json").write_text('{"changes": []}')
    return path


def told(study: Path, file: str, reason: str = "", counts: bool = False) -> None:
    """Checks in rows, notes and tables that the intact run counts and the other is damaged."""
    comparison = compared(study)
    first, second = comparison.rows
    assert (first.state, first.message) == ("done", "")
    assert first.mean("heldout_loss") == pytest.approx(0.3612)
    assert second.state == ("done" if counts else "damaged")
    assert (second.mean("heldout_loss") is not None) == counts
    assert file in second.message and reason in second.message
    (sentence,) = [n for n in report.table_warnings(comparison) if file in n]
    assert reason in sentence
    csv_, markdown = (
        report.results_csv(comparison),
        report.results_markdown(comparison),
    )
    assert (
        file in csv_ and file in markdown and file in report.results_latex(comparison)
    )


def broken(study: Path, file: str) -> Path:
    path = study / "digits-b-s0" / file
    path.unlink(missing_ok=True)
    return path


DAMAGES = {
    "emptied": b"",
    "cut": b'{"nimg": 15',
    "a list": b"[]",
    "null": b"null",
    "no text": b'{"a": "\xff"}',
    "half a character": b'{"title": "\\ud800"}',
    "deep": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    "rather deep": b'{"a": ' * 900 + b"1" + b"}" * 900,
    "a huge number": b'{"nimg": ' + b"9" * 400 + b"}",
    "a very huge number": b'{"nimg": ' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_record_is_told_and_the_other_runs_are_compared(study, name, damage):
    broken(study, f"{name}.json").write_bytes(DAMAGES[damage])
    told(study, f"{name}.json is damaged", counts=name == "changes")


def test_pipes_and_directories_are_reported_without_waiting(study):
    for file in (*(f"{name}.json" for name in FILES), "metrics.jsonl", "samples.png"):
        run = study / "digits-b-s0"
        path, aside = run / file, run / "aside"
        path.rename(aside)
        counts = file in ("changes.json", "metrics.jsonl", "samples.png")
        for make, kind in (
            (os.mkfifo, "is a named pipe"),
            (os.mkdir, "is a directory"),
            (lambda p: p.symlink_to("/dev/zero"), "is a device"),
            (lambda p: p.symlink_to(p.name), "cannot be read"),
        ):
            make(path)
            told(study, file, kind, counts=counts)
            path.rmdir() if kind == "is a directory" else path.unlink()
        aside.rename(path)
    os.mkfifo(run / "log.txt")
    told(study, "log.txt", "is a named pipe", counts=True)


# Of each file: a field, by its path, and how the fault is called.
WRONG = [
    ("config", {"letter": 5}, "letter is 5, not a text"),
    ("config", {"title": ["x"]}, "title is a list, not a text"),
    ("config", {"seed": "3"}, "seed is a text, not a whole number from 0"),
    ("config", {"seed": -1}, "seed is -1, not a whole number"),
    ("config", {"ema": "x"}, "ema is a text, not an object"),
    ("config", {"ema": {"halflife_rampup": []}}, "ema.halflife_rampup is a list"),
    ("status", {"state": 1}, "state is 1, not a text"),
    ("status", {"nimg": float("nan")}, "nimg is nan, not a whole number"),
    ("status", {"total_nimg": float("inf")}, "total_nimg is inf, not a whole number"),
    ("status", {"total_nimg": True}, "total_nimg is true, not a whole number"),
    ("status", {"message": {"a": 1}}, "message is an object, not a text"),
    ("provenance", {"data": [1]}, "data is a list, not an object"),
    (
        "provenance",
        {"starts": {"time": 0}},
        "starts is an object, not a list of objects",
    ),
    ("provenance", {"starts": [{"git_commit": []}]}, "starts.0.git_commit is a list"),
    ("provenance", {"command": "train.py"}, "command is a text, not a list of texts"),
    ("provenance", {"params": 1.5}, "params is 1.5, not a whole number"),
    ("provenance", {"study": "ladder"}, "study is a text, not an object"),
    ("evaluation", {"best": [1, 2]}, "best is a list, not an object"),
    ("evaluation", {"best": {"loss": "low"}}, "best.loss is a text, not a number"),
    ("evaluation", {"raw_loss": True}, "raw_loss is true, not a number"),
    ("evaluation", {"sweep": [1]}, "sweep is a list, not a list of objects"),
    ("evaluation", {"sweep": [{"loss": {}}]}, "sweep.0.loss is an object"),
    ("evaluation", {"traditional": {"a": 1}}, "traditional is an object"),
    ("evaluation", {"nimg": -5}, "nimg is -5, not a whole number from 0"),
    ("changes", {"changes": 3}, "changes is 3, not a list of objects"),
    ("changes", {"changes": [{"changes": [1]}]}, "changes.0.changes is a list"),
]


@pytest.mark.parametrize(("name", "fields", "reason"), WRONG)
def test_a_field_of_another_type_is_named_at_any_depth(study, name, fields, reason):
    rewrite(study / f"digits-b-s0/{name}.json", **fields)
    told(study, f"{name}.json is damaged", reason, counts=name == "changes")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"kind": "train", "step": 1, "nimg": 5, "lo', "line 1 is not valid JSON"),
        ('{"kind": "train", "step": 1, "loss": 5}', "line 1 has no valid nimg"),
        ('{"kind": "train", "step": 1, "nimg": "5"}', "line 1 has no valid nimg"),
        ('{"kind": ["train"], "nimg": 5}', "line 1 has no kind"),
        ("[1]", "line 1 is not a record"),
        ('{"kind": "dynamics", "nimg": 5, "weights": 3.0, "x": {"enc": {"mean": "a"}}}',
         "line 1: x.enc.mean is a text, not a number"),
        ('{"kind": "train", "step": 1, "nimg": 5, "sigma": [[true]]}',
         "line 1: sigma.0.0 is true, not a number"),
        ('{"kind": "alert", "step": 1, "nimg": 5, "message": [1]}',
         "line 1: message is a list, not a text"),
        ('{"kind": "train", "step": 1, "nimg": 5, "loss": ' + "9" * 99 + "}",
         "line 1: it holds a number beyond 64 bits"),
        ('{"kind": "train", "step": 1, "nimg": 5, "loss": ' + "[" * 999 + "]" * 999 + "}",
         "line 1: it is nested too deeply"),
    ],
)  # fmt: skip
def test_a_damaged_line_of_the_metrics_is_told_and_the_rest_is_drawn(
    study, line, reason
):
    path = study / "digits-b-s0/metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    told(study, "metrics.jsonl is damaged", reason, counts=True)
    assert len(report.load_run(path.parent).logs["heldout"]) == 61


@pytest.mark.slow
def test_numbers_beyond_float32_are_drawn_as_not_finite(study):
    path = study / "digits-b-s0/metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for record in lines[60:]:
        record |= {"loss_per_element": 1e300, "weights": {"enc_8x8": {"mean": 1e308}}}
    path.write_text("".join(f"{json.dumps(record)}\n" for record in lines))
    evaluation = json.loads((path.parent / "evaluation.json").read_text())
    evaluation["sweep"][0] = {"sigma_rel": 1e308, "loss": 1e308}
    evaluation["best"] = {"loss": 1e200}
    rewrite(path.parent / "evaluation.json", **evaluation)
    draw_all(compared(study), study.parent / "out")
    heldout = report.load_run(path.parent).logs["heldout"]
    assert len(heldout.curve("loss_per_element")[0]) == 20


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png(width: int, height: int, *others: bytes, rows: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * (width + 1) * rows))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(others) + pixels + chunk(b"IEND", b"")
    )


def animation() -> bytes:
    out, frames = io.BytesIO(), [Image.new("L", (8, 8), i) for i in (0, 255)]
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(20_000, 20_000), "claims 20,000 × 20,000 pixels"),
        (png(8_000, 8_000), "claims 8,000 × 8,000 pixels"),
        (png(1, 30_000, rows=30_000), "claims 1 × 30,000 pixels"),
        (png(0, 0), "is not a whole PNG"),
        (png(90, 90, rows=90)[:60], "is not a whole PNG"),
        (png(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 10**8)), rows=9),
         "is not a whole PNG"),
        (b"GIF89a" + b"\0" * 99, "is damaged"),
        (b"", "is damaged"),
        (animation(), "is an animation"),
    ],
)  # fmt: skip
def test_a_picture_that_is_none_is_told_and_never_unpacked(study, data, reason):
    broken(study, "samples.png").write_bytes(data)
    told(study, "samples.png is damaged", reason, counts=True)


def draw_all(comparison: report.Comparison, out: Path) -> str:
    """The page, after all figures are drawn and all files written."""
    for each in report.drawings(comparison):
        each.render("svg")
    page = report.write(comparison, out)
    return page.read_text().split("<script")[0]


@pytest.mark.slow
def test_a_study_of_runs_damaged_in_every_way_has_its_page_and_figures(study):
    whole = study / "digits-b-s0"
    places = {}
    for name, data in itertools.product(FILES, DAMAGES):
        run = shutil.copytree(whole, study / f"b-{len(places)}")
        (run / f"{name}.json").write_bytes(DAMAGES[data])
        places[run.name] = f"{name}.json is damaged"
    for name, fields, reason in WRONG:
        run = shutil.copytree(whole, study / f"b-{len(places)}")
        rewrite(run / f"{name}.json", **fields)
        places[run.name] = html.escape(reason)
    page = draw_all(compared(study), study.parent / "out")
    untold = [name for name, said in places.items() if said not in page]
    assert untold == []


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_a_picture_of_any_mode_is_drawn(study, mode):
    Image.new(mode, (30, 20)).save(broken(study, "samples.png"))
    comparison = compared(study)
    assert [run.damage for run in comparison.entries[1].runs] == [[]]
    drawing.samples(comparison.entries)


@pytest.mark.slow
def test_the_command_compares_whatever_lies_in_a_study(study):
    run = study / "digits-b-s0"
    (study / "loop").symlink_to("loop")
    (study / "\udcff\x1b[31m").mkdir()
    broken(study, "status.json").write_text('{"state": "done\\u001b[31m"')
    (study / "\udcff\x1b[31m" / "config.json").write_text(
        '{"title": "\\u001b[31m\\u202e"}'
    )
    out = run.parent.parent / "out"
    done = subprocess.run(
        [sys.executable, "experiments/compare.py", str(study), f"--out={out}"],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.decode()
    assert "digits-b-s0 is not counted: damaged: status.json is damaged" in said
    assert "Traceback" not in said
    assert "\x1b" not in said + (out / "results.csv").read_text()


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(study, small_disk):
    out = small_disk / "out"
    comparison = compared(study)
    with pytest.raises(OSError, match="No space left") as error:
        report.write(comparison, out)
    assert error.value.filename == str(out / "index.html")
    assert sorted(p.name for p in out.iterdir()) == [
        f"results.{kind}" for kind in ("csv", "md", "tex")
    ]
    with pytest.raises(ValueError, match=r"results\.csv is not a directory"):
        report.write(comparison, out / "results.csv")
    filler = open(small_disk / "filler", "wb", buffering=0)  # noqa: SIM115
    with filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
    for write, folder in ((report.write, "new"), (report.write_figures, "new2")):
        (small_disk / "new2").mkdir(exist_ok=True)
        with pytest.raises(OSError, match="No space left"):
            write(comparison, small_disk / folder)
    assert not (small_disk / "new").exists() and not any(
        (small_disk / "new2").iterdir()
    )


# What is written of hostile texts, read back by other programs

EVIL = (
    "=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\\[x\\](javascript:a)",
    "[x](javascript:a)", "a\\|b", "a|b\\", "`c`", "<b>x</b>", "*d* _e_ __f__ ~~g~~",
    "# h", "> i", "1. j", "- k", "--- ", "&lt;l&#91;", "![m](http://n.org/o)",
    "<http://p.org>", "\\{q\\}", "$r$ %s ^t~ #u {v} & w_x", "\\input{y}", "\r\nz\0\x1b",
)  # fmt: skip


@pytest.fixture
def evil(tmp_path) -> report.Comparison:
    for place, text in enumerate(EVIL):
        run = write_run(tmp_path / "study", "g", f"run-{place:02d}")
        rewrite(run / "config.json", title=text, number=text)
        variant = {"name": "study", "variant": f"{text} {place}"}
        rewrite(run / "provenance.json", study=variant)
        if place % 2:
            rewrite(run / "status.json", state="failed", message=text)
    return compared_all(tmp_path / "study")


def test_no_cell_of_the_csv_is_a_formula_and_numbers_stay_numbers(evil):
    cells = [
        (name, cell)
        for line in csv.DictReader(io.StringIO(report.results_csv(evil), newline=""))
        for name, cell in line.items()
    ]
    numbers = {name for name, _ in cells if re.search("_(diff|ci95|n|loss|p)$", name)}
    for name, cell in cells:
        if name in numbers and cell:
            float(cell)
        elif not re.fullmatch(r"-?[\d.e+-]+", cell):
            assert not cell.lstrip().startswith(("=", "+", "-", "@")), cell
            assert not set(cell) & set("\t\r\n\0\x1b")
    differences = [cell for name, cell in cells if name == "heldout_loss_diff"]
    assert {"'=1+1", "'-2+3", "'@SUM(A1)"} <= {cell for _, cell in cells}
    assert "0" in differences


def test_the_markdown_holds_no_mark_but_its_own(evil):
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(report.results_markdown(evil))
    )
    blocks = [token.type for token in tokens]
    assert not {"html_block", "fence", "code_block", "blockquote_open", "hr",
                "ordered_list_open"} & set(blocks)  # fmt: skip
    assert blocks.count("heading_open") == blocks.count("table_open") == 1
    assert blocks.count("bullet_list_open") == 1
    inline = [token for token in tokens if token.type == "inline"]
    marks = {child.type for token in inline for child in token.children or ()}
    assert marks <= {"text", "text_special", "softbreak"}
    rows = blocks.count("tr_open")
    assert rows == 1 + len(EVIL)
    assert blocks.count("td_open") == (rows - 1) * blocks.count("th_open")
    texts = {"".join(c.content for c in token.children or ()) for token in inline}
    for place, text in enumerate(EVIL):
        shown = " ".join(text.replace("\0\x1b", "\\x00\\x1b").split())
        assert any(f"{shown} {place} {shown}" in said for said in texts), text


def test_the_latex_holds_no_command_but_its_own(evil):
    text = report.results_latex(evil)
    text = re.sub(r"(?m)^% Needs .*$", "", text)
    commands = set(re.findall(r"\\([a-zA-Z]+)", re.sub(r"\\\\", " ", text)))
    own = "begin end centering caption resizebox linewidth toprule midrule bottomrule "
    own += "multicolumn emph shortstack par medskip footnotesize sigma mathrm pm to "
    own += "textbackslash textasciitilde textasciicircum textless textgreater textbar "
    assert commands <= set(own.split()) | {"times", "lambda"}
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert "#" not in bare and "~" not in bare and "^" not in bare
    assert re.findall(r"(?<!\{)%(?!\n)", bare) == []
    for letter in "\\{}$&#^_~%":
        assert export.latex(letter) not in ("", letter)


def test_the_page_holds_no_tag_and_no_attribute_of_a_run(evil, tmp_path):
    plain = tmp_path / "plain"
    for place in range(len(EVIL)):
        run = write_run(plain / "study", "g", f"run-{place:02d}")
        rewrite(run / "config.json", title="x", number=str(place))
        rewrite(run / "provenance.json", study={"name": "study", "variant": str(place)})
        if place % 2:
            rewrite(run / "status.json", state="failed", message="x")
    pages = [
        Page(report.write(comparison, tmp_path / name))
        for name, comparison in (
            ("evil", evil),
            ("tame", compared_all(plain / "study")),
        )
    ]
    assert pages[0].tags == pages[1].tags
    assert all(a.startswith(("#", "data:image")) for a in pages[0].addresses)


def compared_all(study: Path) -> report.Comparison:
    return report.compare([report.load_run(run) for run in report.find_runs([study])])


# The study that a run records


def test_a_recorded_variant_and_study_name_a_config_whatever_its_directory(tmp_path):
    for study in ("one", "two"):
        for seed in range(2):
            run = write_run(tmp_path, "g", f"job-{study}-{seed}")
            rewrite(run / "config.json", seed=seed, number=study)
            recorded = {"name": study, "variant": "g-no-cat"}
            rewrite(run / "provenance.json", study=recorded)
    plain = write_run(tmp_path, "g", "job-plain")
    rewrite(plain / "provenance.json", study={"name": "one", "variant": "g"})
    entries = compared_all(tmp_path).entries
    labels = {entry.label: len(entry.runs) for entry in entries}
    assert labels == {"G": 1, "one/g-no-cat": 2, "two/g-no-cat": 2}
    assert config_of("g")["letter"] == entries[0].letter
