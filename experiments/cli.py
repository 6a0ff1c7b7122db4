"""What the commands share: config arguments, one-sentence errors, progress bars."""

import argparse
import dataclasses
import gc
import importlib
import io
import logging
import os
import platform
import re
import shlex
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import jax
import rich.console
import rich.progress
from etils import epath

import configs
from edm_jax import files, menu, original
from edm_jax.data.readers import Tfds
from edm_jax.evals import latents
from edm_jax.fields import number_list  # noqa: F401  for the commands
from edm_jax.platform import INSTALL, keep_plugin_errors, plugin_error, prepare
from edm_jax.runs import claims, signals, store
from edm_jax.runs.directory import RunDir, read_json, snapshot_place
from edm_jax.train import bases
from edm_jax.train.config import RunConfig

OBJECT_STORES = ("gs", "s3", "az")  # those of fsspec that etils knows
EXPECTED = (ValueError, OSError, ImportError)


def config_parser(
    description: str | None, required: bool = True
) -> argparse.ArgumentParser:
    """A parser with --config, which leaves overrides for `parse_config`."""
    parser = _parser(description)
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE:WORKLOAD",
        help="such as configs/config_g.py:digits; any field of it is overridden with "
        "--config.FIELD=VALUE, such as --config.network.dropout=0.1",
    )
    return parser


def _parser(description: str | None) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_config(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, RunConfig]:
    """The options and the resolved config; raises what `configs.load` raises."""
    options, rest = parser.parse_known_args(arguments)
    return options, load_config(options, overrides(rest))


def load_config(options: argparse.Namespace, overrides: Mapping[str, str]) -> RunConfig:
    """The config of --config and of overrides."""
    if not options.config:
        raise ValueError("--config=FILE:WORKLOAD is missing: name a config.")
    return configs.load(options.config, overrides)


def overrides(arguments: Sequence[str]) -> dict[str, str]:
    """The overrides {FIELD: VALUE} of a command line, as absl and ml_collections do.

    --config.FIELD=VALUE, --config.FIELD VALUE, and --config.FIELD or --noconfig.FIELD
    for True and False; with one dash as well.

    Raises:
        ValueError: for any other argument.
    """
    found = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        no, field, value = match.groups() if match else ("", "", None)
        if not field or (no and value is not None):
            raise ValueError(
                f"{argument!r} is not an option of this command; overrides are written "
                "--config.FIELD=VALUE."
            )
        if no:
            value = "False"
        elif value is None:
            # Of what begins with a dash, only a negative number is a value.
            is_value = rest and re.match(r"(?!-)|-(\.?\d|inf|nan)", rest[0])
            value = rest.pop(0) if is_value else configs.NO_VALUE
        found[field] = value
    return found


def run_parser(
    description: str | None, required: bool = True
) -> argparse.ArgumentParser:
    """A parser with --run, and --config for snapshots of the original code."""
    parser = _parser(description)
    parser.add_argument(
        "--run",
        required=required,
        type=os.path.expanduser,
        help="a run directory, or snapshots of the original code: a directory of "
        "PREFIX-KIMG-SIGMA_REL.pkl, one such file, or a pattern",
    )
    parser.add_argument(
        "--config",
        default="",
        metavar="FILE:WORKLOAD",
        help="for snapshots of the original code: what they were trained on (told by "
        "their size)",
    )
    return parser


def open_run(
    options: argparse.Namespace,
) -> tuple[RunDir, RunConfig]:
    """The run that --run means and its config, as recorded there."""
    path = _taken_over(options)
    config = bases.of_run(recorded_config(path), path)
    # The status of a run in training is its trainer's to write.
    return RunDir(path, config, writing=claims.is_free(path)), config


def place(text: str) -> Path | store.StoredRun:
    """A run directory that a user typed, here or on a store, for argparse's `type`."""
    if "://" not in text:
        return files.user_path(text)
    try:
        return store.StoredRun.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def here(text: str, without: tuple[str, ...] = ()) -> Path:
    """The path of a run; of one on an object store, its copy, which `run` sends back."""
    if "://" not in text:
        return Path(text)
    found = store.StoredRun.of(text)
    if not found.exists():
        raise FileNotFoundError(f"There is no run at {found}: check the address.")
    _used.append(found)
    return found.pull(without)


_used: list[store.StoredRun] = []  # by this command


def add_decoder(parser: argparse.ArgumentParser) -> None:
    """Adds --decoder and --pixels, where images are latents."""
    parser.add_argument(
        "--decoder",
        type=os.path.expanduser,
        metavar="PATH",
        help="of latents: the VAE's .safetensors file, or a folder that diffusers wrote "
        "(evaluation.decoder)",
    )
    parser.add_argument(
        "--pixels",
        choices=("unit", "symmetric"),
        help="what the latents were encoded from: pixels in [0, 1], as EDM2's were, or "
        "in [-1, 1] (unit)",
    )


def decoded(options: argparse.Namespace, config: RunConfig) -> RunConfig:
    """The config with the decoder that --decoder and --pixels name."""
    decoder = config.evaluation.decoder
    if options.decoder:
        decoder = latents.Vae(options.decoder)
    if options.pixels:
        if not isinstance(decoder, latents.Vae):
            raise ValueError("--pixels needs the VAE's weights: --decoder=PATH.")
        decoder = dataclasses.replace(decoder, pixels=options.pixels)
    evaluation = dataclasses.replace(config.evaluation, decoder=decoder)
    config = dataclasses.replace(config, evaluation=evaluation)
    if isinstance(decoder, latents.Vae):  # before anything takes time
        latents.pictures_of(config)
        decoder.coder  # noqa: B018
    return config


def recorded_config(run: Path) -> RunConfig:
    """The config of a run directory; raises ValueError or OSError where it has none."""
    try:
        if not (recorded := read_json(run / "config.json")):
            raise FileNotFoundError(
                f"{run} is not a run directory: it has no config.json."
            )
        return configs.from_json(recorded, run / "config.json")
    except files.Damaged as error:
        reason = f"{error.reason} Restore it from a copy: this command needs it."
        raise files.Damaged(error.path, reason) from None


def _taken_over(options: argparse.Namespace) -> Path:
    """--run, or the run made of it where it names snapshots of the original code."""
    # Imported here: it imports this file.
    from experiments import originals

    if not options.run:
        raise ValueError("--run is empty: name a run directory.")
    path = here(options.run, without=("checkpoints/",))
    if (path / "config.json").exists() or not (found := original.find(path)):
        return path
    return originals.take_over(path, found, options.config)


def find_snapshots(options: argparse.Namespace) -> tuple[epath.Path, epath.Path]:
    """Where the snapshots of --run lie, and the directory that its results go to.

    --run is a run directory, here or on an object store, or one that holds snapshots.
    """
    scheme, remote, _ = options.run.partition("://")
    if remote and scheme not in OBJECT_STORES:
        raise ValueError(
            f"--run={options.run!r} begins with {scheme}://, but object stores begin "
            f"with {', '.join(f'{name}://' for name in OBJECT_STORES)}."
        )
    directory = epath.Path(options.run if remote else _taken_over(options))
    inside, config = directory / "snapshots", directory / "config.json"
    if config.exists():
        try:
            raw = config.read_bytes() if remote else files.read_bytes(config)
            training = files.json_object(config, raw).get("training", {})
            root = training.get("snapshot_dir", "")
            return snapshot_place(directory, root), directory
        except (files.Damaged, AttributeError, TypeError) as error:
            reason = getattr(error, "reason", "is damaged: it is not a run's config.")
            there = shlex.quote(f"--run={inside}")
            remedy = f"Restore it, or name the snapshots themselves: {there}"
            raise files.Damaged(config, f"{reason} {remedy}") from None
    return (inside if inside.is_dir() else directory), directory


def command(script: str, *arguments: object) -> str:
    """A command of this project, to be pasted into a shell."""
    return shlex.join(["python", f"experiments/{script}", *map(str, arguments)])


def allowed_fields(text: str, config: RunConfig) -> list[str]:
    """The fields of --allow, 'data' for the data set itself, and 'base' for the weights
    that a run starts from; raises ValueError."""
    fields = [field for field in text.split(",") if field]
    known = [*configs.flatten(config), *configs.MENUS, configs.GROUPS, "data", "base"]
    for field in fields:
        if field not in known:
            near = menu.suggest(field, known)
            raise ValueError(f"--allow={field}: there is no field {field!r}.{near}")
    return fields


def seed_list(text: str, option: str = "--seeds") -> list[int]:
    """'0-2', '7' or '0,3,5-7' as whole numbers; raises ValueError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"{option}={text!r}: give whole numbers and ranges, such as 0-2 or 0,3,5."
            )
        seeds += range(int(first), int(last or first) + 1)
    if seeds and max(seeds) >= 2**31:
        raise ValueError(f"{option}={text!r}: seeds must be below 2^31.")
    if not seeds:
        raise ValueError(
            f"{option}={text!r} is empty: the first number is the smaller."
        )
    if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise ValueError(f"{option}={text!r} names {twice[0]} twice.")
    return seeds


class Console(rich.console.Console):
    """One whose reader may leave, as `head` does, without that being a failure."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Warnings(logging.Handler):
    """The library's warnings, as lines above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        # Not a stream of its own: a bar takes the place of sys.stderr.
        say(record.getMessage(), file=sys.stderr)


def say(text: str, file: TextIO | None = None) -> None:
    """Prints one line, in which names of files act on no terminal."""
    print(files.printable(text), file=file or sys.stdout, flush=True)


def run(main: Callable[[], None]) -> None:
    """Runs a command; an expected error is one sentence and exit status 2."""
    name = Path(sys.argv[0]).stem
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold any bytes
            stream.reconfigure(errors="backslashreplace")
    library = logging.getLogger("edm_jax")
    library.addHandler(_Warnings())
    library.propagate = False
    keep_plugin_errors()
    try:
        with signals.interruptible():
            main()
            for stored in _used:
                if stored.push():
                    say(f"Sent to {stored}.", sys.stderr)
        sys.stdout.flush()  # here, where a reader that has left is known
        return
    except BrokenPipeError:
        # Whoever read the output has enough, as `head` does; nothing is left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except EXPECTED as error:
        print(f"{name}: {sentence(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again.", file=sys.stderr)
        status = 130
    except Exception as error:
        if jax.distributed.is_initialized():
            traceback.print_exc()
            status = 1
        elif why := _device_failure(error):
            print(f"{name}: {why}", file=sys.stderr)
            status = 2
        else:
            raise
    if jax.distributed.is_initialized():
        # Leaving as usual would wait for the others, who wait for this process.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _device_failure(error: Exception) -> str:
    """What to do if a device cannot be started or ran out of memory; else ''."""
    said = str(error)
    if "RESOURCE_EXHAUSTED" in said:
        return (
            "A device ran out of memory: set training.microbatches higher, "
            "training.remat=True or, with several devices, training.sharding=full."
        )
    # Asking again may succeed meanwhile, as when another process frees a GPU's memory.
    if "Unable to initialize backend" in said:
        return jax_start_sentence(said)
    frames = traceback.extract_tb(error.__traceback__)
    if not any(f"{os.sep}jax{os.sep}" in frame.filename for frame in frames):
        return ""
    try:
        jax.devices()
    except Exception as why:  # noqa: BLE001  of many types
        return jax_start_sentence(str(why))
    return ""


def jax_start_sentence(why: str) -> str:
    """What to do where JAX cannot start its devices; `why` is what JAX says."""
    asked = jax.config.jax_platforms or ""
    why = " ".join(why.split()).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    why = why.removeprefix(f"Unable to initialize backend {asked!r}: ")
    if not why or "list of known backends" in why:
        why = plugin_error().rstrip(".") or why
    said = f"JAX cannot start on {asked!r}" if asked else "JAX cannot start"
    said += (
        f" ({files.printable(why)})"
        if why
        else ": its plugin is not installed, or finds no device"
    )
    install = [text for name, text in INSTALL.items() if name in asked]
    return ". ".join([said, *install, "JAX_PLATFORMS=cpu uses the processor instead."])


def sentence(error: BaseException) -> str:
    """What to tell of an expected error, on one line, safe to print."""
    if isinstance(error, OSError) and files.is_full(error):
        place = f" at {error.filename}" if error.filename else ""
        text = f"The disk is full{place}: make room, then run the same command again."
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}."
    else:
        text = str(error)
    return files.printable(" ".join(text.split()))


def prepare_jax() -> None:
    """Before JAX's first use: makes it fast, and keeps what it compiles for next time.

    Compiled programs lie where the user chose, else below ~/.cache.
    """
    # Tracing makes many objects and few cycles: at Python's own rate, collection takes a
    # tenth of the time until the first step.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    prepare()
    if jax.config.jax_compilation_cache_dir is None:
        cache = files.cache_home() / f"xla-{_kind_of_cpu()}"
        jax.config.update("jax_compilation_cache_dir", str(cache))


def _kind_of_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The same on all hosts whose CPUs run the same programs.

    Not a host's name: of a run on many hosts only the first writes to the cache, and the
    others must find it there.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.node()
    found = {re.split(r"\s*:\s*", line)[0]: line for line in reversed(lines)}
    features = [found.get(name, "") for name in ("model name", "flags", "Features")]
    digest = zlib.crc32(" ".join([platform.machine(), *features]).encode())
    return f"{platform.machine()}-{digest:08x}"


def report_to(bar: rich.progress.Progress) -> Callable[[str, int, int], None]:
    """on_progress(what, done, total) that gives everything a bar of its own.

    Nothing done yet means that it is being compiled.
    """
    tasks: dict[str, rich.progress.TaskID] = {}

    def on_progress(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
            if done == 0 and not bar.console.is_terminal:
                print(f"{what}: compiling.", file=sys.stderr, flush=True)
        text = what if done else f"{what}: compiling"
        bar.update(tasks[what], completed=done, total=total, description=text)

    return on_progress


RATE = rich.progress.TextColumn("{task.fields[rate]:,.0f} img/s")


def progress_bar(
    *columns: rich.progress.ProgressColumn,
    count: rich.progress.ProgressColumn | None = None,
    reads: RunConfig | None = None,
) -> rich.progress.Progress:
    """A bar with count, the columns given, and time left.

    Args:
        *columns: More of them.
        count: In place of 'done/total'.
        reads: The config whose data are read while the bar is shown.
    """
    if reads and isinstance(reads.data.reader, Tfds):
        # While it is imported, it replaces `import` for all threads, the bar's too.
        importlib.import_module("tensorflow_datasets")
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=30),
        count or rich.progress.MofNCompleteColumn(),
        *columns,
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
    )
