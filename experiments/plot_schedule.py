"""Draw the learning rate and beta1 of configs against images, before anything is trained.

    python experiments/plot_schedule.py --config=configs/config_g.py:digits
    python experiments/plot_schedule.py --config=configs/config_g.py:digits \\
        --config=configs/config_g.py:digits --config.optimizer.schedule.name=one_cycle

Overrides apply to the --config before them; those before the first --config apply to all.
--csv prints nimg, rate and beta1 instead, after a column config if there are several
configs. A plateau is drawn as if the held-out loss always improved.
"""

import argparse
import csv
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import configs
from edm_jax.optim import chain
from edm_jax.train.config import RunConfig
from experiments import cli


class Curve(NamedTuple):
    """One config's arrays (points,): images seen before a step, rate and beta1."""

    name: str
    nimg: np.ndarray
    rate: np.ndarray
    beta1: np.ndarray  # NaN for a method that has none


def curve(name: str, config: RunConfig, points: int) -> Curve:
    """The rate and beta1 at up to `points` steps of a run, first and last included."""
    opt, duration = config.optimizer, config.training.duration_mimg
    steps = np.unique(np.linspace(0, config.total_steps, points).round())
    nimg = steps * opt.batch_size
    rate = jax.vmap(chain.learning_rate(opt, duration))
    own = getattr(opt.method, "beta1", getattr(opt.method, "momentum", np.nan))
    beta1 = np.full(nimg.shape, own)
    if (moving := chain.momentum(opt, duration)) is not None:
        beta1 = np.asarray(jax.vmap(moving)(np.float32(nimg)))
    return Curve(name, nimg, np.asarray(rate(np.float32(nimg))), beta1)


def split(arguments: list[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Splits a command line into [(--config, its overrides)] and all other arguments."""
    found: list[tuple[str, list[str]]] = []
    for_all, others = [], []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--config":
            found.append((value, list(for_all)))
        elif name.lstrip("-").startswith(("config.", "noconfig.")):
            (found[-1][1] if found else for_all).append(argument)
        else:
            others.append(argument)
    return found, others


def draw(curves: list[Curve]) -> Figure:
    """Draws the rate, and beta1 below it if any schedule moves beta1."""
    moves = any(np.ptp(each.beta1) > 0 for each in curves)
    heights = {"height_ratios": [2, 1]} if moves else {}
    figure = Figure(figsize=(8, 5.5 if moves else 4), layout="constrained")
    axes = figure.subplots(
        2 if moves else 1,
        sharex=True,
        squeeze=False,
        **({"gridspec_kw": heights} if moves else {}),
    )[:, 0]
    for i, each in enumerate(curves):
        style = {"color": f"C{i}", "linewidth": 1.8}
        label = textwrap.fill(each.name, 100)
        axes[0].plot(each.nimg, each.rate, label=label, **style)
        if moves:
            axes[1].plot(each.nimg, each.beta1, **style)
    axes[0].set_ylabel("learning rate")
    axes[0].set_ylim(bottom=0)
    if moves:
        axes[1].set_ylabel("beta1")
    axes[-1].set_xlabel("images")
    axes[-1].xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", frameon=False)
    return figure


def write_csv(curves: list[Curve]) -> None:
    """Prints nimg, rate and beta1 as CSV."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    several = len(curves) > 1
    writer.writerow([*["config"] * several, "nimg", "rate", "beta1"])
    for each in curves:
        for nimg, rate, beta1 in zip(each.nimg, each.rate, each.beta1, strict=True):
            known = "" if np.isnan(beta1) else f"{beta1:.7g}"
            row = [f"{nimg:.0f}", f"{rate:.7g}", known]
            writer.writerow([*[each.name] * several, *row])


def main() -> None:
    """Parse the command line, and draw or print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--csv", action="store_true", help="print numbers instead")
    parser.add_argument("--output", type=Path, default=Path("schedule.png"))
    parser.add_argument("--points", type=int, default=1000, help="steps drawn, at most")
    chosen, others = split(sys.argv[1:])
    options = parser.parse_args(others)
    if not chosen:
        raise ValueError("--config=FILE:WORKLOAD is missing: add one or more.")
    if options.points < 2:
        raise ValueError(f"--points={options.points}, but must be at least 2.")
    cli.prepare_jax()
    curves = []
    for reference, overrides in chosen:
        config = configs.load(reference, cli.overrides(overrides))
        said = [each.partition("config.optimizer.")[2] or each for each in overrides]
        name = ", ".join([reference.removeprefix("configs/"), *said])
        curves.append(curve(name, config, options.points))
    if options.csv:
        write_csv(curves)
        return
    with matplotlib.rc_context({"text.usetex": False, "savefig.dpi": 150}):
        draw(curves).savefig(options.output)
    cli.say(str(options.output))


if __name__ == "__main__":
    cli.run(main)
