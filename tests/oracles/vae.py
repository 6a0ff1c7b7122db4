"""Golden values of Stable Diffusion's VAE, by diffusers, with random weights.

With PyTorch and diffusers installed (in an environment of its own), from the repository's
root:

    PYTHONPATH=tests/helpers python tests/oracles/vae.py make

writes vae.npz beside this script: latents and pictures of a small AutoencoderKL. The check
of the whole network takes 700 MB and a minute or two, and is done by hand:

    PYTHONPATH=tests/helpers python tests/oracles/vae.py full /tmp/vae
    PYTHONPATH=.:tests/helpers .venv/bin/python tests/oracles/vae.py compare /tmp/vae
"""

import sys
from pathlib import Path

import numpy as np
import random_weights

HERE = Path(__file__).parent
# What config.json says; three levels, one of which keeps its channels.
SMALL = {
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
FULL = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
SMALL_SIZE, FULL_SIZE = (2, 24, 16), (1, 128, 64)  # count, height, width


def pictures(size):
    """(N, H, W, 3) float32 from 0 to 1."""
    return random_weights.pictures(*size).astype(np.float32) / 255


def network(structure):
    import diffusers

    levels = len(structure["block_out_channels"])
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **structure,
    ).eval()


def state(net):
    import torch

    return {
        name: torch.from_numpy(random_weights.tensor(name, tuple(value.shape)))
        for name, value in net.state_dict().items()
    }


def golden(net, size):
    import torch

    with torch.no_grad():
        image = torch.from_numpy(pictures(size)).permute(0, 3, 1, 2)
        found = net.encode(image).latent_dist
        decoded = net.decode(found.mean).sample

    def last(tensor):
        return tensor.permute(0, 2, 3, 1).numpy()

    return {"mean": last(found.mean), "std": last(found.std), "decoded": last(decoded)}


def make():
    import diffusers
    import torch

    net = network(SMALL)
    net.load_state_dict(state(net))
    versions = f"diffusers {diffusers.__version__}, torch {torch.__version__}"
    names = np.array(sorted(net.state_dict()))
    np.savez_compressed(
        HERE / "vae.npz", versions=versions, names=names, **golden(net, SMALL_SIZE)
    )


def full(place):
    net = network(FULL)
    net.load_state_dict(state(net))
    place.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(place / "vae")
    np.savez(place / "golden.npz", **golden(net, FULL_SIZE))


def compare(place):
    from edm_jax.evals.latents import Vae

    coder = Vae(weights=str(place / "vae"), pixels="unit").coder
    found = np.load(place / "golden.npz")
    image = pictures(FULL_SIZE)
    mean, std = coder.moments(image)
    pairs = {"mean": mean, "std": std, "decoded": coder.values(found["mean"])}
    for name, ours in pairs.items():
        worst = np.abs(np.asarray(ours) - found[name]).max()
        rms = np.sqrt(np.mean(np.square(found[name])))
        print(f"{name}: off by {worst:.1e} at most, of values with an RMS of {rms:.2f}")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make()
    else:
        {"full": full, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
