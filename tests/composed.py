"""Nets behind each other, and a loss that is no mean over images: `main` trains them with SGD in however many processes there are.

A generator and a student are shared, a critic is not. The first process saves all weights as composed-N.pt, N being their number.
"""

from common.cli import say

from pathlib import Path

import torch
import torch.nn as nn

from common.gan import Generator
from common.models import build
from common.processes import join_others, leave_others, rank, share, world_size


def main(argv):
    home, join = Path(argv[argv.index("--checkpoints_dir") + 1]), world_size() > 1
    if join:
        join_others()
    torch.manual_seed(0)
    G, student = share(Generator(4, (1, 8, 8), ngf=4)), share(build("ResNet8", 10, (1, 8, 8), torch.device("cpu")))
    critic = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizers = [torch.optim.SGD(net.parameters(), lr, 0.9) for net, lr in ((G, 0.01), (student, 0.01), (critic, 0.01))]
    for n in (12, 7, 12, 2):  # the last is too small to divide
        z = torch.randn(n, 4)
        for _ in range(2):
            s = student(G(z))
            loss = s.softmax(1).mean(0).square().sum() + s.std(0).mean() + critic(s).mean() + 0.1 * torch.cdist(s, s).mean()
            for o in optimizers:
                o.zero_grad()
            loss.backward()
            for o in optimizers:
                o.step()
    if rank() == 0:
        nets = {"G": G, "student": student, "critic": critic}
        torch.save(
            {f"{k}.{name}": v for k, net in nets.items() for name, v in net.state_dict().items()}, home / f"composed-{world_size()}.pt"
        )
        say("saved")
    leave_others()
