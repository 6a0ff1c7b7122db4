"""One training step of config G in JAX against the same step in PyTorch, on the CPU.

    python benchmarks/against_pytorch.py --size=8x8

In float32; both networks must agree first. Each framework has a process, and so an
allocator, of its own; they take turns. PyTorch is eager, with its own choice of
Adam and memory format; --fused and --channels_last are its fastest. Prints images
per second, the seconds of the first step, and the median of the rounds' ratios.
"""

import argparse
import math
import time
from typing import Any

import jax
import numpy as np
import train_step

import configs
from edm_jax import ema, tree
from edm_jax.models import unet
from edm_jax.models.build import count_params
from experiments import cli

try:
    import torch
except ImportError:
    raise SystemExit("against_pytorch: it needs PyTorch: pip install torch") from None
from torch import Tensor
from torch.nn import functional

jax.config.update("jax_platforms", "cpu")

# Workload, model channels, blocks per level, batch size and the steps of a round.
SIZES = {
    "8x8": ("digits", "32", "3", "64", 15),
    "8x8-small": ("digits", "32", "1", "64", 30),
    "32x32": ("cifar10", "64", "3", "16", 3),
}


def normalize(x: Tensor, *dims: int) -> Tensor:  # Alg. 1
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (1e-4 + norm / math.sqrt(x.numel() // norm.numel()))


def mp_silu(x: Tensor) -> Tensor:
    return functional.silu(x) / 0.596  # Eq. 81


def mp_sum(a: Tensor, b: Tensor, t: float = 0.3) -> Tensor:
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)  # Eq. 88


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    c = math.sqrt((a.shape[1] + b.shape[1]) / 2)  # Eq. 103 at t = 0.5
    return torch.cat([a * (c / a.shape[1] ** 0.5), b * (c / b.shape[1] ** 0.5)], dim=1)


class Network:
    """Config G on (N, C, H, W). What a block has follows from the parameters' names."""

    def __init__(
        self,
        spec: unet.UNetSpec,
        params: dict[str, np.ndarray],
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        self.spec, self.weights = spec, {}
        for name, x in params.items():
            weight = torch.tensor(x)
            if name.endswith("kernel"):  # (..., in, out) in JAX
                weight = weight.movedim((-1, -2), (0, 1)).contiguous()
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=memory_format)
            self.weights[name] = weight.requires_grad_("_features/" not in name)

    def layer(self, name: str, x: Tensor) -> Tensor:
        if (kernel := self.weights.get(f"{name}/kernel")) is None:
            return x  # conv_skip where the channels match
        scale = self.weights.get(f"{name}/gain", 1.0) / math.sqrt(kernel[0].numel())
        kernel = normalize(kernel, *range(1, kernel.ndim)) * scale  # Eq. 47
        if x.ndim == 2:
            return x @ kernel.T
        kernel = kernel.reshape(*kernel.shape, *(1,) * (4 - kernel.ndim))
        return functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)

    def fourier(self, name: str, c_noise: Tensor) -> Tensor:
        freqs, phases = self.weights[f"{name}/freqs"], self.weights[f"{name}/phases"]
        angles = 2 * math.pi * (c_noise[:, None] * freqs + phases)
        return math.sqrt(2) * torch.cos(angles)

    def attention(self, name: str, x: Tensor) -> Tensor:
        n, channels, h, w = x.shape
        head = min(self.spec.head_channels, channels)
        qkv = self.layer(f"{name}/qkv", x).reshape(n, 3, channels // head, head, h * w)
        q, k, v = normalize(qkv, 3).transpose(3, 4).unbind(1)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return mp_sum(x, self.layer(f"{name}/proj", y.reshape(x.shape)))

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        if name.endswith("down"):
            x = functional.avg_pool2d(x, 2)
        elif name.endswith("up"):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
        if "/enc_" in name:
            x = normalize(self.layer(f"{name}/conv_skip", x), 1)
        y = self.layer(f"{name}/branch/conv0", mp_silu(x))
        scale = 1 + self.layer(f"{name}/branch/emb_linear", emb)[:, :, None, None]
        y = self.layer(f"{name}/branch/conv1", mp_silu(y * scale))
        x = mp_sum(x if "/enc_" in name else self.layer(f"{name}/conv_skip", x), y)
        if f"{name}/attention/qkv/kernel" in self.weights:
            x = self.attention(f"{name}/attention", x)
        return x.clamp(-256, 256)

    def __call__(self, x: Tensor, c_noise: Tensor, label: Tensor):  # F and u
        noise = self.fourier("unet/embedding/noise_features", c_noise)
        label = self.layer("unet/embedding/label", label * math.sqrt(label.shape[1]))
        emb = mp_silu(mp_sum(self.layer("unet/embedding/noise0", noise), label, 0.5))
        sides = [self.spec.resolution >> i for i in range(len(self.spec.channel_mult))]
        blocks = [f"block{i}" for i in range(self.spec.blocks_per_level + 1)]
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = [x := self.layer(f"unet/enc_{sides[0]}x{sides[0]}_conv", x)]
        for side in sides:
            for name in (["down"] if side < sides[0] else []) + blocks[:-1]:
                skips.append(x := self.block(f"unet/enc_{side}x{side}_{name}", x, emb))
        for side in reversed(sides):
            for name in (["in0", "in1"] if side == sides[-1] else ["up"]) + blocks:
                x = mp_cat(x, skips.pop()) if name in blocks else x
                x = self.block(f"unet/dec_{side}x{side}_{name}", x, emb)
        u = self.layer("logvar", self.fourier("logvar_features", c_noise))
        return self.layer("unet/out_conv", x), u[:, 0]


class TorchSide:
    """The training step in PyTorch."""

    def __init__(
        self,
        config: Any,
        params: dict[str, np.ndarray],
        compiled: bool,
        channels_last: bool,
        fused: bool,
    ):
        self.config, self.opt, self.count = config, config.optimizer, 0
        spec = config.model.spec
        formats = torch.contiguous_format, torch.channels_last
        self.net = Network(spec, params, formats[channels_last])
        self.loss = torch.compile(self.plain_loss) if compiled else self.plain_loss
        self.params = [w for w in self.net.weights.values() if w.requires_grad]
        betas, eps = (self.opt.method.beta1, self.opt.method.beta2), self.opt.method.eps
        fused_adam = True if fused else None  # None is PyTorch's own choice
        self.adam = torch.optim.Adam(
            self.params, betas=betas, eps=eps, fused=fused_adam
        )
        self.gammas = [ema.gamma_from_sigma_rel(s) for s in config.ema.sigma_rels]
        self.emas = [[p.detach().clone() for p in self.params] for _ in self.gammas]
        shape = (self.opt.batch_size, spec.channels, spec.resolution, spec.resolution)
        self.image = 0.5 * torch.randn(shape).to(memory_format=formats[channels_last])
        self.label = torch.eye(spec.num_classes)[torch.arange(self.opt.batch_size) % 10]
        self.compile_seconds = self.run(1)

    def plain_loss(self, image: Tensor, label: Tensor, sigma: Tensor, noise: Tensor):
        data, x, c_noise = self.config.loss.sigma_data, image + noise, sigma.log() / 4
        sigma = sigma[:, None, None, None]
        variance = sigma**2 + data**2
        f, u = self.net(variance.rsqrt() * x, c_noise, label)
        denoised = data**2 / variance * x + sigma * data * variance.rsqrt() * f
        error = (denoised - image).square() * (variance / (sigma * data) ** 2)
        return (error.sum((1, 2, 3)) * (-u).exp() + image[0].numel() * u).mean()

    @torch.no_grad()
    def update(self) -> None:
        for p in self.params:
            torch.nan_to_num(p.grad, 0.0, 0.0, 0.0, out=p.grad)
        ramp = min(
            self.count * self.opt.batch_size / (self.opt.warmup.rampup_mimg * 1e6), 1.0
        )
        decay = math.sqrt(max(self.count / self.opt.schedule.t_ref, 1.0))
        self.adam.param_groups[0]["lr"] = self.opt.alpha_ref * ramp / decay
        self.adam.step()
        self.count += 1
        for gamma, average in zip(self.gammas, self.emas):
            weight = 1 - (1 - 1 / self.count) ** (gamma + 1)
            torch._foreach_lerp_(average, self.params, weight)
        # After the averages: they are of the weights as Adam left them.
        for kernel in filter(Tensor.dim, self.params):  # a gain has no axes
            kernel.copy_(normalize(kernel, *range(1, kernel.ndim)))  # Eq. 66

    def run(self, steps: int) -> float:
        start, loss, image = time.perf_counter(), self.config.loss, self.image
        for _ in range(steps):
            sigma = torch.exp(loss.P_mean + loss.P_std * torch.randn(len(image)))
            noise = sigma[:, None, None, None] * torch.randn_like(image)
            self.adam.zero_grad()
            self.loss(image, self.label, sigma, noise).backward()
            self.update()
        return time.perf_counter() - start


def checked_params(config: Any) -> dict[str, np.ndarray]:
    """Parameters by path, gains not 0; AssertionError unless both networks agree."""
    model, rng = config.model, np.random.default_rng(0)
    drawn = tree.flatten(model.init(0))
    params = {name: x + 0.5 * name.endswith("gain") for name, x in drawn.items()}
    inputs = model.inputs(4)
    x, c_noise, label = (rng.standard_normal(a.shape, np.float32) for a in inputs)
    ours = tree.unflatten(params)
    theirs = jax.jit(model.apply)(ours, x, c_noise, label)[:2]
    net = Network(model.spec, params)
    f, u = net(*map(torch.tensor, (np.moveaxis(x, -1, 1), c_noise, label)))
    for a, b in zip((f.movedim(1, -1), u), map(np.array, theirs)):
        np.testing.assert_allclose(a.detach(), b, rtol=1e-4, atol=1e-4 * np.std(b))
    (f.sum() + u.sum()).backward()  # must reach every parameter
    reached = [w.numel() for w in net.weights.values() if w.grad is not None]
    assert sum(reached) == count_params(ours), sum(reached)
    return params


def measure(size: str, rounds: int, *pytorch: bool) -> None:
    workload, channels, blocks, batch, steps = SIZES[size]
    overrides = {"network.model_channels": channels, "optimizer.batch_size": batch}
    overrides |= {"network.compute_dtype": "float32"}
    overrides |= {"network.blocks_per_level": blocks}
    config = configs.load(f"configs/config_g.py:{workload}", overrides)
    params = checked_params(config)
    print(f"{size}, batch {batch}: the networks agree", flush=True)
    with (
        train_step.Elsewhere(TorchSide, config, params, *pytorch) as theirs,
        train_step.Elsewhere(train_step.Measured, config) as ours,
    ):
        for side in (theirs, ours) * rounds:
            side.rates.append(int(batch) * steps / side.run(steps))
    names = f"torch {torch.__version__}", f"jax {jax.__version__}"
    for name, side in zip(names, (theirs, ours)):
        speed = f"{np.median(side.rates):,.1f} images/s, at best {max(side.rates):,.1f}"
        print(f"  {name}: {speed}; first step {side.compile_seconds:.1f} s")
    ratios = [b / a for a, b in zip(theirs.rates, ours.rates)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"  jax / torch: {np.median(ratios):.2f}, {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, help="(all)")
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument("--channels_last", action="store_true", help="memory format")
    parser.add_argument("--fused", action="store_true", help="fused Adam")
    options = parser.parse_args()
    for size in [options.size] if options.size else SIZES:
        chosen = options.compile, options.channels_last, options.fused
        measure(size, options.rounds, *chosen)


if __name__ == "__main__":
    cli.run(main)
