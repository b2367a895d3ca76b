"""Each system says when, and why, it computes every prompt of a batch whole; docs/systems.md has the same."""

from __future__ import annotations

import re

import pytest

from tests.fake_corpus import attach
from tests.runs_helper import REPOSITORY
from zoo.backbones import LoRA
from zoo.checkpoints.loading import build_module
from zoo.data import Synthetic

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
CLIPS = "shows clips between the words"
OWN_WAY = "in its own way"
ONE_BY_ONE = "its answers share the prompt"
# config: (row of docs/systems.md, options, why in training, why in scoring)
SYSTEMS = {
    "dialoguellm/sitcom": ("DialogueLLM", {}, None, None),
    "dialoguellm/sitcom with dropout": ("", {"dropout": 0.1}, r"--model.dropout \(0.1\)", None),
    "dialoguellm/sitcom with dropout of adapters": ("", {"lora": LoRA(dropout=0.05)}, r"--model.lora \(0.05\)", None),
    "dialoguellm/sitcom with other attention": ("", {"attention": "eager"}, "attention is eager", "attention is eager"),
    "causal_lm/sitcom": ("plain causal LM", {"dropout": 0.0}, None, None),
    "instructerc/sitcom": ("InstructERC-style", {"dropout": 0.0}, None, None),
    "bioserc/tiny": ("BiosERC", {"embedding_noise": 5.0}, "--model.embedding_noise", None),
    "speech_cue/tiny": ("SpeechCueLLM (VoiceERC)", {"dropout": 0.0}, None, None),
    "selector/tiny_classifier": ("GRPO modality selector", {"dropout": 0.0}, None, None),
    "selector/tiny": ("", {}, ONE_BY_ONE, None),
    "grpo/tiny": ("GRPO, for a reward of your own", {}, ONE_BY_ONE, None),
    "farcer/tiny": ("FARCER", {}, OWN_WAY, OWN_WAY),
    "emotion_qwen/tiny": ("Emotion-Qwen", {}, f"{OWN_WAY}|{CLIPS}", f"{OWN_WAY}|{CLIPS}"),
    "merit/sitcom": ("MERIT", {}, CLIPS, CLIPS),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_says_why_it_shares_no_beginnings(name, monkeypatch):
    # taken where they are said: other tests silence Lightning's logger
    lines: list[str] = []
    monkeypatch.setattr("zoo.training.language_model.rank_zero_info", lines.append)
    _, options, in_training, in_scoring = SYSTEMS[name]
    module = build_module(REPOSITORY / "configs" / f"{name.split()[0]}.yaml", options)
    attach(module, Synthetic(corpus_seed=0, train_dialogues=2, dev_dialogues=1, test_dialogues=1)).configure_model()
    for training, expected in ((True, in_training), (False, in_scoring)):
        reason = module.why_separate(training)
        assert reason is None if expected is None else re.search(expected, reason)
        lines.clear()
        module.report_separate_prompts(training)
        what = "training" if training else "scoring"
        start = f"{what} computes every prompt of a batch whole, also what it shares with others: {reason}"
        assert lines == ([] if expected is None else [start])
    assert module.shares_beginnings == (in_scoring is None)


def test_the_page_of_systems_says_which_do():
    """ "yes", "when scoring" or "no": the third column, of each row that is tried here."""
    page = (REPOSITORY / "docs" / "systems.md").read_text(encoding="utf-8")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    place = table[0].index("beginnings once")
    stated = {cells[0]: cells[place] for cells in table}
    for row, _, in_training, in_scoring in SYSTEMS.values():
        expected = "yes" if in_training is None else "when scoring" if in_scoring is None else "no"
        assert not row or stated[row] == expected, row
