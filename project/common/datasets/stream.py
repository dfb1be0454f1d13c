"""Images of a folder that does not fit into memory: read by worker processes at every pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor
from torchvision.transforms import v2

from ..utils import RunError


@dataclass
class Stream:
    """Files read anew at every pass by worker processes, for a data set that does not fit."""

    samples: list[tuple[str, int]]  # (path, label) of every file of the folder
    index: Tensor  # (N,) which of them
    size: int
    workers: int

    def loader(self, batch_size: int, shuffle: bool, augment: str) -> torch.utils.data.DataLoader:
        """Batches of uint8 (B, 3, size, size) and of the images' places in `index` (B,), on the CPU; augmented ones are resized crops."""
        crop = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), *([v2.AutoAugment()] if augment == "auto" else [])]
        read = [v2.Resize(self.resize_to()), v2.CenterCrop(self.size)] if augment == "none" else crop
        files = Files(self.samples, self.index, v2.Compose([*read, v2.PILToTensor()]))
        pin = torch.cuda.is_available()
        return torch.utils.data.DataLoader(
            files, batch_size, shuffle, num_workers=self.workers, pin_memory=pin, drop_last=shuffle and len(files) > batch_size
        )

    def resize_to(self) -> int:
        """The length in pixels to which an image's shorter side is resized before its centre is cut out."""
        return round(self.size / 0.875) if self.size > 64 else self.size  # 224 is cut out of 256; small images are used whole


class Files(torch.utils.data.Dataset):
    """(image as `transform` gives it, its place in `index`) of files."""

    def __init__(self, samples: list[tuple[str, int]], index: Tensor, transform: Callable):
        self.samples, self.index, self.transform = samples, index, transform

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        path, _ = self.samples[self.index[i]]
        try:
            return self.transform(torchvision.datasets.folder.pil_loader(path)), i
        except OSError as e:
            raise RunError(f"{path} is not a readable image ({e}); remove it from the folder") from None
