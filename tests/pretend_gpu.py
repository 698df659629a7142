"""A GPU for tests on machines without one: tensors of the CPU that say `cuda`, and refuse what those of a GPU refuse."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Their result, or its shape, follows from values: the host waits for all that the GPU has been given.
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
HostGenerator = torch.Generator
waits: Counter[str] = Counter()  # how often the host waited, and in which function of the library


class OnGPU(Tensor):
    """A tensor of a GPU that is not there: it holds one of the CPU."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, **layout)

    def __init__(self, held):
        self.held = held

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here, there = ([x for x in given if isinstance(x, OnGPU) == on_gpu] for on_gpu in (False, True))
        if any(x.ndim for x in here) and function not in COPIES:
            if function not in INDEXED or not isinstance(args[0], OnGPU):
                raise RuntimeError(f"{function}: expected all tensors to be on the same device")
            note("indices of the host")
        masked = function in INDEXED and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
        if function in WAITS or masked or (function in COPIES and here):
            note(str(function))
        wrapped = {id(x.held): x for x in there}
        out = function(*release(args), **release(kwargs or {}))
        return tree_map(lambda x: wrapped[id(x)] if id(x) in wrapped else wrap(x), out)

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    def record_stream(self, stream):
        pass


def release(values):
    return tree_map(lambda x: x.held if isinstance(x, OnGPU) else x, values)


def wrap(value):
    return OnGPU(value) if isinstance(value, Tensor) and not isinstance(value, OnGPU) else value


def of_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


def note(what):
    frame = sys._getframe(1)
    while frame and not frame.f_globals.get("__name__", "").startswith("skylib."):
        frame = frame.f_back
    waits[f"{what} in {frame.f_code.co_qualname if frame else '?'}"] += 1


class Asked(TorchFunctionMode):
    """What Python asks of a GPU: tensors made there, copies to it, and values from it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if function in (Tensor.to, Tensor.cpu):
            return self.move(*args, **kwargs, **({"device": "cpu"} if function is Tensor.cpu else {}))
        if function is Tensor.pin_memory:
            return args[0].clone()
        if args and isinstance(args[0], OnGPU) and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if args and isinstance(args[0], OnGPU) and name == "tolist":
            note("tolist")
            return args[0].held.tolist()
        kwargs.pop("pin_memory", None)
        generator, on_gpu = kwargs.get("generator"), of_gpu(kwargs.get("device"))
        if generator is not None and of_gpu(generator.device) != on_gpu:
            raise RuntimeError(f"{name}: the generator is of {generator.device}")
        if on_gpu:
            del kwargs["device"]
            if name in ("tensor", "as_tensor"):
                note(name)
            return wrap(function(*args, **kwargs))
        return function(*args, **kwargs)

    def move(self, x, *args, device=None, non_blocking=False, **how):
        for value in args:
            if isinstance(value, str | torch.device):
                device = value
            elif isinstance(value, torch.dtype):
                how["dtype"] = value
            elif isinstance(value, Tensor):
                device, how["dtype"] = value.device, value.dtype
            elif isinstance(value, bool):
                non_blocking = value
        if device is not None and of_gpu(device) != isinstance(x, OnGPU):
            if not non_blocking:
                note(f"copy to {device}")
            x = OnGPU(x.detach().clone()) if of_gpu(device) else x.held.detach().clone()
        return Tensor.to(x, **how) if how else x


class Generator(HostGenerator):
    """A generator of the GPU; it gives the numbers of the CPU's."""

    device = CUDA

    def __new__(cls, device="cpu"):
        return super().__new__(cls) if of_gpu(device) else HostGenerator(device)

    def manual_seed(self, seed):
        super().manual_seed(seed)
        return self


@contextmanager
def pretend_gpu():
    """Let there be a GPU; give the counts of `waits`."""
    there: dict[str, object] = {name: mock.MagicMock() for name in ("Stream", "Event", "stream", "current_stream")}
    there |= {
        "default_stream": mock.MagicMock(),
        "device_count": lambda: 1,
        "mem_get_info": lambda device: (2**40, 2**40),
    }
    threads = partial(ThreadPoolExecutor, initializer=lambda: Asked().__enter__())
    waits.clear()
    with ExitStack() as stack:
        for name, value in there.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "inference_mode", torch.no_grad))
        stack.enter_context(mock.patch("skylib.device.ThreadPoolExecutor", threads))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(Asked())
        yield waits
