"""A stand-in for a CUDA graph, on any device: what it records is carried out again by each replay, on the same memory.

As on a GPU, recording changes nothing: weights, states and random numbers are afterwards as before. A replay repeats each operation on the
tensors of the recording, with the numbers that Python gave it then. Whatever else Python does in a step, a replay does not do.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal}


def tensors_in(values):
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]


def memory_of(t):
    return getattr(t, "host", t).untyped_storage().data_ptr()  # host: of the pretend GPU's tensors


def is_view(func):
    """Whether the result is another view of an argument."""
    found = [r.alias_info for r in func._schema.returns]
    return bool(found) and all(a is not None and not a.is_write for a in found)


class FakeGraph(TorchDispatchMode):
    """In the place of common.steps.Graph. graphs: all that were made; replays: how often this one was replayed."""

    graphs = []

    def __init__(self):
        super().__init__()
        self.calls, self.kept, self.mine, self.replays = [], {}, set(), 0
        self.graphs.append(self)

    @classmethod
    def _should_skip_dynamo(cls):  # nothing is compiled, and its import takes seconds
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        for t in tensors_in((args, kwargs)):
            if memory_of(t) not in self.mine and memory_of(t) not in self.kept:
                self.kept[memory_of(t)] = t, t.detach().clone()
        made = func(*args, **kwargs)
        if not is_view(func):
            self.calls.append((func, args, kwargs, made))
            self.mine |= {memory_of(t) for t in tensors_in(made)} - self.kept.keys()
        return made

    def record(self, f):
        numbers = torch.get_rng_state()
        try:
            with self:
                return f()
        finally:
            torch.set_rng_state(numbers)
            with torch.no_grad():
                for t, before in self.kept.values():
                    t.copy_(before)

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tensors_in(made), tensors_in(again), strict=True):
                if memory_of(old) != memory_of(new):
                    old.copy_(new)
