"""Files of other people's averaging packages, written by these packages.

With PyTorch, ema-pytorch, pytorch-posthoc-ema, diffusers, timm and safetensors in an
environment of its own, and Flax and Orbax in this project's, from the repository's root:

    PYTHONPATH=tests/helpers python tests/oracles/averaging_packages.py torch /tmp/packages
    PYTHONPATH=tests/helpers .venv/bin/python tests/oracles/averaging_packages.py jax /tmp/packages
    .venv/bin/python tests/oracles/averaging_packages.py pack /tmp/packages

The last writes averaging_packages.tar.xz beside this script: the files, and in golden.npz what
the packages themselves make of them. The weights are those of tests/helpers/walk.py.
"""

import sys
import tarfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TRACKED = (0.05, 0.28)
TARGETS = (0.05, 0.1, 0.15, 0.2)
EVERY = 40  # steps between files


def make_torch(place):
    import argparse
    import importlib.metadata

    import torch
    import walk
    from diffusers import UNet2DModel
    from diffusers.training_utils import EMAModel
    from ema_pytorch import EMA, PostHocEMA
    from posthoc_ema import PostHocEMA as Fork
    from safetensors.torch import save_file
    from timm.utils import ModelEmaV3

    torch.set_num_threads(1)
    rows, golden = walk.weights(), {}

    def network():
        net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        load(net, 0)
        return net

    @torch.no_grad()
    def load(net, step):
        for name, array in walk.named(rows[step]).items():
            dict(net.named_parameters())[name].copy_(torch.from_numpy(array))

    def steps(net, each, last=walk.STEPS):
        for step in range(1, last + 1):
            load(net, step)
            each(step)

    def flat(net):
        return walk.row({k: v.detach().numpy() for k, v in net.named_parameters()})

    for name, every, dtype in (
        ("ema_pytorch", 1, torch.float32),
        ("ema_pytorch_every5", 5, torch.float32),
        ("ema_pytorch_half", 1, torch.float16),
    ):
        net = network()
        average = PostHocEMA(
            net,
            sigma_rels=TRACKED,
            update_every=every,
            checkpoint_every_num_steps=EVERY,
            checkpoint_folder=str(place / name),
            checkpoint_dtype=dtype,
        )
        steps(net, lambda step, average=average: average.update())
        made = [average.synthesize_ema_model(sigma_rel=s).ema_model for s in TARGETS]
        golden[name] = np.stack([flat(each) for each in made])

    net = network()
    fork = Fork.from_model(
        net, place / "fork", 20, TRACKED, 1, EVERY, update_after_step=21
    )
    steps(net, lambda step: fork.update_(net))
    for s in TARGETS:
        with fork.state_dict(sigma_rel=s) as state:
            made = walk.row({k: v.numpy() for k, v in state.items()})
        golden["fork"] = np.vstack([golden.get("fork", np.empty((0, walk.SIZE))), made])

    net = network()
    ema = EMA(net, beta=0.98, update_after_step=10, update_every=2)
    folder = new(place / "ema")

    def update_ema(step):
        ema.update()
        if step % EVERY == 0:
            torch.save(ema.state_dict(), folder / f"ema-{step}.pt")

    steps(net, update_ema)

    net = network()
    model = EMAModel(net.parameters(), decay=0.98, use_ema_warmup=True, power=0.8)
    folder = new(place / "diffusers")

    def update_model(step):
        model.step(net.parameters())
        if step % EVERY == 0:
            torch.save(model.state_dict(), folder / f"{step}.pt")

    steps(net, update_model)

    net = network()
    timm, folder = ModelEmaV3(net, decay=0.97), new(place / "timm")
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(1, 2)).sum().backward()
    optimizer.step()

    def update_timm(step):
        timm.update(net, step=step)
        if step % EVERY == 0:
            state = {
                "epoch": step // EVERY - 1,
                "arch": "sequential",
                "state_dict": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "version": 2,
                "args": argparse.Namespace(model_ema_decay=0.97, lr=0.1, tags=["a"]),
                "state_dict_ema": timm.module.state_dict(),
                "metric": 0.5,
            }
            torch.save(state, folder / f"checkpoint-{step // EVERY - 1}.pth.tar")

    steps(net, update_timm)

    pipe = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
        attention_head_dim=None,
        add_attention=False,
    )
    unet = EMAModel(pipe.parameters(), model_cls=UNet2DModel, model_config=pipe.config)
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in pipe.parameters():
                parameter.fill_(step)
        unet.step(pipe.parameters())
        if step % 2 == 0:
            unet.save_pretrained(
                str(place / "unet" / f"checkpoint-{step}" / "unet_ema")
            )

    net = network()
    plain, tensors, old, half = (
        new(place / name) for name in ("plain", "safetensors", "legacy", "bfloat16")
    )

    def store(step):
        if step % EVERY:
            return
        state = {k: v.clone() for k, v in net.state_dict().items()}
        state["tied"] = state["0.weight"]
        state["turned"] = state["0.weight"].t()
        state["count"] = torch.tensor(step)
        torch.save({"model": state, "step": step}, plain / f"ckpt_{step}.pt")
        whole = net.state_dict()
        save_file(whole, tensors / f"model-{step:06d}.safetensors")
        torch.save(whole, old / f"{step}.pth", _use_new_zipfile_serialization=False)
        narrow = {k: v.bfloat16() for k, v in whole.items()}
        torch.save(narrow, half / f"{step}.pt")

    steps(net, store)
    names = [
        "torch",
        "ema-pytorch",
        "pytorch-posthoc-ema",
        "diffusers",
        "timm",
        "safetensors",
    ]
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "1.0.10"
    golden["versions"] = np.array(str(versions))
    np.savez_compressed(place / "golden.npz", **golden)


def make_jax(place):
    import flax.serialization
    import jax.numpy as jnp
    import orbax.checkpoint as ocp
    import walk

    rows, folder = walk.weights(), new(place / "flax")
    manager = ocp.CheckpointManager((place / "orbax").resolve())
    for step in range(EVERY, walk.STEPS + 1, EVERY):
        inner = walk.named(rows[step])
        params = {
            "dense": {"kernel": inner["0.weight"], "bias": inner["0.bias"]},
            "norm": {"scale": inner["1.weight"], "bias": inner["1.bias"]},
        }
        params = {
            a: {b: jnp.asarray(x, jnp.float32) for b, x in leaves.items()}
            for a, leaves in params.items()
        }
        state = {"params": params, "step": step}
        (folder / f"{step}.msgpack").write_bytes(flax.serialization.to_bytes(state))
        if step % (4 * EVERY) == 0:
            manager.save(step, args=ocp.args.StandardSave(params))
    manager.wait_until_finished()


def pack(place):
    with tarfile.open(HERE / "averaging_packages.tar.xz", "w:xz") as to:
        for path in sorted(place.rglob("*")):
            if path.is_file():
                to.add(path, path.relative_to(place), filter=anonymous)


def anonymous(entry):
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def new(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    {"torch": make_torch, "jax": make_jax, "pack": pack}[sys.argv[1]](Path(sys.argv[2]))
