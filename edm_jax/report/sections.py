"""The figures' sections of the page: headings, places to draw in, and captions."""

from typing import Any

_LOSS = (
    "Loss per element, weighted by λ(σ), against images trained, on a logarithmic axis. "
    "A line is the mean over a config’s finished seeds, the band reaches from its lowest "
    "to its highest seed. A dashed line that ends in a cross or a triangle is a run that "
    "is in no mean: it failed or stopped, or it still runs. The held-out loss uses fixed noise and compares across configs; the training loss, a "
    "trailing mean over a thirtieth of the run, does so only for equal P_mean and P_std, "
    "which A does not share."
)
_EMA = (
    "Held-out loss of averages rebuilt after training against the EMA length "
    "σ<sub>rel</sub>, the standard deviation of the averaging profile over the training "
    "length: the mean over seeds and the band from the lowest to the highest seed. Rings "
    "mark the optimum of the mean, diamonds the traditional EMA of config A at its "
    "half-life’s σ<sub>rel</sub>. In the paper’s Fig. 5a the optimum differs between "
    "configs and narrows from B to G."
)
_MAGNITUDES = (
    "Maximum and mean over layers of the magnitude of activations and of weights against "
    "images trained, of one run of each config, from zero. A column shares one axis "
    "between configs unless their largest values differ more than eightfold. The paper "
    "(Fig. 3 and 15): in C both grow without bound, in D activations stop growing while "
    "weights still do, in E both stand still; weights do so in F and G too."
)
_SIGMA = (
    "Left and middle: training loss per element, λ-weighted, and the learned "
    "u(σ) by range of σ; at its best u is the logarithm of the loss. Right: "
    "effective learning rates, the length of a step’s change of the weights over "
    "that of the weights, by part of the network. Each point is a mean over the records "
    "since the last for the first two; one run of the config."
)
_NOSCRIPT = (
    '<noscript><p class="note">The figures are drawn by a script, which is turned off; '
    "they also lie beside this page in figures/.</p></noscript>"
)


def figure_sections(data: dict[str, Any]) -> str:
    """The sections of the figures that there is data for."""
    parts = []
    if data["loss"]:
        parts.append(
            _curves("loss", "Loss against images trained", _LOSS, data["loss"])
        )
    if data["ema"]:
        parts.append(_curves("ema", "Quality against EMA length", _EMA, data["ema"]))
    many = len(data["configs"]) > 12
    if any("magnitudes" in detail for detail in data["details"]):
        choice = _choice("magnitudes-of", "Show", many)
        inside = '<div class="key js" id="magnitude-key"></div>'
        inside += '<div id="magnitudes" class="rows js"></div>'
        title = "Magnitudes during training"
        parts.append(_section("magnitudes", title, _MAGNITUDES, choice + inside))
    if any("sigma" in d or "rates" in d for d in data["details"]):
        choice = _choice("sigma-of", "Config", True)
        places = "".join(
            f'<div class="panel"><h3>{title}</h3><div class="plot" role="img" '
            f'aria-label="{title}" data-detail="{name}"></div></div>'
            for name, title in (
                ("loss", "Training loss by σ"),
                ("logvar", "u(σ)"),
                ("rates", "Effective learning rates"),
            )
        )
        inside = f'{choice}<div class="panels three js">{places}</div>'
        title = "Ranges of σ and learning rates"
        parts.append(_section("sigma", title, _SIGMA, inside))
    return "".join(parts)


def _curves(name: str, title: str, caption: str, figure: dict[str, Any]) -> str:
    places = "".join(
        f'<div class="panel"><h3>{panel["title"]}</h3>'
        f'<div class="plot tall" role="img" aria-label="{panel["title"]}" '
        f'data-figure="{name}" data-panel="{place}"></div></div>'
        for place, panel in enumerate(figure["panels"])
    )
    return _section(name, title, caption, f'<div class="panels js">{places}</div>')


def _section(name: str, title: str, caption: str, inside: str) -> str:
    return (
        f'<section id="{name}-section"><h2>{title}</h2><figure>{inside}{_NOSCRIPT}'
        f"<figcaption>{caption}</figcaption></figure></section>"
    )


def _choice(name: str, label: str, wanted: bool) -> str:
    if not wanted:
        return ""
    return f'<div class="tools js"><label>{label} <select id="{name}"></select></label></div>'
