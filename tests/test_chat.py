"""A model with a chat format is asked in it, by every system; any other gets the plain text that it got before."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.builders import make_corpus
from tests.fake_corpus import attach
from tests.runs_helper import REPOSITORY, fit, flags, refused, zoo
from zoo.checkpoints.loading import build_module
from zoo.data import Synthetic
from zoo.models.farcer import FARCER
from zoo.rl import Answer

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
SYSTEMS = {
    "bioserc/tiny": {},
    "causal_lm/few_shot": {},
    "causal_lm/sitcom": {},
    "dialoguellm/sitcom": {},
    "emotion_qwen/tiny": {},
    "farcer/tiny": {},
    "grpo/tiny": {},
    "instructerc/sitcom": {},
    "merit/sitcom": {},
    "merit/sitcom_ttrl": {"start_from": None},
    "selector/tiny": {},
    "selector/tiny_classifier": {},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same model with a chat format and without one."""
    home = tmp_path_factory.mktemp("models")
    for name in ("plain", "instruct"):
        shutil.copytree(REPOSITORY / "checkpoints" / "tiny-llama-sitcom", home / name)
    file = home / "instruct" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": CHAT}))
    return home


@pytest.fixture(scope="module")
def corpus():
    return Synthetic(corpus_seed=0, train_dialogues=20, dev_dialogues=2, test_dialogues=2)


def built(config, corpus, **options):
    module = build_module(REPOSITORY / "configs" / f"{config}.yaml", SYSTEMS[config] | options)
    attach(module, corpus)
    module.configure_model()
    return module


def prompt(module, corpus) -> str:
    batch = module.collator(training=False)(corpus.samples("test")[1:2], np.random.default_rng(0))
    ids, mask = batch["input_ids"][0], batch["mask"][0].bool()
    before = batch["fixed"].tolist() if "fixed" in batch else []
    return module.llm.tokenizer.decode(before + ids[mask].tolist())


@pytest.mark.parametrize("config", SYSTEMS)
def test_a_system_asks_an_instruct_model_in_its_chat_format(config, corpus, models):
    plain = prompt(built(config, corpus, llm=str(models / "plain")), corpus)
    switched_off = prompt(built(config, corpus, llm=str(models / "instruct"), chat=False), corpus)
    instruct = built(config, corpus, llm=str(models / "instruct"))
    chat = prompt(instruct, corpus)
    assert "[user]" not in plain and switched_off == plain
    assert chat.count("[user]") == 1 and chat.rstrip().endswith("[assistant]")
    assert instruct.uses_chat and instruct.contract()["chat"] is True


@pytest.mark.parametrize("config", ["causal_lm/few_shot", "merit/sitcom", "emotion_qwen/tiny", "farcer/tiny"])
def test_a_system_message_stands_before_the_users(config, corpus, models):
    text = prompt(built(config, corpus, llm=str(models / "instruct"), system_prompt="be brief"), corpus)
    assert text.index("[system]") < text.index("be brief") < text.index("[user]")
    with pytest.raises(ValueError, match="a system prompt is part of a chat, but chat is false"):
        built(config, corpus, llm=str(models / "plain"), system_prompt="be brief", chat=False)
    with pytest.raises(ValueError, match="chat needs a tokenizer with a chat format"):
        prompt(built(config, corpus, llm=str(models / "plain"), system_prompt="be brief"), corpus)


def test_the_answer_begins_the_assistants_turn(corpus, models):
    plain, chat = (built("dialoguellm/sitcom", corpus, llm=str(models / name)) for name in ("plain", "instruct"))
    labels = next(iter(corpus.label_sets.values()))
    decode = plain.llm.tokenizer.decode
    assert [decode(ids) for ids in plain.candidates(labels)] == [f" {name}" for name in labels.names]
    assert [decode(ids) for ids in chat.candidates(labels)] == list(labels.names)
    rng = np.random.default_rng(0)
    for module, before in ((plain, " "), (chat, "")):
        sample = corpus.samples("test")[0]
        answer = module.collator(training=True).target_ids(sample, rng)
        assert decode(answer[:-1]) == f"{before}{sample.target.label}"


@pytest.mark.parametrize("config", ["causal_lm/few_shot", "causal_lm/sitcom", "grpo/tiny"])
def test_a_chat_names_the_labels(config, corpus, models):
    options = {"template": "instruction"} if config == "grpo/tiny" else {}
    text = prompt(built(config, corpus, llm=str(models / "instruct"), **options), corpus)
    assert all(name in text for name in corpus.samples("test")[0].labels.names)


def test_farcers_own_chat_template_is_no_chat_in_a_chat():
    assert FARCER(llm="any", faces="none").chat is False
    with pytest.raises(ValueError, match="template chat writes Llama-3's chat tokens itself"):
        FARCER(llm="any", faces="none", chat=True)


# ---- checkpoints
def test_a_checkpoint_of_plain_prompts_is_not_asked_in_chats(models, tmp_path):
    make_corpus(tmp_path / "meld", (2, 1, 1))
    options = flags(model="CausalLM", model__llm=models / "instruct", data="MELD", data__root=tmp_path / "meld")
    run = fit(tmp_path / "run", *options, "--model.chat=false", "--trainer.max_steps=1")
    zoo("test", "--ckpt_path", run)  # its config.yaml says false
    changed = refused("test", "--ckpt_path", run, "--model.chat=null")
    assert "the prompts of this checkpoint were plain text" in changed and "--model.chat false" in changed


# ---- answers that say nothing
def nothing(answer: Answer) -> float:
    return 0.0


def test_rewards_that_are_all_alike_are_reported_with_two_answers(models, tmp_path):
    make_corpus(tmp_path / "meld", (4, 1, 1))
    options = flags(
        model="GRPO",
        model__llm=models / "plain",
        data="MELD",
        data__root=tmp_path / "meld",
        model__max_new_tokens=2,
        model__num_generations=2,
        trainer__limit_val_batches=0,
        trainer__max_steps=6,
        data__batch_size=2,
        trainer__max_epochs=10,
    )
    with pytest.warns(UserWarning, match=r"first 5 steps earned 0, so nothing was learnt. For example: '.*' and '"):
        fit(tmp_path / "run", *options, "--model.reward_funcs+=tests.test_chat.nothing")


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_answers_that_cannot_be_read_are_reported_with_two_of_them(verb, models, tmp_path, caplog):
    make_corpus(tmp_path / "meld", (4, 3, 3))
    verbalizer = {
        name: f"zzz{i}" for i, name in enumerate(("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"))
    }
    options = flags(
        model="CausalLM",
        model__llm=models / "plain",
        data="MELD",
        data__root=tmp_path / "meld",
        model__decode="greedy",
        model__max_new_tokens=3,
        data__eval_batch_size=4,
    )
    zoo(verb, "--zero_shot=true", *options, f"--model.verbalizer={json.dumps(verbalizer)}", "--trainer.accelerator=cpu")
    messages = [r.getMessage() for r in caplog.records if "answers could be read" in r.getMessage()]
    assert len(messages) == 1 and "For example: '" in messages[0] and "plain text (--model.chat)" in messages[0]

    caplog.clear()
    zoo(verb, "--zero_shot=true", *options, "--trainer.accelerator=cpu")  # tiny-llama-sitcom names emotions
    assert not [r for r in caplog.records if "could be read" in r.getMessage()]


@pytest.mark.parametrize(
    ("name", "options", "warned"),
    [
        ("Some-7B-Instruct", {}, True),
        ("llama-2-7b-chat-hf", {}, True),
        ("Some-7B-Instruct", {"chat": False}, False),  # the user's word
        ("bandit-7b", {}, False),  # `it` is no word of it
    ],
)
def test_a_chat_model_without_a_chat_format_is_not_silently_asked_in_plain_text(
    name, options, warned, corpus, models, tmp_path, caplog
):
    shutil.copytree(models / "plain", tmp_path / name)
    built("dialoguellm/sitcom", corpus, llm=str(tmp_path / name), **options)
    lines = [r.getMessage() for r in caplog.records if "trained on chats" in r.getMessage()]
    assert len(lines) == warned and all(line.startswith(name) for line in lines)
