"""What tells images made through a teacher from good ones: terms of the losses of data-free methods."""

import torch
import torch.nn.functional as F

from ..losses import kl_of_each

BANK = 4096  # features that a contrast looks back upon


class Moments(torch.autograd.Function):
    """x (N, C, H, W) -> its mean and biased variance (C,) each, float32 or better; a pass each way (autograd's own: seven)."""

    @staticmethod
    def forward(ctx, x):
        exact = x.float() if x.dtype in (torch.bfloat16, torch.half) else x
        _, mean, inverse_std = torch.native_batch_norm(exact, None, None, None, None, True, 0.0, 1e-12)
        ctx.save_for_backward(x, mean)
        return mean, inverse_std.pow(-2)

    @staticmethod
    def backward(ctx, of_mean, of_var):
        x, mean = ctx.saved_tensors
        n = x.numel() // len(mean)
        slope = 2 * of_var / n
        shift = of_mean / n - slope * mean
        return torch.addcmul(shift.to(x.dtype).view(1, -1, 1, 1), x, slope.to(x.dtype).view(1, -1, 1, 1))


class Taps:
    """The statistics of what enters each of the batch-norm layers `norms`, in `with taps:` only; and how far they are from the teacher's.

    momentum: the share that earlier batches, as far as `remember` has them, have in a statistic.
    """

    def __init__(self, norms, momentum):
        self.norms, self.momentum, self.seen, self.past = norms, momentum, [], []

    def __enter__(self):
        self.seen = []
        self.hooks = [m.register_forward_pre_hook(lambda m, x: self.seen.append(Moments.apply(x[0]))) for m in self.norms]

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()

    def loss(self):
        """Sum over layers of ||mean - running mean|| + ||var - running var||; DeepInversion (1912.08795), equation 4, norms not squared."""
        total = 0.0
        for i, (m, (mean, var)) in enumerate(zip(self.norms, self.seen, strict=True)):
            if self.past:
                old_mean, old_var = self.past[i]
                mean, var = torch.lerp(mean, old_mean, self.momentum), torch.lerp(var, old_var, self.momentum)
            total = total + (mean - m.running_mean).norm() + (var - m.running_var).norm()
        return total

    def remember(self):
        """Takes the last batch into the statistics of the past."""
        seen, keep = [(mean.detach(), var.detach()) for mean, var in self.seen], self.momentum
        past = self.past or seen
        self.past = [tuple(torch.lerp(new, old, keep) for new, old in zip(*pair, strict=True)) for pair in zip(seen, past, strict=True)]


def disagreement(s, t, agreed=True):
    """KL(teacher || student) of logits s, t (B, K) summed over the images of which both say the same class, or all, divided by B.

    To be made large, gradient through both: the adversarial term of DFAD's family, of FastDFKD and CMI where they agree.
    """
    apart = kl_of_each(s, t)  # (B,)
    return (apart * (s.argmax(1) == t.argmax(1)) if agreed else apart).mean()


class Bank:
    """Features (n, F) of length 1 of the latest BANK images that were made."""

    def __init__(self):
        self.features, self.last = None, None

    def remember(self):
        """Takes in the features of the last batch that `contrast` saw."""
        if self.last is not None:
            past = [] if self.features is None else [self.features.to(self.last.device)]
            self.features = torch.cat([*past, self.last])[-BANK:]

    def state_dict(self):
        return {"features": self.features}

    def load_state_dict(self, state):
        self.features = state["features"]


def contrast(f, g, bank, tau=0.2):
    """InfoNCE: features f, g (B, F) of two views of the same images are to be nearer to each other than f is to other images' in g and in
    the bank; cosines, temperature tau. CMI (2105.08584), its contrastive term, on the teacher's features as they are.
    """
    f, others = F.normalize(f.float(), dim=1), F.normalize(g.float(), dim=1)
    bank.last = others.detach()
    if bank.features is not None:
        others = torch.cat([others, bank.features.to(f.device)])
    return F.cross_entropy(f @ others.T / tau, torch.arange(len(f), device=f.device))
