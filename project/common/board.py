"""TensorBoard's curves and pictures."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .cli import say

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """TensorBoard's writer in the folder `logs`, opened at its first use. A full disk ends the curves, and not the run."""

    def __init__(self, logs: Path):
        self.logs, self.writer, self.broken = logs, None, False

    def scalar(self, name: str, value: float, epoch: int) -> None:
        """A point of a curve."""
        self.write(epoch, lambda writer: writer.add_scalar(name, value, epoch))

    def image(self, name: str, picture: Tensor, epoch: int) -> None:
        """A picture (C, H, W) with values in [0, 1]."""
        self.write(epoch, lambda writer: writer.add_image(name, picture, epoch))

    def close(self) -> None:
        """Writes what is not written yet."""
        if self.writer:
            self.write(0, lambda writer: writer.close())

    def write(self, epoch: int, what: Callable[["SummaryWriter"], object]) -> None:
        """Calls what(writer), if nothing has failed before. Points from `epoch` on that are there at the first call are cut off."""
        if self.broken:
            return
        try:
            if not self.writer:
                from torch.utils.tensorboard import SummaryWriter  # slow to import

                self.writer = SummaryWriter(self.logs, purge_step=epoch)
            what(self.writer)
        except OSError as e:
            self.broken = True
            say(f"WARNING: no more TensorBoard events in {self.logs} ({e.strerror or os.strerror(e.errno or 5)}); the run goes on without")
