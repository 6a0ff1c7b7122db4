"""Rebuild averaged weights of any EMA length from a run's snapshots (App. C, Alg. 3).

    python experiments/reconstruct.py --run=runs/ladder-digits/g --sigma_rel=0.06,0.15

Writes one safetensors file for each length, and prints what each rebuild cost in
accuracy: the profile's fit error, and the error to expect from rounding.
"""

import argparse
from pathlib import Path

from edm_jax import ema, posthoc, snapshots
from experiments import cli


def main() -> None:
    """Parse the command line and rebuild."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a run directory")
    parser.add_argument(
        "--sigma_rel", required=True, help="relative lengths, such as 0.05,0.13"
    )
    parser.add_argument("--nimg", type=int, help="at this time (the last snapshot's)")
    parser.add_argument("--out", type=Path, help="directory (RUN/reconstructed)")
    options = parser.parse_args()
    try:
        targets = [float(text) for text in options.sigma_rel.split(",")]
    except ValueError:
        raise ValueError(
            f"--sigma_rel={options.sigma_rel!r} is not a list such as 0.05,0.13."
        ) from None
    run, config = cli.open_run(options.run)
    refs = snapshots.list_snapshots(run.snapshots)
    rebuilt = posthoc.reconstruct(refs, targets, options.nimg)
    nimg = options.nimg or max(ref.meta.nimg for ref in refs)
    for sigma_rel, (params, solution) in rebuilt.items():
        meta = snapshots.SnapshotMeta(
            profile=ema.PowerProfile(sigma_rel),
            nimg=nimg,
            update_interval=config.optimizer.batch_size * config.ema.update_every,
            config_hash=run.config_hash,
        )
        path = snapshots.write(options.out or run.path / "reconstructed", params, meta)
        print(
            f"{path}: fit error {solution.fit_error:.1e}, "
            f"rounding {solution.rounding_error:.1e}, sum |x| {solution.sum_abs:.3g}"
        )


if __name__ == "__main__":
    cli.run(main)
