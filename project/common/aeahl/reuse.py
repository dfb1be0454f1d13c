"""Reusable generator (RG) of AEAHL-RG: the networks that a data-free run saves, and how a later run starts from them.

Source: the released code of AEAHL-RG.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn as nn
from torch import Tensor

from ..checkpoints import read_weights
from ..cli import UsageError
from ..gan import Generator
from ..options import opt
from ..run import Run
from .nets import Fusion, Pixels, recalibrate
from .options import SynthesisOptions

LR_FACTORS = {"anew": 1.0, "reuse_common": 1.0, "reuse_finetune": 0.1, "reuse_fix": 0.0}  # for the reused networks, by --mode


@dataclass
class ReuseOptions(SynthesisOptions):
    """Options of SynthesisOptions, and of the networks that are reused and saved."""

    GROUP: ClassVar = "method"

    mode: Literal["anew", "reuse_common", "reuse_finetune", "reuse_fix"] = opt(
        "anew",
        "initial generator: new (anew), or that of an earlier run, trained with 1 (reuse_common), 0.1 (reuse_finetune) or 0 (reuse_fix) "
        "times the learning rate",
    )
    reuse_generator_path: str = opt("", "generator.pt of the earlier run whose generator is reused")
    reuse_decoder_path: str = opt("", "decoder.pt of the earlier run whose generator is reused; empty: the one next to its generator.pt")
    keep: Literal["g1", "g2", "activation", "loss"] = opt(
        "g1",
        "network saved as generator.pt: g1, g2, or that of smaller teacher features (activation) or lower loss (loss)",
    )
    twins: bool = opt(False, "start the second generator as a copy of the first, which it remains (released code)")

    def validate(self) -> None:
        super().validate()
        if self.mode == "anew":
            return
        if not self.reuse_generator_path:
            first = f"python project/AEAHL.py --dataset {self.dataset} --teacher TEACHER --model {self.model} --generator {self.generator}"
            raise UsageError(f"--mode {self.mode} needs --reuse_generator_path, the generator.pt of an earlier run; first run: {first}")
        if self.generator == "pixels" or self.meta == "fresh":
            raise UsageError(
                f"--mode {self.mode}: a run with --generator {self.generator} --meta {self.meta} does not keep a generator; "
                "use --generator rg or single and --meta fomaml, reptile or none"
            )


def make_generator(run: Run) -> tuple[nn.Module, dict[str, float]]:
    """Returns the generator that --generator and --mode select, and the factors of its learning rates.

    A key of the factors is the beginning of parameter names; the empty key stands for all parameters.
    Raises UsageError if the weights to reuse are missing or do not fit.
    """
    a, shape, factor = run.args, run.data.shape, LR_FACTORS[run.args.mode]
    if a.generator == "pixels":
        return on_device(run, Pixels(a.batch_size, shape, run.data.mean, run.data.std)), {"": 1.0}
    path = Path(a.reuse_generator_path)
    if a.generator == "single":
        G = Generator(a.latent, shape, a.ngf, pixels=True)
        if a.mode != "anew":
            load_reused(run, G, path)
        return on_device(run, G), {"": factor}
    G = Fusion(a.latent, shape, a.ngf, a.twins)
    if a.mode != "anew":
        load_reused(run, G.g2, path)
        load_reused(run, G.decoder, Path(a.reuse_decoder_path or path.with_name("decoder.pt")))
    return on_device(run, G), {"g1": 1.0, "g2": factor, "decoder": factor}


def load_reused(run: Run, net: nn.Module, path: Path) -> nn.Module:
    """Returns `net` with the weights of an earlier run's generator or decoder, made with any teacher."""
    return run.load_weights(net, path, same=("shape",), kind=f"a generator or decoder of AEAHL.py with {run.args.latent} latents")


def on_device(run: Run, net: nn.Module) -> nn.Module:
    """Returns `net` on the run's device, in channels-last format."""
    return net.to(run.device, memory_format=torch.channels_last)


@torch.no_grad()
def nets_to_keep(run: Run, G: nn.Module, loss: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> dict[str, nn.Module]:
    """Returns {file name: network} that a run saves: `generator` and `decoder` for later runs, and the other generator, `abandoned`.

    --keep selects the generator. To compare the two, noise replaces the output of the other one. activation: the generator whose images
    have smaller features in the teacher; loss: the one with lower loss(x, y), for images x (B, C, H, W) and classes y (B,).
    """
    if not isinstance(G, Fusion):
        return {"generator": G} if isinstance(G, Generator) else {}
    first, a = run.args.keep != "g2", run.args
    if a.keep in ("activation", "loss"):
        z = torch.randn(a.batch_size, a.latent, device=run.device)
        noise = torch.rand(a.batch_size, *run.data.shape, device=run.device)
        y = torch.arange(a.batch_size, device=run.device) % run.data.classes
        run.student.eval()
        scores = []
        for g in (G.g1, G.g2):
            x = G.decoder((g(z) + noise) / 2)
            features = run.teacher.inside(run.data.view(x))[1]
            scores.append(features.abs().sum() if a.keep == "activation" else sum(loss(x, y).values()))
        first = bool(scores[0] <= scores[1])
    kept, other = (G.g1, G.g2) if first else (G.g2, G.g1)
    return {"generator": kept, "abandoned": other, "decoder": G.decoder}


def reused_generator(run: Run, folder: str | Path, which: str = "generator") -> nn.Module:
    """Returns a generator that combines a saved one with a new one: latents (B, latent) -> images (B, C, H, W) in [0, 1].

    folder: checkpoint folder of a finished run of AEAHL.py --generator rg. which: the saved network, `generator` or `abandoned`.
    Raises UsageError if the folder does not contain it, or if it makes images of another shape.
    """
    path = Path(folder) / f"{which}.pt"
    if not path.exists() or not path.with_name("decoder.pt").exists():
        raise UsageError(
            f"no {path.name} with a decoder.pt in {folder}; use the checkpoint folder of a finished run of AEAHL.py --generator rg"
        )
    _, meta = read_weights(path)
    G = Fusion(meta.get("latent", 256), run.data.shape, meta.get("ngf", 64))
    for net, name in ((G.g2, which), (G.decoder, "decoder")):
        source = path.with_name(f"{name}.pt")
        run.load_weights(net, source, same=("shape",), kind="a generator or decoder of AEAHL.py")
    return recalibrate(on_device(run, G), lambda: torch.randn(256, G.g1.latent, device=run.device))
