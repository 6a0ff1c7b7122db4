"""The network. Other rooms use

build: `build` makes a `Model` of a config's `network` fields; `count_params`.
ops: `NetworkConfig`, those fields.
topology: the U-Net as data, without JAX.
layers: `Array`, and the normalization that the optimizer shares.
unet: `Params`, and `UNetSpec` for the sizes.

activations, inits and layers hold menus. Nothing is imported here, because `topology`
is also read without JAX.
"""
