"""The pretended GPU refuses what a GPU refuses, allows what it allows, counts, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.strategies.single_device import SingleDeviceStrategy as FabricStrategy
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed
from transformers import modeling_utils

from tests.pretended_gpu import PretendedTensor, pretended_gpu

CUDA = "cuda:0"
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
pytestmark = pytest.mark.usefixtures("one_threaded")


# ---- mistakes
def _numbers() -> SimpleNamespace:
    """Tensors on the device, and some on the CPU."""
    x = torch.arange(12.0, device=CUDA).reshape(3, 4)
    return SimpleNamespace(
        x=x, ids=torch.tensor([0, 2]), mask=torch.ones(3, 4, dtype=torch.bool), rows=torch.ones(3, 4)
    )


class Forgetful(nn.Linear):
    """Holds a tensor that is neither parameter nor buffer, so that nothing moves it."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.scale = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def _a_buffer_of_later() -> None:
    norm = nn.BatchNorm1d(4).to(CUDA)
    norm.register_buffer("running_mean", torch.zeros(4))
    norm.eval()(_numbers().x)


def _optimizer_of_before() -> None:
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    layer.to(CUDA)  # its moments stay
    layer(_numbers().x).sum().backward()
    optimizer.step()


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "a mask of the CPU fills": (lambda: _numbers().x.masked_fill(_numbers().mask, 0.0), MIXED),
    "a mask of the CPU chooses": (lambda: torch.where(_numbers().mask, _numbers().x, 0.0), MIXED),
    "a sum with a new tensor": (lambda: _numbers().x + torch.zeros(4), MIXED),
    "in place on the CPU": (lambda: _numbers().rows.add_(_numbers().x), MIXED),
    "cat": (lambda: torch.cat([_numbers().x, _numbers().rows]), MIXED),
    "gather by indices of the CPU": (lambda: _numbers().x.gather(1, torch.zeros(3, 1, dtype=torch.long)), MIXED),
    "index_select by indices of the CPU": (lambda: _numbers().x.index_select(0, _numbers().ids), MIXED),
    "a scalar of the CPU as index_select's index": (lambda: _numbers().x.index_select(0, torch.tensor(1)), MIXED),
    "the CPU's rows by indices of the device": (lambda: _numbers().rows[_numbers().ids.to(CUDA)], MIXED),
    "the CPU's rows written into the device's": (
        lambda: _numbers().x.__setitem__(_numbers().ids, torch.ones(2, 4)),
        MIXED,
    ),
    "embedding of ids of the CPU": (lambda: F.embedding(_numbers().ids, _numbers().x), MIXED),
    "class weights of the CPU": (
        lambda: F.cross_entropy(_numbers().x, torch.zeros(3, dtype=torch.long, device=CUDA), torch.ones(4)),
        MIXED,
    ),
    "targets of the CPU": (lambda: F.cross_entropy(_numbers().x, torch.zeros(3, dtype=torch.long)), MIXED),
    "attention to keys of the CPU": (
        lambda: F.scaled_dot_product_attention(*(torch.ones(1, 2, 3, 4, device=d) for d in (CUDA, "cpu", CUDA))),
        MIXED,
    ),
    "a module that was not moved": (lambda: nn.Linear(4, 4)(_numbers().x), MIXED),
    "an attribute that is no buffer": (lambda: Forgetful().to(CUDA)(_numbers().x), MIXED),
    "a buffer of later": (_a_buffer_of_later, MIXED),
    "an optimizer of before": (_optimizer_of_before, MIXED),
    "numpy()": (lambda: _numbers().x.numpy(), "can't convert cuda:0 device type tensor to numpy"),
    "np.asarray": (lambda: np.asarray(_numbers().x), "can't convert cuda:0 device type tensor to numpy"),
    "a generator of the CPU": (
        lambda: torch.multinomial(_numbers().x, 1, generator=torch.Generator()),
        "Expected a 'cuda' device type for generator but found 'cpu'",
    ),
    "a generator of the device": (
        lambda: torch.rand(3, generator=torch.Generator(CUDA)),
        "Expected a 'cpu' device type for generator but found 'cuda'",
    ),
}


@pytest.mark.parametrize(
    "name, inference", [(n, i) for n in MISTAKES for i in (False, True) if not (i and n == "an optimizer of before")]
)
def test_mistakes_are_refused(name, inference, gpu):
    mistake, message = MISTAKES[name]
    with torch.inference_mode(inference), pytest.raises((RuntimeError, TypeError), match=message[:60]):
        mistake()


def test_mistakes_pass_on_the_cpu(monkeypatch):
    """They are mistakes of devices alone: nothing else in the suite would notice them."""
    monkeypatch.setattr(sys.modules[__name__], "CUDA", "cpu")
    for mistake, _ in MISTAKES.values():
        mistake()


# ---- what CUDA allows
def test_what_a_gpu_allows(gpu):
    x, rows, ids = _numbers().x, _numbers().rows, _numbers().ids
    made = {
        "a number of the CPU": x * torch.tensor(2.0) + 1,
        "a number filled in": x.masked_fill(x > 3, torch.tensor(0.0)),
        "a number chosen": torch.where(x > 3, torch.tensor(0.0), x),
        "indices of the CPU": x[ids],
        "a mask of the CPU as index": x[_numbers().mask],
        "a row by a number of the CPU": x[torch.tensor(1)],
        "written at indices of the CPU": x.index_put((ids,), torch.tensor(5.0)),
        "copied from the CPU": x.clone().copy_(rows),
        "moved like another": rows.to(x),
        "of its type": rows.type_as(x),
        "new from data": x.new_tensor([1.0]),
        "new": x.new_zeros(2),
        "float64": x.double(),
        "from an array": torch.as_tensor(np.ones(3), device=CUDA),
        "one-hot, whose zeros torch makes itself": F.one_hot(ids.to(CUDA), 3),
        "drawn": torch.multinomial(x + 1, 1, generator=torch.Generator(CUDA).manual_seed(0)),
        "a copy of a module's": copy.deepcopy(nn.Linear(2, 2).to(CUDA)).weight,
    }
    with torch.device(CUDA):
        made |= {"default": torch.zeros(3), "default, from data": torch.tensor([1.0]), "module": nn.Linear(2, 2).weight}
    for name, tensor in made.items():
        assert type(tensor) is PretendedTensor and tensor.device == torch.device(CUDA) and tensor.is_cuda, name
    stayed = {
        "copied to the CPU": rows.clone().copy_(x),
        "cpu": x.cpu(),
        "to": x.to("cpu", torch.float64),
        "like one of the CPU": x.to(rows),
        "asked for": x.new_zeros(2, device="cpu"),
        "zeros like": torch.zeros_like(x, device="cpu"),
        "as_tensor": torch.as_tensor(x, device="cpu"),
    }
    for name, tensor in stayed.items():
        assert type(tensor) is Tensor and tensor.device.type == "cpu", name
    assert x.to(CUDA) is x and x.to(CUDA, copy=True) is not x and x.cuda() is x
    assert x.cpu().numpy().tolist() == x.tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert f"{x[1, 1]:.1f}" == "5.0" and "cuda:0" in repr(x)


def test_addresses_are_those_of_the_memory(gpu):
    x = _numbers().x
    assert x.data_ptr() == x.t().data_ptr() == x.view(-1).data_ptr() == x.add_(1).data_ptr() == x.detach().data_ptr()
    assert x[1].data_ptr() == x.data_ptr() + 16 and x.clone().data_ptr() != x.data_ptr()
    assert x.untyped_storage().data_ptr() == x[1].untyped_storage().data_ptr()


def test_parameters_stay_the_same_objects(gpu):
    """As on a GPU: an optimizer or a tied layer that holds them goes on."""
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    module[1].weight = module[0].weight
    held = module[0].weight
    module.to(CUDA)
    assert module[0].weight is module[1].weight is held and isinstance(held, nn.Parameter)
    assert type(held) is PretendedTensor and held.requires_grad
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["0.weight"], held.detach().cpu())
    assert type(module.cpu()[0].weight) is nn.Parameter


# ---- counts
def test_views_and_allocations_launch_nothing(gpu):
    x = _numbers().x
    gpu.reset()
    x.view(4, 3).t()[0].unsqueeze(0).expand(2, -1).detach().squeeze(0).permute(0, 1)
    x.split(2, 1), x.unbind(), x.chunk(2), x.as_strided((2, 2), (1, 1)), x.contiguous(), x.to(CUDA), x.float()
    x.select(0, 1), x.narrow(1, 0, 2), x.reshape(12), x.T, x.data, x.shape, x.requires_grad_()
    torch.empty_like(x), x.new_empty(3), torch.empty(3, device=CUDA)
    assert gpu.launches == gpu.synchronizations == 0


def _attend(**options: object) -> Tensor:
    return F.scaled_dot_product_attention(*torch.ones(3, 1, 2, 5, 4, device=CUDA), **options)


def _norm_of_gradients() -> None:
    layer = nn.Linear(2, 2).to(CUDA)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    nn.utils.clip_grad_norm_(layer.parameters(), 1.0)


SNIPPETS: dict[str, tuple[Callable[[Tensor], object], dict[str, int], dict[str, int]]] = {
    # what -> launches, synchronizations
    "in place": (lambda x: x.add_(1), {"add_": 1}, {}),
    "two": (lambda x: x * 2 + 1, {"mul": 1, "add": 1}, {}),
    "a linear layer": (lambda x: F.linear(x, x, x[:, 0]), {"addmm": 1}, {}),
    "to the device": (lambda x: torch.ones(3).to(CUDA), {"_to_copy": 1}, {}),
    "from data": (lambda x: torch.tensor([1.0], device=CUDA), {"_to_copy": 1}, {}),
    "on the CPU": (lambda x: (torch.ones(3) + 1).sum().item(), {}, {}),
    "item": (lambda x: x.sum().item(), {"sum": 1}, {"item": 1}),
    "bool": (lambda x: bool((x > 0).any()), {"gt": 1, "any": 1}, {"item": 1}),
    "int and float": (lambda x: (int(x[0, 0]), float(x[0, 1])), {}, {"item": 2}),
    "tolist": (lambda x: x.tolist(), {}, {"tolist": 1}),
    "cpu": (lambda x: (x.cpu(), x.to("cpu")), {}, {"copy to CPU": 2}),
    "copy_": (lambda x: torch.ones(3, 4).copy_(x), {}, {"copy to CPU": 1}),
    "nonzero": (lambda x: x.nonzero(), {"nonzero": 1}, {"nonzero": 1}),
    "boolean index": (lambda x: x[x > 3], {"gt": 1, "index": 1}, {"boolean index": 1}),
    "index": (lambda x: x[torch.tensor([0, 1])], {"index": 1}, {}),
    "number at a mask": (lambda x: x.__setitem__(x > 3, 0.0), {"gt": 1, "index_put_": 1}, {}),
    "rows at a mask": (
        lambda x: x.__setitem__(x[:, 0] > 3, -x[1:]),
        {"gt": 1, "neg": 1, "index_put_": 1},
        {"boolean index": 1},
    ),
    "masked_select": (lambda x: x.masked_select(x > 3), {"gt": 1, "masked_select": 1}, {"masked_select": 1}),
    "equal": (lambda x: torch.equal(x, x + 1), {"add": 1, "equal": 1}, {"equal": 1}),
    "repeats that are counted": (
        lambda x: x.repeat_interleave(x[0].long()[:3], 0),
        {"_to_copy": 1, "repeat_interleave": 1, "index_select": 1},
        {"repeat_interleave": 1},
    ),
    "repeats that are known": (
        lambda x: x.repeat_interleave(x[0].long()[:3], 0, output_size=3),
        {"_to_copy": 1, "repeat_interleave": 1, "index_select": 1},
        {},
    ),
    "attention": (lambda x: _attend(), {"ones": 1, "scaled_dot_product_attention": 1}, {}),
    "attention in several operations on the CPU": (
        lambda x: _attend(is_causal=True, dropout_p=0.1),
        {"ones": 1, "scaled_dot_product_attention": 1},
        {},
    ),
    "clipping": (
        lambda x: _norm_of_gradients(),
        {"ones_like": 2, "_to_copy": 2, "linalg_vector_norm": 3, "stack": 1},
        {},
    ),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", SNIPPETS)
def test_counts(name, inference, gpu):
    """Also in inference mode, in which operations come whole that come in parts otherwise."""
    snippet, launches, reads = SNIPPETS[name]
    with torch.inference_mode(inference):
        x = _numbers().x
        gpu.reset()
        snippet(x)
    counted = dict(gpu.launches_by_operation)
    if name == "clipping":  # what it does with the norm depends on torch's version
        counted = {k: v for k, v in counted.items() if k in launches}
    assert (counted, dict(gpu.synchronizations_by_kind)) == (launches, reads)
    assert gpu.launches >= sum(launches.values()) and gpu.synchronizations == sum(reads.values())


# ---- gradients
class Doubled(torch.autograd.Function):
    """A function with a backward pass in Python."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        assert torch.zeros(2).device.type == "cpu"  # what Python makes is where it asks for
        return gradient * 2


def _trained(device: str) -> tuple[list[float], list[Tensor]]:
    """Losses of three steps and the weights after them, of parts whose backward passes make tensors of their own."""
    torch.manual_seed(0)
    mixed = nn.MultiheadAttention(8, 2, batch_first=True)
    model = nn.ModuleList([nn.Embedding(9, 8), mixed, nn.LayerNorm(8), nn.Linear(8, 4)]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ids, target = torch.randint(9, (3, 5)).to(device), torch.tensor([0, 3, 1], device=device)
    bias, losses = torch.zeros(4, requires_grad=True), []  # a leaf of the CPU
    for _ in range(3):
        x = model[0](ids)
        x = x + checkpointed(lambda y: model[1](y, y, y, need_weights=False)[0], x, use_reentrant=False)
        first, *_ = model[2](x).unbind(1)
        kept, _ = first.split(4, 1)
        left = model[3](Doubled.apply(torch.cat([kept, kept.flip(1)], 1)))
        left = left + bias.to(device) + left.gather(1, target[:, None]) + left[ids[0, :3] % 3].sum()
        loss = F.cross_entropy(left, target, torch.ones(4, device=device)) + left.cpu().square().mean().to(device)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert bias.grad is not None and type(bias.grad) is Tensor
    assert {p.device.type for p in model.parameters()} == {torch.device(device).type}
    return losses, [p.detach().cpu() for p in model.parameters()]


def test_the_cpu_trains_beside_it(gpu):
    """A graph of the CPU alone stays there, also what torch makes for it: zeros of the half that was not used."""
    x = torch.ones(4, requires_grad=True)
    x.split(2)[0].sum().backward()
    assert type(x.grad) is Tensor and x.grad.tolist() == [1, 1, 0, 0] and gpu.launches == 0


def test_training_is_that_of_the_cpu():
    expected = _trained("cpu")
    with pretended_gpu() as gpu:
        found = _trained(CUDA)
        assert gpu.launches > 300
    assert found[0] == pytest.approx(expected[0], abs=1e-6) and len(set(expected[0])) == 3
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# ---- its end
def _patched() -> tuple[object, ...]:
    return (
        torch.autograd._engine_run_backward,
        torch.cuda._lazy_init,
        torch.cuda.current_device,
        torch.Generator,
        torch.utils.swap_tensors,
        torch._C._group_tensors_by_device_and_dtype,
        SingleDeviceStrategy.__dict__["root_device"],
        FabricStrategy.__dict__["root_device"],
        CPUAccelerator.setup_device,
        modeling_utils.caching_allocator_warmup,
        torch.__future__.get_swap_module_params_on_conversion(),
        os.environ.get("HF_DEACTIVATE_ASYNC_LOAD"),
        torch.overrides._get_current_function_mode_stack(),
        torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
    )


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before_at_its_end(fails):
    before = _patched()
    with contextlib.suppress(KeyError), pretended_gpu():
        assert all(a != b for a, b in zip(_patched(), before, strict=True))
        x = _numbers().x
        with pytest.raises(RuntimeError, match="exists already"), pretended_gpu():
            pass
        if fails:
            raise KeyError
    assert _patched() == before
    with pytest.raises(RuntimeError, match="after its end"):
        x + 1
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(3, device=CUDA)
