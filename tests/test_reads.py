"""What every system says that it reads is what its batches change with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fake_corpus import attach
from tests.runs_helper import REPOSITORY
from zoo.checkpoints.loading import build_module
from zoo.data import Synthetic
from zoo.label.used_inputs import batch_tensors, equal_inputs
from zoo.models.baselines.model import Fitted
from zoo.schema import Sample, Turn
from zoo.sitcom import release
from zoo.training.evaluation import PARTS

CONFIGS = REPOSITORY / "configs"
ANY = "tiny-llama-sitcom"
# config, options that replace its own, what it reads
SYSTEMS = [
    ("baselines/majority", {}, ()),
    ("baselines/tfidf", {}, ("text",)),
    ("baselines/tfidf", {"window": 1, "descriptions": ["audio"]}, ("text", "turns", "descriptions")),
    ("bioserc/tiny", {}, ("text", "turns", "later turns")),
    ("bioserc/tiny", {"descriptions": ["audio"]}, ("text", "turns", "later turns", "descriptions")),
    ("bioserc/tiny", {"window": 0}, ("text", "later turns")),
    ("causal_lm/sitcom", {}, ("text",)),
    ("causal_lm/few_shot", {}, ("text",)),
    ("dialoguellm/sitcom", {}, ("text", "turns", "descriptions")),
    ("dialoguellm/tiny", {"window": 0}, ("text", "descriptions")),
    ("emotion_qwen/tiny", {}, ("text", "face")),
    ("emotion_qwen/tiny", {"show_text": False}, ("face",)),
    ("farcer/tiny", {}, ("text", "turns", "face")),
    ("farcer/tiny", {"window": 0, "faces": "none"}, ("text",)),
    ("grpo/tiny", {}, ("text",)),
    ("image_text/tiny", {}, ("text", "face")),
    ("image_text/tiny", {"frames": 0, "window": 1, "descriptions": ["audio"]}, ("text", "turns", "descriptions")),
    ("image_text/tiny", {"show_text": False}, ("face",)),
    ("instructerc/sitcom", {"llm": ANY}, ("text", "turns")),
    ("merit/sitcom", {}, ("text", "face", "voice")),
    ("merit/sitcom", {"window": 2, "show_text": False, "audio": None}, ("turns", "face")),
    ("merit/sitcom_ttrl", {"start_from": None}, ("text", "face", "voice")),
    ("selector/tiny", {}, ("text", "turns", "descriptions")),
    ("selector/tiny_classifier", {}, ("text", "turns", "descriptions")),
    ("selector/tiny_classifier", {"selection": "never"}, ("text", "turns")),
    ("speech_cue/tiny", {}, ("text", "voice")),
    ("speech_cue/tiny", {"window": 1}, ("text", "turns", "voice")),
    ("unimodal/face_sitcom", {"vision": "tiny-vit-sitcom"}, ("face",)),
    ("unimodal/voice_sitcom", {"audio": "tiny-hubert-sitcom"}, ("voice",)),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("sitcom") / "written"
    release.write(root, {"train": 20, "dev": 2, "test": 2}, workers=1)
    return Synthetic(root=root)


def bare(sample: Sample, part: str) -> Sample:
    """The sample without a part, in earlier turns as well."""

    def without(turn: Turn) -> Turn:
        gone = {
            "text": {"text": ""},
            "descriptions": {"descriptions": {}},
            "face": {"video": None},
            "voice": {"audio": None},
        }[part]
        return replace(turn, **gone)

    if part == "turns":
        return replace(sample, history=())
    if part == "later turns":
        return replace(sample, later=())
    history, later = (t if part == "text" else tuple(map(without, t)) for t in (sample.history, sample.later))
    return replace(sample, target=without(sample.target), history=history, later=later)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("config", "options", "reads"), SYSTEMS)
def test_a_system_reads_what_its_batches_change_with(config, options, reads, corpus):
    module = build_module(CONFIGS / f"{config}.yaml", options)
    assert module.reads == reads

    attach(module, corpus)
    module.configure_model()
    if isinstance(module, Fitted):
        module.on_fit_start()
    collator = module.collator(training=False)
    sample = next(s for s in corpus.samples("test") if len(s.history) > 1 and s.later and s.target.text.count(" "))

    def seen(one: Sample) -> list:
        batch = collator([one], np.random.default_rng(0))
        return batch_tensors(batch) or [p.row() for p in module.predict(batch)]

    whole = seen(sample)
    assert equal_inputs(whole, seen(sample))
    assert tuple(part for part in PARTS if not equal_inputs(whole, seen(bare(sample, part)))) == reads
