"""Losses of features, for a white-box teacher: `Hints(run, name)(x)` returns the logits of both networks and the loss terms by name.

fitnet: Romero et al. 2015, https://arxiv.org/abs/1412.6550. rkd: Park et al. 2019, https://arxiv.org/abs/1904.05068.
reviewkd: Chen et al. 2021, https://arxiv.org/abs/2104.09044.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..cli import UsageError
from ..losses import warm_up
from ..options import Base
from ..processes import world_size
from ..run import Run
from ..utils import exact
from .stages import Stages

DISTANCE, ANGLE = 25.0, 50.0  # weights of RKD's terms, from its paper

Shapes = Sequence[tuple[int, int, int]]  # (C, H, W) of the maps of a network's stages, the largest first

# Each loss is made from `small` and `large`, the shapes of the student's and the teacher's stages; `widths`, the numbers of their
# penultimate features; and the options `args`. forward(s, t, pooled) returns the terms for the maps s of the student and t of the teacher,
# (B, C, H, W) each, and the pair `pooled` of their penultimate features (B, F).


class FitNet(nn.Module):
    """Mean squared difference of the teacher's maps and 1x1 convolutions of the student's maps, deepest stage with deepest stage."""

    def __init__(self, small: Shapes, large: Shapes, widths: Sequence[int], args: Base) -> None:
        super().__init__()
        pairs = [*zip(reversed(small), reversed(large), strict=False)]
        self.project = nn.ModuleList(nn.Conv2d(a[0], b[0], 1, bias=False) for a, b in pairs)
        for conv in self.project:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")

    def forward(self, s: Sequence[Tensor], t: Sequence[Tensor], pooled: Sequence[Tensor]) -> dict[str, Tensor]:
        maps = zip(self.project, reversed(s), reversed(t), strict=False)
        return {"hint": sum(F.mse_loss(*pool_to_same_size(conv(a), b)) for conv, a, b in maps)}


def pool_to_same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both maps (B, C, H, W), average-pooled to the smaller of their heights."""
    h = min(a.shape[2], b.shape[2])
    a, b = (x if x.shape[2] == h else F.adaptive_avg_pool2d(x, h) for x in (a, b))
    return a, b


class RKD(nn.Module):
    """Smooth L1 differences of the distances and the angles between the penultimate features of a batch."""

    def __init__(self, small: Shapes, large: Shapes, widths: Sequence[int], args: Base) -> None:
        super().__init__()
        self.args = args

    def forward(self, s: Sequence[Tensor], t: Sequence[Tensor], pooled: Sequence[Tensor]) -> dict[str, Tensor]:
        with exact(pooled[0]):
            (d_s, a_s), (d_t, a_t) = (relations(f.float()) for f in pooled)
        return {"distance": DISTANCE * F.smooth_l1_loss(d_s, d_t), "angle": ANGLE * F.smooth_l1_loss(a_s, a_t)}


def relations(f: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distances and the angles between features f (B, F).

    Distances (B, B) are divided by their mean. Angles are cosines (B, B, B): entry i, j, k is the angle at i between j and k.
    """
    apart = f[None] - f[:, None]  # (B, B, F): j - i
    square = apart.square().sum(2)
    d = square.clamp_min(1e-12).sqrt() * (square > 0)
    e = F.normalize(apart, dim=2)
    return d * (d > 0).sum() / d.sum(), e @ e.transpose(1, 2)


class ReviewKD(nn.Module):
    """ReviewKD: fuses the student's stages from the deepest to the largest and compares them with the teacher's at several scales.

    The deepest level is the penultimate features as maps of 1 x 1. The teacher's maps are those before the last ReLU of a stage, as in
    mdistiller (GDA's code: after it, and with the stem as a fifth level).
    """

    BEFORE_RELU = RISES = True  # RISES: its weight rises over --kd_warmup epochs

    def __init__(self, small: Shapes, large: Shapes, widths: Sequence[int], args: Base) -> None:
        super().__init__()
        n = min(len(small), len(large))
        small, large = small[-n:], large[-n:]
        sizes = [(a[0], b[0], b[1]) for a, b in zip(small, large, strict=True)] + [(*widths, 1)]
        mid = min(512, small[-1][0])
        self.levels = nn.ModuleList(FusionLevel(a, mid, b, h, i > 0) for i, (a, b, h) in enumerate(reversed(sizes)))

    def forward(self, s: Sequence[Tensor], t: Sequence[Tensor], pooled: Sequence[Tensor]) -> dict[str, Tensor]:
        n = len(self.levels) - 1
        s, t = ([*maps[-n:], f[:, :, None, None]] for maps, f in zip((s, t), pooled, strict=True))
        total, deeper = 0.0, None
        for level, a, b in zip(self.levels, reversed(s), reversed(t), strict=True):
            out, deeper = level(a, deeper)
            total = total + pyramid_loss(out, b)
        return {"review": total}


class FusionLevel(nn.Module):
    """One level of ReviewKD: fuses the student's map with the deeper level's result by attention, and maps it to the teacher's shape."""

    def __init__(self, cin: int, mid: int, cout: int, height: int, fuse: bool) -> None:
        super().__init__()
        self.height = height
        self.enter = nn.Sequential(nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid))
        self.attend = nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid()) if fuse else None
        self.leave = nn.Sequential(nn.Conv2d(mid, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout))
        for conv in (self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # variance 1 / fan_in

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the map (B, cout, height, height) to compare, and the fused map (B, mid, height, height) for the next level."""
        x = self.enter(x)
        if self.attend is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            own, other = self.attend(torch.cat([x, deeper], 1)).split(1, 1)  # (B, 1, H, W) each
            x = x * own + deeper * other
        if x.shape[2] != self.height:
            x = F.interpolate(x, (self.height, self.height))
        return self.leave(x), x


def pyramid_loss(a: Tensor, b: Tensor) -> Tensor:
    """Returns the weighted mean of the mean squared differences of two maps at full size and pooled to 4, 2 and 1.

    The weights are 1, 1/2, 1/4 and 1/8; sizes that are not below the map's own are left out.
    """
    total, weight, weights = F.mse_loss(a, b), 1.0, 1.0
    for height in (4, 2, 1):
        if height < a.shape[2]:
            weight /= 2
            total = total + weight * F.mse_loss(F.adaptive_avg_pool2d(a, height), F.adaptive_avg_pool2d(b, height))
            weights += weight
    return total / weights


HINTS = {"fitnet": FitNet, "rkd": RKD, "reviewkd": ReviewKD}


class Hints:
    """The feature loss `name` (a key of HINTS) for a run's student and teacher; `net`: the layers that it trains with the student."""

    def __init__(self, run: Run, name: str) -> None:
        if world_size() > 1:
            raise UsageError(f"--base {name} compares feature maps, which are not joined over processes; run it without torchrun")
        self.run, shape = run, run.data.shape
        before_relu = getattr(HINTS[name], "BEFORE_RELU", False)
        self.stages = [Stages(run.student, shape, run.device), Stages(run.teacher.net, shape, run.device, before_relu)]
        with torch.no_grad():
            x = torch.zeros(1, *shape, device=run.device)
            widths = [net(x, feature=True)[1].shape[1] for net in (run.student.eval(), run.teacher.net)]
        run.student.train()
        self.net = HINTS[name](*(s.shapes for s in self.stages), widths, run.args).to(run.device, memory_format=torch.channels_last)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Returns the student's and the teacher's logits (B, K), float32, for images x (B, C, H, W), and the terms by name."""
        student, teacher = self.stages
        with torch.no_grad(), teacher:
            t, feature_t = self.run.teacher.inside(x, "private")
        with student:
            s, feature_s = self.run.student(x, feature=True)
        terms = self.net(student.seen, teacher.seen, (feature_s, feature_t))
        rise = warm_up(self.run.epoch, self.run.args.kd_warmup) if getattr(self.net, "RISES", False) else 1.0
        return s.float(), t.float(), {k: rise * v for k, v in terms.items()}
