# Copyright 2026 The edm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A denoiser D(x; sigma, class) in PyTorch, which needs PyTorch alone.

An EDM2 network (Karras et al., arXiv 2312.02696), as edm_jax exported it. Its weights
are in the .safetensors file of the same name. To sample a grid of pictures:

    python torch_denoiser.py --seeds=16 --classes=0,3

From Python, `load` makes the network and `sample` makes images of noise. They are scaled
to standard deviation 0.5; `denormalize` returns them to the units of the data. Layers
can be trained further: `torch.save(denoiser.state_dict(), FILE)` keeps the result.
"""

import argparse
import itertools
import json
import math
import struct
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# The network, as edm_jax's config names its parts.
NET = {}
# The input convolution and the blocks, in the order of a forward pass: name, channels in
# (those of a skip included), channels out, resampling, attention, whether a skip is taken.
ELEMENTS = []
LOGVAR_FEATURES = 128
DATA_STD = 0.5  # of the images that the network sees


def normalize(x, dims):
    """x over 1e-4 + its RMS over `dims`, in float32 (Alg. 1)."""
    rms = torch.sqrt(x.float().square().mean(dims, keepdim=True) + 1e-30)
    return (x.float() / (1e-4 + rms)).to(x.dtype)


def blend(a, b, t):
    """a + b, or the magnitude-preserving sum (Eq. 88)."""
    if NET["add"] == "sum":
        return a + b
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def concatenate(a, b, t):
    """Channels of a and b, or the magnitude-preserving concatenation (Eq. 103)."""
    if NET["cat"] == "mp_cat":
        n_a, n_b = a.shape[1], b.shape[1]
        scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
        a, b = a * (scale * (1 - t) / math.sqrt(n_a)), b * (scale * t / math.sqrt(n_b))
    return torch.cat([a, b], dim=1)


def activate(x):
    """The nonlinearity, over its magnitude where that is preserved (Eq. 81)."""
    function = {
        "silu": F.silu,
        "swish": lambda x: x * torch.sigmoid(NET["activation"]["beta"] * x),
        "relu": F.relu,
        "leaky_relu": lambda x: F.leaky_relu(x, NET["activation"]["slope"]),
        "elu": lambda x: F.elu(x, NET["activation"]["alpha"]),
        "gelu": F.gelu,
        "mish": F.mish,
    }[NET["activation"]["name"]]
    return function(x) / NET["activation_magnitude"]


def resample(x, mode):
    """Half the side by 2x2 means, or twice the side by repetition (filter [1, 1])."""
    if mode == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0) if mode == "up" else x


class Layer(nn.Module):
    """A convolution, or a linear map of the channels where `window` is 1 (Eq. 47)."""

    def __init__(self, channels_in, channels, window=1, bias=None, gain=False):
        super().__init__()
        taps = (window, window) if window > 1 else ()
        self.weight = nn.Parameter(torch.randn(channels, channels_in, *taps))
        bias = NET["weights"] == "biased" if bias is None else bias
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.gain = nn.Parameter(torch.zeros(())) if gain else None

    def forward(self, x):
        weight = self.weight
        if NET["weights"] == "mp":
            dims = tuple(range(1, weight.ndim))
            weight = normalize(weight, dims) / math.sqrt(weight[0].numel())
        if self.gain is not None:
            weight = weight * self.gain
        weight = weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if x.ndim == 2:
            return F.linear(x, weight, bias)
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


class GroupNorm(nn.Module):
    """min(32, C // 4) groups: over their RMS (Eq. 29), or ADM's norm (App. B.1)."""

    def __init__(self, channels):
        super().__init__()
        self.groups = min(32, channels // 4)
        self.affine = NET["norm"] == "group"
        if self.affine:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        y = x.float().unflatten(1, (self.groups, -1))
        if self.affine:
            y = y - y.mean((2, 3, 4), keepdim=True)
        eps = 1e-5 if self.affine else 1e-4
        y = y * torch.rsqrt(y.square().mean((2, 3, 4), keepdim=True) + eps)
        y = y.flatten(1, 2)
        if self.affine:
            y = y * self.weight[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)


def norm(channels):
    """A norm, or none (App. B.6)."""
    return nn.Identity() if NET["norm"] == "none" else GroupNorm(channels)


class Positional(nn.Module):
    """ADM's features of a noise level: cosines, then sines (App. B.1)."""

    def __init__(self, features):
        super().__init__()
        self.half = features // 2

    def forward(self, c_noise):
        ramp = torch.arange(self.half, device=c_noise.device) / self.half
        angles = c_noise[:, None] * (1 / 10000) ** ramp
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Fourier(nn.Module):
    """cos(2 pi (f c_noise + phi)), frozen; times sqrt(2) in config G (Eq. 35, 75)."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("freqs", torch.randn(features))
        self.register_buffer("phases", torch.rand(features))

    def forward(self, c_noise):
        angles = 2 * math.pi * (c_noise[:, None] * self.freqs + self.phases)
        scale = math.sqrt(2) if NET["noise_features"] == "mp_fourier" else 1.0
        return scale * angles.cos()


class Embedding(nn.Module):
    """(N,) noise levels and (N, classes) labels -> (N, channels), in float32."""

    def __init__(self):
        super().__init__()
        channels, features = NET["embedding_channels"], NET["noise_channels"]
        positional = NET["noise_features"] == "positional"
        self.noise_features = Positional(features) if positional else Fourier(features)
        self.noise0 = Layer(features, channels)
        if NET["embedding_layers"] == 2:
            self.noise1 = Layer(channels, channels)
        if NET["num_classes"]:
            self.label = Layer(NET["num_classes"], channels, bias=False)
        if NET["augment_labels"]:
            self.augment = Layer(
                NET["augment_labels"], channels, bias=False, gain=NET["gain"]
            )

    def forward(self, c_noise, label, augment_label):
        emb = self.noise0(self.noise_features(c_noise))
        if NET["embedding_layers"] == 2:
            emb = self.noise1(activate(emb))
        if NET["num_classes"]:
            unit = math.sqrt(NET["num_classes"]) if NET["unit_variance_label"] else 1.0
            emb = blend(emb, self.label(label * unit), NET["embedding_balance"])
        if augment_label is not None:
            emb = emb + self.augment(augment_label)
        return activate(emb)


class Branch(nn.Module):
    """The residual branch: conv0, scaled by the embedding, conv1."""

    def __init__(self, channels_in, channels, mode):
        super().__init__()
        self.mode = mode
        self.parts = 2 if NET["modulation"] == "scale_shift" else 1
        self.norm0 = norm(channels_in)
        self.conv0 = Layer(channels_in, channels, NET["window"])
        self.emb_linear = Layer(
            NET["embedding_channels"], channels * self.parts, gain=NET["gain"]
        )
        self.norm1 = norm(channels)
        self.conv1 = Layer(channels, channels, NET["window"])

    def forward(self, x, emb):
        y = self.conv0(resample(activate(self.norm0(x)), self.mode))
        scale, *shift = self.emb_linear(emb)[:, :, None, None].chunk(self.parts, dim=1)
        y = self.norm1(y) * (1 + scale).to(y.dtype)
        if shift:
            y = y + shift[0].to(y.dtype)
        y = activate(y)
        places = NET["dropout_resolutions"]
        rate = NET["dropout"] if not places or y.shape[-1] in places else 0.0
        return self.conv1(F.dropout(y, rate, self.training))


class Attention(nn.Module):
    """Self-attention of all pixels, added to the main path (Eq. 10-12, 30)."""

    def __init__(self, channels):
        super().__init__()
        self.heads = max(channels // NET["head_channels"], 1)
        self.cosine = NET["attention"] == "cosine"
        self.norm = nn.Identity() if self.cosine else norm(channels)
        self.qkv = Layer(channels, 3 * channels)
        self.proj = Layer(channels, channels)

    def forward(self, x):
        y = self.qkv(self.norm(x)).flatten(2)  # (N, 3 C, pixels)
        y = y.unflatten(1, (3, self.heads, -1)).transpose(3, 4)
        q, k, v = (normalize(y, 4) if self.cosine else y).unbind(1)
        logits = q.float() @ k.float().transpose(2, 3) / math.sqrt(q.shape[-1])
        y = logits.softmax(dim=-1).to(v.dtype) @ v  # (N, heads, pixels, C / heads)
        y = y.transpose(2, 3).reshape(x.shape)
        return blend(x, self.proj(y), NET["residual_balance"])


class Block(nn.Module):
    """Both topologies: A-E resample on the branch, F-G on the main path (Fig. 16-22)."""

    def __init__(self, name, channels_in, channels, mode, attends):
        super().__init__()
        self.encoder, self.mode = name.startswith("enc"), mode
        self.main_path = NET["block"] == "main_path" and self.encoder
        if self.main_path:  # the branch leaves after the 1x1 and the pixel norm
            self.branch = Branch(channels, channels, "keep")
        else:
            self.branch = Branch(channels_in, channels, mode)
        if channels_in != channels:
            self.conv_skip = Layer(channels_in, channels)
        self.attention = Attention(channels) if attends else None

    def forward(self, x, emb):
        main = resample(x, self.mode)
        if hasattr(self, "conv_skip"):
            main = self.conv_skip(main)
        if self.encoder and NET["pixel_norm"]:
            main = normalize(main, 1)
        y = self.branch(main if self.main_path else x, emb)
        x = blend(main, y, NET["residual_balance"])
        if self.attention is not None:
            x = self.attention(x)
        bound = NET["clamp"]
        return x if bound is None else x.clamp(-bound, bound)


class UNet(nn.Module):
    """F(x; c_noise, label), (N, C, H, W) float32; blocks compute in `dtype`."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype
        self.io_dtype = dtype if NET["half_precision"] == "full" else torch.float32
        self.embedding = Embedding()
        (first, _, channels, *_), *blocks = ELEMENTS
        channels_in = NET["channels"] + NET["constant_channel"]
        self.add_module(first, Layer(channels_in, channels, NET["window"]))
        for name, channels_in, channels, mode, attends, _ in blocks:
            self.add_module(name, Block(name, channels_in, channels, mode, attends))
        self.out_norm = norm(channels)
        self.out_conv = Layer(
            channels, NET["channels"], NET["window"], gain=NET["gain"]
        )

    def forward(self, x, c_noise, label, augment_label):
        emb = self.embedding(c_noise, label, augment_label)
        if NET["constant_channel"]:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        (first, *_), *blocks = ELEMENTS
        x = self.get_submodule(first)(x.to(self.io_dtype)).to(self.dtype)
        skips = [x]
        for name, *_, takes_skip in blocks:
            if takes_skip:
                x = concatenate(x, skips.pop(), NET["cat_balance"])
            x = self.get_submodule(name)(x, emb)
            if name.startswith("enc"):
                skips.append(x)
        x = self.out_norm(x.to(self.io_dtype))
        return self.out_conv(activate(x) if NET["output_silu"] else x).float()


class Denoiser(nn.Module):
    """D(x; sigma, label): the network with its preconditioning (Eq. 4-8)."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.unet = UNet(dtype)
        if NET["uncertainty"]:
            self.logvar_features = Fourier(LOGVAR_FEATURES)
            self.logvar = Layer(LOGVAR_FEATURES, 1)

    def forward(self, x, sigma, label=None, augment_label=None):
        """(N, C, H, W) noisy images -> (N, C, H, W) denoised ones, float32.

        sigma: (N,) noise levels, or one number. label: (N,) classes, or (N, classes);
        None hides the class. augment_label: (N, values), in training alone.
        """
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device)
        sigma = sigma.expand(len(x))
        level, sigma_data = sigma[:, None, None, None], NET["sigma_data"]
        variance = level**2 + sigma_data**2
        c_skip, c_out = sigma_data**2 / variance, level * sigma_data / variance.sqrt()
        classes = NET["num_classes"]
        if label is None:
            label = x.new_zeros(len(x), classes)
        elif label.ndim == 1:
            label = F.one_hot(label.long(), classes)
        label = label.to(x)
        f = self.unet(x / variance.sqrt(), sigma.log() / 4, label, augment_label)
        return c_skip * x + c_out * f

    def uncertainty(self, sigma):
        """u(sigma) (N,), of which the loss is |D - y|^2 lambda / e^u + u (Eq. 21)."""
        return self.logvar(self.logvar_features(sigma.log() / 4))[:, 0]


def load(path=None, dtype=torch.float32, device="cpu"):
    """The denoiser with the weights of a file, by default the one beside this file.

    A .safetensors file, or one that torch.save wrote from its state_dict(). Blocks
    compute in `dtype`; parameters stay float32.
    """
    path = Path(path or Path(__file__).with_suffix(".safetensors"))
    denoiser = Denoiser(dtype)
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    denoiser.load_state_dict(state)
    return denoiser.to(device).eval()


def read_safetensors(path):
    """The tensors of a file: a length of 8 bytes, a header in JSON, and the data."""
    raw = Path(path).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    state = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            row = torch.frombuffer(
                bytearray(raw[begin:end]), dtype=dtypes[entry["dtype"]]
            )
            state[name] = row.reshape(entry["shape"])
    return state


def noise(seeds):
    """(N, C, H, W), each image of its own seed (other noise than edm_jax's)."""
    shape = (NET["channels"], NET["resolution"], NET["resolution"])
    generators = (torch.Generator().manual_seed(seed) for seed in seeds)
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


@torch.no_grad()
def sample(denoise, x, steps=32, sigma_min=0.002, sigma_max=80.0, rho=7.0):
    """Heun's method from white noise x (N, C, H, W) to images (arXiv 2206.00364, Alg. 1).

    denoise: a function (x, sigma) -> D. With a class, lambda x, s: denoiser(x, s, label);
    with a guide, lambda x, s: w * denoiser(x, s, label) + (1 - w) * guide(x, s, label).
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]
    x = x * sigmas[0]
    for now, then in itertools.pairwise(sigmas):
        slope = (x - denoise(x, now)) / now
        moved = x + (then - now) * slope
        if then > 0:
            slope = (slope + (moved - denoise(moved, then)) / then) / 2
            moved = x + (then - now) * slope
        x = moved
    return x


def denormalize(images):
    """Images (N, C, H, W) in the units of the data, such as 0 to 255."""
    mean, std = (images.new_tensor(NET[name]) for name in ("raw_mean", "raw_std"))
    return images * (std / DATA_STD)[:, None, None] + mean[:, None, None]


def write_png(path, images):
    """A row of images (N, C, H, W): two standard deviations of the data are white."""
    rows = (images[:, : 3 if images.shape[1] >= 3 else 1] / 2 + 0.5).clamp(0, 1)
    rows = (255 * rows).round().byte().permute(2, 0, 3, 1).flatten(1).cpu()
    color = 2 if images.shape[1] >= 3 else 0
    head = struct.pack(
        ">IIBBBBB", images.shape[0] * images.shape[3], len(rows), 8, color, 0, 0, 0
    )
    data = b"".join(b"\0" + bytes(row.tolist()) for row in rows)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, body in chunks:
            file.write(struct.pack(">I", len(body)) + name + body)
            file.write(struct.pack(">I", zlib.crc32(name + body)))


def main():
    parser = argparse.ArgumentParser(description="Sample images.")
    parser.add_argument(
        "--weights", help="a file of weights (the one beside this file)"
    )
    parser.add_argument("--seeds", type=int, default=16, help="how many (%(default)s)")
    parser.add_argument("--classes", default="", help="in turn, such as 0,3 (all)")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--out", default="samples.png")
    options = parser.parse_args()
    denoiser = load(options.weights, device=options.device)
    classes = [int(c) for c in options.classes.split(",") if c]
    classes = classes or list(range(NET["num_classes"])) or [0]
    label = torch.tensor(
        [classes[seed % len(classes)] for seed in range(options.seeds)]
    )
    label = label.to(options.device) if NET["num_classes"] else None
    images = sample(
        lambda x, sigma: denoiser(x, sigma, label),
        noise(range(options.seeds)).to(options.device),
        options.steps,
    )
    write_png(options.out, images)
    tensors = Path(options.out).with_suffix(".pt")
    torch.save(denormalize(images).cpu(), tensors)
    print(
        f"{options.seeds} images are in {options.out}; in units of the data, {tensors}."
    )


if __name__ == "__main__":
    main()
