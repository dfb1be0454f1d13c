"""One run in several processes: `torchrun --nproc_per_node=4 project/KD.py ...`, the same script.

All processes do the same with the same random numbers, so every tensor of a script is the same in all of them. What takes long is divided:
a net of `share` computes its part of a batch, and the parts are joined, so that the loss sees the whole batch, whatever it does with it.
Behind the joint, each process knows the gradient of its own part; the optimizers add these up before they step. The first process alone
writes, prints and asks a server.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from . import cli
from .cli import RunError, UsageError
from .utils import rng_state, set_rng_state

PATIENCE = timedelta(hours=12)  # that a process waits for another one, which may ask a slow server
trained = WeakIdKeyDictionary()  # {parameter: the shared net whose output it was last used for}: its gradient is a part of the whole
hook = None  # of all optimizers, once there are other processes
divided = False  # whether the forward pass that is under way sees a part of a batch


# ---- who is there


def world_size() -> int:
    """The number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """The number of this process among those of this machine: its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def join_others() -> None:
    """Connects this process to the others; all but the first fall silent and leave signals to it. UsageError where nothing answers."""
    global hook
    if dist.is_initialized():
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as e:
        hint = "start the script with torchrun, or unset WORLD_SIZE"
        raise UsageError(f"WORLD_SIZE is {world_size()}, and the processes did not meet ({str(e).splitlines()[0]}); {hint}") from None
    cli.told = told
    if hook is None:
        hook = register_optimizer_step_pre_hook(add_up)
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        for heard in (signal.SIGTERM, signal.SIGINT):
            signal.signal(heard, signal.SIG_IGN)


def told() -> bool:
    """Whether another process has told an error before; from now on this one has."""
    with contextlib.suppress(Exception):  # the store is gone with the process that had it
        return dist.distributed_c10d._get_default_store().add("told", 1) > 1
    return False


def leave_others() -> None:
    """Ends the connection to the other processes, when all are done."""
    if dist.is_initialized():
        summed(torch.zeros(1))
        dist.destroy_process_group()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block in which processes wait for each other: where one has ended, a RunError in one line."""
    try:
        yield
    except RuntimeError as e:
        if isinstance(e, torch.OutOfMemoryError):
            raise
        what = f"another process of this run has ended ({str(e).splitlines()[0][:120]})"
        raise RunError(f"{what}; the same command goes on from the last saved epoch") from e


def first_and_then(make: Callable[[], object]) -> object:
    """make(), by the first process and then by the others, before any goes on. An error of the first is raised in all of them."""
    if world_size() == 1:
        return make()
    join_others()
    found, error = None, [None]
    if rank() == 0:
        try:
            found = make()
        except Exception as e:
            error = [e]
    with together():
        dist.broadcast_object_list(error)
    if error[0]:
        raise_error_of_first(error[0])
    if rank():
        found = make()
    summed(torch.zeros(1))  # the others are ready
    return found


def raise_error_of_first(error: Exception) -> NoReturn:
    """Raises an error of the first process in all of them; the first alone tells it."""
    if rank():
        cli.told = lambda: True
    raise error


# ---- parts of a batch


def part(n: int, of: int | None = None) -> slice:
    """The rows, among n, of a process: of this one, or of the given one. Two processes' numbers of rows differ by one at most."""
    size, more = divmod(n, world_size())
    of = rank() if of is None else of
    return slice(of * size + min(of, more), (of + 1) * size + min(of + 1, more))


def gather(x: Tensor, n: int) -> Tensor:
    """All n rows of a tensor, of which x has the `part` of this process. No gradient."""
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    mine = x.new_zeros((-(-n // world_size()), *x.shape[1:]))  # all_gather takes equal sizes
    mine[: len(x)] = x
    whole = mine.new_empty((world_size(), *mine.shape))
    with together():
        dist.all_gather_into_tensor(as_bytes(whole), as_bytes(mine))
    rows = [part(n, of) for of in range(world_size())]
    whole = torch.cat([piece[: r.stop - r.start] for piece, r in zip(whole, rows, strict=True)])
    return whole.contiguous(memory_format=torch.channels_last) if channels_last else whole


def as_bytes(x: Tensor) -> Tensor:
    """A contiguous tensor's memory, (bytes,): gloo does not know all number formats."""
    return x.view(-1).view(torch.uint8)


class Divide(torch.autograd.Function):
    """x (N, ...) -> this process's rows; the gradient is joined, so that it is whole again."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.n = len(x)
        return x[part(len(x))]

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return gather(gradient, ctx.n)


class Join(torch.autograd.Function):
    """This process's rows -> all n rows; the gradient of the own rows goes back."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, n: int) -> Tensor:
        ctx.n = n
        return gather(x, n)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[part(ctx.n)], None


class Sum(torch.autograd.Function):
    """The sum over the processes, forward and backward."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return summed(x)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return summed(gradient)


def summed(x: Tensor) -> Tensor:
    """The sum over the processes. No gradient."""
    x = x.detach().clone()
    with together():
        dist.all_reduce(x)
    return x


def with_gradient(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """x, whose gradient is change(gradient)."""
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(change)
    return x


def answers(asked: object, x: Tensor, stage: str = "train") -> Tensor:
    """asked.answer(x, stage), each image by one process: a net's, or the first for all, which a server then sees alone."""
    if world_size() == 1:
        return asked.answer(x, stage)
    if asked.divisible:
        rows = part(len(x))
        return gather(asked.answer(x[rows] if rows.stop > rows.start else x[:1], stage)[: rows.stop - rows.start], len(x))
    return by_first(lambda: asked.answer(x, stage).cpu()).to(x.device)


def afford(asked: object, x: Tensor) -> None:
    """asked.afford(x), by the process that `answers` asks in; its error is raised in all of them."""
    if world_size() == 1 or asked.divisible:
        asked.afford(x)
    else:
        by_first(lambda: asked.afford(x))


def by_first(make: Callable[[], object]) -> object:
    """make() of the first process, in all of them; so is its error."""
    found = [None]
    if rank() == 0:
        try:
            found = [make()]
        except Exception as e:
            found = [e]
    with together():
        dist.broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise_error_of_first(found[0])
    return found[0]


# ---- nets


def share(net: nn.Module, sync_bn: bool = True) -> nn.Module:
    """`net`, which from now on computes a part of each batch in each process; sync_bn: its batch norm has the statistics of the whole."""
    if world_size() > 1:
        net.register_forward_pre_hook(begin)
        net.register_forward_hook(end)
        for m in net.modules() if sync_bn else ():
            if kind := {nn.BatchNorm1d: Synchronised1d, nn.BatchNorm2d: Synchronised2d}.get(type(m)):
                m.__class__ = kind
    return net


@torch.compiler.disable
def begin(net: nn.Module, inputs: tuple) -> tuple:
    """Before a forward pass: the rows of this process. Each computes a batch as a whole that is too small for all of them."""
    global divided
    x, *more = inputs
    if torch.is_grad_enabled():
        trained.update(dict.fromkeys(net.parameters(), net))
    divided, net.rows = len(x) >= 2 * world_size(), len(x)
    if net.training:  # processes draw different dropout, and afterwards the same numbers again
        net.before = rng_state(x.device)
        torch.manual_seed(int(torch.randint(2**62, ())) + rank() * divided)
        net.seeded = rng_state(x.device)
    return (Divide.apply(x) if divided else with_gradient(x, summed), *more)  # each knows a part of the gradient of the whole


@torch.compiler.disable
def end(net: nn.Module, inputs: tuple, outputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """After a forward pass: the rows of all processes."""
    global divided
    join, divided = (lambda y: Join.apply(y, net.rows)) if divided else (lambda y: with_gradient(y, lambda g: g / world_size())), False
    if net.training:
        now, device = rng_state(inputs[0].device), inputs[0].device
        set_rng_state(net.before, device)
        if any(not now[k].equal(net.seeded[k]) for k in now):  # the net has drawn: its next forward pass draws others
            torch.rand(1), torch.rand(1, device=device)
    return join(outputs) if isinstance(outputs, Tensor) else tuple(join(y) for y in outputs)


def add_up(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Before each step of an optimizer: the whole gradients, and the same statistics of batch norm, in all processes.

    Gradients of shared nets are summed. Those of other nets are the same everywhere but for rounding, and are averaged.
    """
    mine = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not mine:
        return
    nets = {id(net): net for net in map(trained.get, mine) if net}.values()
    norms = [m for net in nets for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    means = [b for m in norms for b in (m.running_mean, m.running_var)]
    parts = [p.grad if p in trained else p.grad / world_size() for p in mine] + [b / world_size() for b in means]
    flat = summed(torch.cat([t.flatten() for t in parts]))
    for old, new in zip([*(p.grad for p in mine), *means], flat.split([t.numel() for t in parts]), strict=True):
        old.copy_(new.view(old.shape))


class Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the statistics of all processes' parts of a batch, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and divided):
            return super().forward(x)
        dims, shape = [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)]
        v = x.float()
        count = x.numel() / x.shape[1]
        total = Sum.apply(torch.cat([v.sum(dims), v.new_tensor([count])]))
        n = total[-1].detach()
        mean = total[:-1] / n  # (C,)
        v = v - mean.view(shape)
        var = Sum.apply(v.square().sum(dims)) / n
        if self.track_running_stats:
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked
            with torch.no_grad():
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(var * n / (n - 1), rate)
        v = v * (var + self.eps).rsqrt().view(shape)
        return (v * self.weight.view(shape) + self.bias.view(shape) if self.affine else v).to(x.dtype)


class Synchronised1d(Synchronised, nn.BatchNorm1d):
    """BatchNorm1d, synchronised."""


class Synchronised2d(Synchronised, nn.BatchNorm2d):
    """BatchNorm2d, synchronised."""
