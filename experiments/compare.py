"""Compare runs: python experiments/compare.py runs/ladder-digits --out=report.

Reads run directories only and writes index.html (opens from disk), results.csv,
results.md, results.tex and figures/ as PNG, PDF and SVG. Each config stands with its
mean over seeds, its 95% interval, and how sure its difference to --baseline is.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import rich.console
import rich.live
import rich.text

from edm_jax import files, report
from edm_jax.files import user_path
from experiments import cli


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the comparison."""
    options = _parser().parse_args(arguments)
    report.pick(options.metric, "--metric")
    report.pick(options.columns)
    if options.follow:
        _follow(options)
    else:
        # Millions of numbers without a cycle, which Python would look for all the time.
        gc.disable()
        found = report.find_runs(options.directories)
        _write(options, [report.load_run(path) for path in found], _warn)
    print(f"Wrote {files.printable(str(options.out / 'index.html'))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare runs of a study.")
    parser.add_argument(
        "directories", nargs="+", type=user_path, help="a study, or run directories"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        default=Path("report"),
        help="where to write (%(default)s)",
    )
    parser.add_argument(
        "--baseline",
        metavar="CONFIG",
        help="what all are compared with: a letter, a label or a run (the first)",
    )
    parser.add_argument(
        "--x",
        default="",
        metavar="FIELD",
        help="draw a result against this field of the config, such as "
        "optimizer.alpha_ref: by_field.csv, figures/by_field.*, and on the page",
    )
    parser.add_argument(
        "--y",
        default="heldout_loss",
        metavar="KEY",
        help="the column that is drawn against --x (%(default)s)",
    )
    parser.add_argument(
        "--by",
        type=_words,
        default="letter",
        metavar="FIELD,...",
        help="a line of that figure for each value of these fields (%(default)s)",
    )
    parser.add_argument(
        "--metric",
        type=_words,
        default=",".join(report.METRICS),
        metavar="KEY,...",
        help="columns of results.csv to compare (%(default)s)",
    )
    parser.add_argument(
        "--columns",
        type=_words,
        default=(),
        metavar="KEY,...",
        help="those that results.md and results.tex show, and the page besides its "
        "own, among `describe.py --menu=column` or FILE.py:NAME (all)",
    )
    parser.add_argument(
        "--follow",
        nargs="?",
        type=_seconds,
        const=10.0,
        metavar="SECONDS",
        help="write again when files of the runs change, until all have ended "
        "(looking every %(const)g seconds)",
    )
    return parser


def _write(
    options: argparse.Namespace,
    runs: Sequence[report.Run],
    warn: Callable[[str], object],
    following: report.Following | None = None,
) -> None:
    """Write the comparison; while runs go on not yet its figures for a paper."""
    comparison = report.compare(
        runs,
        options.baseline,
        options.metric,
        options.columns,
        options.x,
        options.y,
        options.by,
    )
    for warning in report.table_warnings(comparison):
        warn(warning)
    report.write(comparison, options.out, following)
    if not options.follow or all(run.ended for run in runs):
        report.write_figures(comparison, options.out)


def _follow(options: argparse.Namespace) -> None:
    """Write the comparison again and again."""
    warned: set[str] = set()

    def warn(warning: str) -> None:
        if warning not in warned:
            warned.add(warning)
            _warn(warning)

    def write(runs: Sequence[report.Run], following: report.Following | None) -> None:
        # What is doubtful while runs go on need not be in the end.
        said = (lambda warning: None) if following else warn
        _write(options, runs, said, following)

    try:
        with _Lines() as lines:
            report.follow(
                lambda: report.find_runs(options.directories),
                write,
                lines.show,
                options.follow,
            )
    except KeyboardInterrupt:
        print("compare: no longer following.", file=sys.stderr)
        sys.exit(130)


class _Lines:
    """A line for each run, in its place on a terminal; elsewhere those that changed."""

    def __init__(self) -> None:
        console = rich.console.Console()
        self._live = rich.live.Live(console=console, auto_refresh=False)
        self._in_place = console.is_terminal
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        if self._in_place:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, lines: Sequence[str]) -> None:
        if self._in_place:
            self._live.update(rich.text.Text("\n".join(lines)), refresh=True)
            return
        for line in lines:
            if line not in self._said:
                print(line, flush=True)
        self._said = set(lines)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _warn(warning: str) -> None:
    print(f"compare: warning: {files.printable(warning)}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
