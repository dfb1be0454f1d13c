"""What one can iterate for an epoch of batches."""

import torch


class Batches:
    """Shuffled mini-batches of tensors of equal length that lie on the device: `for x, answers in Batches(x, answers, size=128)`.

    first: a function of the first tensor of each batch (a data set's view). steps: batches an epoch; without it, one pass.
    A single image left over is dropped, since batch norm cannot train on one.
    """

    def __init__(self, *tensors, size, first=None, steps=None):
        self.tensors, self.size, self.first = tensors, min(size, len(tensors[0])), first
        n = len(tensors[0])
        self.a_pass = n // self.size + (n % self.size > 1)
        self.steps = steps or self.a_pass

    def __len__(self):
        return self.steps

    def __iter__(self):
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

    def __init__(self, steps, make):
        self.steps, self.make = steps, make

    def __len__(self):
        return self.steps

    def __iter__(self):
        for _ in range(self.steps):
            yield self.make()


class Map:
    """Batches, each passed through f."""

    def __init__(self, batches, f):
        self.batches, self.f = batches, f

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return (self.f(*batch) for batch in self.batches)


class Streamed:
    """A streamed Images with the face of Batches: (view of x, *rows of the tensors), on the device."""

    def __init__(self, images, *tensors, size, first, augment):
        self.loader = images.stream.loader(size, shuffle=True, augment=augment)
        self.tensors, self.first, self.device = tensors, first, images.y.device

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for x, i in self.loader:
            i = i.to(self.device, non_blocking=True)
            yield self.first(x.to(self.device, non_blocking=True)), *(t[i] for t in self.tensors)
