"""The network. Other rooms use these modules:

build: `build` makes a `Model` from a config's `network` fields; `count_params`.
ops: `NetworkConfig`, which holds those fields.
topology: the U-Net as data, without JAX.
layers: `Array`, and the normalization that the optimizer shares.
unet: `Params`, and `UNetSpec` for the sizes.

activations, inits and layers hold menus. Nothing is imported here, because `topology`
must also work without JAX.
"""
