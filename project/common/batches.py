"""What one can iterate for an epoch of training: an iterable of tuples of tensors that knows its length."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

import torch
from torch import Tensor

from .datasets import Images


class Batches:
    """Shuffled mini-batches of tensors of equal length that lie on the device: `for x, answers in Batches(x, answers, size=128)`.

    first: a function of the first tensor of each batch (a data set's view). steps: batches an epoch; without it, one pass.
    A single image left over is dropped, since batch norm cannot train on one.
    """

    def __init__(self, *tensors: Tensor, size: int, first: Callable[[Tensor], Tensor] | None = None, steps: int | None = None):
        self.tensors, self.size, self.first = tensors, min(size, len(tensors[0])), first
        n = len(tensors[0])
        self.a_pass = n // self.size + (n % self.size > 1)
        self.steps = steps or self.a_pass

    def __len__(self):
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        n = len(self.tensors[0])
        for step in range(self.steps):
            k = step % self.a_pass
            if k == 0:
                order = torch.randperm(n, device=self.tensors[0].device)
            index = order[k * self.size : (k + 1) * self.size]
            batch = [t[index] for t in self.tensors]
            if self.first:
                batch[0] = self.first(batch[0])
            yield tuple(batch)


class Draw:
    """`steps` batches an epoch, each a fresh `make()`: noise, images from a generator, mixes."""

    def __init__(self, steps: int, make: Callable[[], tuple[Tensor, ...]]):
        self.steps, self.make = steps, make

    def __len__(self):
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for _ in range(self.steps):
            yield self.make()


class Map:
    """Batches, each passed through f."""

    def __init__(self, batches: Iterable, f: Callable[..., tuple[Tensor, ...]]):
        self.batches, self.f = batches, f

    def __len__(self):
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self.f(*batch) for batch in self.batches)


class Streamed:
    """Batches of streamed Images: (view of x, *rows of the tensors), on the device; `steps` an epoch, without it one pass."""

    def __init__(
        self, images: Images, *tensors: Tensor, size: int, first: Callable[[Tensor], Tensor], augment: str, steps: int | None = None
    ):
        self.loader = images.stream.loader(size, shuffle=True, augment=augment)
        self.tensors, self.first, self.device, self.steps = tensors, first, images.y.device, steps or len(self.loader)

    def __len__(self):
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        passes = chain.from_iterable(self.loader.on(self.device) for _ in repeat(None))
        for _, (x, i) in zip(range(self.steps), passes, strict=False):
            yield self.first(x), *(t[i] for t in self.tensors)


def batches_of(
    images: Images, *rows: Tensor, size: int, view: Callable, augment: str = "none", steps: int | None = None
) -> Batches | Streamed:
    """Shuffled batches (x, *rows) of images as `view(x, augment)` shows them, and of tensors with a row for each image."""
    if images.stream:  # its worker processes augment
        return Streamed(images, *rows, size=size, first=view, augment=augment, steps=steps)
    return Batches(images.to_augment(augment), *rows, size=size, first=lambda x: view(x, augment), steps=steps)
