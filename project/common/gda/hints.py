"""Losses of features, for a teacher that one may look into: `Hints(run, name)(x)` gives logits of both sides and the terms by name.

fitnet: Romero et al. 2015, https://arxiv.org/abs/1412.6550. rkd: Park et al. 2019, https://arxiv.org/abs/1904.05068.
reviewkd: Chen et al. 2021, https://arxiv.org/abs/2104.09044.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..utils import exact
from .stages import Stages

DISTANCE, ANGLE = 25.0, 50.0  # RKD's weights, as in its paper


class FitNet(nn.Module):
    """The mean squared difference of the teacher's stages from 1 x 1 convolutions of the student's, the deepest with the deepest."""

    def __init__(self, small, large, widths, args):
        super().__init__()
        pairs = [*zip(reversed(small), reversed(large), strict=False)]
        self.project = nn.ModuleList(nn.Conv2d(a[0], b[0], 1, bias=False) for a, b in pairs)
        for conv in self.project:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")

    def forward(self, s, t, pooled):
        maps = zip(self.project, reversed(s), reversed(t), strict=False)
        return {"hint": sum(F.mse_loss(*same_size(conv(a), b)) for conv, a, b in maps)}


def same_size(a, b):
    """Both maps, pooled to the lesser height of the two."""
    h = min(a.shape[2], b.shape[2])
    return (x if x.shape[2] == h else F.adaptive_avg_pool2d(x, h) for x in (a, b))


class RKD(nn.Module):
    """Distances and angles between the images' penultimate features, weighed by DISTANCE and ANGLE."""

    def __init__(self, small, large, widths, args):
        super().__init__()
        self.args = args

    def forward(self, s, t, pooled):
        with exact(pooled[0]):
            (d_s, a_s), (d_t, a_t) = (relations(f.float()) for f in pooled)
        return {"distance": DISTANCE * F.smooth_l1_loss(d_s, d_t), "angle": ANGLE * F.smooth_l1_loss(a_s, a_t)}


def relations(f):
    """(distances over their mean (B, B), cosines of the angle at i between j and k (B, B, B)) of features f (B, F)."""
    apart = f[None] - f[:, None]  # (B, B, F): j - i
    square = apart.square().sum(2)
    d = square.clamp_min(1e-12).sqrt() * (square > 0)
    e = F.normalize(apart, dim=2)
    return d / d[d > 0].mean(), e @ e.transpose(1, 2)


class Review(nn.Module):
    """The student's stages, fused from the deepest to the largest, against the teacher's at several scales; the last level are the
    penultimate features as maps of 1 x 1."""

    def __init__(self, small, large, widths, args):
        super().__init__()
        n = min(len(small), len(large))
        small, large = small[-n:], large[-n:]
        sizes = [(a[0], b[0], b[1]) for a, b in zip(small, large, strict=True)] + [(*widths, 1)]
        mid = min(512, small[-1][0])
        self.levels = nn.ModuleList(Fuse(a, mid, b, h, i > 0) for i, (a, b, h) in enumerate(reversed(sizes)))

    def forward(self, s, t, pooled):
        n = len(self.levels) - 1
        s, t = ([*maps[-n:], f[:, :, None, None]] for maps, f in zip((s, t), pooled, strict=True))
        total, past = 0.0, None
        for level, a, b in zip(self.levels, reversed(s), reversed(t), strict=True):
            out, past = level(a, past)
            total = total + pyramid(out, b)
        return {"review": total}


class Fuse(nn.Module):
    """A level of ReviewKD: the student's map and what came from deeper, weighed by attention, as a map like the teacher's."""

    def __init__(self, cin, mid, cout, height, fuse):
        super().__init__()
        self.height = height
        self.enter = nn.Sequential(nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.attend = nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid()) if fuse else None
        self.leave = nn.Sequential(nn.Conv2d(mid, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x, past):
        x = self.enter(x)
        if self.attend is not None:
            past = F.interpolate(past, x.shape[2:])
            mine, theirs = self.attend(torch.cat([x, past], 1)).split(1, 1)  # (B, 1, H, W) each
            x = x * mine + past * theirs
        if x.shape[2] != self.height:
            x = F.interpolate(x, (self.height, self.height))
        return self.leave(x), x


def pyramid(a, b):
    """The mean squared difference of two maps and of what they pool to at 4, 2 and 1, weighed by 1, 1/2, 1/4 and 1/8; over the sum."""
    total, weight, weights = F.mse_loss(a, b), 1.0, 1.0
    for height in (4, 2, 1):
        if height < a.shape[2]:
            weight /= 2
            total = total + weight * F.mse_loss(F.adaptive_avg_pool2d(a, height), F.adaptive_avg_pool2d(b, height))
            weights += weight
    return total / weights


# each is made of the stages' shapes (C, H, W) of the student and of the teacher, the widths of their penultimate features, and options
HINTS = {"fitnet": FitNet, "rkd": RKD, "reviewkd": Review}


class Hints:
    """The loss `name` for a run's pair; `net`: what it trains beside the student."""

    def __init__(self, run, name):
        self.run, shape = run, run.data.shape
        self.stages = [Stages(net, shape, run.device) for net in (run.student, run.teacher.net)]
        with torch.no_grad():
            x = torch.zeros(1, *shape, device=run.device)
            widths = [net(x, feature=True)[1].shape[1] for net in (run.student.eval(), run.teacher.net)]
        run.student.train()
        self.net = HINTS[name](*(s.shapes for s in self.stages), widths, run.args).to(run.device, memory_format=torch.channels_last)

    def __call__(self, x):
        """Logits (B, K) of the student and of the teacher for images x, and the terms."""
        mine, theirs = self.stages
        with torch.no_grad(), theirs:
            t, of_t = self.run.teacher.inside(x, "private")
        with mine:
            s, of_s = self.run.student(x, feature=True)
        return s.float(), t.float(), self.net(mine.seen, theirs.seen, (of_s, of_t))
