"""A training loop in PyTorch: its checkpoints, and the average that it tracked itself."""

import sys
from pathlib import Path

import torch

STEPS, EVERY = 400, 10


def train(place):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    (place / "checkpoints").mkdir(parents=True, exist_ok=True)
    gamma, average = 1.826214, None  # sigma_rel 0.2
    for step in range(1, STEPS + 1):
        x = torch.randn(64, 4)
        loss = ((model(x) - x.sin().sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = {k: v.detach().double() for k, v in model.state_dict().items()}
        beta = (1 - 1 / step) ** (gamma + 1)
        average = average or state
        average = {k: beta * v + (1 - beta) * state[k] for k, v in average.items()}
        if step % EVERY == 0:
            checkpoint = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(checkpoint, place / "checkpoints" / f"{step}.pt")
    torch.save({"average": average, "latest": state}, place / "tracked.pt")


def compare(place, made):
    tracked = torch.load(place / "tracked.pt")
    found = torch.load(made, weights_only=True)["model"]  # as a user's code loads it
    for other in (found, tracked["latest"]):
        squares = [((other[k] - v) ** 2).sum() for k, v in tracked["average"].items()]
        print(float(sum(squares)) ** 0.5)


if __name__ == "__main__":
    {"train": train, "compare": compare}[sys.argv[1]](*map(Path, sys.argv[2:]))
