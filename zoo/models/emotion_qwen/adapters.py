"""One LoRA per data set on a common base (Sec. 6)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.backbones import LoRA, Prefix
from zoo.models.emotion_qwen.model import EmotionQwen
from zoo.runs import find_checkpoint
from zoo.schema import Prediction, Sample
from zoo.training.batch import SampleBatch, answer_in_groups
from zoo.training.checkpointing import is_named, public_path
from zoo.training.starts import read_chain, state_of

State = Mapping[str, Tensor]


class EmotionQwenAdapters(EmotionQwen):
    """The adapters of finished runs on their common base, each used for the samples of its corpus.

    Samples of several corpora may stand in one batch. It has no weights of its own: everything comes from the runs, so
    it is tested with ``--zero_shot=true``. Its config.test.yaml is what
    ``zoo export --ckpt_path .../config.test.yaml --adapter NAME`` takes.

    Args:
        adapters: corpus -> folder or checkpoint of the run of `EmotionQwen` that tuned a LoRA on it. Everything but the
            LoRA must be equal in all of them.
        without: what becomes of the samples of a corpus without an adapter: the run is refused (``refuse``), or the
            model answers as it is (``base``).
    """

    owns_no_weights = True

    def __init__(
        self, *, adapters: dict[str, str], without: Literal["refuse", "base"] = "refuse", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not adapters:
            raise ValueError("adapters is empty; expected corpus names with the folders of the runs tuned on them")
        if self.lora is not None or self.start_from is not None or self.train_patterns is not None:
            raise ValueError("the runs say what the weights are; leave lora, train and start_from out")
        self.runs, self.without = dict(adapters), without

    def setup(self, stage: str) -> None:
        """Check that every corpus has an adapter, beside what `EmotionQwen` checks."""
        if stage == "fit":
            raise ValueError("one LoRA per data set is trained in one run each (EmotionQwen with lora), then used here")
        super().setup(stage)
        absent = sorted(set(self.data.label_sets) - set(self.runs))
        if absent and self.without == "refuse":
            raise ValueError(
                f"no adapter for {', '.join(absent)}; there are {', '.join(self.runs)}. Give one with "
                "--model.adapters, or answer without one: --model.without base"
            )

    def on_model_complete(self) -> None:
        """Load the weights that the runs share, and the adapters of each."""
        common: State = {}
        source: Path | None = None
        identified = tuple(f"{name}." for name in self.identities)
        base = {_without_peft(k): v for k, v in self.state_dict().items() if k.startswith(identified)}
        for name, run in self.runs.items():
            path = find_checkpoint(run)
            adapter, settings, frozen = self._read_run(path)
            if source is not None:
                _check_equal(frozen, common, base, path, source)
            common, source = {**frozen, **common}, path
            self.llm.add_adapter(name, settings, adapter)
        self._load_common(common, source)
        self.requires_grad_(False)

    def _read_run(self, path: Path) -> tuple[dict[str, Tensor], LoRA, State]:
        """Return a run's adapter, its settings, and the other weights of the run."""
        chain = read_chain(path)
        contract = chain[0].contract
        if not is_named(EmotionQwen, contract["class"]) or "llm" not in contract["adapters"]:
            raise ValueError(
                f"{path} holds a {contract['class']} with LoRA on {list(contract['adapters']) or 'nothing'}; "
                f"expected a run of {public_path(EmotionQwen)} with LoRA on llm"
            )
        self.check_backbones(contract, path)
        state = state_of(chain)
        adapter = {k.removeprefix("llm."): v for k, v in state.items() if ".lora_" in k}
        frozen = {_without_peft(k): v for k, v in state.items() if ".lora_" not in k}
        return adapter, LoRA(**contract["adapters"]["llm"]), frozen

    def _load_common(self, common: State, source: Path | None) -> None:
        model_state = self.state_dict()
        names = {_without_peft(k): k for k in model_state if ".lora_" not in k}
        identified = tuple(f"{name}." for name in self.identities)  # these have weights of their own
        missing = sorted(n for n, k in names.items() if n not in common and not k.startswith(identified))
        unknown = sorted(set(common) - set(names))
        if missing or unknown:
            raise ValueError(
                f"{source} does not fit this model: {len(missing)} tensors are missing {missing[:3]}, {len(unknown)} "
                f"are unknown {unknown[:3]}; give the model options of the runs"
            )
        wrong = [n for n, v in common.items() if model_state[names[n]].shape != v.shape]
        if wrong:
            raise ValueError(f"{source} has tensors of another shape: {wrong[:3]}; give the model options of the runs")
        self.take({names[n]: v for n, v in common.items()})
        untouched = {_without_peft(n) for n in self.untouched_tensors} & set(names) - set(common)
        self.untouched_tensors = {names[n] for n in untouched}

    def answer(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the answers, each by the adapter of its sample's corpus."""
        adapters = {name: functools.partial(self._answer_with, name) for name in (None, *self.runs)}

        def method(sample: Sample) -> Callable[[Prefix, SampleBatch], list[Prediction]]:
            return adapters[sample.labels.corpus if sample.labels.corpus in self.runs else None]

        return answer_in_groups(prefix, samples, method)

    def _answer_with(self, name: str | None, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        with self.llm.use(name):
            return super().answer(prefix, samples)


def _check_equal(state: State, other_state: State, base: State, path: Path, other: Path) -> None:
    """Refuse two runs whose weights are not the same; what one of them leaves out is in ``base``."""

    def same(name: str) -> bool:
        a, b = state.get(name, base.get(name)), other_state.get(name, base.get(name))
        return a is not None and b is not None and a.shape == b.shape and torch.equal(a.to(b), b)

    differ = {name for name in state.keys() | other_state.keys() if not same(name)}
    if differ:
        raise ValueError(
            f"{path} and {other} differ in more than their LoRA: {len(differ)} tensors, {sorted(differ)[:3]}; "
            "adapters are switched on one base, so tune them from the same --model.start_from"
        )


def _without_peft(name: str) -> str:
    """Return a tensor's name without what peft adds."""
    return name.replace("llm.model.base_model.model.", "llm.model.").replace(".base_layer.", ".")
