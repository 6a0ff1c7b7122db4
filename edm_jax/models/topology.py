"""The U-Net's topology as data: its elements in the order of a forward pass (Fig. 16).

The network is built from this list, and the original code's names map to it. It needs
neither JAX nor Flax.
"""

import dataclasses
from typing import NamedTuple

from edm_jax.fields import Count, Index


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that determine the topology, the inputs and the outputs."""

    resolution: Count
    channels: Count
    num_classes: Index  # 0: unconditional
    model_channels: Count
    channel_mult: tuple[Count, ...]
    blocks_per_level: Count
    attention_resolutions: tuple[Count, ...]

    @property
    def window(self) -> int:
        """Width of the convolutions; a single pixel has no neighbours.

        Such a network is a multilayer perceptron, without attention.
        """
        return 3 if self.resolution > 1 else 1


class Element(NamedTuple):
    """The input convolution or a block.

    Every element of the encoder leaves its output as a skip, and every ordinary block of
    the decoder takes the last skip that remains.
    """

    side: str  # enc or dec
    resolution: int  # of its output
    kind: str  # conv, down, up, in0, in1, or block0 ...
    features_in: int  # including those of a skip
    features: int
    attention: bool = False
    takes_skip: bool = False

    @property
    def place(self) -> str:
        """The original code's name within a side, such as 8x8_block0."""
        return f"{self.resolution}x{self.resolution}_{self.kind}"

    @property
    def name(self) -> str:
        """The name of its parameters here, such as enc_8x8_block0."""
        return f"{self.side}_{self.place}"

    @property
    def level(self) -> str:
        """The blocks of a side at one resolution, such as enc_8x8."""
        return f"{self.side}_{self.resolution}x{self.resolution}"

    @property
    def resample(self) -> str:
        """'down' or 'up' if it changes the resolution, else 'keep'."""
        return self.kind if self.kind in ("down", "up") else "keep"


def elements(sizes: Sizes) -> list[Element]:
    """Lists the input convolution and every block.

    The convolution's features_in is left at 0: it is the images' channels, plus one if a
    constant is appended.
    """
    widths = [sizes.model_channels * mult for mult in sizes.channel_mult]
    levels = [(sizes.resolution >> i, width) for i, width in enumerate(widths)]
    lowest, width = levels[-1][0], widths[0]
    found = [Element("enc", sizes.resolution, "conv", 0, width)]
    for resolution, features in levels:
        if resolution < sizes.resolution:
            found.append(Element("enc", resolution, "down", width, width))
        attention = resolution in sizes.attention_resolutions
        for i in range(sizes.blocks_per_level):
            kind = f"block{i}"
            found.append(Element("enc", resolution, kind, width, features, attention))
            width = features
    skips = [element.features for element in found]
    for resolution, features in reversed(levels):
        if resolution == lowest:
            attends = sizes.window > 1
            found.append(Element("dec", resolution, "in0", width, width, attends))
            found.append(Element("dec", resolution, "in1", width, width))
        else:
            found.append(Element("dec", resolution, "up", width, width))
        attention = resolution in sizes.attention_resolutions
        for i in range(sizes.blocks_per_level + 1):
            both = width + skips.pop()
            kind = f"block{i}"
            found.append(
                Element("dec", resolution, kind, both, features, attention, True)
            )
            width = features
    return found


def level_of(name: str) -> str | None:
    """The `level` of the block with this name; None if it is not a block."""
    side, _, place = name.partition("_")
    resolution, _, kind = place.partition("_")
    is_block = side in ("enc", "dec") and kind not in ("", "conv")
    return f"{side}_{resolution}" if is_block else None
