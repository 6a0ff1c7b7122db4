"""Compare runs: python experiments/compare.py runs/ladder-digits --out=report.

Reads run directories only and writes index.html (opens from disk), results.csv,
results.md, results.tex and figures/ as PNG, PDF and SVG. For each config it shows the
mean over seeds, a 95% interval, and how significant the difference to --baseline is.
"""

import argparse
import functools
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import rich.live
import rich.text

from edm_jax import report
from edm_jax.files import user_path
from edm_jax.runs import store
from experiments import cli


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the comparison."""
    options = _parser().parse_args(arguments)
    report.pick(options.metric, "--metric")
    report.pick(options.columns)
    options.directories = [
        path for each in options.directories for path in _here(each, options.follow)
    ]
    if options.follow:
        _follow(options)
    else:
        # Millions of numbers and no reference cycles: collection would only cost time.
        gc.disable()
        found = report.find_runs(options.directories)
        _write(options, [report.load_run(path) for path in found], _warn)
    cli.say(f"Wrote {options.out / 'index.html'}")


def _here(place: Path | store.StoredRun, follow: float | None) -> list[Path]:
    """A directory that was named, or copies of the runs of one on an object store."""
    if isinstance(place, Path):
        return [place]
    if follow:
        raise ValueError(
            f"--follow watches files, and {place} is on an object store: mount the bucket, "
            "and name the path there."
        )
    if not (found := store.stored_runs(place.url)):
        raise FileNotFoundError(f"There are no runs at {place}: check the address.")
    return [run.pull(without=store.LARGE) for run in found]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


OPTIONS = (  # name, metavar, default, type, what it is
    ("--out", "FOLDER", "report", user_path, "where to write (%(default)s)"),
    ("--baseline", "CONFIG", None, str,
     "what to compare the others with: a letter, a label or a run (the first)"),
    ("--x", "FIELD", "", str,
     ("draw a result against this config field, such as optimizer.alpha_ref, on the "
      "page, in by_field.csv and in figures/by_field.*")),
    ("--y", "KEY", "heldout_loss", str,
     "column to draw against --x (%(default)s)"),
    ("--by", "FIELD,...", "letter", _words,
     "draw one line for each value of these fields (%(default)s)"),
    ("--metric", "KEY,...", ",".join(report.METRICS), _words,
     "columns of results.csv to compare (%(default)s)"),
    ("--columns", "KEY,...", (), _words,
     ("columns of results.md and results.tex, also added to the page; see "
      "`describe.py --menu=column`, or FILE.py:NAME for your own (all)")),
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare runs of a study.")
    add = parser.add_argument
    add("directories", nargs="+", type=cli.place, help="a study, or run directories")
    for name, metavar, default, kind, about in OPTIONS:
        add(name, metavar=metavar, default=default, type=kind, help=about)
    about = "rewrite the comparison whenever the runs' files change, until all runs "
    about += "have ended (checks every %(const)g seconds)"
    add("--follow", nargs="?", type=_seconds, const=10.0, metavar="SECONDS", help=about)
    return parser


def _write(
    options: argparse.Namespace,
    runs: Sequence[report.Run],
    warn: Callable[[str], object],
    following: report.Following | None = None,
) -> None:
    """Write the comparison; with --follow, figures/ waits until all runs have ended."""
    o = options
    comparison = report.compare(runs, o.baseline, o.metric, o.columns, o.x, o.y, o.by)
    for warning in report.table_warnings(comparison):
        warn(warning)
    report.write(comparison, o.out, following)
    if not o.follow or all(run.ended for run in runs):
        report.write_figures(comparison, o.out)


def _follow(options: argparse.Namespace) -> None:
    """Rewrite the comparison whenever the runs' files change."""
    warned: set[str] = set()

    def warn(warning: str) -> None:
        if warning not in warned:
            warned.add(warning)
            _warn(warning)

    def write(runs: Sequence[report.Run], following: report.Following | None) -> None:
        # A warning about unfinished runs may no longer hold when they end.
        said = (lambda warning: None) if following else warn
        _write(options, runs, said, following)

    console = cli.Console()
    before: set[str] = set()
    with rich.live.Live(console=console, auto_refresh=False) as live:

        def show(lines: Sequence[str]) -> None:
            """Redraws all lines on a terminal; elsewhere prints those that changed."""
            if console.is_terminal:
                live.update(rich.text.Text("\n".join(lines)), refresh=True)
                return
            for line in lines:
                if line not in before:
                    print(line, flush=True)
            before.clear()
            before.update(lines)

        find = functools.partial(report.find_runs, options.directories)
        try:
            report.follow(find, write, show, options.follow)
        except KeyboardInterrupt:
            print("compare: stopped following.", file=sys.stderr)
            sys.exit(130)


def _warn(warning: str) -> None:
    cli.say(f"compare: warning: {warning}", sys.stderr)


if __name__ == "__main__":
    cli.run(main)
