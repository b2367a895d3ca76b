"""The modality selector: rewards against written-out tables, decisions and the prompts they lead to, the gradient of a
step against its formula, and both stages through the user's entry point."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file

from tests.builders import make_home
from tests.data.miniature import LABELS, write_meld
from tests.fake_corpus import attach
from tests.runs_helper import checkpoint, fit, flags, logged, metrics, refused, rows, zoo
from zoo import checkpoints
from zoo.backbones import LLM, LoRA
from zoo.data.meld import MELD
from zoo.models.selector import Downstream, Format, ModalitySelector, Response, SelectedClassifier, SelectorStart
from zoo.models.selector.parts import DISCARD, KEEP, gain, read_decision, read_decisions, read_rows
from zoo.prompts import load_template, render
from zoo.rl import Answer, Objective, Rollout
from zoo.rl.rewards import Overlength
from zoo.schema import Sample, Turn
from zoo.training.grpo import GRPOModule

CONFIGS = Path(__file__).parents[2] / "configs" / "selector"
YES, NO = "Yes, the captions should remain", "No, the captions should be removed"


def sample(name: str = "a", label: str | None = "joy") -> Sample:
    return Sample(f"meld/train/{name}", "meld/train/d", MELD.labels, Turn(name, "Ada", "Hm.", label, {"audio": "low"}))


def answer(text: str, tokens: int = 10, name: str = "a") -> Answer:
    return Answer(text, tokens, True, sample(name))


# ---- rewards
LINES = f"<think>\nfirst\nsecond\n</think>\n<answer>\n{NO}\nA reason.\n</answer>"
ONE = f"<think>x</think><answer>{YES}</answer>"
TABLE = {  # text -> format: paper, code as intended, code literally; response: paper, code
    "one line": (ONE, 1, 0.5, 0.5, 1, 1),
    "several lines": (LINES, 1, 0.375 + 1, 0.375, 1, 1),  # the last tag ends no line
    "several lines, the last one ended": (f"{LINES}\n", 1, 1.5, 0.5, 1, 1),
    "a line each": (f"<think>\nx\n</think>\n<answer>\n{YES}\n</answer>\n", 1, 1.5, 0.5, 1, 1),
    # the typing error in the code's pattern: n</think> where \n</think> was meant
    "thoughts that end in n": (f"<think>\nreason</think>\n<answer>\n{YES}\n</answer>\n", 1, 1.5, 1.0, 1, 1),
    "a line between the blocks": (f"<think>x</think>\n<answer>{YES}</answer>", 1, 0.625, 0.625, 1, 1),
    "blanks around": (f"\n {ONE} \n", 1, 0, 0, 1, 1),  # the code's patterns begin where the answer begins
    "text before": (f"Well. {ONE}", 0, 0, 0, 1, 1),
    "text after the end": (f"{LINES}\nand more", 0, 0.5 + 0.5, 0.5, 1, 1),
    "two answers": (f"{ONE}<answer>{NO}</answer>", 0, 0.5, 0.5, -0.5, 1),
    "a tag twice": (f"<think><think>x</think><answer>{YES}</answer>", 0, 0.5, 0.5, 1, 1),
    "a line tag twice": (f"<think>\n<think>\nx\n</think>\n<answer>\n{YES}\n</answer>\n", 0, 0.375 + 1, 0.375, 1, 1),
    "blocks exchanged": (f"<answer>{YES}</answer><think>x</think>", 0, 0, 0, 1, 1),
    "not closed": (f"<think>x</think><answer>{YES}", 0, 0, 0, -0.5, 1),
    "not opened": (f"x</think><answer>{YES}</answer>", 0, 0, 0, 1, 1),
    "no tags": (YES, 0, 0, 0, -0.5, 1),
    "tags in another case": (f"<THINK>x</THINK><ANSWER>{YES}</ANSWER>", 0, 0, 0, -0.5, 1),
    "phrase in another case": (f"<think>x</think><answer>{NO.upper()}</answer>", 1, 0.5, 0.5, 1, 1),
    "both phrases": (f"<think>x</think><answer>{YES}. {NO}</answer>", 1, 0.5, 0.5, -0.5, 1),
    "a phrase twice": (f"<think>x</think><answer>{YES}. {YES}</answer>", 1, 0.5, 0.5, 1, 1),
    "another wording": ("<think>x</think><answer>Yes, keep the captions</answer>", 1, 0.5, 0.5, -0.5, -0.5),
    "phrase in the thoughts": (f"<think>{YES}</think><answer>maybe</answer>", 1, 0.5, 0.5, -0.5, -0.5),
    "phrase after the end": (f"<think>x</think><answer>maybe</answer>{NO}", 0, 0.5, 0.5, -0.5, 1),
    "empty": ("", 0, 0, 0, -0.5, -0.5),
    "blank": (" \n", 0, 0, 0, -0.5, -0.5),
}
REWARDS = (Format("paper"), Format("code_intended"), Format("code_literal"), Response("paper"), Response("code"))


def test_the_phrases_are_the_papers():
    assert (KEEP, DISCARD) == (YES, NO)


@pytest.mark.parametrize("name", TABLE)
def test_rewards(name):
    text, *expected = TABLE[name]
    assert [reward(answer(text)) for reward in REWARDS] == expected


def test_rewards_of_answers_without_tags():
    for kind in ("paper", "code"):
        response = Response(kind, tagged=False)
        assert [response(answer(t)) for t in (f" {YES}", NO.lower(), ONE, "Yes", "")] == [1, 1, 1, -0.5, -0.5]
    assert Response("paper", tagged=False)(answer(f"{YES} {NO}")) == -0.5
    assert Response("code", tagged=False)(answer(f"{YES} {NO}")) == 1


def test_the_papers_total_lies_between_its_bounds():
    """R = format + response + overlength in [-1.5, 3]; the upper bound is where the equation jumps, not reached."""
    terms = (Format("paper"), Response("paper"), Overlength("paper"))
    totals = {sum(t(answer(text, tokens)) for t in terms) for text, *_ in TABLE.values() for tokens in range(400)}
    assert min(totals) == -1.5 and max(totals) == pytest.approx(3 - 1 / 160)
    assert sum(t(answer(ONE, 64)) for t in terms) == 2 and sum(t(answer("", 225)) for t in terms) == -1.5


SIDES = {  # probabilities with and without descriptions
    "a": ("joy", {"joy": 0.8, "anger": 0.2}, {"joy": 0.5, "anger": 0.5}),
    "b": ("anger", {"joy": 0.9, "anger": 0.1}, {"joy": 0.6, "anger": 0.4}),
    "c": ("joy", {"joy": 0.0, "anger": 1.0}, {"joy": 0.5, "anger": 0.5}),
    "d": (None, {"joy": 0.9, "anger": 0.1}, {"joy": 0.5, "anger": 0.5}),
}
DROP = math.log(2) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1)  # entropy of evens minus that of .9
GAINS = {
    "log_probability": {"a": math.log(0.8 / 0.5), "b": math.log(0.1 / 0.4), "c": math.log(1e-6 / 0.5)},
    "probability": {"a": 0.3, "b": -0.3, "c": -0.5},
    "entropy": {
        "a": math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2),
        "b": -(0.6 * math.log(0.6) + 0.4 * math.log(0.4)) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1),
        "c": math.log(2),
        "d": DROP,
    },
}


def write_rows(path: Path, made: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")
    return path


def compared(path: Path, sides=SIDES) -> Path:
    return write_rows(
        path,
        [
            {"id": f"meld/train/{name}", "label": label, "details": {"with": kept, "without": bare}}
            for name, (label, kept, bare) in sides.items()
        ],
    )


@pytest.mark.parametrize("kind", GAINS)
def test_downstream(kind, tmp_path):
    """Keeping is worth the gain, discarding 0, no decision the worse of the two."""
    reward = Downstream(str(compared(tmp_path / "any.jsonl")), kind)
    assert reward.gains == {f"meld/train/{n}": pytest.approx(g) for n, g in GAINS[kind].items()}
    for name, g in GAINS[kind].items():
        said = [reward(answer(t, name=name)) for t in (ONE, LINES, YES, f"<answer>{YES}{NO}</answer>", "")]
        assert said == pytest.approx([g, 0, min(g, 0), min(g, 0), min(g, 0)])
        assert Downstream(reward.file, kind, tagged=False)(answer(YES, name=name)) == pytest.approx(g)


def test_gain_is_symmetric():
    _, kept, bare = SIDES["b"]
    for kind in GAINS:
        assert gain(kept, bare, "joy", kind) == pytest.approx(-gain(bare, kept, "joy", kind))


def test_downstream_names_what_is_missing(tmp_path):
    file = compared(tmp_path / "predictions.jsonl")
    with pytest.raises(ValueError, match=r"says nothing about 1 of 1 .*\['meld/train/z'\]; predict that split"):
        Downstream(str(file))(answer(ONE, name="z"))
    with pytest.raises(ValueError, match="2 of 3 dev samples .or has no label for them.: .*train/d.*train/z"):
        Downstream(str(tmp_path)).require([sample(n) for n in "adz"], "dev")
    Downstream(str(file), "entropy").require([sample(n) for n in "abcd"], "dev")
    write_rows(file, [{"id": "meld/train/a", "label": "joy", "details": {"with": {"joy": 1.0}}}])
    with pytest.raises(ValueError, match="does not say what .* with and without .* --model.compare true"):
        Downstream(str(file))


# ---- decisions
@pytest.mark.parametrize("name", TABLE)
def test_a_decision_is_read_where_the_papers_response_is_rewarded(name):
    text, *_, response, _ = TABLE[name]
    decision = read_decision(text)
    assert (decision is None) == (response == -0.5)
    assert decision in (None, YES.lower() in text.lower())


@pytest.mark.parametrize(
    "text, decision",
    [(YES, True), (f"  {NO.upper()}.", False), (f"{YES}, {NO}", None), ("Yes", None), ("", None), (ONE, True)],
)
def test_a_decision_without_tags(text, decision):
    assert read_decision(text, tagged=False) is decision


def decided(path: Path, decisions: dict[str, str | None]) -> Path:
    return write_rows(path, [{"id": i, "details": {"decision": d}} for i, d in decisions.items()])


def test_read_decisions(tmp_path):
    """From the file, the run folder, and a checkpoint in it."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "checkpoints" / "best.ckpt").touch()
    file = decided(run / "decisions.jsonl", {"a": "keep", "b": "discard", "c": None})
    for given in (file, run, run / "checkpoints" / "best.ckpt", str(run)):
        assert read_decisions(given) == {"a": True, "b": False, "c": None}
    for given in (tmp_path / "none", tmp_path, tmp_path / "none.ckpt"):
        with pytest.raises(FileNotFoundError, match=r"no decisions\.jsonl at '.*': give the file, or a run folder"):
            read_decisions(given)


@pytest.mark.parametrize(
    "made, message",
    [
        ([{"id": "a", "details": {"decision": "yes"}}], "a has decision 'yes', expected keep, discard or null"),
        ([{"id": "a", "details": {}}], "a has decision '', expected keep"),
        ([{"id": "a", "label": "joy", "details": None}], "a has decision '', .*decisions.jsonl of a ModalitySelector"),
        ([{"id": "a", "details": {"decision": d}} for d in ("keep", None)], "decides twice about a, and differently"),
        ([{"details": {"decision": "keep"}}], "line 1 names no sample"),
        ([["a", "keep"]], "line 1 names no sample"),
    ],
)
def test_files_that_hold_no_decisions(tmp_path, made, message):
    with pytest.raises(ValueError, match=message):
        read_decisions(write_rows(tmp_path / "decisions.jsonl", made))


def test_a_damaged_file_is_named_with_its_line(tmp_path):
    file = decided(tmp_path / "decisions.jsonl", {"a": "keep", "b": "discard"})
    file.write_text(file.read_text()[:-9])
    with pytest.raises(ValueError, match=r"decisions\.jsonl line 2 is not JSON"):
        read_rows(file, "decisions.jsonl")
    assert read_decisions(decided(file, {})) == {}


# ---- stage 2: prompts
@pytest.fixture(scope="module")
def meld(tmp_path_factory):
    folder = write_meld(tmp_path_factory.mktemp("meld"), dialogues=(12, 2, 2), kinds=("video", "audio"))
    return MELD(root=folder, descriptions=[folder], seed=7)


def system(kind, llm, data, stage="fit", **options):
    """A built system beside its data, as a Trainer would set it up."""
    model = kind(llm=str(llm), descriptions=["audio"], **options)
    attach(model, data, strategy=SingleDeviceStrategy())
    model.configure_model()
    model.setup(stage)
    return model


def prompts(model, samples, training=False, seed=0) -> list[str]:
    rng, collator = np.random.default_rng(seed), model.collator(training)
    return [model.llm.tokenizer.decode(collator.prompt_ids(s, rng)[0], skip_special_tokens=True) for s in samples]


def written(s: Sample, described: bool) -> str:
    """causal_lm's default template with a window of 1."""
    turns = [f"{t.speaker}: {t.text}\n" for t in (*s.history[-1:], s.target)]
    return ("".join(turns) + (f"audio: {s.target.descriptions['audio']}\n" if described else "") + "emotion:").lower()


def classifier(tiny_llama, data, stage="fit", **options):
    given = {"template": "causal_lm/default", "window": 1} | options
    return system(SelectedClassifier, tiny_llama, data, stage, **given)


@pytest.mark.parametrize("training", [True, False])
def test_always_and_never(tiny_llama, meld, training):
    samples = meld.samples("train")[:20]
    for selection, described in (("always", True), ("never", False)):
        shown = prompts(classifier(tiny_llama, meld, selection=selection), samples, training)
        assert shown == [written(s, described) for s in samples]


@pytest.mark.parametrize("on_unparsable, kept", [("keep", True), ("discard", False)])
def test_a_file_mixes_prompts(tiny_llama, meld, tmp_path, on_unparsable, kept):
    everything = [s for split in ("train", "dev", "test") for s in meld.samples(split)]
    said = {s.id: ("keep", "discard", None)[i % 3] for i, s in enumerate(everything)}
    file = decided(tmp_path / "decisions.jsonl", said)
    model = classifier(tiny_llama, meld, selection=str(file), on_unparsable=on_unparsable)
    for training in (True, False):
        shown = prompts(model, everything, training)
        assert shown == [written(s, (True, False, kept)[i % 3]) for i, s in enumerate(everything)]


def many(count: int) -> list[Sample]:
    return [sample(f"s{i}") for i in range(count)]


def test_random_selection(tiny_llama, meld):
    """In evaluation a coin per sample, whatever stands beside it; in training another one each time."""
    samples = many(2000)
    collator = classifier(tiny_llama, meld, selection="random").collator(False)
    kept = collator.decisions(samples)
    assert abs(np.mean(kept) - 0.5) < 0.05
    assert kept == [d for s in samples for d in collator.decisions([s], np.random.default_rng(1))]
    assert kept[::-1] == collator.decisions(samples[::-1])
    other = MELD(root=meld.root, descriptions=[meld.root], seed=8)
    seeded = classifier(tiny_llama, other, selection="random").collator(False).decisions(samples)
    assert 0.4 < np.mean(np.array(kept) == seeded) < 0.6
    training = classifier(tiny_llama, meld, selection="random").collator(True)
    a, b, c = (training.decisions(samples, np.random.default_rng(i)) for i in (0, 1, 0))
    assert a == c and 0.45 < np.mean(a) < 0.55 and 0.45 < np.mean(np.array(a) == b) < 0.55


def test_random_prompts_follow_the_coin(tiny_llama, meld):
    samples = meld.samples("train")[:40]
    model = classifier(tiny_llama, meld, selection="random")
    kept = model.collator(False).decisions(samples)
    assert prompts(model, samples) == [written(s, k) for s, k in zip(samples, kept, strict=True)]
    shown = prompts(model, samples, training=True)
    described = [text == written(s, True) for s, text in zip(samples, shown, strict=True)]
    assert 8 < sum(described) < 32
    assert all(d or text == written(s, False) for d, s, text in zip(described, samples, shown, strict=True))


def test_samples_without_a_decision_are_named_before_any_work(tiny_llama, meld, tmp_path):
    known = {s.id: "keep" for split in ("train", "dev") for s in meld.samples(split)}
    file = decided(tmp_path / "decisions.jsonl", known)
    classifier(tiny_llama, meld, selection=str(file))
    message = r"decides nothing about 14 of 14 test samples: \['meld/test/dia0_utt0'.*zoo predict"
    with pytest.raises(ValueError, match=message):
        classifier(tiny_llama, meld, "test", selection=str(file))
    known.popitem()
    with pytest.raises(ValueError, match="nothing about 1 of 14 dev samples"):
        classifier(tiny_llama, meld, selection=str(decided(file, known)))


def test_comparing_needs_probabilities():
    with pytest.raises(ValueError, match="decode must be score, not greedy"):
        SelectedClassifier(llm="any", template="classifier", compare=True, decode="greedy")


# ---- stage 1: prompts
def test_chat_prompts(tiny_llama, meld, tmp_path):
    """A system message that shows the form of the answer, the prompt as the user's, then the answer's turn."""
    model = system(ModalitySelector, tiny_llama, meld, window=1, chat=True)
    s = meld.samples("train")[1]
    with pytest.raises(ValueError, match="chat needs a tokenizer with a chat format .* set --model.chat false"):
        prompts(model, [s])
    turns = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"
    model.llm.tokenizer.chat_template = turns + "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    user = render(model.template, s, window=1, descriptions=("audio",), words=LABELS)
    form = "Write your answer in this form:\n<think>\n...\n</think>\n<answer>\n...\n</answer>"
    assert prompts(model, [s]) == [f"[system]\n{form}\n[user]\n{user}\n[assistant]\n".lower()]
    collator, rng = model.collator(False), np.random.default_rng(0)
    whole, cut = collator.prompt_ids(meld.samples("train")[0], rng)
    collator.max_length = len(whole) - 30
    shorter, was_cut = collator.prompt_ids(meld.samples("train")[0], rng)
    assert (cut, was_cut) == (False, True) and len(whole) - 33 <= len(shorter) <= len(whole) - 30
    texts = [model.llm.tokenizer.decode(ids, skip_special_tokens=True) for ids in (whole, shorter)]
    head = f"[system]\n{form}\n[user]\n".lower()
    assert texts[1].startswith(head) and texts[0].endswith(texts[1].removeprefix(head))  # the user's beginning is gone
    (tmp_path / "own.txt").write_text("As you like.\n")
    own = system(ModalitySelector, tiny_llama, meld, window=1, chat=True, system_template=str(tmp_path / "own.txt"))
    own.llm.tokenizer.chat_template = turns
    assert prompts(own, [s]) == [f"[system]\nas you like.\n[user]\n{user.lower()}\n"]


# ---- stage 1: options
FORCED = {
    "reasoning": "none",
    "exploration": "forced",
    "objective": Objective("reinforce_group", "sum"),
    "num_generations": 2,
}


@pytest.mark.parametrize(
    "options",
    [
        {"num_generations": 3},
        {"objective": Objective()},
        {"objective": Objective("ppo_advantage", "sum")},
        {"num_iterations": 2},
    ],
)
def test_forced_exploration_refuses_what_has_a_ratio_or_no_halves(options):
    with pytest.raises(ValueError, match="needs an even number of answers .* got "):
        ModalitySelector(llm="any", **FORCED | options)
    ModalitySelector(llm="any", **FORCED)


def test_a_selector_without_rewards_is_refused():
    nothing = {"format": "none", "response": "none", "overlength": "none"}
    with pytest.raises(ValueError, match="no reward: set format, response, overlength or downstream"):
        ModalitySelector(llm="any", **nothing)
    with pytest.raises(ValueError, match="no reward"):  # a format needs an answer that has one
        ModalitySelector(llm="any", reasoning="none", **nothing | {"format": "paper"})
    with pytest.raises(ValueError, match="without lora there is no reference"):
        ModalitySelector(llm="any", objective=Objective(beta=0.04))
    assert len(ModalitySelector(llm="any", **nothing, reward_funcs=[Format()]).reward_funcs) == 1


def test_rewards_of_the_options():
    made = ModalitySelector(llm="any", format="code_literal", response="code", overlength="dapo", desired=9, longest=99)
    assert made.reward_funcs == [Format("code_literal"), Response("code"), Overlength("dapo", 9, 99)]
    assert ModalitySelector(llm="any").reward_funcs == [Format(), Response(), Overlength()]  # the paper's
    assert ModalitySelector(llm="any", reasoning="none").reward_funcs == [Response(tagged=False), Overlength()]


def test_training_needs_the_classifiers_word_on_every_sample(tiny_llama, meld, tmp_path, caplog):
    sides = {s.id.removeprefix("meld/train/"): SIDES["a"] for s in meld.samples("train")}
    file = str(compared(tmp_path / "predictions.jsonl", sides))
    given = {"template": "decision", "downstream": file, **FORCED}
    with pytest.raises(ValueError, match="says nothing about 14 of 14 dev samples"):
        system(ModalitySelector, tiny_llama, meld, **given)
    found = system(ModalitySelector, tiny_llama, meld, "predict", **given)  # a new corpus has no comparisons
    assert [type(f) for f in found.reward_funcs] == [Response, Overlength] and "no downstream term" in caplog.text
    Path(file).unlink()
    assert len(system(ModalitySelector, tiny_llama, meld, "predict", **given).reward_funcs) == 2
    with pytest.raises(FileNotFoundError, match="no predictions.jsonl at"):
        system(ModalitySelector, tiny_llama, meld, **given)


# ---- stage 1: the gradient of a forced step
class Grab(Callback):
    """Draws the adapters' second halves, which begin at zero, and keeps the gradient of the first step."""

    def on_train_start(self, trainer, pl_module) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, p in pl_module.named_parameters():
            if "lora_B" in name:
                p.data = torch.randn(p.shape, generator=generator) * 0.3

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.samples = [*getattr(self, "samples", ()), *batch["samples"]]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("positive_only", [False, True])
def test_gradient_of_a_forced_step(tiny_llama, meld, tmp_path, positive_only):
    """-(1/N) sum A log pi(phrase), both phrases in every group, from plain rows."""
    random = np.random.default_rng(0).uniform(0.05, 0.95, (500, 2))
    everything = [s for split in ("train", "dev") for s in meld.samples(split)]
    both = {
        s.id: [dict.fromkeys(LABELS, v / 6) | {s.target.label: 1 - v} for v in random[i]]
        for i, s in enumerate(everything)
    }
    file = write_rows(
        tmp_path / "c.jsonl",
        [
            {"id": s.id, "label": s.target.label, "details": dict(zip(("with", "without"), both[s.id], strict=True))}
            for s in everything
        ],
    )
    data = MELD(root=meld.root, descriptions=[meld.root], seed=7, batch_size=3)
    model = ModalitySelector(
        llm=str(tiny_llama),
        template="decision",
        window=1,
        descriptions=["audio"],
        reasoning="none",
        exploration="forced",
        num_generations=4,
        objective=Objective("reinforce_group", "sum", positive_only=positive_only),
        scale_rewards="none",
        response="none",
        overlength="none",
        downstream=str(file),
        downstream_kind="probability",
        lr=0.0,
        lora=LoRA(r=4, targets=r".*_proj"),
        log_completions_steps=0,
    )
    grab = Grab()
    Trainer(
        max_steps=1,
        accumulate_grad_batches=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[grab],
        accelerator="cpu",
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
    ).fit(model, data)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(grab.samples) == 6 and set(grab.gradients) == set(trained)

    tokenizer, loss = model.llm.tokenizer, 0.0
    for s in grab.samples:
        rest = f"audio: {s.target.descriptions['audio']}\ncaptions needed:"
        text = "".join(f"{t.speaker}: {t.text}\n" for t in (*s.history[-1:], s.target)) + rest
        g = both[s.id][0][s.target.label] - both[s.id][1][s.target.label]
        for phrase, advantage in ((YES, g / 2), (NO, -g / 2)):  # rewards g and 0, twice each
            if positive_only:
                advantage = max(advantage, 0)
            prompt = tokenizer(text)["input_ids"]
            ids = prompt + tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            logits = model.llm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            logp = sum(logits[i - 1, ids[i]] for i in range(len(prompt), len(ids)))
            loss = loss - 2 * advantage * logp / (6 * 4)
    model.zero_grad()
    loss.backward()
    assert sum(g.abs().sum() for g in grab.gradients.values()) > 0
    for name, p in trained.items():
        assert (p.grad - grab.gradients[name]).abs().max() < 1e-4 * p.grad.abs().max(), name


def test_a_forced_group_holds_both_phrases(tiny_llama, meld):
    file_free = {"template": "decision", **FORCED, "num_generations": 4}
    model = system(ModalitySelector, tiny_llama, meld, **file_free)
    batch = model.collator(True)(meld.samples("train")[:3], np.random.default_rng(0))
    rollout = model.sample([batch])
    said = [[a.text.strip() for a in group] for group in model.decode_answers([batch], rollout)]
    assert said == [[YES.lower(), NO.lower()] * 2] * 3
    assert rollout.finished.all() and rollout.ids.shape == rollout.loss_mask.shape
    lengths = {len(model.decision_ids[0]) + 1, len(model.decision_ids[1]) + 1}
    assert set(rollout.loss_mask.sum(2).flatten().tolist()) == lengths
    gathered = model.rewards(model.decode_answers([batch], rollout))
    assert gathered.metrics == {"unparsed": 0.0, "yes_rate": 0.5}


def test_a_decision_without_thoughts_is_the_more_probable_phrase(tiny_llama, meld):
    model = system(ModalitySelector, tiny_llama, meld, template="decision", window=1, **FORCED).eval()
    samples, tokenizer = meld.samples("train")[:12], model.llm.tokenizer
    batch = model.collator(False)(samples, np.random.default_rng(0))
    for s, made in zip(samples, model.predict(batch), strict=True):
        logp = []
        for phrase in (YES, NO):
            prompt = tokenizer(written(s, True).removesuffix("emotion:") + "captions needed:")["input_ids"]
            ids = prompt + tokenizer(f" {phrase}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model.llm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            logp.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(prompt), len(ids))))
        assert made.details["keep"] == pytest.approx(1 / (1 + math.exp(logp[1] - logp[0])), abs=1e-5)
        assert made.details["decision"] == ("keep" if logp[0] > logp[1] else "discard")
        # the paper's reward for having decided, and nothing for so short an answer
        assert made.details["rewards"] == {"response": 1.0, "overlength": 0.0} and made.details["reward"] == 1
        assert made.predicted is None and made.text is None


def test_both_decisions_follow_each_sampled_thought(tiny_llama, meld):
    """An answer that never came to its decision stays as it was sampled; one that is left out of the loss stays out."""
    model = system(ModalitySelector, tiny_llama, meld, **FORCED | {"reasoning": "think", "num_generations": 4})
    tokenizer = model.llm.tokenizer
    thoughts = ("<think>\nhm\n</think>\n<answer>\n", "<think>\nwell , well\n</think>\n<answer>\n")
    answers = [f"{thoughts[0]}{YES}\n</answer>", f"{thoughts[1]}maybe</answer>", "hm", f"{thoughts[0]}{YES}"]
    ids = [[*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for t in answers]
    longest = max(map(len, ids))
    rows = torch.tensor([i + [0] * (longest - len(i)) for i in ids]).view(2, 2, longest)
    mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in ids]).bool().view(2, 2, longest)
    counted = mask.clone()
    counted[1, 1] = False  # cut off, with mask_truncated_completions
    nothing, finished = torch.zeros(rows.shape), torch.tensor([[True, True], [True, False]])
    made = model.decide_both_ways(Rollout(rows, counted, nothing, finished, nothing, mask))
    texts = [tokenizer.decode(i[m]) for i, m in zip(made.ids.flatten(0, 1), made.sampled.flatten(0, 1), strict=True)]
    keep, discard = (f"{phrase}\n</answer></s>".lower() for phrase in (YES, NO))
    assert texts == [t + end for t in thoughts for end in (keep, discard)] + [
        *["hm</s>"] * 2, thoughts[0] + keep, thoughts[0] + discard,
    ]  # fmt: skip
    assert made.loss_mask.any(2).tolist() == [[True] * 4, [True, True, False, False]]
    assert made.finished.tolist() == [[True] * 4, [True, True, False, False]]
    assert made.old_logprobs.shape == made.ids.shape == made.loss_mask.shape == made.entropy.shape


def test_half_as_many_thoughts_are_sampled_as_answers_are_compared(tiny_llama, meld):
    model = system(ModalitySelector, tiny_llama, meld, **FORCED | {"reasoning": "think", "num_generations": 4})
    batch = model.collator(True)(meld.samples("train")[:3], np.random.default_rng(0))
    torch.manual_seed(0)
    thoughts = GRPOModule.sample(model, [batch], 2)
    torch.manual_seed(0)
    assert model.sample([batch]).ids.tolist() == model.decide_both_ways(thoughts).ids.tolist()
    assert thoughts.ids.shape[:2] == (3, 2)


# ---- paper size
@pytest.mark.parametrize(
    "configs, shape, count",
    [
        (["meld"], "qwen2.5-7b", 20_185_088),
        (["iemocap"], "qwen2.5-7b", 20_185_088),
        (["meld_classifier"], "llama-2-7b", 6_291_456),
        (["meld_classifier", "ablations/classifier_code"], "llama-2-7b", 12_582_912),
        (["meld_classifier", "ablations/classifier_llama3_8b"], "llama-3-8b", 32 * 8 * (3 * 4096 + 4096 + 2 * 1024)),
        (["meld_classifier", "ablations/classifier_qwen2_7b"], "qwen2-7b", 28 * 8 * (3 * 3584 + 3584 + 2 * 512)),
        (["meld_classifier", "ablations/classifier_glm4_9b"], "glm-4-9b", 40 * 8 * (3 * 4096 + 4096 + 2 * 256)),
    ],
)
def test_parameters_at_paper_size(configs, shape, count):
    """The adapters of the shipped configs, and nothing else, are trained."""
    options = {}
    for name in (f"{c}.yaml" for c in configs):
        options |= yaml.safe_load((CONFIGS / name).read_text())["model"]["init_args"]
    llm = LLM(f"shape:{shape}", dtype=options["dtype"], device="meta")
    llm.add_lora(LoRA(**options["lora"]))
    trained = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == count
    assert all(".lora_" in n for n in trained) and {p.device.type for p in llm.parameters()} == {"meta"}
    assert ("glm is not one of" in (llm.prefix_sharing_unsupported_reason or "")) == (
        shape == "glm-4-9b"
    )  # the others share prompts


# ---- through the user's entry point
@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("selector"), (4, 2, 2))


@pytest.fixture(scope="module")
def one(home) -> list[str]:
    """Options of every run."""
    data = {
        "data": "MELD",
        "data__root": home / "meld",
        "data__descriptions": f"[{home / 'meld'}]",
        "data__batch_size": 4,
    }
    return flags(**data, model__llm=home / "llm", model__descriptions="[audio]", trainer__max_epochs=1)


CLASSIFIER = ("--model=SelectedClassifier", "--model.template=causal_lm/default", "--model.window=0")
DECIDER = (
    "--model=ModalitySelector",
    "--model.template=decision",
    "--model.window=0",
    "--model.reasoning=none",
    "--model.exploration=forced",
    "--model.num_generations=2",
    "--model.objective.kind=reinforce_group",
    "--model.objective.normalize=sum",
    "--model.objective.positive_only=true",
    "--model.scale_rewards=none",
    "--model.response=none",
    "--model.overlength=none",
    "--model.lora.r=4",
    "--model.lora.targets=.*_proj",
)
ALL = "--data.predict_splits=[train,dev,test]"


@pytest.fixture(scope="module")
def judge(home, one) -> Path:
    """A classifier, run with prompts of both kinds."""
    return fit(home / "judge", *CLASSIFIER, *one, "--model.selection=random", "--model.lr=0.01")


@pytest.fixture(scope="module")
def decider(home, one, judge) -> Path:
    """A selector, rewarded by that classifier, that decided about every split."""
    zoo("predict", f"--ckpt_path={judge}", "--model.compare=true", ALL)
    shutil.copy(judge / "predictions.jsonl", home / "compared.jsonl")
    run = fit(
        home / "decider",
        *DECIDER,
        *one,
        f"--model.downstream={judge}",
        "--model.lr=0.02",
        "--model.downstream_kind=probability",
    )
    zoo("predict", f"--ckpt_path={run}", ALL)
    return run


pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


def test_the_whole_chain(home, one, judge, decider, tmp_path):
    """Classifier -> comparisons -> selector -> decisions -> classifier."""
    every = [
        f"meld/{split}/dia{d}_utt{u}"
        for split, n in (("train", 4), ("dev", 2), ("test", 2))
        for d in range(n)
        for u in range(7)
    ]
    made = read_rows(decider, "decisions.jsonl")
    assert [r["id"] for r in made] == every and not (decider / "predictions.jsonl").exists()
    both = read_rows(home / "compared.jsonl", "predictions.jsonl")
    assert [r["id"] for r in both] == every
    for r, c in zip(made, both, strict=True):
        details, sides = r["details"], c["details"]
        keep = details["decision"] == "keep"
        worth = gain(sides["with"], sides["without"], c["label"], "probability")
        assert keep == (details["keep"] > 0.5) and r["predicted"] is None
        assert details["reward"] == details["rewards"]["downstream"] == pytest.approx(worth if keep else 0)
    assert set(logged(decider, "train/yes_rate")) == {0.5} and set(logged(decider, "train/unparsed")) == {0.0}
    dev = [r["details"] for r in made if "/dev/" in r["id"]]
    assert logged(decider, "val/reward") == pytest.approx([np.mean([d["reward"] for d in dev])], abs=1e-6)
    assert logged(decider, "val/keep_rate") == pytest.approx([np.mean([d["decision"] == "keep" for d in dev])])
    state = checkpoint(decider, "best")["state_dict"]  # chosen by the reward, without a word about it
    assert state and all(".lora_" in k for k in state)

    stage2 = fit(tmp_path, *CLASSIFIER, *one, f"--model.selection={decider}", "--trainer.max_steps=2")
    zoo("test", f"--ckpt_path={stage2}")
    said = {r["id"]: r["details"]["decision"] for r in made}
    assert {r["id"]: r["details"]["decision"] for r in rows(stage2)} == {i: d for i, d in said.items() if "/test/" in i}
    assert metrics(stage2)["n"] == 14


def test_comparing_gives_exactly_the_two_runs(home, judge, decider):
    both = read_rows(home / "compared.jsonl", "predictions.jsonl")
    for selection, side in (("always", "with"), ("never", "without")):
        zoo("predict", f"--ckpt_path={judge}", f"--model.selection={selection}", ALL)
        plain = rows(judge)
        assert [r["scores"] for r in plain] == [r["details"][side] for r in both]
        assert {r["details"]["decision"] for r in plain} == {"keep" if selection == "always" else "discard"}
    assert [r["details"]["with"] for r in both] != [r["details"]["without"] for r in both]
    zoo("predict", f"--ckpt_path={judge}", ALL, "--data.eval_batch_size=3")  # random: by sample, not by batch
    for r, c in zip(rows(judge), both, strict=True):
        assert r["details"]["decision"] == c["details"]["decision"]
        assert c["scores"] == c["details"]["with" if c["details"]["decision"] == "keep" else "without"]
        assert r["scores"] == pytest.approx(c["scores"], abs=1e-5)
        assert c["predicted"] == max(c["scores"], key=c["scores"].get)
    assert {c["details"]["decision"] for c in both} == {"keep", "discard"}


def test_decisions_follow_the_run_as_options_or_file(judge, decider):
    zoo("predict", f"--ckpt_path={judge}", f"--model.selection={decider}")
    from_run = rows(judge)
    zoo("predict", f"--ckpt_path={judge}", f"--model.selection={decider / 'decisions.jsonl'}")
    assert rows(judge) == from_run and len(from_run) == 14


def test_thinking_with_the_papers_rewards(home, one, tmp_path):
    """A model that cannot write the form: what is logged, written and tested nevertheless."""
    run = fit(
        tmp_path,
        "--model=ModalitySelector",
        *one,
        "--model.max_new_tokens=6",
        "--model.desired=2",
        "--model.longest=4",
        "--model.objective.beta=0.04",
        "--model.lora.r=4",
        "--model.temperature=0.9",
        "--model.log_completions_steps=1",
        "--trainer.max_steps=2",
        "--trainer.accumulate_grad_batches=2",
        "--model.scale_rewards=group",
        "--trainer.gradient_clip_val=0.1",
    )
    row, *_ = (r for r in logged(run) if r["train/reward"])
    names = (
        "loss",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "completions/mean_length",
        "completions/min_length",
        "completions/max_length",
        "completions/clipped_ratio",
        "rewards/format/mean",
        "rewards/format/std",
        "rewards/response/mean",
        "rewards/overlength/mean",
        "unparsed",
    )
    assert all(math.isfinite(float(row[f"train/{name}"])) for name in names)
    assert float(row["train/unparsed"]) == 1 and float(row["train/yes_rate"]) == 0  # nothing was decided
    assert float(row["train/rewards/response/mean"]) == -0.5 and float(row["train/rewards/format/mean"]) == 0
    assert float(row["train/kl"]) == pytest.approx(0, abs=1e-6)  # the adapters begin at zero
    table = read_rows(run, "answers.jsonl")
    assert {r["step"] for r in table} == {1, 2} and len(table) == 2 * 2 * 4
    for r in table:
        assert set(r["rewards"]) == {"format", "response", "overlength"}
        assert r["reward"] == pytest.approx(sum(r["rewards"].values()), abs=1e-5) and 1 <= r["tokens"] <= 6

    zoo("test", f"--ckpt_path={run}")
    said, made = metrics(run), read_rows(run, "decisions.jsonl")
    assert (said["n"], said["keep_rate"], said["unparsed"]) == (14, 0.0, 1.0)
    assert said["reward"] == pytest.approx(np.mean([r["details"]["reward"] for r in made])) and len(made) == 14
    assert all(r["details"]["decision"] is None and isinstance(r["text"], str) for r in made)
    assert said["population"]["n_used"] == 14 and not (run / "confusion.png").exists()


def test_testing_a_selector_reports_its_decisions(judge, decider):
    kept = read_decisions(decider)
    zoo("test", f"--ckpt_path={decider}")
    said = metrics(decider)
    test = [d for i, d in kept.items() if "/test/" in i]
    assert (said["n"], said["unparsed"], said["keep_rate"]) == (14, 0.0, pytest.approx(np.mean(test)))
    assert {"seed", "model", "checkpoint", "population", "trainable_parameters"} <= set(said)
    assert read_decisions(decider) == {i: d for i, d in kept.items() if "/test/" in i}
    previous = decider / "previous" / "1" / "decisions.jsonl"  # those of every split were set aside, not lost
    assert previous.is_file() and read_decisions(previous) == kept


def test_decision_files_that_do_not_fit_are_refused(one, tmp_path):
    assert "no decisions.jsonl at" in refused("fit", *CLASSIFIER, *one, f"--model.selection={tmp_path}")
    file = decided(tmp_path / "decisions.jsonl", {"synthetic/train/a": "keep"})
    message = refused("fit", *CLASSIFIER, *one, f"--model.selection={file}", f"--trainer.default_root_dir={tmp_path}")
    assert "decides nothing about 28 of 28 train samples" in message


def test_templates_are_found_by_name():
    for name in ("selector", "decision", "classifier", "system", "causal_lm/default"):
        assert load_template(name, ModalitySelector.templates)


def test_weights_of_the_backbone_are_not_stored(home, decider):
    base = load_file(home / "llm" / "model.safetensors").values()
    state = checkpoint(decider, "last")["state_dict"]
    assert not any(v.shape == b.shape and torch.equal(v, b) for v in state.values() for b in base)


def test_the_supervised_start_has_the_form_and_no_preference(home, one, decider, tmp_path):
    """Its targets earn the paper's form and response in full, say both of the classifier's answers, and keep about
    half; the thinking selector goes on from its weights."""
    both = read_rows(home / "compared.jsonl", "predictions.jsonl")
    start = fit(
        tmp_path / "start",
        "--model=SelectorStart",
        "--model.template=decision",
        "--model.window=0",
        *one,
        f"--model.comparisons={home / 'compared.jsonl'}",
        "--model.lr=0.003",
        "--model.max_new_tokens=8",
        "--trainer.max_steps=3",
    )
    assert len(logged(start, "train/loss")) == 3
    data = MELD(root=home / "meld", descriptions=[home / "meld"])
    collator = system(
        SelectorStart, home / "llm", data, template="decision", comparisons=str(home / "compared.jsonl")
    ).collator(True)
    rng, kept = np.random.default_rng(0), []
    answers = {
        r["id"]: [max(r["details"][side], key=r["details"][side].get) for side in ("without", "with")] for r in both
    }
    for s in data.samples("train") * 20:
        ids = collator.target_ids(s, rng)
        assert ids[-1] == collator.tokenizer.eos_token_id
        text = collator.tokenizer.decode(ids, skip_special_tokens=True)
        made = Answer(text, len(ids), True, s)
        assert Format("paper")(made) == 1 and Response("paper")(made) == 1
        assert "words: {}, captions: {}".format(*answers[s.id]) in text
        kept.append(read_decision(text))
    assert 0.45 < np.mean(kept) < 0.55
    selector = fit(
        tmp_path / "selector",
        "--model=ModalitySelector",
        "--model.template=decision",
        "--model.window=0",
        *one,
        f"--model.start_from={start}/checkpoints/last.ckpt",
        "--model.lora.r=4",
        "--model.max_new_tokens=8",
        "--model.objective.beta=0.04",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
    )
    assert all(".lora_" in k for k in checkpoint(selector)["state_dict"])  # the rest is that of its start
    merged, own = checkpoint(start)["state_dict"], checkpoints.load(str(selector)).state_dict()
    base = {k: v for k, v in own.items() if ".lora_" not in k}
    assert len(base) == len(merged) and all(
        any(torch.equal(v, w) for w in base.values() if w.shape == v.shape) for v in merged.values()
    )
