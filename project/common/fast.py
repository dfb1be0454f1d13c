"""--fast: settings that save time and change results only by rounding."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .arguments import opt

EVALUATIONS = 20  # of a run, about


@dataclass
class FastOptions:
    GROUP: ClassVar = "training"

    fast: bool = opt(
        False,
        "faster settings: --amp bf16 where the device computes in bfloat16, --eval_every for about 20 evaluations of a run, and batch norm "
        "folded into the weights when the student is evaluated (docs/speed.md)",
    )

    def presets(self) -> dict[str, Any]:
        if not self.fast:
            return {}
        return {"amp": "bf16" if has_bfloat16(self.device) else "off", "eval_every": max(1, self.epochs // EVALUATIONS)}


def has_bfloat16(device: str) -> bool:
    """Whether `--device` computes products of matrices in bfloat16, and not only imitates it."""
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
