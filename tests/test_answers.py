"""One reading of answers: what the evaluation counts right earns a reward, and nothing else does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from zoo.answers import label_words, parse_label
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.emotion_qwen import EmotionQwen
from zoo.models.grpo import GRPO
from zoo.models.merit import MeritRLVR
from zoo.rl import Answer
from zoo.rl.rewards import Correct
from zoo.schema import Labels, Sample, Turn
from zoo.training.grpo import GRPOModule
from zoo.training.language_model import LanguageModelModule
from zoo.training.sft import SupervisedFineTuning

LABELS = Labels("meld", ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"))
CHINESE = {
    "neutral": "平静",
    "surprise": "惊讶",
    "fear": "恐惧",
    "sadness": "悲伤",
    "joy": "高兴",
    "disgust": "厌恶",
    "anger": "愤怒",
}
SAMPLE = Sample("meld/test/a", "meld/test/d", LABELS, Turn("a", "Ada", "Out!", "anger"))

# answer -> whether it names anger; the Chinese ones with the words above
ENGLISH = {
    "anger": True,
    "Anger.": True,
    "ＡＮＧＥＲ": True,
    "The emotion is **anger**!": True,
    "anger, pure anger": True,
    "anger.\nBecause he shouts, not joy": True,
    '```json\n{"emotion": "anger"}\n```': True,
    '```json {"emotion": "anger"}```': True,
    "```\nanger\n```": True,
    '{"emotion": "anger"}': True,
    '{\n  "emotion": "anger",\n  "why": "no joy in it"\n}': True,
    '{"label": "Anger"}': True,
    '{"x": "anger"}': True,
    "情绪是anger。": True,
    "not anger": False,
    "It isn't anger": False,
    "It isnt anger": False,
    "It isn’t anger": False,
    "no anger at all": False,
    "anger? nope": False,
    "anything but anger": False,
    "far from anger": False,
    "a lack of anger": False,
    "anger-free": False,
    "hardly anger": False,
    "rather than anger": False,
    "un-anger": False,
    "never anger": False,
    "none of it is anger": False,
    "anger or joy": False,
    "not_anger": False,
    '{"emotion": "not anger"}': False,
    '{"emotion": ["anger"]}': False,
    '{"anger": true}': False,
    '{"a": "anger", "b": "joy"}': False,
    '```json\n{"emotion": "joy"}\n```': False,
    "I think:\nanger": False,
    "angers": False,
    "danger": False,
    "joy": False,
    "": False,
    "```": False,
    "{}": False,
    "wrath": False,
    "The answer is\u2028anger, not joy": False,
}
SENTENCES = {
    "愤怒": True,
    "情绪是愤怒。": True,
    "说话人很愤怒": True,
    "说话人非常愤怒！": True,
    "这无疑是愤怒": True,
    "他忍不住愤怒起来": True,
    "特别愤怒": True,
    '```json\n{"情绪": "愤怒"}\n```': True,
    "愤怒\n不是高兴": True,
    "不是愤怒": False,
    "他不愤怒": False,
    "没有愤怒": False,
    "並非憤怒，並非愤怒": False,
    "毫无愤怒": False,
    "别愤怒": False,
    "愤怒还是高兴": False,
    "不高兴": False,
    "缺乏愤怒": False,
    "高兴": False,
    "anger": False,
}
TABLE = [(answer, right, None) for answer, right in ENGLISH.items()]
TABLE += [(answer, right, CHINESE) for answer, right in SENTENCES.items()]


def reads(system: type, verbalizer: dict[str, str] | None, answer: str) -> str | None:
    """What the evaluation of a system reads; nothing of it but its verbalizer is needed."""
    model = SimpleNamespace(verbalizer=verbalizer, parser="strict")
    model.read_label = lambda sample, text: LanguageModelModule.read_label(model, sample, text)
    if system is DialogueLLM:  # its strict parser is the one it inherits
        system = SupervisedFineTuning
    return system.read_answer(model, SAMPLE, answer)


@pytest.mark.parametrize("system", [GRPO, MeritRLVR, GRPOModule, SupervisedFineTuning, DialogueLLM, EmotionQwen])
def test_what_is_rewarded_is_what_the_evaluation_counts_right(system):
    wrong = []
    for answer, right, verbalizer in TABLE:
        evaluated = reads(system, verbalizer, answer) == "anger"
        rewards = {
            "of the system": Correct()(Answer(answer, 1, True, SAMPLE, label_words(LABELS, verbalizer))),
            "with words": Correct(verbalizer or {})(Answer(answer, 1, True, SAMPLE)),
        }
        if evaluated != right or any((reward > 0) != right for reward in rewards.values()):
            wrong.append((answer, right, evaluated, rewards))
    assert not wrong and len(TABLE) > 60


@pytest.mark.parametrize(
    ("answer", "label_words", "index"),
    [
        ("怒りです", ("喜び", "怒り"), 1),
        ("怒りではない", ("喜び", "怒り"), None),
        ("화남입니다", ("기쁨", "화남"), 1),
        ("화남이 아닙니다", ("기쁨", "화남"), None),
        ("โกรธมาก", ("ดีใจ", "โกรธ"), 1),
        ("无聊", ("高兴", "无聊"), 1),  # a label's own negation is none
        ("colère".replace("è", "e\u0300"), ("joie", "colère"), 1),  # the accent as a character of its own
        ("no emotion", ("emotion", "no emotion"), 1),  # the longer of two words that overlap
        ("keine Wut", ("Wut", "Freude"), None),
        ("Wut", ("Wut", "Freude"), 0),
        ("anger\u2028and joy", ("anger", "joy"), None),  # U+2028 ends no line
        ("anger\rand joy", ("anger", "joy"), 0),
        ("anger", (), None),
        ("[" * 100_000, ("anger", "joy"), None),
        ('{"emotion": ' * 100_000, ("anger", "joy"), None),
    ],
)
def test_answers_in_other_languages_and_forms(answer, label_words, index):
    assert parse_label(answer, label_words) == index


def test_words_that_differ_in_case_or_width_alone_are_one_word():
    with pytest.raises(ValueError, match="the same word"):
        label_words(LABELS, {"joy": "Ｆｅａｒ"})


def test_every_negated_or_doubled_label_is_unreadable():
    for name in LABELS.names:
        for form in ("not {}", "isn't {}", "no {}", "never {}", "{} - no", "neither {}"):
            assert parse_label(form.format(name), LABELS.names) is None
        assert parse_label(json.dumps({"emotion": name}), LABELS.names) == LABELS.index(name)
