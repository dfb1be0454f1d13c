"""The pretend GPU itself (pretend.py): what it refuses, where it waits, what it leaves behind."""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from pretend import pretend_gpu
from pretend_tensors import OnGpu


@pytest.fixture
def gpu():
    with pretend_gpu() as found:
        yield found


def on(device, *size):
    return torch.ones(*size, device=device)


CPU_AND_GPU = "found at least two devices, cuda:0 and cpu"
WRONG = {  # what a GPU refuses
    "a sum": (lambda x: x + torch.ones(3), CPU_AND_GPU),
    "a product": (lambda x: torch.ones(2, 3) @ x, CPU_AND_GPU),
    "a sum in place": (lambda x: torch.tensor(1.0).add_(x[0]), CPU_AND_GPU),
    "a stack with a number of the CPU": (lambda x: torch.stack([x[0], torch.tensor(1.0)]), CPU_AND_GPU),
    "two GPUs": (lambda x: x + on("cuda:1", 3), "cuda:1 and cuda:0"),
    "a number of another GPU": (lambda x: x + on("cuda:1", ()), "cuda:1 and cuda:0"),
    "an index of the GPU": (lambda x: torch.ones(3)[x.long()], CPU_AND_GPU),
    "values of the CPU by an index": (lambda x: x.index_put_((x.long(),), torch.ones(3)), CPU_AND_GPU),
    "a net of the CPU": (lambda x: nn.Linear(3, 1)(x), CPU_AND_GPU),
    "a loss with labels of the CPU": (lambda x: F.cross_entropy(x[None], torch.tensor([1])), CPU_AND_GPU),
    "a generator of the CPU": (lambda x: x.uniform_(generator=torch.Generator()), "Expected a 'cuda' device type for generator"),
    "that of a new tensor": (lambda x: torch.randn(3, device="cuda", generator=torch.Generator()), "Expected a 'cuda' device"),
    "a generator of the GPU": (lambda x: torch.randn(3, generator=torch.Generator("cuda")), "Expected a 'cpu' device type for generator"),
    "numpy": (lambda x: x.numpy(), "can't convert cuda:0 device type tensor to numpy"),
    "an array": (lambda x: np.asarray(x), "can't convert cuda:0 device type tensor to numpy"),
    "a GPU that is not there": (lambda x: x.to("cuda:2"), "invalid device ordinal"),
    "a file that is read as it was written": (
        lambda x: torch.save(x, "x.pt") or torch.load("x.pt"),
        "was on cuda:0; read it with map_location",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_pretend_gpu_refuses(what, gpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    act, message = WRONG[what]
    with pytest.raises((RuntimeError, TypeError), match=message):
        act(on("cuda", 3))


RIGHT = {  # what a GPU does: (function of x = (1, 1, 1) on cuda:0, its device, its waits)
    "a number of the CPU": (lambda x: x + torch.tensor(1.0), "cuda:0", {}),
    "like another": (lambda x: torch.randn_like(x), "cuda:0", {}),
    "one-hot": (lambda x: F.one_hot(x.long(), 3), "cuda:0", {}),
    "a mask": (lambda x: x[x > 0], "cuda:0", {"mask": 1}),
    "a number by a mask": (lambda x: x.__setitem__(x > 0, 2.0) or x, "cuda:0", {}),
    "values by a mask": (lambda x: x.__setitem__(x > 0, x.clone()) or x, "cuda:0", {"mask": 1}),
    "an index of the CPU": (lambda x: x[torch.tensor([0])], "cuda:0", {"upload": 1}),
    "a list as index": (lambda x: x[[0, 1]], "cuda:0", {"upload": 1}),
    "a constant": (lambda x: torch.tensor([1.0], device="cuda"), "cuda:0", {"upload": 1}),
    "a full tensor": (lambda x: torch.full((3,), 2.0, device=1), "cuda:1", {}),
    "a copy that does not wait": (lambda x: torch.ones(3).to(x.device, non_blocking=True), "cuda:0", {}),
    "to another's device and type": (lambda x: torch.ones(3, dtype=torch.long).to(x), "cuda:0", {"upload": 1}),
    "to the CPU": (lambda x: x.to("cpu", torch.double), "cpu", {"download": 1}),
    "a copy into the CPU's": (lambda x: torch.zeros(3).copy_(x), "cpu", {"download": 1}),
    "its size in place": (lambda x: x.unsqueeze_(0), "cuda:0", {}),
    "an if": (lambda x: x if x[0] else None, "cuda:0", {"item": 1}),
    "a text": (lambda x: torch.tensor(len(f"{x[0]:.2f}")), "cpu", {"item": 1}),
    "nonzero": (lambda x: x.nonzero(), "cuda:0", {"nonzero": 1}),
    "a generator": (lambda x: torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(1)), "cuda:0", {}),
    "new on the CPU": (lambda x: torch.zeros_like(x, device="cpu"), "cpu", {}),
    "a net": (lambda x: nn.Linear(3, 2).to("cuda", non_blocking=True)(x), "cuda:0", {}),
}


@pytest.mark.parametrize("what", RIGHT)
def test_the_pretend_gpu_does_and_waits(what, gpu):
    act, device, expected = RIGHT[what]
    x = on("cuda", 3)
    found = act(x)
    assert str(found.device) == device and found.is_cuda == isinstance(found, OnGpu) == (device != "cpu")
    assert {kind: n for (_, _, kind), n in gpu.waits.items()} == expected


def test_gradients_cross_devices_and_parameters_stay_the_same_objects(gpu):
    w = torch.ones(3, requires_grad=True)
    (w.to("cuda") * 2).sum().cpu().backward()
    assert w.grad.tolist() == [2, 2, 2] and not w.grad.is_cuda
    net = nn.Linear(3, 2)
    p = net.weight
    assert net.to("cuda").weight is p and p.is_cuda and isinstance(p, nn.Parameter) and p.is_leaf


def test_afterwards_all_is_as_before():
    before = torch.cuda.is_available(), torch.autocast.__init__, torch.Generator, torch.Tensor.pin_memory, torch.cuda.get_rng_state
    with pretend_gpu():
        x = on("cuda", 3)
        assert torch.cuda.is_available() and torch.cuda.get_device_name() == "pretend GPU"
    assert before == (
        torch.cuda.is_available(),
        torch.autocast.__init__,
        torch.Generator,
        torch.Tensor.pin_memory,
        torch.cuda.get_rng_state,
    )
    with pytest.raises(RuntimeError, match="outside of it"):
        x + 1
