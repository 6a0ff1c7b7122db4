"""Golden outputs of the exported PyTorch modules, all letters, with random weights.

With PyTorch in an environment of its own, from the repository's root:

    PYTHONPATH=.:tests/helpers .venv/bin/python tests/oracles/exported_modules.py export /tmp/modules
    PYTHON_WITH_TORCH tests/oracles/exported_modules.py run /tmp/modules tests/oracles/exported_modules.npz

The first command exports the seven small networks of tests/helpers/tiny_unets.py, and the
second runs what was exported, and has nothing of edm_jax. Both are part of a test where
PyTorch is installed (tests/export/test_export.py).
"""

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

LETTERS = "abcdefg"


def export(place):
    """Writes DIR/LETTER/torch_denoiser.{py,safetensors} and the inputs."""
    import tiny_exports
    from tiny_unets import example

    for letter in LETTERS:
        tiny_exports.write(place / letter, letter)
    x, sigma, label = example()
    np.savez(place / "inputs.npz", x=x, sigma=sigma, label=label)


def run(place, out):
    """Runs the modules, in float32; writes D (N, H, W, C) and u (N,) of each letter."""
    import torch

    inputs = np.load(place / "inputs.npz")
    x = torch.from_numpy(inputs["x"]).permute(0, 3, 1, 2)
    sigma, label = (torch.from_numpy(inputs[name]) for name in ("sigma", "label"))
    found = {"versions": f"torch {torch.__version__}"}
    for letter in LETTERS:
        path = place / letter / "torch_denoiser.py"
        found[f"{letter}_text"] = digest(path.read_text())
        module = imported(path)
        denoiser = module.load()
        with torch.no_grad():
            image = denoiser(x, sigma, label)
            if letter != "a":
                found[f"{letter}_logvar"] = denoiser.uncertainty(sigma).numpy()
            same_forms(torch, denoiser, x, sigma)
        found[letter] = image.permute(0, 2, 3, 1).numpy()
        state = denoiser.state_dict()
        torch.save(state, place / letter / "again.pt")
        trains(torch, module, x, sigma, label)
    np.savez_compressed(out, **found)
    command = [sys.executable, str(place / "g" / "torch_denoiser.py"), "--seeds=3"]
    picture = place / "samples.png"
    subprocess.run([*command, "--steps=2", f"--out={picture}"], check=True)
    images = torch.load(picture.with_suffix(".pt"), weights_only=True)
    assert images.shape == (3, 3, 8, 8) and images.isfinite().all()


def digest(text):
    """Of a module's text without its comments: golden values are those of one text."""
    code = [line for line in text.splitlines() if not line.startswith("#")]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def imported(path):
    spec = importlib.util.spec_from_file_location("torch_denoiser", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same_forms(torch, denoiser, x, sigma):
    """Class numbers are one-hot labels, no label is one of zeros, a number a level."""
    numbers = torch.arange(len(x)) % 10
    one_hot = torch.eye(10)[numbers]
    torch.testing.assert_close(
        denoiser(x, sigma, numbers), denoiser(x, sigma, one_hot), rtol=0, atol=0
    )
    torch.testing.assert_close(
        denoiser(x, 0.7), denoiser(x, torch.full((len(x),), 0.7), one_hot * 0)
    )


def trains(torch, module, x, sigma, label):
    """Every parameter of the module gets a gradient, but for u(sigma)'s."""
    denoiser = module.load().train()
    denoiser(x, sigma, label).square().sum().backward()
    without = {n for n, p in denoiser.named_parameters() if p.grad is None}
    assert without <= {"logvar.weight", "logvar.bias"}, without


if __name__ == "__main__":
    {"export": export, "run": run}[sys.argv[1]](*map(Path, sys.argv[2:]))
