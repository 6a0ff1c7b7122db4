"""How papers sampled: settings of a sampler and of guidance, by name.

Checked against notes of the papers' numbers: weights, guides and intervals of guidance,
and the EMA lengths of classifier-free guidance; `edm_imagenet64` also against the command
that its authors publish. Where a source says `_UNCHECKED`, it names the table that holds
the values, which were written down without it.
"""

import dataclasses

from edm_jax.diffusion.samplers import Sampler, StochasticHeun


@dataclasses.dataclass(frozen=True)
class Preset:
    """A paper's settings; what is None or '' is left as it is.

    Attributes:
        source: where the values stand.
        sampler: the integrator.
        num_steps: of the sampler.
        sigma_rel: EMA length of the network.
        guide: in words, the guide that the values are for.
        guide_sigma_rel: EMA length of the guide.
        guidance: w.
        interval: 'LOW,HIGH', of sigma.
    """

    source: str
    sampler: Sampler | None = None
    num_steps: int | None = None
    sigma_rel: float | None = None
    guide: str = ""
    guide_sigma_rel: float | None = None
    guidance: float | None = None
    interval: str = ""

    @property
    def about(self) -> str:
        """One line for a list."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "source")
        given = {name: getattr(self, name) for name in names}
        said = [f"{k} {v}" for k, v in given.items() if v not in (None, "")]
        return f"{', '.join(said)} ({self.source})"


_UNCHECKED = "not compared with it"
_EDM_TABLE = "arXiv 2206.00364, Table 5"
_EDM = f"{_EDM_TABLE}; {_UNCHECKED}"
_EDM2 = "arXiv 2312.02696, Table 2"
_INTERVAL = f"arXiv 2404.07724, with EMA lengths of {_EDM2}"
_AUTO = f"arXiv 2406.02507, Table 1; EMA lengths {_UNCHECKED}"
_UNCONDITIONAL = "the unconditional XS"


def _classifier_free(sigma_rel: float, guidance: float) -> Preset:
    return Preset(
        _EDM2,
        sigma_rel=sigma_rel,
        guide=_UNCONDITIONAL,
        guide_sigma_rel=sigma_rel,
        guidance=guidance,
    )


_CFG = {size: _classifier_free(*values) for size, values in {
    "xs": (0.045, 1.4),
    "s": (0.025, 1.4),
    "m": (0.030, 1.2),
    "l": (0.015, 1.2),
    "xl": (0.020, 1.2),
    "xxl": (0.015, 1.2),
}.items()}  # fmt: skip

# All for the lowest FID; img512 and img64 are EDM2's networks of ImageNet.
PRESETS: dict[str, Preset] = {
    "edm_cifar10_vp": Preset(_EDM, StochasticHeun(30.0, 0.01, 1.0, 1.007)),
    "edm_cifar10_ve": Preset(_EDM, StochasticHeun(80.0, 0.05, 1.0, 1.007)),
    "edm_imagenet64_adm": Preset(_EDM, StochasticHeun(80.0, 0.05, 50.0, 1.003)),
    "edm_imagenet64": Preset(_EDM_TABLE, StochasticHeun(40.0, 0.05, 50.0, 1.003), 256),
    **{f"img512_{size}_cfg": preset for size, preset in _CFG.items()},
    "img512_s_interval": dataclasses.replace(
        _CFG["s"], source=_INTERVAL, guidance=2.1, interval="0.28,2.90"
    ),
    "img512_xxl_interval": dataclasses.replace(
        _CFG["xxl"], source=_INTERVAL, guidance=2.0, interval="0.19,1.61"
    ),
    "img512_s_autoguidance": Preset(
        _AUTO,
        sigma_rel=0.070,
        guide="XS after 1/16 of the training",
        guide_sigma_rel=0.125,
        guidance=2.10,
    ),
    "img512_xxl_autoguidance": Preset(
        _AUTO,
        sigma_rel=0.075,
        guide="M after 1/3.5 of the training",
        guide_sigma_rel=0.155,
        guidance=2.05,
    ),
    "img64_s_autoguidance": Preset(
        _AUTO,
        sigma_rel=0.045,
        guide="XS after 1/8 of the training",
        guide_sigma_rel=0.110,
        guidance=1.70,
    ),
}
