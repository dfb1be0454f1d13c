"""AL: adversarial learning. Beside softened probabilities, a critic tells the teacher's logits from the student's, who learns to pass.
Xu et al. 2018, https://arxiv.org/abs/1709.00513

    python project/AL.py --teacher ResNet32 --model ResNet8

Differs: student and critic are on opposite sides (in MEKD's released code both descend the same loss). The critic sees centred logits,
since probabilities tell them up to a constant of each row; it judges no classes, as in MEKD's table. Its layers are spectrally
normalised: without, at Adam 1e-2, its slope and the student's logits run away (Digits, validation: 10 % against 96 %). No labels.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from common.losses import centred, kl
from common.options import TransferOptions, opt
from common.run import start
from common.utils import cli


@dataclass
class Args(TransferOptions):
    NEEDS: ClassVar = "soft"

    temperature: float = opt(2.0, "temperature of the softened probabilities", alias="t", gt=0)
    w_kl: float = opt(0.5, "weight of the KL term", ge=0)
    w_adv: float = opt(0.15, "weight of the student's adversarial term", ge=0)
    lr_critic: float = opt(1e-2, "learning rate of the critic (Adam)", gt=0)
    kl_scale: Literal["t2", "t", "1"] = opt(
        "t2", "factor of the KL term: temperature squared (t2), temperature (t, MEKD's released code), or 1"
    )


def make_critic(classes):
    """Logits (B, K) -> logit (B, 1) of being the teacher's."""
    first, second, last = (spectral_norm(nn.Linear(*sizes)) for sizes in ((classes, 512), (512, 256), (256, 1)))
    return nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), last)


def adversarial(critic, s, t):
    """(student's term, critic's term), non-saturating; the first has no gradient in the critic, the second none in the student."""
    s, t = centred(s), centred(t)  # (B, K)
    frozen = {name: p.detach() for name, p in critic.named_parameters()}
    pass_as_teacher = F.softplus(-functional_call(critic, frozen, (s,))).mean()  # -log C(s)
    tell_apart = F.softplus(-critic(t)).mean() + F.softplus(critic(s.detach())).mean()  # -log C(t) - log(1 - C(s))
    return pass_as_teacher, tell_apart


def main(argv=None):
    run = start(Args, argv)
    args = run.args
    critic = make_critic(run.data.classes).to(run.device)

    def loss(x, t):  # t: the teacher's answers (B, K)
        s = run.student(x)  # (B, K)
        adv, apart = adversarial(critic, s, t)
        return {"kl": args.w_kl * kl(s, t, args.temperature, args.kl_scale), "adv": args.w_adv * adv, "critic": apart}

    run.fit(run.asked(), loss, [torch.optim.Adam(critic.parameters(), args.lr_critic)], critic=critic)
    return run.finish()


if __name__ == "__main__":
    cli(main)
