"""One training step of config G in JAX against the same step in PyTorch, on the CPU.

    python benchmarks/against_pytorch.py --size=8x8

In float32: JAX as `experiments/train.py` runs it; PyTorch eager, or --compile, in the
memory format that is the faster here. The networks must agree at equal weights before
anything is timed. Each framework has a process of its own, and so its own allocator, and
they take turns. For each size: images per second of both, the seconds of JAX's first
step, which compiles, and the ratio JAX / PyTorch, the median of the rounds. Other work on
the machine costs PyTorch more than JAX: its threads wait busily for each other.
"""

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
import train_step
from flax import traverse_util

import configs
from edm_jax import backend, ema, networks, resolve
from experiments import cli

try:
    import torch
except ImportError:
    sys.exit("against_pytorch: PyTorch is missing: pip install torch")
from torch import Tensor
from torch.nn import functional

jax.config.update("jax_platforms", "cpu")

# Workload, what differs from its preset, and the steps of a round.
_CIFAR = {"network.compute_dtype": "float32", "optimizer.batch_size": "16"}
SIZES = {
    "8x8": ("digits", {"network.model_channels": "32"}, 30),
    "32x32": ("cifar10", {"network.model_channels": "64"} | _CIFAR, 3),
}
Params = dict[str, np.ndarray]  # by path, as in JAX


def normalize(x: Tensor, *dims: int) -> Tensor:
    """Divides by eps + RMS over `dims` (Alg. 1)."""
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
    return x / (1e-4 + norm / math.sqrt(math.prod(x.shape[d] for d in dims)))


def mp_silu(x: Tensor) -> Tensor:
    return functional.silu(x) / 0.596  # Eq. 81


def mp_sum(a: Tensor, b: Tensor, t: float = 0.3) -> Tensor:
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)  # Eq. 88


def mp_cat(a: Tensor, b: Tensor) -> Tensor:
    c = math.sqrt((a.shape[1] + b.shape[1]) / 2)  # Eq. 103 at t = 0.5
    return torch.cat([a * (c / a.shape[1] ** 0.5), b * (c / b.shape[1] ** 0.5)], dim=1)


class Network:
    """Config G on (N, C, H, W). What a block has follows from the parameters' names."""

    def __init__(self, spec: networks.UNetSpec, params: Params, memory_format: Any):
        self.spec, self.weights = spec, {k: torch.tensor(x) for k, x in params.items()}
        for name, weight in self.weights.items():
            if name.endswith("kernel"):  # (..., in, out) in JAX
                weight = weight.movedim((-1, -2), (0, 1)).contiguous()
            if weight.ndim == 4:
                weight = weight.contiguous(memory_format=memory_format)
            self.weights[name] = weight.requires_grad_("_features/" not in name)

    def layer(self, name: str, x: Tensor) -> Tensor:
        if (kernel := self.weights.get(f"{name}/kernel")) is None:
            return x  # conv_skip where the channels match
        gain = self.weights.get(f"{name}/gain", 1.0)
        scale = gain / math.sqrt(kernel[0].numel())
        kernel = normalize(kernel, *range(1, kernel.ndim)) * scale  # Eq. 47
        if x.ndim == 2:
            return x @ kernel.T
        kernel = kernel[:, :, None, None] if kernel.ndim == 2 else kernel
        return functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)

    def fourier(self, name: str, c_noise: Tensor) -> Tensor:
        freqs, phases = self.weights[f"{name}/freqs"], self.weights[f"{name}/phases"]
        angles = c_noise[:, None] * freqs + phases
        return math.sqrt(2) * torch.cos(2 * math.pi * angles)

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
        attends = f"{name}/attention/qkv/kernel" in self.weights
        x = self.attention(f"{name}/attention", x) if attends else x
        return x.clamp(-256, 256)

    def __call__(self, x: Tensor, c_noise: Tensor, label: Tensor):
        """F (N, C, H, W) and u (N,)."""
        noise = self.fourier("unet/embedding/noise_features", c_noise)
        noise = self.layer("unet/embedding/noise0", noise)
        label = self.layer("unet/embedding/label", label * math.sqrt(label.shape[1]))
        emb = mp_silu(mp_sum(noise, label, 0.5))
        sides = [self.spec.resolution >> i for i in range(len(self.spec.channel_mult))]
        blocks = [f"block{i}" for i in range(self.spec.blocks_per_level + 1)]
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = [x := self.layer(f"unet/enc_{sides[0]}x{sides[0]}_conv", x)]
        for side in sides:
            for name in (["down"] if side < sides[0] else []) + blocks[:-1]:
                x = self.block(f"unet/enc_{side}x{side}_{name}", x, emb)
                skips.append(x)
        for side in reversed(sides):
            for name in (["in0", "in1"] if side == sides[-1] else ["up"]) + blocks:
                x = mp_cat(x, skips.pop()) if name in blocks else x
                x = self.block(f"unet/dec_{side}x{side}_{name}", x, emb)
        u = self.layer("logvar", self.fourier("logvar_features", c_noise))
        return self.layer("unet/out_conv", x), u[:, 0]


class TorchSide:
    """The training step in PyTorch, in one memory format."""

    def __init__(self, config: Any, params: Params, memory_format: Any, compiled: bool):
        self.config, self.count, opt = config, 0, config.optimizer
        spec = resolve.resolve_network(config)
        self.net = Network(spec, params, memory_format)
        self.loss = torch.compile(self.plain_loss) if compiled else self.plain_loss
        self.params = [w for w in self.net.weights.values() if w.requires_grad]
        fields = {"betas": (opt.beta1, opt.beta2), "eps": opt.eps, "fused": True}
        self.adam = torch.optim.Adam(self.params, **fields)
        self.gammas = [ema.gamma_from_sigma_rel(s) for s in config.ema.sigma_rels]
        self.emas = [[p.detach().clone() for p in self.params] for _ in self.gammas]
        shape = (opt.batch_size, spec.channels, spec.resolution, spec.resolution)
        self.image = 0.5 * torch.randn(shape).contiguous(memory_format=memory_format)
        self.label = torch.eye(spec.num_classes)[torch.arange(opt.batch_size) % 10]
        self.about = f"{memory_format}, {torch.get_num_threads()} threads"

    def plain_loss(self, image: Tensor, label: Tensor, sigma: Tensor, noise: Tensor):
        data, x, c_noise = self.config.loss.sigma_data, image + noise, sigma.log() / 4
        sigma = sigma[:, None, None, None]
        variance = sigma**2 + data**2
        f, u = self.net(variance.rsqrt() * x, c_noise, label)
        denoised = data**2 / variance * x + sigma * data * variance.rsqrt() * f
        weight = variance / (sigma * data) ** 2
        error = (weight * (denoised - image).square()).sum((1, 2, 3))
        return (error * (-u).exp() + image[0].numel() * u).mean()

    def step(self) -> None:
        loss, image = self.config.loss, self.image
        sigma = torch.exp(loss.P_mean + loss.P_std * torch.randn(len(image)))
        noise = sigma[:, None, None, None] * torch.randn_like(image)
        self.adam.zero_grad()
        self.loss(image, self.label, sigma, noise).backward()
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        for p in self.params:
            torch.nan_to_num(p.grad, 0.0, 0.0, 0.0, out=p.grad)
        opt = self.config.optimizer
        ramp = min(self.count * opt.batch_size / (opt.rampup_mimg * 1e6), 1.0)
        decay = math.sqrt(max(self.count / opt.t_ref, 1.0))
        self.adam.param_groups[0]["lr"] = opt.alpha_ref * ramp / decay
        self.adam.step()
        self.count += 1
        for gamma, average in zip(self.gammas, self.emas):
            weight = 1 - (1 - 1 / self.count) ** (gamma + 1)
            torch._foreach_lerp_(average, self.params, weight)
        # After the averages: they are of the weights as Adam left them.
        for kernel in filter(Tensor.dim, self.params):  # a gain has no axes
            kernel.copy_(normalize(kernel, *range(1, kernel.ndim)))  # Eq. 66

    def run(self, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return time.perf_counter() - start


def make_torch_side(config: Any, params: Params, compiled: bool) -> TorchSide:
    formats = torch.contiguous_format, torch.channels_last
    sides = [TorchSide(config, params, each, compiled) for each in formats]
    return min(sides, key=lambda side: min(side.run(2) for _ in range(5)))


def make_jax_side(config: Any) -> train_step.Measured:
    backend.keep_freed_memory()
    side = train_step.Measured(config, tuned=True)
    side.about = f"first step {side.compile_seconds:.1f} s"
    return side


def serve(pipe: Any, make_side: Any, *arguments: Any) -> None:
    """A process: says what it measures, and then the seconds of so many steps."""
    side = make_side(*arguments)
    pipe.send(side.about)
    while steps := pipe.recv():
        pipe.send(side.run(steps))


def start(*arguments: Any) -> tuple[Any, str]:
    """A pipe to a new process that serves, and what it says."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    context.Process(target=serve, args=(theirs, *arguments), daemon=True).start()
    theirs.close()  # so that the pipe ends with the process
    return pipe, pipe.recv()


def checked_params(config: Any) -> Params:
    """Parameters by path; raises AssertionError unless both networks agree at them."""
    spec, rng = resolve.resolve_network(config), np.random.default_rng(0)
    params = traverse_util.flatten_dict(networks.init_params(spec, 0), sep="/")
    for name in params:
        if name.endswith("gain"):  # 0 at first, and with it F
            params[name] = np.full((), 0.5, np.float32)
    tree = traverse_util.unflatten_dict(params, sep="/")
    shapes = [each.shape for each in networks.abstract_inputs(spec, 4)]
    x, c_noise, label = (rng.standard_normal(shape, np.float32) for shape in shapes)
    theirs = jax.jit(networks.Network(spec).apply)({"params": tree}, x, c_noise, label)
    net = Network(spec, params, torch.contiguous_format)
    f, u = net(*map(torch.tensor, (np.moveaxis(x, -1, 1), c_noise, label)))
    for a, b in zip((f.movedim(1, -1), u), map(np.array, theirs)):
        np.testing.assert_allclose(a.detach(), b, rtol=1e-4, atol=1e-4 * np.std(b))
    # What the gradient reaches is what JAX counts.
    (f.sum() + u.sum()).backward()
    reached = sum(w.numel() for w in net.weights.values() if w.grad is not None)
    assert reached == networks.count_params(tree), reached
    return params


def measure(size: str, rounds: int, compiled: bool) -> None:
    """Measures one size, and prints."""
    workload, overrides, steps = SIZES[size]
    config = configs.load(f"configs/config_g.py:{workload}", overrides)
    count, params = config.optimizer.batch_size, checked_params(config)
    print(f"{size}, batch {count}: the networks agree", flush=True)
    torch_side = start(make_torch_side, config, params, compiled)
    sides, rates = (torch_side, start(make_jax_side, config)), ([], [])
    for _ in range(rounds):
        for (pipe, _), rate in zip(sides, rates):
            pipe.send(steps)
            rate.append(steps * count / pipe.recv())
    for module, (pipe, about), rate in zip((torch, jax), sides, rates):
        pipe.send(0)
        middle, best = statistics.median(rate), max(rate)
        print(
            f"  {module.__name__} {module.__version__}: {middle:,.1f} images/s, ",
            end="",
        )
        print(f"at best {best:,.1f}; {about}")
    ratios = [b / a for a, b in zip(*rates)]
    each = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"  jax / torch: {statistics.median(ratios):.2f} ({each})", flush=True)


def main() -> None:
    """Parse the command line and measure."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--size", choices=SIZES, help="(both)")
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    options = parser.parse_args()
    for size in [options.size] if options.size else SIZES:
        measure(size, options.rounds, options.compile)


if __name__ == "__main__":
    cli.run(main)
