"""What the commands share: config arguments, one-sentence errors, progress bars."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import ml_collections
import rich.console
import rich.progress

import configs
from edm_jax.run_dir import RunDir, read_json

EXPECTED = (ValueError, FileNotFoundError, PermissionError, NotADirectoryError)


def config_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --config; overrides, --config.FIELD=VALUE, are left over for
    `parse_config`."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE:WORKLOAD",
        help="such as configs/config_g.py:digits; any field of it is overridden with "
        "--config.FIELD=VALUE, such as --config.network.dropout=0.1",
    )
    return parser


def parse_config(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
    """The options and the resolved config; raises what `configs.load` raises."""
    options, rest = parser.parse_known_args(arguments)
    overrides = {}
    for argument in rest:
        name, equals, value = argument.partition("=")
        if not name.startswith("--config.") or not equals:
            raise ValueError(
                f"{argument!r} is no option of this command; overrides are written "
                "--config.FIELD=VALUE."
            )
        overrides[name.removeprefix("--config.")] = value
    return options, configs.load(options.config, overrides)


def open_run(path: Path) -> tuple[RunDir, ml_collections.ConfigDict]:
    """An existing run and its config, as recorded there."""
    recorded = read_json(path / "config.json")
    if not recorded:
        raise FileNotFoundError(f"{path} is no run directory: it has no config.json.")
    config = configs.from_json(recorded)
    return RunDir(path, config), config


def run(main: Callable[[], None]) -> None:
    """Runs a command; an expected error is one sentence and exit status 2."""
    try:
        main()
    except EXPECTED as error:
        sentence = " ".join(str(error).split())
        print(f"{Path(sys.argv[0]).stem}: {sentence}", file=sys.stderr)
        sys.exit(2)


def use_compilation_cache() -> None:
    """Keeps compiled programs between processes, unless the user chose where."""
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        # By machine: what is compiled for one CPU may not run on another.
        cache = home / "edm_jax" / f"xla-{platform.node()}"
        jax.config.update("jax_compilation_cache_dir", str(cache))


RATE = rich.progress.TextColumn("{task.fields[rate]:,.0f} img/s")


def progress_bar(*columns: rich.progress.ProgressColumn) -> rich.progress.Progress:
    """A bar with count, the columns given, and time left."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=30),
        rich.progress.MofNCompleteColumn(),
        *columns,
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
    )
