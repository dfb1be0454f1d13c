"""AL: trains the student with KD and against a critic that tells the teacher's logits from the student's (adversarial learning).
Xu et al. 2018, https://arxiv.org/abs/1709.00513

    python project/AL.py --teacher ResNet32 --model ResNet8

Differs:
  - The student sees no labels.
  - Student and critic minimise opposite losses. In MEKD's released code both minimise the same loss.
  - The critic sees centred logits, because probabilities determine logits only up to a constant per image.
  - The critic predicts no classes, as in MEKD's table.
  - The critic is spectrally normalised. Without it, at a learning rate of 1e-2 (Adam), the critic's slope and the student's logits
    diverge, and the accuracy is 10 % instead of 96.3 % (Digits, validation, one seed).
"""

from common.cli import cli

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from common.losses import centred, kl
from common.options import KLOptions, opt
from common.run import start


@dataclass
class Args(KLOptions):
    NEEDS: ClassVar = "soft"

    temperature: float = opt(2.0, "temperature of the softened probabilities", alias="t", ge=1e-3, le=1e3)
    w_kl: float = opt(0.5, "weight of the KL term", ge=0)
    w_adv: float = opt(0.15, "weight of the adversarial term of the student's loss", ge=0)
    lr_critic: float = opt(1e-2, "learning rate of the critic (Adam)", gt=0)


def make_critic(classes: int) -> nn.Module:
    """Returns a critic that maps logits (B, K) of `classes` classes to the logit (B, 1) that they are the teacher's."""
    first, second, last = (spectral_norm(nn.Linear(*sizes)) for sizes in ((classes, 512), (512, 256), (256, 1)))
    return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), last)


def adversarial(critic: nn.Module, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the student's and the critic's loss term (non-saturating) for the logits s of the student and t of the teacher, (B, K) each.

    The student's term has no gradient in the critic. The critic's term has no gradient in the student.
    """
    s, t = centred(s), centred(t)  # (B, K)
    frozen = {name: p.detach() for name, p in critic.named_parameters()}
    student_term = F.softplus(-functional_call(critic, frozen, (s,))).mean()  # -log C(s)
    critic_term = F.softplus(-critic(t)).mean() + F.softplus(critic(s.detach())).mean()  # -log C(t) - log(1 - C(s))
    return student_term, critic_term


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    critic = make_critic(run.data.classes).to(run.device)

    def loss(x, t):  # x: images (B, C, H, W), t: the teacher's responses (B, K)
        s = run.student(x)  # (B, K)
        student_term, critic_term = adversarial(critic, s, t)
        kl_term = kl(s, t, args.temperature, args.kl_scale, standard=args.standardise)
        return {"kl": args.w_kl * kl_term, "adv": args.w_adv * student_term, "critic": critic_term}

    run.fit(run.asked(), loss, [torch.optim.Adam(critic.parameters(), args.lr_critic)], critic=critic)
    return run.finish()


if __name__ == "__main__":
    cli(main)
