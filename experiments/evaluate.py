"""Evaluate a trained run: python experiments/evaluate.py --run=runs/digits-g-seed0.

Rebuilds every EMA length of evaluation.sigma_rels from the snapshots, measures the
held-out loss of each, and has evaluation.evaluators measure the best. Writes
evaluation.json, and what they draw, such as samples.png.
"""

from edm_jax.evals import evaluation
from experiments import cli


def main() -> None:
    """Parse the command line and evaluate."""
    options = cli.run_parser(__doc__).parse_args()
    cli.prepare_jax()
    run, config = cli.open_run(options)
    before = run.status
    with cli.progress_bar() as bar:
        report = cli.report_to(bar)

        def on_progress(what: str, done: int, total: int) -> None:
            report(what, done, total)
            run.set_status(
                state="running",
                stage="evaluate",
                message=f"{what}: {done} of {total}",
                now=False,
            )

        try:
            result = evaluation.evaluate(config, run, on_progress)
        except KeyboardInterrupt:
            message = "evaluation stopped by a signal"
            run.set_status(state="preempted", stage="evaluate", message=message)
            raise
        except BaseException as error:
            message = f"evaluation stopped: {type(error).__name__}: {error}"
            run.set_status(state="failed", stage="evaluate", message=message)
            raise
    # Evaluating a run that is still in training leaves it as it was.
    best_nimg = run.best_nimg
    finished = result["nimg"] == (best_nimg or before.get("total_nimg"))
    state = "done" if finished else before["state"]
    run.set_status(state=state, stage="evaluate", message="")
    best, untrained = result["best"], result.get("untrained_loss")
    was = "" if untrained is None else f" (untrained {untrained:.4f})"
    if best_nimg:
        print(f"It stopped early, and is evaluated at its best: {best_nimg:,} images.")
    cli.say(
        f"{run.path}: held-out loss {best['loss']:.4f} at sigma_rel "
        f"{best['sigma_rel']:.3f}{was}; see evaluation.json there"
    )


if __name__ == "__main__":
    cli.run(main)
