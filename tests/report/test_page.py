"""Claims about the page of a comparison: what it shows, and that it needs no other file."""

import base64
import dataclasses
import datetime
import itertools
import json
import re
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from page_reader import Page
from PIL import Image
from synthetic_runs import config_of, rewrite, sigma_of, write_run, write_seeds

from edm_jax import report
from edm_jax.report import embedded as data_of
from edm_jax.report import following, grids, introduction, page
from edm_jax.report.curves import over_seeds
from edm_jax.report.runs import Log

in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium to look at the page with"
)


def load(study: Path) -> list:
    return [report.load_run(run) for run in report.find_runs([study])]


def embedded(path: Path) -> dict:
    """The JSON data in a page."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found
    return json.loads(found[1], parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Seven configs, three with seeds; of F a seed failed, of E one still trains."""
    path = tmp_path_factory.mktemp("runs") / "ladder"
    for letter in "abcd":
        write_run(path, letter)
    for letter in "efg":
        write_seeds(path, letter, 3)
    late = {"nimg": 600_000, "stage": "train"}
    rewrite(path / "e-seed2/status.json", state="running", **late)
    said = {"state": "failed", "message": "loss is not finite in enc.8x8_block0"}
    rewrite(path / "f-seed1/status.json", **said, **late)
    with (path / "f-seed1/metrics.jsonl").open("a") as file:
        alert = {"kind": "alert", "step": 9, "nimg": 9, "message": "the loss leapt"}
        file.write(json.dumps(alert) + "\n")
    rewrite(path / "g-seed1/provenance.json", diff="-old\n+new\n" * 99)
    rewrite(path / "g-seed2/provenance.json", diff="-old\n+new\n" * 99)
    (path / "g-seed1/log.txt").write_text("its last line\n")
    return path


@pytest.fixture(scope="module")
def out(study) -> Path:
    out = study / "report"
    report.write(report.compare(load(study)), out)
    return out


def test_the_page_loads_nothing_from_elsewhere(out):
    read = Page(out / "index.html")
    assert read.addresses
    assert all(a.startswith(("#", "data:image/png")) for a in read.addresses)
    assert not {"link", "iframe", "base", "object"} & set(read.tags)
    text = (out / "index.html").read_text()
    assert text.count("plotly.js v") == 1
    # Whatever a text of a run says: the browser is told to fetch nothing.
    assert "default-src 'none'" in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert re.findall(r"@import|url\(", style) == []


def test_ids_in_the_page_are_unique_and_every_reference_finds_one(out):
    text = (out / "index.html").read_text()
    text = text[: text.index("</main>")]
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^")]+)', text))
    assert references
    assert references <= set(ids)


def test_samples_are_inlined_as_they_are_on_disk(out, study):
    text = (out / "index.html").read_text()
    png = (study / "g-seed0/samples.png").read_bytes()
    assert base64.b64encode(png).decode() in text
    unfinished = (study / "digits-a-s0/samples.png").read_bytes()
    assert base64.b64encode(unfinished).decode() in text


def test_samples_too_large_for_the_page_are_made_smaller_or_left_out(study):
    png = (study / "g-seed0/samples.png").read_bytes()
    whole = grids.inlined(png, 10**6)
    smaller = grids.inlined(png, len(png))
    assert whole is not None and whole.startswith("data:image/png")
    assert smaller is not None and smaller.startswith("data:image/webp")
    assert grids.inlined(png, 100) is None


def test_every_figure_lies_beside_the_page_for_a_paper(study, tmp_path):
    report.write_figures(report.compare(load(study)), tmp_path)
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    vector = [f"{n}.{f}" for n in ("dynamics", "ema", "loss") for f in ("pdf", "svg")]
    pixels = ["dynamics.png", "ema.png", "loss.png", "samples.png"]
    assert names == sorted([*vector, *pixels, "samples.pdf"])
    for name in pixels:
        with Image.open(tmp_path / "figures" / name) as image:
            assert image.width == 2080
    # TrueType, as journals want it, and not Type 3.
    pdf = (tmp_path / "figures/loss.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


def test_no_label_of_a_curve_lies_below_its_axis_or_in_the_panel_beside(tmp_path):
    # Curves that end within a label's height of the axis.
    runs = [write_run(tmp_path / "letters", letter) for letter in "defg"]
    rewrite_heldout(runs, last=0.01)
    long = [write_run(tmp_path / "long", "g", f"a-long-name-{i}") for i in range(3)]
    for place, run in enumerate(long):
        rewrite(run / "config.json", number=place)
    for paths, count in ((runs, 4), (long, 0)):
        comparison = report.compare([report.load_run(run) for run in paths])
        loss = next(d for d in report.drawings(comparison) if d.name == "loss")
        for axes in loss.figure.axes:
            assert len(axes.texts) == count
            for text in axes.texts:
                assert text.get_window_extent().y0 >= axes.bbox.y0


def rewrite_heldout(runs: list[Path], last: float) -> None:
    """Make all held-out losses end at the same value, the lowest of all."""
    for run in runs:
        with (run / "metrics.jsonl").open("a") as file:
            record = {"kind": "heldout", "step": 99, "nimg": 1_600_000}
            file.write(json.dumps(record | {"loss_per_element": last}) + "\n")


def test_texts_from_runs_are_escaped(tmp_path):
    evil = '</script><script>alert("1")</script><b> & $\\bad{$ %{x} | \n_'
    run = write_run(tmp_path, "a", name="run <b> &amp; $y$")
    rewrite(run / "config.json", title=evil, workload=evil)
    rewrite(run / "provenance.json", command=[evil], long=evil * 20)
    (run / "log.txt").write_text("<!--<script>")
    other = write_run(tmp_path, "b", state="failed", message=evil)
    rewrite(other / "config.json", title=evil)
    path = report.write(
        report.compare([report.load_run(r) for r in (run, other)]), tmp_path / "out"
    )
    text = path.read_text()
    tags = Page(path).tags
    assert tags.count("script") == 3  # Plotly, the page's own, and one of data
    assert '<script>alert("1")' in unescape(text)
    assert '<script>alert("1")' not in text
    assert "<!--" not in text
    assert json.dumps(evil, ensure_ascii=False) in record_of(path.parent, run.name)
    assert "<script" not in (tmp_path / "out/results.md").read_text()


def test_a_band_reaches_from_the_lowest_to_the_highest_seed():
    x = np.arange(4.0)
    band = over_seeds([(x, x + 1), (x, x + 3), (x[1:], x[1:] + 8)])
    assert band is not None and band.low is not None and band.high is not None
    assert band.x.tolist() == [1, 2, 3]
    assert band.y.tolist() == [5, 6, 7]
    assert band.low.tolist() == [2, 3, 4]
    assert band.high.tolist() == [9, 10, 11]
    alone = over_seeds([(x, x)])
    assert alone is not None and alone.low is None


def test_only_finished_runs_are_averaged_and_others_are_lines_of_their_own(out):
    data = embedded(out / "index.html")
    heldout = data["charts"]["loss"][0]["panels"][0]["lines"]
    labels = [config["label"] for config in data["configs"]]
    assert [config["n"] for config in data["configs"]] == [1, 1, 1, 1, 2, 2, 3]
    others = {
        c["aside"]["run"]: (labels[c["config"]], c["aside"]["state"])
        for c in heldout
        if "aside" in c
    }
    assert others == {"e-seed2": ("E", "running"), "f-seed1": ("F", "failed")}
    (e,) = [c for c in heldout if labels[c["config"]] == "E" and "low" in c]
    # Two seeds a percent apart; the third, which trains, would be in the highest.
    assert e["high"][-1] / e["low"][-1] == pytest.approx(1.01, rel=1e-4)
    (f,) = [c for c in heldout if labels[c["config"]] == "F" and "low" in c]
    assert f["high"][-1] / f["low"][-1] == pytest.approx(1.02, rel=1e-4)


def test_ranges_of_sigma_stand_with_u_and_a_range_without_images_is_empty(out):
    data = embedded(out / "index.html")
    losses, logvars, rates = (p["lines"] for p in data["charts"]["sigma"][0]["panels"])
    assert [line["label"] for line in losses[:2]] == ["σ < 0.05", "0.05 to 0.1"]
    assert losses[-1]["label"] == "σ > 5"
    assert len(losses) == len(logvars) == 8
    assert set(losses[7]["y"]) == {None}
    u = logvars[2]["y"]
    assert np.exp(u) == pytest.approx(losses[2]["y"], rel=1e-4)
    assert {line["label"] for line in rates} >= {"all", "enc 8x8"}


def record_of(out: Path, name: str) -> str:
    """The page's text on a run after its line is expanded."""
    text = (out / "index.html").read_text()
    records = re.findall(r'<details class="run".*?</details>', text, re.DOTALL)
    (found,) = [record for record in records if f"<b>{escape(name)}</b>" in record]
    return unescape(found)


def test_a_long_text_of_several_runs_is_in_the_page_once(out):
    assert (out / "index.html").read_text().count("-old\n+new\n" * 99) == 1
    first, second = record_of(out, "g-seed1"), record_of(out, "g-seed2")
    (place,) = re.findall(r'id="(run-[\d-]+)"', first)
    assert "<h4>provenance.json: diff</h4><pre>-old\n+new\n" in first
    assert f'diff</h4><p>same as <a href="#{place}">g-seed1</a></p>' in second


def test_a_run_shows_its_config_its_alerts_and_the_end_of_its_log(out):
    assert '"seed": 1' in record_of(out, "g-seed1")
    assert "<h4>end of log.txt</h4><pre>its last line</pre>" in record_of(
        out, "g-seed1"
    )
    failed = record_of(out, "f-seed1")
    assert "<li>9 images: the loss leapt</li>" in failed
    assert "failed · 1 alert" in failed


@pytest.mark.slow
def test_the_page_of_200_runs_of_2000_points_is_below_15_megabytes(tmp_path):
    one = report.load_run(write_run(tmp_path, "g"))
    groups = [f"{side}_{size}x{size}" for size in (64, 32, 16, 8) for side in SIDES]
    rng = np.random.default_rng(0)
    nimg, values = np.arange(0.0, 2e6, 1000), rng.random((40, 2000))
    loss = {("loss_per_element",): values[0]}
    train, dynamics = dict(loss), {}
    for place, edge in enumerate(sigma_of(1.0)["below"]):
        train[("sigma", "below", place)] = np.full(2000, edge, float)
        train[("sigma", "loss_per_element", place)] = values[place]
        train[("sigma", "logvar", place)] = values[8 + place]
    for name, rates in zip(("all", "other", *groups), values, strict=False):
        train[("effective_lr", name)] = rates
    for kind, statistic in itertools.product(
        ("activations", "weights"), ("max", "mean")
    ):
        for name, each in zip(groups, values, strict=False):
            dynamics[(kind, name, statistic)] = each
    logs = {
        "train": Log(nimg, train),
        "heldout": Log(nimg, loss),
        "dynamics": Log(nimg, dynamics),
        "evaluation": Log(nimg, {("fd_effnetlite0",): values[0]}),
    }
    log = "".join(map(chr, rng.integers(40, 120, 32_000)))
    noise = (tmp_path / "noise.png", rng.integers(0, 256, (256, 256, 3), np.uint8))
    Image.fromarray(noise[1]).save(noise[0])
    runs = [
        dataclasses.replace(
            one,
            path=tmp_path / f"variant-{index}",
            name=f"variant-{index}",
            files={**one.files, "config": {**config_of("g"), "number": index}},
            log_tail=log,
            samples=noise[0].read_bytes(),
            logs=logs,
        )
        for index in range(200)
    ]
    comparison = report.compare(runs)
    assert len(comparison.entries) == 200
    text = page.render(comparison)
    assert 5e6 < len(text.encode()) < 15e6


SIDES = ("enc", "dec")


def test_numbers_are_short_and_what_is_not_finite_is_null():
    nan, inf = float("nan"), float("inf")
    assert data_of.rounded([0.123456789, nan, inf, 2e9 / 3]) == [
        0.12346,
        None,
        None,
        666670000.0,
    ]


def test_variants_of_one_letter_differ_in_colour_and_few_in_dash(tmp_path):
    def looks_of(*letters):
        for place, letter in enumerate(letters):
            run = write_run(tmp_path / "".join(letters), letter, f"{letter}{place}")
            rewrite(run / "config.json", number=place)
        entries = report.ladder(load(tmp_path / "".join(letters)))
        return [entry.look for entry in entries]

    ladder = looks_of(*"abcg", "g")
    assert len(set(ladder)) == 5
    assert ladder[3].slot == ladder[4].slot
    for count in (3, 9):
        variants = looks_of(*"g" * count)
        assert len(set(variants)) == count
        assert len({look.slot for look in variants}) == min(count, 7)


def test_the_introduction_calls_the_ladder_only_what_is_one(tmp_path):
    for place in range(3):
        run = write_run(tmp_path / "study", "g", f"g-{place}")
        rewrite(run / "config.json", number=place)
    entries = report.ladder(load(tmp_path / "study"))
    text = introduction.introduction(entries)
    assert "Configs A to G" not in text
    assert "the one before it" not in text
    assert "config G of Karras" in text


def test_a_followed_page_loads_itself_again_and_in_the_end_does_not(study, tmp_path):
    runs = report.compare(load(study))
    now = datetime.datetime(2026, 1, 2, 3, 4, 5)
    path = report.write(runs, tmp_path, following=report.Following(10, now))
    text = path.read_text()
    assert '<meta http-equiv="refresh" content="10">' in text
    assert "As of 2026-01-02 03:04:05; 1 running." in text
    report.write(runs, tmp_path)
    assert "refresh" not in path.read_text().split("<style>")[0]
    assert not list(tmp_path.glob(".*"))


def test_following_writes_on_change_alone_and_ends_with_the_last_run(
    tmp_path, monkeypatch
):
    first = write_run(tmp_path, "a", state="running")
    second = write_run(tmp_path, "b", state="queued")
    third = tmp_path / "c"
    steps = [
        lambda: None,
        lambda: (first / "log.txt").write_text("a line"),
        lambda: rewrite(first / "status.json", state="done"),
        lambda: third.mkdir(),  # no run yet
        lambda: (third / "config.json").write_text('{"lett'),
        lambda: rewrite_all(),
    ]

    def rewrite_all():
        rewrite(second / "status.json", state="failed", message="full disk")
        (third / "status.json").write_text('{"state": "failed"}')

    written, shown = [], []
    monkeypatch.setattr(following.time, "sleep", lambda seconds: steps.pop(0)())
    report.follow(
        lambda: report.find_runs([tmp_path]),
        lambda runs, now: written.append(([r.name for r in runs], now)),
        shown.append,
        5.0,
    )
    assert steps == []
    assert len(written) == 5  # at first, and for each change but that of nothing
    assert [now is None for _, now in written] == [False] * 4 + [True]
    assert len(written[-1][0]) == 3
    assert shown[0][0] == (
        "digits-a-s0  running (evaluate), 1,500,000 of 1,500,000 images, 500 img/s, "
        f"held-out loss {report.load_run(first).logs['heldout'].column('loss_per_element')[-1]:.4g}"
    )
    assert shown[-1][2].startswith("digits-b-s0  failed, ")
    assert shown[-1][2].endswith("full disk")


def test_following_reads_again_only_the_runs_that_changed(tmp_path, monkeypatch):
    runs = [write_run(tmp_path, letter) for letter in "ab"]
    read = []

    def load_run(path):
        read.append(path)
        return report.load_run(path)

    monkeypatch.setattr(following, "load_run", load_run)
    reader = following.Reader()
    assert reader.read(runs)[1]
    assert not reader.read(runs)[1]
    assert read == runs
    rewrite(runs[1] / "status.json", message="new")
    assert reader.read(runs)[1]
    assert read == [*runs, runs[1]]
    assert reader.read(runs[:1])[1]


def test_interrupted_following_leaves_a_page_that_does_not_reload(
    tmp_path, monkeypatch
):
    write_run(tmp_path, "a", state="running")
    written = []

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(following.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        report.follow(
            lambda: report.find_runs([tmp_path]),
            lambda runs, now: written.append(now),
            lambda lines: None,
            5.0,
        )
    assert written[0] is not None
    assert written[1:] == [None]


SCROLL = """(async () => {
  for (const plot of document.querySelectorAll(".plot")) {
    if (!plot.offsetParent) continue;
    plot.scrollIntoView();
    for (let i = 0; i < 100 && !plot.querySelector(".main-svg"); i++) {
      await new Promise((done) => setTimeout(done, 50));
    }
  }
  return document.querySelectorAll(".plot .main-svg").length;
})()"""
FIRST_LETTERS = """[...document.querySelectorAll('.results tbody')]
  .filter((body) => !body.hidden).map((body) => body.querySelector('.letter').textContent)
  .join('')"""


@pytest.mark.slow
@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_every_figure_asks_for_nothing_and_complains_of_nothing(
    out, tmp_path, width
):
    with Browser(tmp_path / "profile", width) as browser:
        browser.open(out / "index.html")
        assert browser.evaluate(SCROLL) >= 4 + 7 * 4 + 3
        assert browser.requests() == [(out / "index.html").as_uri()]
        assert browser.complaints() == []
        buttons = (
            "[...document.querySelectorAll('.modebar-btn')].map((b) => b.ariaLabel)"
        )
        offered = {"Download plot", "Zoom", "Pan", "Reset axes"}
        assert set(browser.evaluate(buttons)) == offered
        widths = "[document.documentElement.scrollWidth, innerWidth]"
        scrolled, inner = browser.evaluate(widths)
        assert scrolled <= inner == width
        small = """[...document.querySelectorAll('.plot text')]
          .filter((t) => t.textContent && parseFloat(getComputedStyle(t).fontSize) < 11)
          .map((t) => t.textContent)"""
        assert browser.evaluate(small) == []


@pytest.mark.slow
@in_a_browser
def test_in_a_browser_chips_hide_a_config_headings_sort_and_runs_open(out, tmp_path):
    with Browser(tmp_path / "profile", 1280) as browser:
        browser.open(out / "index.html")
        browser.evaluate(SCROLL)
        assert browser.evaluate(FIRST_LETTERS) == "ABCDEEFFG"
        lines = "document.querySelector('[data-plot^=loss]').data.length"
        before = browser.evaluate(lines)
        browser.evaluate("document.querySelectorAll('.chip')[4].click()")
        assert browser.evaluate(FIRST_LETTERS) == "ABCDFFG"
        # The band, its line, and the run that still trains with its mark.
        assert browser.evaluate(lines) == before - 5
        heading = "document.querySelectorAll('.results th[scope=col]')[4]"
        browser.evaluate(f"{heading}.querySelector('button').click()")
        assert browser.evaluate(f"{heading}.getAttribute('aria-sort')") == "ascending"
        # The run without numbers stays last either way.
        assert browser.evaluate(FIRST_LETTERS) == "GFDCBAF"
        browser.evaluate(f"{heading}.querySelector('button').click()")
        assert browser.evaluate(FIRST_LETTERS) == "ABCDFGF"
        shown = "document.querySelector('.vs-baseline').offsetParent !== null"
        assert browser.evaluate(shown) is False
        browser.evaluate("document.querySelector('[value=baseline]').click()")
        assert browser.evaluate(shown) is True
        link = "[...document.querySelectorAll('a')].find((a) => a.text === 'g-seed1')"
        browser.evaluate(f"{link}.click()")
        browser.evaluate("new Promise((done) => setTimeout(done, 200))")
        opened = browser.evaluate("document.querySelector('details[open]').textContent")
        assert "+new" in opened
        assert '"seed": 1' in opened
        assert "its last line" in opened
        # As the page does itself while it follows: what is hidden stays so.
        browser.open(out / "index.html")
        assert sorted(browser.evaluate(FIRST_LETTERS)) == sorted("ABCDFFG")
        assert browser.complaints() == []


@pytest.mark.slow
@in_a_browser
def test_in_a_browser_the_page_of_runs_that_left_nothing_complains_of_nothing(tmp_path):
    for name in ("queued", "<b>bold"):
        (tmp_path / "study" / name).mkdir(parents=True)
        (tmp_path / "study" / name / "config.json").write_text("")
    path = report.write(report.compare(load(tmp_path / "study")), tmp_path / "out")
    with Browser(tmp_path / "profile", 1280) as browser:
        browser.open(path)
        browser.evaluate("document.querySelectorAll('summary')[0].click()")
        assert "<b>bold" in browser.evaluate("document.body.innerText")
        assert browser.complaints() == []


@pytest.mark.slow
@in_a_browser
def test_in_a_browser_the_button_turns_the_page_and_its_figures_dark(out, tmp_path):
    colours = """JSON.stringify([getComputedStyle(document.body).backgroundColor,
      document.querySelector('[data-plot^=loss]').layout.font.color])"""
    with Browser(tmp_path / "profile", 1280) as browser:
        browser.open(out / "index.html")
        browser.evaluate(SCROLL)
        light = json.loads(browser.evaluate(colours))
        browser.evaluate("document.getElementById('theme').click()")
        dark = json.loads(browser.evaluate(colours))
        assert light == ["rgb(251, 251, 250)", "rgb(36, 38, 43)"]
        assert dark == ["rgb(21, 23, 26)", "rgb(223, 225, 229)"]


@pytest.mark.slow
@in_a_browser
def test_without_scripts_the_page_shows_its_tables_and_says_what_is_missing(
    out, tmp_path
):
    with Browser(tmp_path / "profile", 1280) as browser:
        browser.scripts_off()
        browser.open(out / "index.html")
        text = browser.evaluate("document.body.innerText")
        assert "A script draws the figures, but scripts are turned off" in text
        assert browser.evaluate(FIRST_LETTERS) == "ABCDEEFFG"
        assert browser.evaluate("document.querySelector('.tools').offsetHeight") == 0
