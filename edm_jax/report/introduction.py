"""The first paragraph of the page: what was trained, as the configs say."""

from collections.abc import Sequence
from html import escape

from edm_jax.report.runs import Entry

NO_BREAK_HYPHEN = "\u2011"
_PAPER = (
    "Karras et al., “Analyzing and Improving the Training Dynamics of Diffusion Models” "
    "(arXiv 2312.02696)"
)


def introduction(entries: Sequence[Entry]) -> str:
    """What was trained on what, for how long, when, and what a config is."""
    runs = [run for entry in entries for run in entry.runs]
    done = sum(run.measured for run in runs)
    counts = sorted({run.status.total_nimg for run in runs if run.status.total_nimg})
    workloads = sorted({run.workload for run in runs} - {""})
    dates = sorted({run.start_time[:10] for run in runs} - {""})
    words = [subject(entries)]
    if workloads:
        words.append(f", trained on {' and '.join(workloads)}")
    if len(counts) > 2:
        words.append(f" for {counts[0]:,} to {counts[-1]:,} images")
    elif counts:
        images = " or ".join(f"{count:,}" for count in counts)
        words.append(f" for {images} images each")
    if dates:
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        words.append(f", started {when}".replace("-", NO_BREAK_HYPHEN))
    tail = "all finished" if done == len(runs) else f"{done} finished"
    count = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    return (
        f"<p>{escape(''.join(words))}. {count}, {tail}. "
        f"{escape(_relation(entries))}</p>"
    )


def subject(entries: Sequence[Entry]) -> str:
    """Whether these are configs of the ablation ladder, variants of them, or others."""
    steps = [e for e in entries if e.variant == 0 and len(e.letter) == 1]
    steps = [e.letter.upper() for e in steps if e.letter in "abcdefg"]
    altered = [e.letter.upper() for e in entries if e.variant and e.letter]
    others = len(entries) - len(steps) - len(altered)
    parts = []
    if steps:
        label = steps[0] if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        if len(steps) != ord(steps[-1]) - ord(steps[0]) + 1:
            label = ", ".join(steps)
        configs = "Config" if len(steps) == 1 else "Configs"
        parts.append(f"{configs} {label} of the ablations of {_PAPER}")
    if altered:
        of = ", ".join(sorted(set(altered)))
        count = f"{len(altered)} variants" if len(altered) > 1 else "1 variant"
        parts.append(f"{count} of config {of}" + ("" if steps else f" of {_PAPER}"))
    if others:
        parts.append(f"{others} configs" if others > 1 else "1 config")
    *most, last = parts
    text = f"{', '.join(most)} and {last}" if most else last
    return text[0].upper() + text[1:]


def _relation(entries: Sequence[Entry]) -> str:
    """What the changes under a config are against."""
    if not any(entry.reference for entry in entries):
        return ""
    letters = {entry.letter for entry in entries}
    if any(entry.variant for entry in entries) or len(letters) < 2:
        return "Each config lists what it changes of its parent."
    return "Each config is the one before it plus the changes listed under it."
