"""Supervised fine-tuning computes what the rows of a batch begin with once, and nothing changes by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.builders import make_corpus, make_llm
from tests.runs_helper import fit, flags, logged, zoo
from zoo.backbones import LLM
from zoo.models.dialoguellm import DialogueLLM
from zoo.training.language_model import LanguageModelModule

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
SYSTEMS = {
    "DialogueLLM": {"model__template": "default", "model__window": 2, "model__class_weight": 0.5},
    "InstructERC": {"model__window": 2},
    "CausalLM": {"model__shots": 2, "model__prompt_loss": 0.1},
    "whole dialogues": {
        "model": "DialogueLLM", "model__template": "short", "model__window": "null", "data__whole_dialogues": "true",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("shared")
    make_llm(home / "llm")
    make_corpus(home / "meld", (6, 2, 2))
    return home


@pytest.fixture
def tokens(monkeypatch):
    """Tokens that the language model computes in each pass over a tree."""
    seen: list[int] = []
    forward = LLM.forward_with_plan

    def counted(llm, embeddings, plan):
        if type(plan).__name__ == "TreePlan":
            seen.append(embeddings.shape[1])
        return forward(llm, embeddings, plan)

    monkeypatch.setattr(LLM, "forward_with_plan", counted)
    return seen


def train_and_test(home: Path, root: Path, name: str, **more: object) -> tuple[list[float], list[list[float]]]:
    """Losses of a few steps, and scores of the test split."""
    options = {"model": name, "model__llm": home / "llm", "data": "MELD", "data__root": home / "meld"}
    options |= {"data__batch_size": 8, "trainer__max_steps": 5, "model__lr": 3e-3}
    run = fit(root, *flags(**options | SYSTEMS.get(name, {}) | more))
    zoo("test", f"--ckpt_path={run}", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return logged(run, "train/loss"), [list(row["scores"].values()) for row in rows]


@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_and_scores_are_those_of_separate_rows(name, home, tokens, tmp_path, monkeypatch):
    losses, scores = train_and_test(home, tmp_path / "shared", name)
    assert len(tokens) >= 4  # training and test; a batch that shares too little is left as it is
    monkeypatch.setattr(LanguageModelModule, "shares_beginnings", False)
    passes = len(tokens)
    expected_losses, expected_scores = train_and_test(home, tmp_path / "rows", name)
    assert len(tokens) == passes
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected_scores), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "dropout", [{"model__dropout": 0.1}, {"model__lora__r": 2, "model__lora__dropout": 0.1}], ids=["states", "lora"]
)
def test_dropout_is_drawn_for_every_row_by_itself(dropout, home, tokens, tmp_path):
    options = {"model": "DialogueLLM", "model__llm": home / "llm", "data": "MELD", "data__root": home / "meld"}
    fit(tmp_path, *flags(**options | dropout | {"trainer__max_steps": 2, "trainer__limit_val_batches": 0}))
    assert tokens == []


def test_a_system_that_embeds_more_than_words_does_not_share(home):
    class Shown(DialogueLLM):
        def embed(self, batch):
            return super().embed(batch)

    plain = DialogueLLM(llm=str(home / "llm"))
    plain.llm = LLM(str(home / "llm"))
    other = Shown(llm=str(home / "llm"))
    other.llm = plain.llm
    assert plain.shares_beginnings and not other.shares_beginnings
    plain.llm.prefix_sharing_unsupported_reason = "of another family"
    assert not plain.shares_beginnings
