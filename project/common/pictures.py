"""How every picture is made and written: without a display, whole or not at all."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor

from .utils import atomic

if TYPE_CHECKING:
    import matplotlib.figure


def pyplot() -> ModuleType:
    """matplotlib.pyplot for files; imported when the first picture is made, since it is slow to."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(fig: "matplotlib.figure.Figure", path: Path, dpi: int = 130) -> None:
    """Writes the figure as PNG, and closes it."""
    with atomic(path) as f:
        fig.savefig(f, dpi=dpi, format="png")
    pyplot().close(fig)


def save_grid(x: Tensor, path: Path, columns: int, least: int, **options) -> None:
    """Images x (N, C, H, W) in [0, 1] as one PNG of so many columns, each pixel repeated as long as an image fits into `least` pixels."""
    from torchvision.utils import save_image

    times = max(1, least // x.shape[-1])
    with atomic(path) as f:
        save_image(x.repeat_interleave(times, 2).repeat_interleave(times, 3), f, nrow=columns, format="png", **options)
