"""Tensors of the pretend GPU (pretend.py), and what it knows: its random numbers, and where the host has waited for it."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
SOURCES = tuple(f"{ROOT / name}/" for name in ("project", "figures"))
CPU = torch.device("cpu")


class OnGpu(Tensor):
    """A tensor of a pretend GPU. host: its values, a CPU tensor. home: its device."""

    @staticmethod
    def __new__(cls, host: Tensor, home: torch.device):
        size = {"strides": host.stride(), "storage_offset": host.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, host.size(), **size, dtype=host.dtype, layout=host.layout, device=CPU)
        made.host, made.home = host, home
        return made

    __torch_function__ = getattr(torch._C, "_disabled_torch_function_impl", None)  # Calls does it

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"a tensor of the pretend GPU is used outside of it, in {func}")

    def __tensor_flatten__(self):  # with these two, Module.to exchanges the parameters' content: as on a GPU, they stay the same objects
        return ["host"], self.home

    @staticmethod
    def __tensor_unflatten__(hosts, home, size, stride):
        return OnGpu(hosts["host"], home)

    device = property(lambda self: self.home)
    is_cuda, is_cpu = True, False

    def get_device(self):
        return self.home.index

    def to(self, *args, **kwargs):
        return Gpu.current.to(self, *args, **kwargs)

    def cpu(self, **kwargs):
        return self.to("cpu", **kwargs)

    def cuda(self, device="cuda", **kwargs):
        return self.to(device, **kwargs)

    def type_as(self, other):
        return self.to(other)

    def tolist(self):
        Gpu.current.wait("download")
        return self.host.tolist()

    def numpy(self, **kwargs):
        raise TypeError(f"can't convert {self.home} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def pin_memory(self, device=None):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def set_data(self, value):
        if not isinstance(value, OnGpu) or value.home != self.home:
            raise RuntimeError(f"Attempted to set data of a tensor on {self.home} to one on {value.device}")
        Tensor.data.__set__(self, value)
        self.host = value.host

    data = property(lambda self: self.detach(), set_data)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = made = OnGpu(self.host.clone(), self.home).requires_grad_(self.requires_grad)
            if self.grad is not None:
                made.grad = self.grad.__deepcopy__(memo)
            made.__dict__ |= {k: v for k, v in self.__dict__.items() if k == "_is_param"}
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        storage = self.host.untyped_storage()
        Gpu.current.saved[storage.data_ptr()] = str(self.home), storage
        plain = torch.nn.Parameter(self.host, self.requires_grad) if isinstance(self, torch.nn.Parameter) else self.host
        return plain.__reduce_ex__(protocol)

    def __format__(self, spec):
        return format(self.item() if not self.dim() else self, spec)

    def __repr__(self, **kwargs):
        return f"OnGpu({self.host}, device={self.home})"


class Move(torch.autograd.Function):
    """A copy to another device, whose gradient goes back."""

    @staticmethod
    def forward(ctx, x, where, how):
        ctx.where = x.device
        return Gpu.current.copied(x, where, **how)

    @staticmethod
    def backward(ctx, grad):
        return Gpu.current.to(grad, ctx.where), None, None


class Gpu:
    """What the pretend GPUs know. waits: Counter of (phase, file:function, kind). lines: the lines of each such place."""

    current: "Gpu | None" = None  # the one that there is now

    def __init__(self, devices: int = 2, own_rng: bool = False):
        self.places, self.here, self.phase = [torch.device("cuda", i) for i in range(devices)], None, ""
        self.waits, self.lines, self.saved, self.made = Counter(), {}, {}, {}
        self.generators = [torch._C.Generator() for _ in range(devices)] if own_rng else [torch.default_generator] * devices

    def where(self, device: object) -> torch.device | None:
        """The pretend device that `device` means, with its index; None for the CPU and others."""
        if isinstance(device, int):
            device = f"cuda:{device}"
        device = torch.device(device)
        if device.type != "cuda":
            return None
        if (device.index or 0) >= len(self.places):
            raise RuntimeError(f"CUDA error: invalid device ordinal {device.index}")
        return self.places[device.index or 0]

    def at(self, where: torch.device | None, call: Callable, args: tuple, kwargs: dict) -> Any:
        """The result of a call, in which operations without tensors make theirs on this device."""
        before, self.here = self.here, where
        try:
            return call(*args, **kwargs)
        finally:
            self.here = before

    def wait(self, kind: str) -> None:
        """Counts that the host waits for the device, in the innermost function of the project."""
        frame = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(SOURCES):
            frame = frame.f_back
        place, line = (
            ("tests", 0) if frame is None else (f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}", frame.f_lineno)
        )
        self.waits[self.phase, place, kind] += 1
        self.lines.setdefault(place, set()).add(line)

    # ---- copies

    def to(self, x: Tensor, *args, **kwargs) -> Tensor:
        """Tensor.to, in all its forms."""
        if args and isinstance(args[0], Tensor):
            kwargs |= {"device": args[0].device, "dtype": args[0].dtype}
            names = "", "non_blocking", "copy"
        else:
            names = ("dtype",) if args and isinstance(args[0], torch.dtype) else ("device", "dtype")
            names += "non_blocking", "copy"
        how = {k: v for k, v in [*zip(names, args, strict=False), *kwargs.items()] if k and v is not None}
        device = how.pop("device", None)
        here, there = getattr(x, "home", None), None if device is None else self.where(device)
        if here == there or device is None:  # the CPU's, or stays where it is
            how |= {} if device is None or here else {"device": device}
            return Tensor.to(x, **how) if how else x
        return Move.apply(x, there, how) if x.requires_grad and torch.is_grad_enabled() else self.copied(x, there, **how)

    def copied(self, x: Tensor, where: torch.device | None, non_blocking: bool = False, copy: bool = True, **how) -> Tensor:
        """A copy of x on another device; `where` is None for the CPU."""
        if not where or not non_blocking:
            self.wait("upload" if where else "download")
        new = getattr(x, "host", x).detach().to(copy=True, **how)
        return OnGpu(new, where) if where else new

    # ---- random numbers

    def check_generator(self, generator: torch.Generator, target: torch.device | None) -> None:
        """RuntimeError where a generator is of another device than what it fills."""
        given, wanted = ("cuda" if known else "cpu" for known in (generator._cdata in self.made, target))
        if given != wanted:
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{given}'")

    def draw(self, target: torch.device, call: Callable, args: tuple, kwargs: dict) -> Any:
        """The result of a call, whose random numbers come from the generator of a device."""
        own, general = self.generators[target.index], torch.default_generator
        if own is general:
            return call(*args, **kwargs)
        before = general.get_state()
        general.set_state(own.get_state())
        try:
            return call(*args, **kwargs)
        finally:
            own.set_state(general.get_state())
            general.set_state(before)
