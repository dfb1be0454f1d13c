"""A pretend GPU: `cuda:0` and `cuda:1` on the CPU, with a GPU's rules, so that each commit is tested against these without a GPU.

    with pretend_gpu() as gpu:
        KD.main(["--device", "cuda", ...])

Each tensor on it is an `OnGpu`. It answers as a tensor on `cuda`; its values are in a CPU tensor, `host`, on which each operation runs.

  - An operation on tensors of two devices raises, except for copies, indices on the CPU, and CPU tensors without dimensions.
  - A CPU generator cannot fill a GPU tensor. `numpy()` raises. A saved file says that its tensors were on `cuda:0`.
  - `gpu.waits` counts the operations for which the host waits for the device: {(phase, file:function, kind): number}. `gpu.lines` has
    their lines. Kinds: item (also `bool`, `float`), download (a copy to the CPU), upload (a copy to the GPU without non_blocking), mask
    (a boolean index), equal, and operations whose result has a size that depends on values (nonzero, bincount, ...).

Random numbers come from the CPU's generator, so that results equal those on the CPU, bit by bit. With `own_rng` each device has a
generator. It has no streams, no memory limit and no kernels of its own: speed, rounding and lack of memory need a real GPU. There the same
tests run without pretending, with a tolerance instead of equality and without the counts:

    REAL_GPU=1 python -m pytest tests/test_pretend.py

How it works: the TorchFunctionMode `Calls` sees each call from Python. It replaces `device=`, moves tensors (`to`), and notes the device
for operations that make tensors like their arguments (one_hot). The TorchDispatchMode `Operations` sees each operation below autograd,
checks it, counts waits, and runs it. For C++ all tensors are on the CPU, so that autograd and autocast are the CPU's, and any build of
PyTorch will do. Where a version of PyTorch lacks one of NEEDED, the tests are skipped.
"""

import contextlib
import operator
from collections.abc import Iterator

import pytest
import torch
from pretend_patches import patches
from pretend_tensors import CPU, Gpu, OnGpu
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NEEDED = ["Tensor._make_wrapper_subclass", "_C._disabled_torch_function_impl", "_C._DisableTorchDispatch"]  # private, or new
NEEDED += ["serialization._package_registry", "accelerator.is_available"]
aten = torch.ops.aten
COPIES = {aten.copy_, aten.copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
NO_SCALARS = {aten.cat, aten.stack}  # these take no value of the CPU, not even one without dimensions
WAITS = {aten._local_scalar_dense: "item", aten.equal: "equal"}
WAITS |= {p: p._qualified_op_name.removeprefix("aten::") for p in (
    aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount, aten.multinomial,
)}  # fmt: skip
PLACED = {Tensor.__getitem__, Tensor.__setitem__}  # their scalars and lists stay on the CPU
MOVES = {Tensor.to, Tensor.cuda, Tensor.cpu, Tensor.type_as}


class Operands:
    """The arguments of an operation, without their devices."""

    def __init__(self, args: tuple, kwargs: dict):
        self.on_gpu, self.on_cpu = [], []
        self.args, self.kwargs = self.taken(args), {k: self.taken(v) for k, v in kwargs.items()} if kwargs else kwargs

    def taken(self, v):
        if isinstance(v, OnGpu):
            self.on_gpu.append(v)
            return v.host
        if isinstance(v, Tensor):
            self.on_cpu.append(v)
            return v
        return type(v)([self.taken(u) for u in v]) if isinstance(v, (list, tuple)) else v

    def put_back(self, v, where):
        """The result of an operation on these: what is one of them stays it, other tensors are on the device `where`."""
        if isinstance(v, Tensor):
            for x in self.on_gpu:
                if x.host is v:
                    return x
            return v if any(v is x for x in self.on_cpu) else OnGpu(v, where)
        return type(v)([self.put_back(u, where) for u in v]) if isinstance(v, (list, tuple)) else v


class Operations(TorchDispatchMode):
    """Runs each operation on the host tensors, if a GPU would."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(cls):  # nothing is compiled, and its import takes seconds
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, gpu = kwargs or {}, self.gpu
        generator = kwargs.get("generator")
        if OnGpu not in types and gpu.here is None and generator is None:
            return func(*args, **kwargs)
        o, packet = Operands(args, kwargs), func.overloadpacket
        target = o.on_gpu[0].home if o.on_gpu else None if o.on_cpu else gpu.here
        if generator is not None:
            gpu.check_generator(generator, target)
        if target is None:
            return func(*args, **kwargs)
        if packet in COPIES:
            self.count_copy(args, kwargs)
        else:
            self.check(func, args, o)
            self.count(packet, args)
        if torch.Tag.inplace_view in func.tags:  # unsqueeze_: the wrapper's shape, too
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and generator is None:
            return o.put_back(gpu.draw(target, func, o.args, o.kwargs), target)
        return o.put_back(func(*o.args, **o.kwargs), target)

    def check(self, func, args: tuple, o: Operands) -> None:
        """RuntimeError for tensors of devices that the operation does not take together."""
        home = o.on_gpu[0].home if o.on_gpu else None
        if not o.on_cpu and all(x.home is home for x in o.on_gpu):
            return
        devices = {x.home for x in o.on_gpu}
        indices = args[1] if func.overloadpacket in INDEXED else ()
        others = [x for x in o.on_cpu if not any(x is i for i in indices)]
        if func.overloadpacket in NO_SCALARS or "_fused" in func.name():
            wrong = others
        else:
            wrong = [x for x in others if x.dim() or (x is args[0] and func._schema.is_mutable)]
        wrong += [x for x in others if indices and x is args[0]]
        if wrong or len(devices) > 1:
            names = sorted({*map(str, devices), *("cpu" for _ in wrong)}, reverse=True)
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {' and '.join(names)}! ({func})"
            )

    def count(self, packet, args: tuple) -> None:
        """Counts an operation that waits."""
        if kind := WAITS.get(packet):
            self.gpu.wait(kind)
        if packet not in INDEXED:
            return
        indices = [i for i in args[1] if i is not None]
        value = args[2] if len(args) > 2 else None
        if any(not isinstance(i, OnGpu) for i in indices):
            self.gpu.wait("upload")
        elif any(i.dtype in (torch.bool, torch.uint8) for i in indices) and not fills(indices, value):
            self.gpu.wait("mask")

    def count_copy(self, args: tuple, kwargs: dict) -> None:
        to, source = args[:2]
        if type(to) is not type(source) and not (isinstance(to, OnGpu) and (kwargs.get("non_blocking") or args[2:] == (True,))):
            self.gpu.wait("upload" if isinstance(to, OnGpu) else "download")


def fills(indices: list[Tensor], value: Tensor | None) -> bool:
    """Whether an assignment by a boolean mask is one of a single number, which does not wait."""
    return value is not None and not isinstance(value, OnGpu) and value.numel() == 1 and len(indices) == 1


class Calls(TorchFunctionMode):
    """Takes the device out of each call from Python."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, gpu = kwargs or {}, self.gpu
        if func.__name__ == "__get__":  # shape, grad
            return func(*args)
        if func in MOVES:
            return self.moved(func, *args, **kwargs)
        if (device := kwargs.get("device")) is None:
            like = None if func in PLACED else first_on_gpu(args, kwargs)
            place = None if like is None else like.home
            if place is gpu.here:
                return func(*args, **kwargs)
            made = gpu.at(place, self.backward if func is Tensor.backward else func, args, kwargs)
            return gpu.to(made, place) if func is Tensor.new_tensor else made
        if (place := gpu.where(device)) is None and first_on_gpu(args, kwargs) is None:
            return func(*args, **kwargs)
        kwargs = kwargs | {"device": CPU if place else device} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
        made = gpu.at(place, func, args, kwargs)
        return gpu.to(made, place) if place else getattr(made, "host", made)

    def backward(self, x, gradient=None, retain_graph=None, create_graph=False, inputs=None):
        with self:  # for a Function of the project
            torch.autograd.backward(x, gradient, retain_graph, create_graph, inputs=inputs)

    def moved(self, func, x, *args, **kwargs):
        if func is Tensor.cuda:
            args = args or (kwargs.pop("device", "cuda"),)
        elif func is Tensor.cpu:
            args = ("cpu",)
        return self.gpu.to(x, *args, **kwargs)


def first_on_gpu(args: tuple, kwargs: dict) -> OnGpu | None:
    """The first tensor of the GPU among the arguments of a call."""
    for v in (*args, *kwargs.values()):
        if isinstance(v, OnGpu):
            return v
        if isinstance(v, (list, tuple)) and v and isinstance(v[0], OnGpu):
            return v[0]
    return None


def there_is(name: str) -> bool:
    """Whether torch has a name with dots."""
    try:
        return bool(operator.attrgetter(name)(torch))
    except AttributeError:
        return False


@contextlib.contextmanager
def pretend_gpu(devices: int = 2, own_rng: bool = False) -> Iterator[Gpu]:
    """A block in which this process has pretend GPUs; gives the Gpu. Afterwards all is as it was."""
    if missing := [name for name in NEEDED if not there_is(name)]:
        pytest.skip(f"this version of PyTorch lacks what the pretend GPU is made of: {', '.join(missing)}")
    gpu = Gpu(devices, own_rng)
    with pytest.MonkeyPatch.context() as m:
        for thing, name, value in [*patches(gpu), (Gpu, "current", gpu)]:
            m.setattr(thing, name, value)
        with Operations(gpu), Calls(gpu):
            yield gpu
