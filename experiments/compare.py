"""Compare runs: python experiments/compare.py runs/ladder-digits --out=report.

Reads run directories only and writes index.html (opens from disk), results.csv,
results.md and figures/*.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edm_jax import report


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the comparison."""
    parser = argparse.ArgumentParser(description="Compare runs of a study.")
    parser.add_argument(
        "directories", nargs="+", type=Path, help="a study, or run directories"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="where to write (%(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        page = report.build(report.find_runs(options.directories), options.out)
    except FileNotFoundError as error:
        sys.exit(f"compare: {error}")
    print(f"Wrote {page}")


if __name__ == "__main__":
    main()
