"""Gathering for checkpoints: what is whole lies in a file. tests/test_divided.py has processes that divide weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.memory_use import Memory
from zoo.training.gathering import SMALL, Gathering, gather_into_files

BIG = 64 * 2**20  # bytes


class Tied(torch.nn.Module):
    """Two names of one weight, and one that checkpoints leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.frozen = (torch.nn.Linear(300, 300, bias=False) for _ in range(3))
        self.b.weight = self.a.weight

    def pristine(self) -> set[str]:
        return {"frozen.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_lie_in_a_file_without_a_name(dtype, tmp_path):
    gathering = Gathering(tmp_path / "new")
    values = [torch.randn(BIG // 4).to(dtype), torch.randn(SMALL, 3).to(dtype).T, torch.tensor(3.0), 7]
    with Memory(0.005) as memory:
        gathered = [gathering.whole(value) for value in values]
    assert memory.own < BIG / 4 and not list((tmp_path / "new").iterdir())
    assert gathered[3] == 7 and all(torch.equal(a, b) for a, b in zip(gathered[:3], values[:3], strict=True))
    torch.save(gathered, tmp_path / "file")
    del gathering
    assert torch.equal(torch.load(tmp_path / "file", weights_only=True)[1], values[1])


def test_where_no_file_can_be_mapped_they_stay_in_memory(tmp_path, monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no such device")

    monkeypatch.setattr("zoo.training.gathering.mmap.mmap", refuse)
    value = torch.randn(SMALL)
    gathered = Gathering(tmp_path).whole(value)
    assert torch.equal(gathered, value) and gathered.data_ptr() != value.data_ptr()


def test_weights_and_moments_are_those_of_a_run_that_divides_nothing(tmp_path):
    module = Tied()
    module.frozen.requires_grad_(False)
    optimizer = torch.optim.AdamW([{"params": [module.a.weight], "lr": 0.5}])
    module.a.weight.sum().backward()
    optimizer.step()
    state = Gathering(tmp_path).weights(module)
    assert state.keys() == {"a.weight", "b.weight"} and state["a.weight"] is state["b.weight"]
    assert torch.equal(state["a.weight"], module.a.weight)
    gathered, expected = Gathering(tmp_path).optimizer(optimizer, module), optimizer.state_dict()
    assert gathered["param_groups"] == expected["param_groups"] and gathered["state"].keys() == {0}
    for name, value in expected["state"][0].items():
        assert torch.equal(gathered["state"][0][name], value), name
    helps = Gathering(None)
    assert helps.weights(module) == {} and helps.optimizer(optimizer, module) == {}


def test_other_strategies_are_left_alone():
    strategy = DDPStrategy()
    before = dict(vars(strategy))
    gather_into_files(SimpleNamespace(strategy=strategy))
    assert vars(strategy) == before
