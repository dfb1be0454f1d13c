"""Images of a folder that does not fit into memory: read by worker processes at every pass."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Lock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from ..cli import RunError, say
from ..processes import gather, part, rank, world_size
from .pictures import Unreadable, exact_grey, read_picture, unreadable

BATCH_BYTES = 16e6  # pixels in one batch where the caller asks for all images in order, whatever the batch size


@dataclass
class Stream:
    """Files read anew at every pass by worker processes, for a data set that does not fit."""

    samples: list[tuple[str, int]]  # (path, label) of every file of the folder
    index: Tensor  # (N,) which of them
    size: int
    workers: int
    channels: int = 3  # 1 makes the images grey
    root: str = ""  # file names in messages are relative to it

    def loader(self, batch_size: int, shuffle: bool, augment: str) -> "Loader":
        """Batches of uint8 (B, C, size, size) and of the images' places in `index` (B,), on the CPU; augmented ones are resized crops.

        Without `shuffle`, a batch has at most 16 MB of pixels.
        """
        crop = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip(), *([v2.AutoAugment()] if augment == "auto" else [])]
        files = Files(self.samples, self.index, v2.Compose(self.whole() if augment == "none" else crop))
        if not shuffle:
            batch_size = min(batch_size, max(1, int(BATCH_BYTES / (3 * self.size**2))))
        return Loader(files, self, batch_size, shuffle)

    def whole(self) -> list[Callable]:
        """The transforms of a picture that is not augmented."""
        return [v2.Resize(self.resize_to()), v2.CenterCrop(self.size)]

    def resize_to(self) -> int:
        """The length in pixels to which an image's shorter side is resized before its centre is cut out."""
        return round(self.size / 0.875) if self.size > 64 else self.size  # 224 is cut out of 256; small images are used whole

    def reader(self) -> Callable[[str], Tensor]:
        """A function that returns the picture of a file, uint8 (3, size, size), not augmented. It raises Unreadable."""
        transform = v2.Compose(self.whole())
        return lambda path: pil_to_tensor(transform(read_picture(path)))


class Files(Dataset):
    """(image as uint8 (3, H, W) or the reason why it cannot be read, its place in `index`) of files."""

    def __init__(self, samples: list[tuple[str, int]], index: Tensor, transform: Callable):
        self.samples, self.index, self.transform = samples, index, transform

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        try:
            return np.asarray(self.transform(read_picture(self.samples[self.index[i]][0]))).transpose(2, 0, 1), i
        except Unreadable as e:
            return str(e), i


class Batch:
    """A batch on its way from a worker process, as NumPy arrays: they go through a pipe, and no shared memory (/dev/shm) is needed.

    x: images (B, 3, H, W). i: places (B,). broken: (place, reason) of each image that cannot be read.
    """

    def __init__(self, rows: list[tuple[np.ndarray | str, int]]):
        self.broken = [(i, x) for x, i in rows if isinstance(x, str)]
        self.x = np.stack([x for x, _ in rows]) if not self.broken else np.empty(0, np.uint8)
        self.i = np.array([i for _, i in rows])

    def pin_memory(self) -> "Batch":
        """Called by the loader in its thread where there is a GPU."""
        self.x, self.i = torch.from_numpy(self.x).pin_memory(), torch.from_numpy(self.i).pin_memory()
        return self

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images and places as tensors."""
        return torch.as_tensor(self.x), torch.as_tensor(self.i)


class Parts:
    """The part of each batch of places that this process reads; one place at least, since a loader takes no empty batch."""

    def __init__(self, batches: BatchSampler):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for places in self.batches:
            yield places[part(len(places))] or places[:1]


def seed_apart(worker: int) -> None:
    """Gives the workers of each process random numbers of their own; those of the first process are as without others."""
    torch.manual_seed(torch.initial_seed() + 2**32 * rank())


class Loader:
    """Batches (uint8 (B, C, H, W), places (B,)) of files, on the CPU; RunError in one line for the files of a batch that cannot be read.

    Of several processes each has its part of a batch; `on` gives the whole.
    """

    def __init__(self, files: Files, stream: Stream, batch_size: int, shuffle: bool):
        self.files, self.stream = files, stream
        self.options = {
            "batch_size": batch_size,
            "shuffle": shuffle,
            "collate_fn": Batch,
            "pin_memory": torch.cuda.is_available(),
            "drop_last": shuffle and len(files) > batch_size,
        }
        self.batch_size = batch_size
        if world_size() > 1:
            sampler = RandomSampler(files) if shuffle else SequentialSampler(files)
            parts = Parts(BatchSampler(sampler, batch_size, self.options["drop_last"]))
            self.options = {k: self.options[k] for k in ("collate_fn", "pin_memory")} | {
                "batch_sampler": parts,
                "worker_init_fn": seed_apart,
            }
        self.batches = DataLoader(files, num_workers=stream.workers, **self.options)

    def __len__(self):
        return len(self.batches)

    def on(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole batches, on the device."""
        for k, (x, i) in enumerate(self):
            x, i = (t.to(device, non_blocking=True) for t in (x, i))
            if world_size() > 1:
                n = min(self.batch_size, len(self.files) - k * self.batch_size)
                rows = part(n)
                x, i = (gather(t[: rows.stop - rows.start], n) for t in (x, i))
            yield x, i

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.started()
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as e:
                if "DataLoader worker" not in str(e):
                    raise
                raise RunError("a process that reads images was killed, probably for lack of memory; use fewer --workers") from None
            if batch.broken:
                names = [(os.path.relpath(self.path(i), self.stream.root or "."), why) for i, why in batch.broken]
                raise RunError(unreadable(names, len(self.files)))
            x, i = batch.tensors()
            yield exact_grey(x) if self.stream.channels == 1 else x, i

    def path(self, i: int) -> str:
        """The file of a place."""
        return self.files.samples[self.files.index[i]][0]

    def started(self) -> Iterator[Batch]:
        """An iterator over one pass; where worker processes cannot start, this process reads."""
        state = torch.get_rng_state()
        try:
            if self.batches.num_workers:
                Lock()  # the queues of worker processes need such; a loader that fails half-way prints a traceback
            return iter(self.batches)
        except OSError as e:
            say(f"worker processes cannot start ({e.strerror or e}); this process reads the images")
            torch.set_rng_state(state)
            self.batches = DataLoader(self.files, num_workers=0, **self.options)
            return iter(self.batches)
