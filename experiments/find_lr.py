"""Find a learning rate: python experiments/find_lr.py --config=configs/config_g.py:digits.

Trains a copy for --num_steps steps, in which the rate grows exponentially from --min to
--max, and stops where the loss diverges: 4 times the best smoothed one, or not finite.
With --run, probes that run from its last checkpoint. Suggests rates by three readings of
the curve, with their range over --repeats, and draws it. Nothing else is written: a
training afterwards is the same to the bit.

The loss is that of fixed noisy held-out images, so that noise levels do not blur it. What
the finder sees is the start of a training: to choose between letters or for a long
duration, the study lr_sensitivity tells more.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from edm_jax.train.config import RunConfig
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import configs
from edm_jax import files
from edm_jax.optim import finder as curves
from edm_jax.report.drawing import INK, STYLE, Drawing
from edm_jax.runs import claims
from edm_jax.runs.directory import read_json
from edm_jax.train import finder
from experiments import cli

COLOURS = {"steepest": "#2a6f97", "valley": "#c1440e", "minimum/10": "#5b8c3e"}


def main() -> None:
    """Parse the command line, search, print and draw."""
    options, rest = parser().parse_known_args()
    rates = curves.grid(options.min, options.max, options.num_steps)
    if options.repeats < 1:
        raise ValueError(f"--repeats={options.repeats}, but must be at least 1.")
    config, checkpoints = _subject(options, rest)
    cli.prepare_jax()
    with cli.progress_bar() as bar:
        report = cli.report_to(bar)
        found = finder.find(
            config,
            rates,
            options.repeats,
            checkpoints,
            lambda done, total: report("steps", done, total),
        )
    _print(config, found)
    out = options.out or Path("find_lr.png")
    files.write_bytes(out, draw(config, found).render(out.suffix[1:]))
    print(f"Drawn in {out}. To train at it, add:")
    print(f"  --config.optimizer.alpha_ref={found.advised.rate:.3g}")


def parser() -> argparse.ArgumentParser:
    """The options of this command."""
    options = cli.config_parser(__doc__, required=False)
    add = options.add_argument
    add("--run", type=files.user_path, help="probe this run from its last checkpoint")
    add("--min", type=float, default=1e-6, help="first rate (%(default)g)")
    add("--max", type=float, default=10.0, help="last rate (%(default)g)")
    add("--num_steps", type=int, default=100, help="(%(default)s)")
    add("--repeats", type=int, default=3, help="of other seeds (%(default)s)")
    add("--out", type=_figure, help="the figure, .png, .svg or .pdf (find_lr.png)")
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
        return cli.load_config(options, rest), None
    if options.config or rest:
        raise ValueError(
            "--run has a config of its own: leave out --config and its overrides."
        )
    if not claims.is_free(options.run):
        raise ValueError(f"{options.run} is in training: stop it first.")
    recorded = read_json(options.run / "config.json")
    if not recorded:
        raise FileNotFoundError(
            f"{options.run} is not a run directory: it has no config.json."
        )
    config = configs.from_json(recorded, options.run / "config.json")
    return config, options.run / "checkpoints"


def _print(config: RunConfig, found: finder.Found) -> None:
    for each in found.suggestions:
        span = f"{each.low:.3g} to {each.high:.3g} over {len(found.curves)} repeats"
        print(f"{each.name:>10}: {each.rate:.3g} ({span}): {each.why}")
    limits = [curve.limit for curve in found.curves if curve.limit]
    if limits:
        print(f"  diverges: {np.median(limits):.3g}, where every step begins to hurt")
    else:
        print("The loss did not diverge: --max may be higher.", file=sys.stderr)
    print(f"       now: {config.optimizer.alpha_ref:.3g}")


def draw(config: RunConfig, found: finder.Found) -> Drawing:
    """Loss against rate; below it the effective rate where the weights' norm is fixed."""
    both = config.optimizer.forced_weight_norm
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.6 if both else 3.8), layout="constrained")
        grid = figure.subplots(1 + both, 1, sharex=True, squeeze=False)[:, 0]
        _draw_loss(grid[0], config, found)
        if both:
            for curve, effective in zip(found.curves, found.effective, strict=True):
                grid[1].loglog(curve.rates, effective, color=INK, lw=0.8)
            grid[1].set_ylabel("effective rate |Δw| / |w|")
        grid[-1].set_xlabel("learning rate")
        title = f"{config.letter.upper()}  {config.title}, {config.workload}"
        grid[0].set_title(title.replace("$", r"\$"), loc="left")
    return Drawing("find_lr", figure)


def _draw_loss(axes: Axes, config: RunConfig, found: finder.Found) -> None:
    for curve in found.curves:
        axes.semilogx(curve.rates, curve.losses, color=INK, lw=0.5, alpha=0.35)
        axes.semilogx(curve.places, curve.smoothed, color=INK, lw=1.1)
    lowest = min(float(curve.smoothed.min()) for curve in found.curves)
    first = max(float(curve.smoothed[0]) for curve in found.curves)
    # What diverges would press the rest flat.
    margin = 0.15 * (first - lowest)
    axes.set_ylim(lowest - margin, first + 2 * margin)
    for each in found.suggestions:
        colour = COLOURS[each.name]
        axes.axvspan(each.low, each.high, color=colour, alpha=0.12, lw=0)
        label = f"{each.name} {each.rate:.2g}"
        axes.axvline(each.rate, color=colour, lw=1.2, label=label)
    now = config.optimizer.alpha_ref
    axes.axvline(now, color=INK, lw=0.8, ls=":", label=f"now {now:.2g}")
    axes.set_ylabel("held-out loss after the step")
    axes.legend(fontsize=8, loc="lower left")


if __name__ == "__main__":
    cli.run(main)
