"""A pretended GPU: tensors that say they are on ``cuda:0``, are computed on the CPU, and refuse what CUDA refuses.

On the CPU a forgotten ``.to(device)`` goes unnoticed, because there is one device only. Here it raises the error that a
GPU would raise. Besides, what is slow on a GPU is counted: operations, each of which has to be launched, and reads of
their results, for which the host has to wait.

    with pretended_gpu() as gpu:
        llm = llm.to("cuda:0")
        gpu.reset()
        llm.sample(...)
        print(gpu.launches, gpu.synchronizations, gpu.launches_by_operation.most_common(5))

Three things make it up. `PretendedTensor` is a tensor of the CPU under another name, so that views, addresses
(``data_ptr``) and autograd are those of torch. `_Operations` sees each operation below autograd: it refuses, counts and
names the results. `_Calls` sees each call of torch from Python: it makes what torch makes without an operation
(``torch.tensor``), and knows whether a tensor without a device was asked for by the program or by torch itself.

Not covered: kernels, memory, speed, streams, CUDA's random numbers (the CPU's are drawn), ``autocast("cuda")``, more
than one device, ``torch.cuda.is_available()`` (stays what it is), threads that put tensors on the device, and
assigning a gradient of another device. An operation is one launch, however many kernels CUDA needs for it; a fused
attention is one as well, its backward pass may be several. Copying from the host is a launch and no synchronisation,
though CUDA waits there, too, unless the memory is pinned. Printing a tensor counts as nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda:0")
CPU = torch.device("cpu")
aten = torch.ops.aten

# Operations of which CUDA moves the indices to the tensor that is indexed.
_INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
_WRITING_AT_INDICES = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Operations that are not marked as pointwise and take a number as a 0-dimensional tensor of the CPU all the same.
_TAKING_SCALARS = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.fill.Tensor,
    aten.fill_.Tensor,
    aten.floor_divide.default,
    aten.isin.Tensor_Scalar,
    aten.index_fill.int_Tensor,
    aten.index_fill_.int_Tensor,
} | _WRITING_AT_INDICES
# Operations after which the host waits: the number of results, or the result itself, is read.
_READING = {
    aten._local_scalar_dense.default: "item",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.bincount.default: "bincount",
}
# Operations that write nothing, though they return a tensor that is no view. Reading one number is a copy, no launch.
_WITHOUT_LAUNCH = {
    aten._local_scalar_dense.default,
    aten._unsafe_view.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_permuted.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
# Calls that CUDA answers with one kernel and the CPU with several operations.
_FUSED = {
    torch.nn.functional.scaled_dot_product_attention: "scaled_dot_product_attention",
    torch.nn.functional.rms_norm: "rms_norm",
}
# Operations that the CPU lacks, from those that it has.
_OF_CUDA_ALONE = {aten.bmm.dtype: lambda a, b, out_dtype: torch.bmm(a.to(out_dtype), b.to(out_dtype))}
# What `torch.cuda.get_device_properties` says.
_PROPERTIES = SimpleNamespace(name="a pretended GPU", total_memory=24 * 2**30, major=9, minor=0)
# Made from Python data without an operation: on a GPU the data are written on the host and copied.
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}


def _on_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class GPU:
    """What the pretended GPU counted since it was made or since `reset`.

    Attributes:
        launches_by_operation: operations on it that are neither views nor mere allocations, by their name in aten
            without overload (``add_``, ``mm``); ``scaled_dot_product_attention`` is one, what it calls is none.
        synchronizations_by_kind: reads by the host: ``item`` (also ``bool``, ``int`` and ``float`` of a tensor),
            ``nonzero``, ``boolean index``, ``masked_select``, ``tolist``, ``equal``, ``unique``, ``bincount``,
            ``repeat_interleave`` and ``copy to CPU``.
    """

    def __init__(self) -> None:
        self.launches_by_operation: Counter[str] = Counter()
        self.synchronizations_by_kind: Counter[str] = Counter()
        self._within_one_launch = 0

    @property
    def launches(self) -> int:
        """Launched operations."""
        return self.launches_by_operation.total()

    @property
    def synchronizations(self) -> int:
        """Reads for which the host waits."""
        return self.synchronizations_by_kind.total()

    def reset(self) -> None:
        """Counts from 0."""
        self.launches_by_operation.clear()
        self.synchronizations_by_kind.clear()

    def launched(self, name: str) -> None:
        if not self._within_one_launch:
            self.launches_by_operation[name] += 1

    @contextlib.contextmanager
    def one_launch(self, name: str) -> Iterator[None]:
        """Counts what is launched inside as one operation."""
        self.launched(name)
        self._within_one_launch += 1
        try:
            yield
        finally:
            self._within_one_launch -= 1


_calls: _Calls | None = None  # of the one that exists, if any


def current() -> GPU:
    """The one that exists. RuntimeError if there is none."""
    if _calls is None:
        raise RuntimeError("a tensor of the pretended GPU was used after its end; move it to the CPU before")
    return _calls.gpu


# ---- tensors
class PretendedTensor(Tensor):
    """A tensor that says it is on ``cuda:0``. Its memory is the CPU's; ``data_ptr`` and ``untyped_storage`` name it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # `_Calls` sees all calls

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch says so itself
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _operate(func, args, kwargs or {})

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]  # torch's stub names its option Any
        return f"{type(self).__name__}({_plain(self)!r}, device='{DEVICE}')"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def to(self, *args: Any, **options: Any) -> Tensor:
        return _to(self, *args, **options)

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        return _to(self, CPU, memory_format=memory_format)

    def cuda(self, *args: Any, **options: Any) -> Tensor:
        return self

    def type_as(self, other: Tensor) -> Tensor:
        return _to(self, other)

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # type: ignore[override]  # passed on
        return torch.tensor(data, **{"dtype": self.dtype, "device": DEVICE} | options)

    def numpy(self, **options: Any) -> Any:
        raise TypeError(
            f"can't convert {DEVICE} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        current().synchronizations_by_kind["tolist"] += 1
        return _plain(self).tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user support the deepcopy protocol at the moment"
            )
        made = self.detach().clone().requires_grad_(self.requires_grad)
        made.__dict__.update(self.__dict__)  # whether it is a parameter
        if self.grad is not None:
            made.grad = self.grad.detach().clone()
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        current().synchronizations_by_kind["copy to CPU"] += 1
        return _plain(self).__reduce_ex__(protocol)


def _plain(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of the CPU, without history."""
    with torch.no_grad(), no_dispatch():
        return Tensor._make_subclass(Tensor, aten.detach(tensor))


def _pretended(tensor: Tensor) -> PretendedTensor:
    return Tensor._make_subclass(PretendedTensor, tensor)


class _Move(torch.autograd.Function):
    """A copy on the other device; the gradient comes back to where the tensor was."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device, options: dict[str, Any]) -> Tensor:
        ctx.source = tensor.device, tensor.dtype
        return _copied(tensor, device, options)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _to(gradients[0], *ctx.source), None, None


def _copied(tensor: Tensor, device: torch.device, options: dict[str, Any]) -> Tensor:
    plain = _plain(tensor).to(**options, copy=True)
    if _on_gpu(device):
        current().launched("_to_copy")
        return _pretended(plain)
    current().synchronizations_by_kind["copy to CPU"] += 1
    return plain


def _to(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
    """``Tensor.to`` from, to and on the pretended GPU."""
    like = next((a for a in (*args, options.get("other")) if isinstance(a, Tensor)), None)
    if like is not None:
        device, dtype = like.device, like.dtype
    else:
        device = next((torch.device(a) for a in args if isinstance(a, str | torch.device)), None)
        dtype = next((a for a in args if isinstance(a, torch.dtype)), None)
    device = torch.device(options.get("device") or device or tensor.device)
    how = {"dtype": options.get("dtype") or dtype, "memory_format": options.get("memory_format")}
    how = {name: value for name, value in how.items() if value is not None}
    copies = options.get("copy", [a for a in args if isinstance(a, bool)][1:] == [True])
    if device.type == tensor.device.type:
        if not how and not copies:
            return tensor
        with torch._C.DisableTorchFunction():
            return Tensor.to(tensor, **how, copy=copies)
    if tensor.requires_grad and torch.is_grad_enabled():
        return _Move.apply(tensor, device, how)
    return _copied(tensor, device, how)


def _from_data(func: Any, data: Any, *args: Any, device: Any = None, **options: Any) -> Tensor:
    """``torch.tensor``, ``as_tensor`` and ``asarray`` to or from the pretended GPU."""
    if isinstance(data, Tensor):
        return func(data if device is None else _to(data, device), *args, **options)
    return _to(func(data, *args, device=CPU, **options), DEVICE)


# ---- operations, below autograd
def _operate(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation of aten, if a tensor of the pretended GPU or the device ``cuda`` is among its arguments.

    Raises:
        RuntimeError: CUDA would refuse it.
    """
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return func.decompose(*args, **kwargs)  # seen in inference mode only; elsewhere its parts are
    gpu, leaves, target = current(), tree_leaves((args, kwargs)), kwargs.get("device")
    if func in (aten.copy_.default, aten._to_copy.default):
        if func is aten.copy_.default and not isinstance(args[0], PretendedTensor):
            with no_dispatch():
                func(*args, **kwargs)
            gpu.synchronizations_by_kind["copy to CPU"] += 1
            return args[0]
        here = True
    else:
        _check_devices(func, args, leaves)
        ours = any(isinstance(leaf, PretendedTensor) for leaf in leaves)
        here = ours if target is None else _on_gpu(target) or _made_by_torch()
    if here:
        _count(gpu, func, args, kwargs)
    if target is not None:
        kwargs = kwargs | {"device": CPU}
    with no_dispatch():
        made = _OF_CUDA_ALONE.get(func, func)(*args, **kwargs)
    if not here:
        return made
    # one that was written in place is pretended already, and stays the same object
    return tree_map_only(Tensor, lambda t: t if isinstance(t, PretendedTensor) else _pretended(t), made)


def _check_devices(func: Any, args: tuple[Any, ...], leaves: list[Any]) -> None:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
    if len(others) == len(tensors):
        return
    if func in _INDEXING | _WRITING_AT_INDICES and isinstance(args[0], PretendedTensor):
        indices = {id(index) for index in args[1]}
        others = [tensor for tensor in others if id(tensor) not in indices]
    scalars_fit = torch.Tag.pointwise in func.tags or func in _TAKING_SCALARS or "_foreach_" in func.name()
    for tensor in others:
        if tensor.dim() > 0 or not scalars_fit:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
                f"({func}, a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} is on the CPU)"
            )


def _count(gpu: GPU, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    read = _READING.get(func)
    if func in _INDEXING | _WRITING_AT_INDICES:
        masks = [i for i in args[1] if isinstance(i, PretendedTensor) and i.dtype in (torch.bool, torch.uint8)]
        # one mask and a number from the host: CUDA fills where the mask is true, and need not know how often
        fills = func in _WRITING_AT_INDICES and len(masks) == 1 and not isinstance(args[2], PretendedTensor)
        read = "boolean index" if masks and not fills else None
    elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        read = "repeat_interleave"
    if read is not None:
        gpu.synchronizations_by_kind[read] += 1
    if not (func.is_view or torch.Tag.inplace_view in func.tags or func in _WITHOUT_LAUNCH):
        gpu.launched(func._schema.name.removeprefix("aten::"))


class _Operations(TorchDispatchMode):
    """Sees operations that have no tensor of the pretended GPU among their arguments, too: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if not any(isinstance(leaf, PretendedTensor) for leaf in leaves) and not _on_gpu(kwargs.get("device")):
            makes = "device" in kwargs and not any(isinstance(leaf, Tensor) for leaf in leaves)
            if not (makes and _made_by_torch()):
                return func(*args, **kwargs)
            kwargs = kwargs | {"device": DEVICE}
        with self:  # for what a composite operation is made of
            return _operate(func, args, kwargs)


# ---- calls from Python, above autograd
class _Calls(TorchFunctionMode):
    """Sees calls of torch from Python."""

    def __init__(self, gpu: GPU) -> None:
        super().__init__()
        self.gpu = gpu
        self.running: list[bool] = []  # of each call that runs: are tensors that torch makes for it on the GPU?
        self.run_backward: Any = vars(torch.autograd)["_engine_run_backward"]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FROM_DATA and (_on_gpu(kwargs.get("device")) or isinstance(args[0], PretendedTensor)):
            return self._run(_from_data, (func, *args), kwargs)
        if func in (Tensor.to, Tensor.type_as):
            if any(isinstance(leaf, PretendedTensor) or _names_gpu(leaf) for leaf in (*args, *kwargs.values())):
                return self._run(_to, args, kwargs)
        elif func is Tensor.cuda:
            return self._run(_to, (args[0], DEVICE), {})
        elif func in _FUSED and any(isinstance(leaf, PretendedTensor) for leaf in (*args, *kwargs.values())):
            with self.gpu.one_launch(_FUSED[func]):
                return self._run(func, args, kwargs)
        return self._run(func, args, kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        """The backward pass, in which functions and checkpointed parts call torch from Python."""
        with self:
            return self._run(self.run_backward, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        leaves = tree_leaves((args, kwargs))
        ours = any(isinstance(leaf, PretendedTensor) for leaf in leaves)
        _check_generators(leaves, ours or _on_gpu(kwargs.get("device")))
        self.running.append(ours and kwargs.get("device") is None)
        try:
            return func(*args, **kwargs)
        finally:
            self.running.pop()


def _check_generators(leaves: list[Any], here: bool) -> None:
    """Operations cannot check this: below Python a generator is not the object it was."""
    for leaf in leaves:
        if isinstance(leaf, torch._C.Generator) and _on_gpu(leaf.device) != here:
            wanted, found = ("cuda", "cpu") if here else ("cpu", "cuda")
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


def _names_gpu(value: Any) -> bool:
    return isinstance(value, str | torch.device) and _on_gpu(value)


def _made_by_torch() -> bool:
    """Whether a tensor on the CPU that is being made is torch's own, made for a result on the GPU.

    Below Python torch asks a tensor for its device, and the memory of a pretended one is the CPU's.
    """
    return bool(_calls and _calls.running and _calls.running[-1])


# ---- what is patched
class _Generator(torch.Generator):
    """A generator of the CPU that says which device it was made for."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]  # its stub has __init__ alone
        made.device_of_results = torch.device(device)
        return made

    device_of_results: torch.device

    device = property(lambda self: self.device_of_results)


def _grouped(lists: list[list[Tensor | None]], with_indices: bool = False) -> dict[Any, Any]:
    """`torch._C._group_tensors_by_device_and_dtype`, by the devices that tensors say they are on."""
    groups: dict[Any, Any] = {}
    for place, first in enumerate(lists[0]):
        assert first is not None  # torch asks for this, too
        members, places = groups.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for members_of_list, tensors in zip(members, lists, strict=True):
            if tensors:
                members_of_list.append(tensors[place])
        places.append(place if with_indices else None)
    return {key: (members, places if with_indices else []) for key, (members, places) in groups.items()}


def _swap(first: Tensor, second: Tensor) -> None:
    """`torch.utils.swap_tensors`, also if the graph of a step that failed still holds one of them."""
    for name in ("__class__", "__dict__"):
        kept = getattr(first, name)
        setattr(first, name, getattr(second, name))
        setattr(second, name, kept)
    torch._C._swap_tensor_impl(first, second)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[GPU]:
    """Inside, ``cuda:0`` can be used, and tensors on it behave as on a GPU; Lightning's trainer with
    ``accelerator="cpu"`` and one device runs on it. At its end everything that was patched is as before; a tensor that
    is on it then cannot be used any longer.

    Raises:
        RuntimeError: there is one already.
    """
    import transformers
    from lightning.fabric.strategies.single_device import SingleDeviceStrategy as FabricStrategy
    from lightning.pytorch.accelerators import CPUAccelerator
    from lightning.pytorch.strategies import SingleDeviceStrategy

    global _calls
    if _calls is not None:
        raise RuntimeError("a pretended GPU exists already; use that one")
    swap = torch.__future__.get_swap_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        calls = _Calls(GPU())
        for owner, name, value in (
            (torch.autograd, "_engine_run_backward", calls.backward),
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "get_device_properties", lambda device=None: _PROPERTIES),
            (torch, "Generator", _Generator),
            (torch.utils, "swap_tensors", _swap),
            (torch._C, "_group_tensors_by_device_and_dtype", _grouped),
            (FabricStrategy, "root_device", property(lambda self: DEVICE)),
            (SingleDeviceStrategy, "root_device", property(lambda self: DEVICE)),
            (CPUAccelerator, "setup_device", lambda self, device: None),
            (transformers.modeling_utils, "caching_allocator_warmup", lambda *args, **options: None),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        # transformers would copy weights from threads, which torch's modes do not see
        stack.enter_context(mock.patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"))
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        # parameters keep their identity, as they do on a GPU, though their class changes
        torch.__future__.set_swap_module_params_on_conversion(True)
        _calls = calls
        try:
            with calls, _Operations():
                yield calls.gpu
        finally:
            _calls = None
