"""What of PyTorch answers for the pretend GPU (pretend.py): torch.cuda, torch.accelerator, generators, autocast, files."""

import functools
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor


def generator_class(gpu: object) -> type:
    """A class in the place of torch.Generator, whose instances can be the GPU's."""
    plain = torch._C.Generator

    class AnyGenerator(type):
        def __instancecheck__(cls, x):
            return isinstance(x, plain)

        def __call__(cls, device="cpu"):
            if (place := gpu.where(device)) is None:
                return plain(device)
            made = OfGpu()
            made.place = place
            return gpu.made.setdefault(made._cdata, made)

    class OfGpu(plain):
        device = property(lambda self: self.place)

    return AnyGenerator("Generator", (), {})


def patches(gpu: object) -> Iterator[tuple[object, str, object]]:
    """(object, name, value) of what answers for a GPU."""

    def state_of(device="cuda"):
        return gpu.generators[gpu.where(device).index].get_state()

    def set_state(state, device="cuda"):
        gpu.generators[gpu.where(device).index].set_state(state)

    def seed_all(seed):
        for g in gpu.generators:
            g.manual_seed(seed)

    answers = {"is_available": True, "device_count": len(gpu.places), "current_device": 0, "is_bf16_supported": True}
    answers |= {"max_memory_allocated": 0, "get_device_name": "pretend GPU", "is_current_stream_capturing": False, "is_initialized": True}
    answers |= {"synchronize": None, "empty_cache": None, "set_device": None, "reset_peak_memory_stats": None}
    for name, value in answers.items():
        yield torch.cuda, name, lambda *args, value=value, **kwargs: value
    for name, function in {
        "get_rng_state": state_of,
        "set_rng_state": set_state,
        "manual_seed_all": seed_all,
        "manual_seed": seed_all,
    }.items():
        yield torch.cuda, name, function
    answers = {"is_available": True, "current_device_index": 0, "set_device_index": None, "device_count": len(gpu.places)}
    answers |= {"current_accelerator": torch.device("cuda"), "current_stream": SimpleNamespace(is_capturing=lambda: False)}
    for name, value in answers.items():
        yield torch.accelerator, name, lambda *args, value=value, **kwargs: value
    autocast = torch.autocast.__init__
    yield (
        torch.autocast,
        "__init__",
        lambda self, device_type, *args, **kwargs: autocast(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs),
    )
    yield Tensor, "pin_memory", lambda self, device=None: self.clone()
    yield torch, "Generator", generator_class(gpu)
    registry = torch.serialization._package_registry
    yield torch.serialization, "_package_registry", [(1, functools.partial(location_of, gpu), refused), *registry]


def location_of(gpu: object, storage: torch.UntypedStorage) -> str | None:
    """What torch.save writes of a storage: that it was on the GPU."""
    return gpu.saved.get(storage.data_ptr(), (None,))[0]


def refused(storage: torch.UntypedStorage, location: str) -> None:
    """RuntimeError where torch.load would leave a tensor on the GPU: on another machine there is none."""
    if location.startswith("cuda"):
        raise RuntimeError(f"a tensor in the file was on {location}; read it with map_location")
