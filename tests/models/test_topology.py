"""The topology as data equals the paper's Fig. 16, and the network is built from it."""

import pytest

import configs
from edm_jax.models import topology
from edm_jax.models.topology import Element

SIZE_S = topology.Sizes(
    resolution=64,
    channels=4,
    num_classes=1000,
    model_channels=192,
    channel_mult=(1, 2, 3, 4),
    blocks_per_level=3,
    attention_resolutions=(16, 8),
)


def test_size_s_has_the_papers_widths():
    found = topology.elements(SIZE_S)
    encoder = [each for each in found if each.side == "enc"]
    assert [each.features for each in encoder] == [
        *(192, 192, 192, 192),
        *(192, 384, 384, 384),
        *(384, 576, 576, 576),
        *(576, 768, 768, 768),
    ]
    taking = {}
    for each in found:
        if each.takes_skip:
            taking.setdefault(each.resolution, []).append(each.features_in)
    assert taking == {
        8: [1536, 1536, 1536, 1344],
        16: [1344, 1152, 1152, 960],
        32: [960, 768, 768, 576],
        64: [576, 384, 384, 384],
    }
    blocks = found[1:]
    assert len(blocks) == 36
    assert sum(each.features_in != each.features for each in blocks) == 19
    assert sum(each.takes_skip for each in found) == len(encoder) == 16


def test_attention_is_at_its_resolutions_and_in_the_decoders_first_block():
    found = topology.elements(SIZE_S)
    attending = [each.name for each in found if each.attention]
    ordinary = [each for each in found if each.kind.startswith("block")]
    assert attending == [
        each.name
        for each in found
        if (each.resolution in (16, 8) and each in ordinary) or each.kind == "in0"
    ]


def test_resampling_and_names():
    found = topology.elements(SIZE_S)
    resampling = {each.name: each.resample for each in found if each.resample != "keep"}
    sides = {32: "down", 16: "down", 8: "down"}
    expected = {f"enc_{side}x{side}_down": "down" for side in sides}
    assert resampling == expected | {f"dec_{s}x{s}_up": "up" for s in (16, 32, 64)}
    assert found[0] == Element("enc", 64, "conv", 0, 192)
    assert (found[0].name, found[0].place) == ("enc_64x64_conv", "64x64_conv")


@pytest.mark.slow
@pytest.mark.parametrize("letter", "ag")
def test_the_network_is_what_the_topology_says(letter):
    model = configs.load(f"{configs.letter_path(letter)}:cifar10").model
    params = model.shapes["unet"]
    first, *blocks = topology.elements(model.spec)
    assert params[first.name]["kernel"].shape[-1] == first.features
    names = {each.name for each in (first, *blocks)}
    assert names | {"embedding", "out_conv", "out_norm"} >= params.keys() >= names
    for each in blocks:
        block = params[each.name]
        assert ("attention" in block) == each.attention
        assert ("conv_skip" in block) == (each.features_in != each.features)
        if "conv_skip" in block:
            shape = block["conv_skip"]["kernel"].shape
            assert shape == (each.features_in, each.features)
        assert block["branch"]["conv1"]["kernel"].shape[-1] == each.features


def test_a_block_is_found_at_its_level_by_its_name_and_nothing_else_is():
    first, *blocks = topology.elements(SIZE_S)
    assert {b.name: topology.level_of(b.name) for b in blocks} == {
        b.name: b.level for b in blocks
    }
    for name in (first.name, "out_conv", "out_norm", "embedding", "enc", "dec_8x8"):
        assert topology.level_of(name) is None
