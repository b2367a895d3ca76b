"""zoo.backbones.adapters: adapters beside the trained ones, and which weights a computed prompt is of.

The trained adapters and their reference are tested with the verbs, in test_llm.py.
"""

from __future__ import annotations

import pytest
import torch

from zoo.backbones import LLM, LoRA

TARGETS = LoRA(r=2, alpha=4)


def fill(llm: LLM, name: str, seed: int) -> dict[str, torch.Tensor]:
    """Give an adapter's matrices B random values; returns all its tensors under the names of trained ones."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in llm.named_parameters():
        if f".{name}." in key and "lora_B" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    tensors = {key: p.detach().clone() for key, p in llm.named_parameters() if f".{name}." in key}
    return {key.replace(f".{name}.", ".default."): tensor for key, tensor in tensors.items()}


def adapted(tiny_llama, seed: int) -> tuple[LLM, dict[str, torch.Tensor]]:
    llm = LLM(str(tiny_llama))
    llm.add_lora(TARGETS)
    return llm.eval(), fill(llm, "default", seed)


def scores(llm: LLM, prefix=None) -> torch.Tensor:
    prefix = prefix or llm.encode(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool))
    llm.prefill(prefix)
    return llm.score(prefix, [[8, 9], [10]])


@pytest.mark.parametrize("trained", [True, False])
def test_adapters_are_used_by_name(tiny_llama, trained):
    (one, first), (two, second) = (adapted(tiny_llama, seed) for seed in (1, 2))
    llm, expected = (adapted(tiny_llama, 3)[0] if trained else LLM(str(tiny_llama)).eval()), {}
    before = scores(llm)
    llm.add_adapter("one", TARGETS, first)
    llm.add_adapter("two", TARGETS, second)
    assert llm.adapters == ("one", "two") and llm.lora == (TARGETS if trained else None)
    assert torch.equal(scores(llm), before)  # until they are used
    expected = {"one": scores(one), "two": scores(two), None: scores(LLM(str(tiny_llama)).eval())}
    for name, value in expected.items():
        with llm.use(name):
            torch.testing.assert_close(scores(llm), value, atol=1e-5, rtol=0)
    assert torch.equal(scores(llm), before)
    assert not any(p.requires_grad for k, p in llm.named_parameters() if ".one." in k or ".two." in k)


def test_a_computed_prompt_is_of_the_adapters_in_use(tiny_llama):
    llm, tensors = adapted(tiny_llama, 1)
    llm.add_adapter("other", TARGETS, {k: v * 2 for k, v in tensors.items()})
    llm.keep_reference()
    fill(llm, "default", 4)  # trained further
    prefix = llm.encode(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool))
    states = {}
    for name, state in (
        ("", None),
        ("use other", llm.use("other")),
        ("none", llm.use(None)),
        ("reference", llm.reference()),
    ):
        if state is None:
            states[name] = scores(llm, prefix)
            continue
        with state:
            assert llm.adapter_state == name
            states[name] = scores(llm, prefix)
    assert llm.adapter_state == "" and torch.equal(scores(llm, prefix), states[""])
    values = list(states.values())
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(values) for b in values[:i])


def test_adapters_that_do_not_fit_are_refused(tiny_llama):
    llm, tensors = adapted(tiny_llama, 1)
    for name in ("default", "reference", "a.b", ""):
        with pytest.raises(ValueError, match="adapters need names of their own"):
            llm.add_adapter(name, TARGETS, tensors)
    with pytest.raises(ValueError, match="no linear layer's full name matches the targets 'none' of adapter x"):
        llm.add_adapter("x", LoRA(targets="none"), tensors)
    with pytest.raises(ValueError, match="the tensors of adapter y do not fit: missing .*is it of this language model"):
        llm.add_adapter("y", TARGETS, dict(list(tensors.items())[1:]))
    with pytest.raises(ValueError, match="the tensors of adapter z do not fit: .*of another shape \\['"):
        llm.add_adapter("z", TARGETS, {k: v[:1] for k, v in tensors.items()})
    with pytest.raises(ValueError, match="no adapter 'nobody'; there are"), llm.use("nobody"):
        pass


def test_a_reference_needs_adapters(tiny_llama):
    llm = LLM(str(tiny_llama))
    with pytest.raises(ValueError, match="keep_reference\\(\\) needs LoRA"):
        llm.keep_reference()
