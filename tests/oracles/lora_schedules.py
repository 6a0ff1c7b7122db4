"""Golden values of the schedulers that LoRA trainers use, by diffusers itself.

With PyTorch and diffusers installed (in an environment of its own):

    python tests/oracles/lora_schedules.py

writes lora_schedules.json beside this script: the rate of every optimizer step.
"""

import json
from pathlib import Path

CASES = [
    # name, steps, warm-up steps, base rate, arguments of get_scheduler
    ("constant", 12, 0, 1e-4, {}),
    ("constant_with_warmup", 12, 5, 1e-4, {}),
    ("linear", 20, 6, 1e-4, {}),
    ("linear", 20, 0, 1e-4, {}),
    ("cosine", 20, 6, 1e-4, {}),
    ("cosine", 20, 0, 3e-3, {}),
    ("cosine_with_restarts", 30, 6, 1e-4, {"num_cycles": 3}),
    ("cosine_with_restarts", 20, 0, 1e-4, {}),
    ("polynomial", 20, 6, 1e-4, {}),
    ("polynomial", 20, 0, 1e-6, {"power": 2.0}),
]


def rates(name, steps, warmup, rate, given):
    """The rate of steps 0, 1, ..., and of some after the last."""
    import torch
    from diffusers import optimization

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = optimization.get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps, **given
    )
    found = []
    for _ in range(steps + 3):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def main():
    import diffusers
    import torch

    golden = {
        "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        "cases": [
            {
                "name": name,
                "steps": steps,
                "warmup": warmup,
                "rate": rate,
                "given": given,
                "rates": rates(name, steps, warmup, rate, given),
            }
            for name, steps, warmup, rate, given in CASES
        ],
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden).replace('{"name"', '\n{"name"') + "\n")


if __name__ == "__main__":
    main()
