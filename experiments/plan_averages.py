"""Plan which averages to store: python experiments/plan_averages.py --config=configs/config_g.py:digits.

Prints, before anything is trained, the errors of the averages of each length that the
config's snapshots will express, at the end and at parts of the run. `fit` is the relative
error of the profile and `rounding` that of the number format, as reconstruct.py will
print them; `walk` is the error of weights that walk at random, relative to how far they
go, updates every ema.update_every steps included. Overrides, such as
--config.ema.sigma_rels=0.05,0.15, --config.training.snapshot_mimg=0.002 or
--config.ema.snapshot_dtype=float16, show what they would change.

    python experiments/plan_averages.py --config=configs/config_g.py:digits --propose \\
        --sigma_rel=0.03,0.2 --accuracy=0.02

--propose finds the plan of least disk for lengths from the least to the largest
of --sigma_rel, at the end or, with --since=0.25, from a quarter of the run on.
"""

import numpy as np

from edm_jax import files, report
from edm_jax.cost import averages
from edm_jax.ema import MAX_ERROR, plan
from edm_jax.ema.plan import Plan, Predicted
from edm_jax.files import human, user_path
from edm_jax.models.build import count_params
from edm_jax.train.config import RunConfig
from experiments import cli

LENGTHS = "0.015,0.02,0.03,0.05,0.07,0.10,0.13,0.15,0.20,0.25"


def main() -> None:
    """Parse the command line, predict, print and draw."""
    parser = cli.config_parser(__doc__)
    add = parser.add_argument
    add("--sigma_rel", default=LENGTHS, help="lengths wanted (%(default)s)")
    add("--at", default="0.25,0.5,1", help="parts of the run (%(default)s)")
    add("--accuracy", type=float, default=MAX_ERROR, help="the largest error accepted "
        "(%(default)s)")  # fmt: skip
    add("--propose", action="store_true", help="find the plan of least disk")
    add("--since", type=float, default=1.0, help="with --propose: from this part of the "
        "run on (%(default)s)")  # fmt: skip
    add("--draw", type=user_path, metavar="FILE.png", help="draw the errors")
    options, config = cli.parse_config(parser, None)
    lengths = sorted(set(cli.number_list("--sigma_rel", options.sigma_rel)))
    parts = cli.number_list("--at", options.at)
    if not lengths or not parts or not all(0 < part <= 1 for part in parts):
        raise ValueError("--sigma_rel and --at need numbers, --at above 0 and up to 1.")
    if options.draw and options.draw.suffix[1:] not in ("png", "pdf", "svg"):
        raise ValueError(f"--draw={options.draw}: end the name in .png, .pdf or .svg.")
    planned, weights = averages.plan_of(config), count_params(config.model.shapes)
    curves = _show("The config stores", planned, lengths, parts, weights, options)
    if options.propose:
        low, high = lengths[0], lengths[-1]
        found = plan.propose(
            planned.end, low, high, options.accuracy, since=options.since
        )
        if found is None:
            raise ValueError(
                f"Not even 512 averages express sigma_rel {low:g} to {high:g} within "
                f"{options.accuracy:g}: raise --accuracy, or narrow --sigma_rel."
            )
        every = planned.update_interval, planned.batch_size
        found = Plan(found.sigma_rels, found.times, found.dtype, *every)
        print()
        curves += _show("Proposed are", found, lengths, parts, weights, options)
        print(_overrides(found, config))
    if options.draw:
        drawing = report.draw_plans(curves, options.accuracy)
        suffix = options.draw.suffix[1:]
        files.write_bytes(options.draw, drawing.render(suffix))
        cli.say(f"Drawn: {options.draw}")


def _show(
    heading: str,
    planned: Plan,
    lengths: list[float],
    parts: list[float],
    weights: int,
    options,
) -> list[tuple[str, list[Predicted]]]:
    """Prints a plan's errors at parts of the run; returns its curves, to be drawn."""
    tracked = ", ".join(f"{s:g}" for s in planned.sigma_rels)
    print(
        f"{heading} {len(planned.times)} snapshots of sigma_rel {tracked} in "
        f"{planned.dtype}, {human(planned.disk_bytes(weights))}."
    )
    low, high = min(lengths), max(lengths)
    fine = np.geomspace(low, high, 60) if options.draw else np.array([])
    curves = []
    for part in parts:
        nimg = planned.end * part
        if not planned.stored(nimg):
            print(f"Nothing is stored by {nimg:,.0f} images.")
            continue
        # At the last snapshot by then: a target after it would lack what it has not seen.
        nimg = max(t for t in planned.times if t <= nimg)
        print(f"At {nimg:,.0f} images, {part:.0%} of the run:")
        print(
            f"  {'sigma_rel':>9} {'fit':>9} {'walk':>9} {'rounding':>9} {'sum |x|':>8}"
        )
        for each in plan.predict(planned, lengths, nimg):
            beyond = "" if each.error <= options.accuracy else "  beyond the accuracy"
            print(
                f"  {each.sigma_rel:9.3f} {each.fit_error:9.1e} {each.walk_error:9.1e} "
                f"{each.rounding_error:9.1e} {each.sum_abs:8.3g}{beyond}"
            )
        if options.draw:
            name = f"{len(planned.times)} of {tracked} at {part:.0%}"
            curves.append((name, plan.predict(planned, fine.tolist(), nimg)))
    return curves


def _overrides(found: Plan, config: RunConfig) -> str:
    """How a uniform plan is asked for; a geometric one is not among what train.py does."""
    lengths = ",".join(f"{s:g}" for s in sorted(found.sigma_rels))
    said = (
        f"--config.ema.sigma_rels={lengths} --config.ema.snapshot_dtype={found.dtype}"
    )
    first, second = [*found.times, 0][:2]
    if second and abs(second - 2 * first) > 1e-6 * second:
        return f"{said}, with snapshots in equal ratios, from image {first:,.0f} on."
    mimg = config.training.duration_mimg / len(found.times)
    return f"{said} --config.training.snapshot_mimg={mimg:.6g}"


if __name__ == "__main__":
    cli.run(main)
