"""The presets hold the papers' values, in a form that the commands take."""

from edm_jax.diffusion.presets import PRESETS
from experiments import guides


def test_the_values_are_the_papers():
    edm = PRESETS["edm_imagenet64"]
    assert vars(edm.sampler) == vars(type(edm.sampler)())  # the defaults' source
    found = PRESETS["img512_xxl_interval"]
    assert guides.weight(str(found.guidance)) == 2.0
    assert guides.interval(found.interval) == (0.19, 1.61)
    assert PRESETS["img512_s_cfg"].guidance == 1.4
    lengths = [PRESETS[f"img512_{s}_cfg"].sigma_rel for s in ("xs", "s", "m", "l")]
    assert lengths == [0.045, 0.025, 0.030, 0.015]
    auto = {name: p.guidance for name, p in PRESETS.items() if "autoguidance" in name}
    assert list(auto.values()) == [2.10, 2.05, 1.70]


def test_a_preset_says_what_it_sets_on_one_line():
    said = PRESETS["img64_s_autoguidance"].about
    assert said == (
        "sigma_rel 0.045, guide XS after 1/8 of the training, guide_sigma_rel 0.11, "
        "guidance 1.7 (arXiv 2406.02507, Table 1; EMA lengths not compared with it)"
    )
    assert all("\n" not in preset.about for preset in PRESETS.values())
