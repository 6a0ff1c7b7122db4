"""Draw quality against EMA length: python experiments/sweep.py --run=runs/ladder-digits/g-seed0.

The length of all weights (paper Fig. 5a), over training time (5c), and of one part of the
network at a time with the others fixed (5b), each with its optimum: the best measured,
and the vertex of a parabola. Quality is the held-out loss. Lengths that the snapshots
cannot express are left out and named. --search=power:0.02..0.25 finds the best by narrowing
a bracket instead, in ten to sixteen evaluations, and an interval for it. Writes figures, sweeps.json and points.json, from
which the same command resumes.

With a guide, quality is a metric of guided samples, over the network's EMA length and the
guide's (arXiv 2406.02507, Fig. 3), then over w and over the interval, at the best so far:

    python experiments/sweep.py --run=runs/toy/main --guide=runs/toy/guide --metric=density
"""

import argparse
from pathlib import Path

from edm_jax import data, diffusion, files, report
from edm_jax.evals import search, sweeps
from edm_jax.evals.heldout import HeldOut
from edm_jax.files import user_path
from edm_jax.runs import directory
from experiments import cli, guided_sweep

KINDS = ("lengths", "time", "groups")


def main() -> None:
    """Parse the command line, measure, and draw."""
    options = _parser().parse_args()
    if options.guide:
        cli.prepare_jax()
        return guided_sweep.main(options, *cli.open_run(options))
    kinds = options.kinds.split(",") if options.kinds else [*KINDS]
    if set(kinds) - set(KINDS):
        raise ValueError(
            f"--kinds={options.kinds!r}: choose from {', '.join(KINDS)}, separated by commas."
        )
    families = [search.Family.parse(text) for text in options.search]
    if options.times < 1:
        raise ValueError(f"--times={options.times}: choose 1 or more.")
    cli.prepare_jax()
    run, config = cli.open_run(options)
    sigma_rels = cli.number_list("--sigma_rel", options.sigma_rel)
    sigma_rels = sorted(sigma_rels or config.evaluation.sigma_rels)
    out = options.out or run.path / "sweeps"
    out.mkdir(parents=True, exist_ok=True)
    data.prepare(config.data)
    heldout = HeldOut(diffusion.Denoiser(config.model, config.loss.sigma_data), config)
    stored = sweeps.usable(run.snapshots, run.best_nimg)
    with cli.progress_bar() as bar:
        measured = sweeps.Sweeps(
            heldout, stored, out / "points.json", cli.report_to(bar)
        )
        if families:
            return _search(families, measured, out)
        found = _measure(measured, heldout, kinds, sigma_rels, options)
    directory.write_json(out / "sweeps.json", found)
    title = f"{config.letter.upper()} {config.title}"
    for drawing in report.draw_sweeps(
        title, found["lengths"], found["over_time"], found["by_group"]
    ):
        files.write_bytes(out / f"{drawing.name}.png", drawing.render("png"))
    _print(found)
    cli.say(f"Drawn in {out}")


def _measure(
    measured: sweeps.Sweeps,
    heldout: HeldOut,
    kinds: list[str],
    sigma_rels: list[float],
    options: argparse.Namespace,
) -> dict[str, list[dict]]:
    params = heldout.abstract_params
    groups = sweeps.levels(params)
    if options.tensors:
        groups = sweeps.tensors(params, options.tensors)
    whole = measured.lengths(sigma_rels)
    if not whole.sigma_rel:
        raise ValueError(
            "The snapshots express none of the lengths asked for: choose others with "
            "--sigma_rel, or store snapshots more often (training.snapshot_mimg)."
        )
    sweeps.warn_left_out(sigma_rels, whole.sigma_rel)
    over_time, by_group = [], []
    if "time" in kinds:
        over_time = measured.over_time(sigma_rels, options.times)
    if "groups" in kinds:
        best = sweeps.optimum(whole).sigma_rel
        fixed = best if options.fixed is None else options.fixed
        by_group = measured.by_group(groups, sigma_rels, fixed)
    curves = {"lengths": [whole], "over_time": over_time, "by_group": by_group}
    return {
        name: [c._asdict() | {"optimum": sweeps.optimum(c)._asdict()} for c in each]
        for name, each in curves.items()
    }


def _search(families: list[search.Family], measured: sweeps.Sweeps, out: Path) -> None:
    """Searches each family, prints what it found, and writes search.json."""
    records = []
    for family in families:
        each = measured.search(family)
        records.append({"profile": family.words(each.best), **each._asdict()})
        cli.say(
            f"{family.words(each.best)}: loss {each.loss:.5f}, the best of "
            f"{each.evaluations} evaluations; the optimum is between {each.low:.4g} and "
            f"{each.high:.4g}"
        )
    directory.write_json(out / "search.json", {"found": records})


def _print(found: dict[str, list[dict]]) -> None:
    print(f"{'':40} {'best':>6} {'fitted':>7} {'loss':>8}")
    # The last time is that of the first line.
    for curve in [*found["lengths"], *found["over_time"][:-1], *found["by_group"]]:
        best, fitted = curve["optimum"], curve["optimum"]["fitted_sigma_rel"]
        name = f"{curve['group']} at {curve['nimg']:,} images"
        shown = "-" if fitted is None else f"{fitted:.3f}"
        print(f"{name:40} {best['sigma_rel']:6.3f} {shown:>7} {best['loss']:8.4f}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.run_parser(__doc__)
    parser.add_argument(
        "--sigma_rel", default="", help="lengths (those of evaluation.sigma_rels)"
    )
    parser.add_argument(
        "--kinds",
        default="",
        help=f"{','.join(KINDS)}; with a guide, {','.join(guided_sweep.KINDS)}; (all)",
    )
    parser.add_argument(
        "--times", type=int, default=6, help="of the training (%(default)s)"
    )
    parser.add_argument(
        "--tensors",
        default="",
        help="a regular expression: sweep each tensor of such a name by itself",
    )
    parser.add_argument(
        "--fixed", type=float, help="length of the other parts (the best of all)"
    )
    parser.add_argument(
        "--search",
        action="append",
        default=[],
        metavar="PROFILE",
        help="instead of sweeping, search a profile with LOW..HIGH in place of one "
        "number, such as power:0.02..0.25 or decay:cosine:0.1..1; may be repeated",
    )
    guided_sweep.add_options(parser)
    parser.add_argument("--out", type=user_path, help="directory (RUN/sweeps)")
    return parser


if __name__ == "__main__":
    cli.run(main)
