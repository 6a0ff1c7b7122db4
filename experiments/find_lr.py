"""Find a learning rate: python experiments/find_lr.py --config=configs/config_g.py:digits.

Trains a copy for --num_steps steps while the rate grows exponentially from --min to --max,
and stops when the loss diverges: 4 times the best smoothed loss, or not finite. With
--run, probes that run from its last checkpoint. Suggests three rates read off the curve,
with their range over --repeats, and draws the curve. Writes nothing else: training
afterwards gives the same bits.

The loss is measured on fixed noisy held-out images, so that random noise levels do not
blur it. The finder sees only the start of a training: to compare letters, or for a long
duration, the study lr_sensitivity tells more.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from edm_jax import files, report
from edm_jax.optim import finder as curves
from edm_jax.report.curves import Chart, Line, Mark, Panel
from edm_jax.report.drawing import Drawing
from edm_jax.runs import claims
from edm_jax.train import finder
from edm_jax.train.config import RunConfig
from experiments import cli


def main() -> None:
    """Parse the command line, search, print and draw."""
    options, rest = parser().parse_known_args()
    rates = curves.grid(options.min, options.max, options.num_steps)
    if options.repeats < 1:
        raise ValueError(f"--repeats={options.repeats}, but must be at least 1.")
    config, checkpoints = _subject(options, rest)
    cli.prepare_jax()
    with cli.progress_bar(reads=config) as bar:
        on_progress = cli.report_to(bar)
        found = finder.find(
            config,
            rates,
            options.repeats,
            checkpoints,
            lambda done, total: on_progress("steps", done, total),
        )
    _print(config, found)
    out = options.out or Path("find_lr.png")
    files.write_bytes(out, draw(config, found).render(out.suffix[1:]))
    cli.say(f"Drew {out}. To train at the valley's rate, add:")
    print(f"  --config.optimizer.alpha_ref={found.advised.rate:.3g}")


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    options = cli.config_parser(__doc__, required=False)
    add = options.add_argument
    add("--run", type=files.user_path, help="probe this run from its last checkpoint")
    low, high, count = finder.RATES[0], finder.RATES[-1], len(finder.RATES)
    add("--min", type=float, default=low, help="first rate (%(default)g)")
    add("--max", type=float, default=high, help="last rate (%(default)g)")
    add("--num_steps", type=int, default=count, help="steps in a search (%(default)s)")
    add("--repeats", type=int, default=3, help="searches, one per seed (%(default)s)")
    add("--out", type=_figure, help="the figure: .png, .svg or .pdf (find_lr.png)")
    return options


def _figure(text: str) -> Path:
    path = files.user_path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png, .svg or .pdf")
    return path


def _subject(
    options: argparse.Namespace, rest: list[str]
) -> tuple[RunConfig, Path | None]:
    """The config, and the checkpoints of --run."""
    if not options.run:
        return cli.load_config(options, cli.overrides(rest)), None
    if options.config or rest:
        raise ValueError(
            "--run uses that run's config: leave out --config and overrides."
        )
    if not claims.is_free(options.run):
        raise ValueError(f"{options.run} is still training: stop it first.")
    return cli.recorded_config(options.run), options.run / "checkpoints"


def _print(config: RunConfig, found: finder.Found) -> None:
    for each in found.suggestions:
        span = f"{each.low:.3g} to {each.high:.3g} over {len(found.curves)} repeats"
        print(f"{each.name:>10}: {each.rate:.3g} ({span}): {each.why}")
    limits = [curve.limit for curve in found.curves if curve.limit]
    if limits:
        print(f"  diverges: {np.median(limits):.3g}, above which every step raises it")
    else:
        print("The loss did not diverge: try a higher --max.", file=sys.stderr)
    print(f"       now: {config.optimizer.alpha_ref:.3g}")


def draw(config: RunConfig, found: finder.Found) -> Drawing:
    """Draws loss against rate, and the effective rate if the weights' norm is fixed."""
    lowest = min(float(curve.smoothed.min()) for curve in found.curves)
    first = max(float(curve.smoothed[0]) for curve in found.curves)
    top = first + 0.3 * (first - lowest)  # cut diverging losses off: they hide the rest
    lines, marks = [], []
    for curve in found.curves:
        for x, y, colour in (
            (curve.rates, curve.losses, "#c9ccd2"),
            (curve.places, curve.smoothed, "ink"),
        ):
            lines.append(Line(x, np.where(y < top, y, np.nan), colour=colour))
        for colour, each in enumerate(curves.suggestions(curve)):
            loss = np.interp(each.rate, curve.places, curve.smoothed)
            marks.append(Mark("ring", each.rate, float(loss), colour))
    now = config.optimizer.alpha_ref
    name = f"{config.letter.upper()}, {config.workload}"
    title = f"{name}: held-out loss after each step (dotted: now, {now:.3g})"
    panels = [Panel(title, "loss", lines, "linear", marks, at=now)]
    if config.optimizer.forced_weight_norm:
        effective = [
            Line(curve.rates, seen)
            for curve, seen in zip(found.curves, found.effective, strict=True)
        ]
        panels.append(Panel("Effective rate", "|Δw| / |w|", effective, at=now))
    key = [
        (f"{each.name} {each.rate:.2g}", colour, 0)
        for colour, each in enumerate(found.suggestions)
    ]
    chart = Chart("learning rate", panels, log=True, key=key)
    return report.draw("find_lr", [chart])


if __name__ == "__main__":
    cli.run(main)
