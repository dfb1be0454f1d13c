"""RG, the reusable generator: what one data-free run leaves for the next, and how the next takes it up. AEAHL-RG's released code."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from ..checkpoints import read_weights
from ..gan import Generator
from ..options import opt
from ..utils import UsageError
from .nets import Fusion, Pixels, recalibrate
from .options import SynthesisOptions

SHARES = {"anew": 1.0, "reuse_common": 1.0, "reuse_finetune": 0.1, "reuse_fix": 0.0}  # of the learning rates, for what is reused


@dataclass
class ReuseOptions(SynthesisOptions):
    GROUP: ClassVar = "method"

    mode: Literal["anew", "reuse_common", "reuse_finetune", "reuse_fix"] = opt(
        "anew", "start: a new generator (anew), or an earlier run's at 1, 0.1 or 0 times the learning rates"
    )
    reuse_generator_path: str = opt("", "generator.pt of the earlier run")
    reuse_decoder_path: str = opt("", "decoder.pt of the earlier run; left out: the one beside its generator.pt")
    keep: Literal["g1", "g2", "activation", "loss"] = opt(
        "g1", "net that becomes generator.pt: g1, g2, or that of smaller features (activation) or of lower loss"
    )
    twins: bool = opt(False, "start the second generator as a copy of the first, which it remains (the released code)")

    def validate(self) -> None:
        super().validate()
        if self.mode == "anew":
            return
        if not self.reuse_generator_path:
            first = f"python project/AEAHL.py --dataset {self.dataset} --teacher TEACHER --model {self.model} --generator {self.generator}"
            raise UsageError(f"--mode {self.mode} goes on from an earlier run: give its --reuse_generator_path; first run: {first}")
        if self.generator == "pixels" or self.meta == "fresh":
            raise UsageError(f"--mode {self.mode} has nothing to reuse with --generator {self.generator} --meta {self.meta}")


def make_generator(run):
    """(the net that --generator and --mode ask for, {beginning of its parameters' names: their share of the learning rates})."""
    a, shape, share = run.args, run.data.shape, SHARES[run.args.mode]
    if a.generator == "pixels":
        return on_device(run, Pixels(a.batch_size, shape)), {"": 1.0}
    old = Path(a.reuse_generator_path)
    if a.generator == "single":
        G = Generator(a.latent, shape, a.ngf, pixels=True)
        if a.mode != "anew":
            take_up(run, G, old)
        return on_device(run, G), {"": share}
    G = Fusion(a.latent, shape, a.ngf, a.twins)
    if a.mode != "anew":
        take_up(run, G.g2, old)
        take_up(run, G.decoder, Path(a.reuse_decoder_path or old.with_name("decoder.pt")))
    return on_device(run, G), {"g1": 1.0, "g2": share, "decoder": share}


def take_up(run, net, path):
    """`net` with the weights of an earlier run's generator or decoder, whatever teacher it was for."""
    return run.load_weights(net, path, same=("shape",), kind=f"a generator of {run.args.latent} latents, or its decoder,")


def on_device(run, net):
    return net.to(run.device, memory_format=torch.channels_last)


@torch.no_grad()
def left(run, G, loss):
    """{file's name: net} of what a run leaves: `generator` and `decoder`, which another can reuse, and the other net, `abandoned`.

    --keep activation: the net whose images, with noise for the other's, have smaller features in the teacher; loss: a lower loss(x, y).
    """
    if not isinstance(G, Fusion):
        return {"generator": G} if isinstance(G, Generator) else {}
    first, a = run.args.keep != "g2", run.args
    if a.keep in ("activation", "loss"):
        z = torch.randn(a.batch_size, a.latent, device=run.device)
        noise = torch.rand(a.batch_size, *run.data.shape, device=run.device)
        y = torch.arange(a.batch_size, device=run.device) % run.data.classes
        run.student.eval()
        worth = []
        for g in (G.g1, G.g2):
            x = G.decoder((g(z) + noise) / 2)
            features = run.teacher.inside(run.data.view(x))[1]
            worth.append(features.abs().sum() if a.keep == "activation" else sum(loss(x, y).values()))
        first = bool(worth[0] <= worth[1])
    kept, other = (G.g1, G.g2) if first else (G.g2, G.g1)
    return {"generator": kept, "abandoned": other, "decoder": G.decoder}


def taken_up(run, folder, which="generator"):
    """What the AEAHL.py run in `folder` left, `which` of its nets and its decoder, beside a new net: ready to make images, z (B, latent) ->
    (B, C, H, W) in [0, 1]. UsageError where there is none, or of another size."""
    path = Path(folder) / f"{which}.pt"
    if not path.exists() or not path.with_name("decoder.pt").exists():
        raise UsageError(
            f"no {path.name} with a decoder.pt in {folder}; give the checkpoints' folder of a finished AEAHL.py run (--generator rg)"
        )
    _, meta = read_weights(path)
    G = Fusion(meta.get("latent", 256), run.data.shape, meta.get("ngf", 64))
    for net, name in ((G.g2, which), (G.decoder, "decoder")):
        source = path.with_name(f"{name}.pt")
        run.load_weights(net, source, same=("shape",), kind=f"a generator of {run.args.teacher}'s images")
    return recalibrate(on_device(run, G), lambda: torch.randn(256, G.g1.latent, device=run.device))
