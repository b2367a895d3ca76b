"""Input processing, loss and answers of the prompted language models, against forward passes of transformers on single
unpadded rows whose texts are written out here."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import tiny_texts
from tests.data.miniature import write_goemotions, write_meld
from tests.fake_corpus import FakeCorpus, attach
from zoo.backbones import LLM, LoRA
from zoo.backbones.tiny import make_tokenizer
from zoo.data.goemotions import GoEmotions
from zoo.data.meld import MELD
from zoo.models.causal_lm import CausalLM
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.dialoguellm.model import CODE_DIGITS, CODE_WORDS, parse_code_literal
from zoo.prompts import load_template
from zoo.schema import Labels, Sample, Turn
from zoo.training.batch import IGNORE_INDEX
from zoo.training.collator import PromptCollator
from zoo.training.prompting import answer_ids

EOS, BOS, PAD = 2, 1, 0


# ---- material
@pytest.fixture(scope="module")
def meld(tmp_path_factory):
    folder = write_meld(tmp_path_factory.mktemp("meld"), kinds=("video", "audio"))
    return MELD(root=folder, descriptions=[folder], seed=7)


@pytest.fixture(scope="module")
def goemotions(tmp_path_factory):
    return GoEmotions(root=write_goemotions(tmp_path_factory.mktemp("goemotions")))


@pytest.fixture(scope="module")
def plain(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return LLM(str(tiny_llama)).tokenizer


def system(llm, data, kind=DialogueLLM, stage="fit", **options):
    """A built system beside its data, as a Trainer would set it up."""
    model = kind(llm=str(llm), **{"template": "short", "max_length": 512} | options)
    attach(model, data)
    model.configure_model()
    model.setup(stage)
    return model


def collate(model, samples, training=True, seed=0):
    return model.collator(training)(samples, np.random.default_rng(seed))


def text_of(s, window=2, kinds=()):
    """The short template, written out."""
    turns = [f"{t.speaker}: {t.text}\n" for t in s.history[max(0, len(s.history) - window) :]]
    described = [f"{kind}: {s.target.descriptions[kind]}\n" for kind in kinds]
    return "".join([*turns, f"{s.target.text}\n", *described, "emotion:"])


def ids_of(tokenizer, s, **options):
    """Prompt and answer ids of a training row."""
    answer = tokenizer(f" {s.target.label}", add_special_tokens=False)["input_ids"]
    return tokenizer(text_of(s, **options))["input_ids"], [*answer, EOS]


def ragged(meld):
    """Samples whose prompts differ in length: with 0, 1, 2 and 6 turns before them."""
    return [meld.samples("train")[i] for i in (0, 1, 2, 6, 9)]


def token_losses(plain, ids):
    """-log p of each token after the first, of one unpadded row."""
    logits = plain(input_ids=torch.tensor([ids])).logits[0, :-1]
    return -logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]


def reference_loss(plain, tokenizer, samples, prompt_weight=0.0, class_weights=None):
    total = weight = 0.0
    for s in samples:
        prompt, answer = ids_of(tokenizer, s)
        losses = token_losses(plain, prompt + answer)
        own = 1.0 if class_weights is None else class_weights[s.label]
        for i, loss in enumerate(losses):
            w = prompt_weight if i + 1 < len(prompt) else own
            total, weight = total + w * loss, weight + w
    return total / weight


# ---- loss
@pytest.mark.parametrize("prompt_loss", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_loss_equals_one_pass_per_sample(tiny_llama, meld, plain, tokenizer, prompt_loss, power):
    """Answer only, whole prompt, class weights; the rows are padded on the left to the longest."""
    samples = ragged(meld)
    train = [s for s in meld.samples("train") if s.target.label != "fear" or s.dialogue.endswith("dia0")][:-3]
    model = system(tiny_llama, FakeCorpus(train), prompt_loss=prompt_loss, class_weight=power)
    batch = collate(model, samples)
    assert batch["mask"].sum(1).unique().numel() == len(samples) - 1 and not batch["mask"].all()
    counts = np.array([sum(s.label == i for s in train) for i in range(7)])
    assert counts.min() < counts.max() / 3
    weights = counts**-power * len(train) / sum(c * c**-power for c in counts.astype(float))
    with torch.no_grad():
        expected = reference_loss(plain, tokenizer, samples, prompt_loss, weights)
        got = model.loss(batch)
        assert abs(got - expected) < 3e-5
        unweighted = reference_loss(plain, tokenizer, samples, prompt_loss)
        other = reference_loss(plain, tokenizer, samples, prompt_loss + 0.5, weights)
    assert abs(got - other) > 1e-3 and (power == 0 or abs(got - unweighted) > 1e-4)  # both weights are felt


def test_class_weights_average_to_one_over_the_samples(tiny_llama, meld):
    train = meld.samples("train")[:20] + [s for s in meld.samples("train") if s.target.label == "joy"]
    model = system(tiny_llama, FakeCorpus(train), class_weight=1.0)
    counts = [sum(s.label == i for s in train) for i in range(7)]
    weights = model.class_weights["meld"]
    assert sum(weights[s.label] for s in train) / len(train) == pytest.approx(1)
    assert [w * c for w, c in zip(weights, counts, strict=True)] == pytest.approx([len(train) / 7] * 7)  # balanced
    few = system(tiny_llama, FakeCorpus([s for s in train if s.target.label != "anger"]), class_weight=1.0)
    weights = few.class_weights["meld"]
    assert weights[6] == max(weights) and math.isfinite(weights[6])


def test_whole_prompt_loss_is_transformers_own(tiny_llama, meld, plain, tokenizer):
    """``prompt_loss: 1``, the published code's choice: labels are all input ids."""
    samples = ragged(meld)
    template = str(DialogueLLM.templates / "short.txt")
    model = system(tiny_llama, FakeCorpus(samples), CausalLM, template=template, window=2)
    assert model.prompt_loss == 1
    with torch.no_grad():
        for s in samples:
            prompt, answer = ids_of(tokenizer, s)
            row = torch.tensor([prompt + answer])
            assert abs(model.loss(collate(model, [s])) - plain(input_ids=row, labels=row).loss) < 3e-5
        batch = collate(model, samples)
        labels = batch["input_ids"].masked_fill(~batch["mask"], -100)
        # a token that nothing precedes is predicted from padding there and nowhere here
        labels[torch.arange(len(samples)), batch["mask"].long().argmax(1)] = -100
        positions = (batch["mask"].long().cumsum(1) - 1).clamp(min=0)
        expected = plain(batch["input_ids"], attention_mask=batch["mask"].long(), position_ids=positions, labels=labels)
        assert abs(model.loss(batch) - expected.loss) < 3e-5


def test_gradient_of_the_loss(tiny_llama, meld, plain, tokenizer):
    samples = ragged(meld)
    model = system(tiny_llama, FakeCorpus(samples))
    model.loss(collate(model, samples)).backward()
    plain.zero_grad()
    reference_loss(plain, tokenizer, samples).backward()
    expected = dict(plain.named_parameters())
    for name, p in model.llm.model.named_parameters():
        scale = expected[name].grad.abs().max()
        assert (p.grad - expected[name].grad).abs().max() < 1e-4 * scale, name
    plain.zero_grad()


def test_an_unlabelled_sample_has_no_answer_and_costs_only_its_prompt(tiny_llama, meld, plain, tokenizer):
    known, other = ragged(meld)[2:4]
    silent = dataclasses.replace(other, target=dataclasses.replace(other.target, label=None))
    model = system(tiny_llama, FakeCorpus([known]))
    batch = collate(model, [known, silent])
    assert batch["answer"].any(1).tolist() == [True, False]
    with torch.no_grad():
        assert abs(model.loss(batch) - reference_loss(plain, tokenizer, [known])) < 3e-5
        model.prompt_loss = 1.0
        first = token_losses(plain, sum(ids_of(tokenizer, known), []))
        second = token_losses(plain, ids_of(tokenizer, silent)[0])
        assert abs(model.loss(batch) - torch.cat([first, second]).mean()) < 3e-5


def test_dropout_acts_in_training_only(tiny_llama, meld):
    samples = ragged(meld)
    model = system(tiny_llama, FakeCorpus(samples), dropout=0.5)
    batch = collate(model, samples)
    with torch.no_grad():
        assert model.loss(batch) != model.loss(batch)
        model.eval()
        assert model.loss(batch) == model.loss(batch) == system(tiny_llama, FakeCorpus(samples)).eval().loss(batch)


# ---- collator
def collator(tokenizer, template="short", **options):
    values = {"window": 2, "descriptions": (), "verbalizer": None, "max_length": 512, "training": True} | options
    template = load_template(template, DialogueLLM.templates)
    return PromptCollator(tokenizer=tokenizer, pad_id=PAD, template=template, **values)


def test_what_a_batch_holds(meld, tokenizer):
    samples = ragged(meld)
    batch = collator(tokenizer, descriptions=("video",))(samples, np.random.default_rng(0))
    assert {k: getattr(v, "dtype", type(v).__name__) for k, v in batch.items()} == {
        "samples": "SampleBatch",
        "truncated": "int",
        "input_ids": torch.int64,
        "mask": torch.bool,
        "target_ids": torch.int64,
        "answer": torch.bool,
        "problems": "list",
    }
    assert list(batch["samples"]) == samples and batch["truncated"] == 0 and batch["problems"] == []
    longest = 0
    for i, s in enumerate(samples):
        prompt, answer = ids_of(tokenizer, s, kinds=("video",))
        longest = max(longest, len(prompt) + len(answer))
        mask = batch["mask"][i]
        assert batch["input_ids"][i][mask].tolist() == prompt + answer
        assert (mask.long().diff() >= 0).all() and (batch["input_ids"][i][~mask] == PAD).all()  # padded on the left
        assert batch["answer"][i].nonzero()[:, 0].tolist() == [*range(mask.numel() - len(answer), mask.numel())]
        assert torch.equal(batch["target_ids"][i], batch["input_ids"][i].masked_fill(~mask, IGNORE_INDEX))
        assert tokenizer.decode(batch["input_ids"][i][batch["answer"][i]]) == f" {s.target.label}</s>"
    assert batch["input_ids"].shape == (len(samples), longest)


def test_no_answer_outside_training(meld, tokenizer):
    samples = ragged(meld)
    batch = collator(tokenizer, training=False)(samples, np.random.default_rng(0))
    assert set(batch) == {"samples", "truncated", "input_ids", "mask", "problems"}
    for i, s in enumerate(samples):
        assert batch["input_ids"][i][batch["mask"][i]].tolist() == ids_of(tokenizer, s)[0]


def long_sample(turns=6):
    said = [Turn(f"u{i}", "Ada", f"turn number {i}", "joy", {"video": f"scene {i}"}) for i in range(turns)]
    return Sample("meld/test/dia0_u", "meld/test/dia0", MELD.labels, said[-1], tuple(said[:-1]))


def test_too_long_prompts_lose_old_turns_then_examples_then_their_beginning(tokenizer):
    """Every length from ample to 2, against the list of all texts in the order they are tried."""
    s = long_sample()
    pool = [
        Sample(f"meld/train/dia{i}_u0", f"meld/train/dia{i}", MELD.labels, Turn("u0", "Bela", f"example {i}", label))
        for i, label in enumerate(("joy", "anger", "fear"), 1)
    ]
    c = collator(tokenizer, window=4, shots=3, pool=pool, training=False, examples_seed=5)
    shown = [f"{e.target.text}\nemotion: {e.target.label}\n\n" for e in c.examples(s, np.random.default_rng(5))]
    assert sorted(x[:9] for x in shown) == ["example 1", "example 2", "example 3"]
    turns = [f"Ada: turn number {i}\n" for i in (1, 2, 3, 4)]
    end = "turn number 5\nemotion:"
    texts = ["".join(shown + turns[i:]) + end for i in range(5)] + ["".join(shown[i:]) + end for i in (1, 2, 3)]
    tried = [tokenizer(text)["input_ids"] for text in texts]
    assert [len(ids) for ids in tried] == sorted({len(ids) for ids in tried}, reverse=True)
    seen = set()
    for length in range(len(tried[0]) + 2, 1, -1):
        c.max_length = length
        ids, cut = c.prompt_ids(s, np.random.default_rng(9))
        fitting = next((i for i, one in enumerate(tried) if len(one) <= length), None)
        seen.add(fitting)
        assert cut == (fitting != 0) and len(ids) <= length
        if fitting is not None:
            assert ids == tried[fitting]
        else:  # the beginning-of-text token, then the end
            assert ids == [BOS, *tried[-1][-(length - 1) :]] and len(ids) == length
    assert seen == {None, *range(len(tried))}


def test_cut_prompts_are_counted_and_answers_are_never_cut(tokenizer):
    short = Sample("meld/test/dia1_u0", "meld/test/dia1", MELD.labels, Turn("u0", "", "Hm.", "sadness"))
    c = collator(tokenizer, max_length=12)
    batch = c([long_sample(), short, long_sample(2)], np.random.default_rng(0))
    assert len(tokenizer(text_of(short))["input_ids"]) <= 12 < len(tokenizer(text_of(long_sample(2)))["input_ids"])
    assert batch["truncated"] == 2
    for i, word in enumerate(("joy", "sadness", "joy")):
        assert tokenizer.decode(batch["input_ids"][i][batch["answer"][i]]) == f" {word}</s>"
    assert (batch["mask"].sum(1) - batch["answer"].sum(1)).max() == 12  # the limit is the prompt's


def test_a_window_longer_than_the_history_costs_nothing(tokenizer):
    first = dataclasses.replace(long_sample(1), history=())
    ids, cut = collator(tokenizer, window=99).prompt_ids(first, np.random.default_rng(0))
    assert tokenizer.decode(ids) == f"<s>{text_of(first)}" and not cut
    ids, cut = collator(tokenizer, window=99, max_length=6).prompt_ids(first, np.random.default_rng(0))
    assert cut and len(ids) == 6


# ---- few-shot examples
@pytest.mark.parametrize("shots", [1, 3, 7, 16])
def test_examples(meld, tokenizer, shots):
    """Never of the sample's own dialogue, as many labels as possible; in evaluation the same for everyone."""
    pool = meld.samples("train")
    training = collator(tokenizer, shots=shots, pool=pool)
    drawn = set()
    for s in pool[:30]:
        rng = np.random.default_rng(pool.index(s))
        examples = training.examples(s, rng)
        assert len(examples) == shots and all(e.dialogue != s.dialogue and e in pool for e in examples)
        counts = [sum(e.label == i for e in examples) for i in range(7)]
        assert max(counts) - min(counts) <= 1
        assert examples == training.examples(s, np.random.default_rng(pool.index(s)))
        drawn.add(tuple(e.id for e in examples))
    assert len(drawn) > 20  # another draw for each sample in training

    evaluation = collator(tokenizer, shots=shots, pool=pool, training=False, examples_seed=3)
    shown = set()
    for seed, s in enumerate(meld.samples("test")):
        ids, _ = evaluation.prompt_ids(s, np.random.default_rng(seed))
        text = tokenizer.decode(ids, skip_special_tokens=True)
        shown.add(text.removesuffix(text_of(s).lower()))
    assert len(shown) == 1 and shown.pop().count("emotion: ") == shots
    other = collator(tokenizer, shots=shots, pool=pool, training=False, examples_seed=4)
    a, b = (c.prompt_ids(meld.samples("test")[0], np.random.default_rng(0))[0] for c in (evaluation, other))
    assert a != b


def test_a_pool_of_the_own_dialogue_alone_would_be_noticed(meld, tokenizer):
    """The check above is not empty: without the filter the own dialogue is drawn."""
    pool = meld.samples("train")
    c = collator(tokenizer, shots=7, pool=[dataclasses.replace(s, dialogue=f"{s.dialogue}x") for s in pool])
    own = [e.dialogue.removesuffix("x") == s.dialogue for s in pool for e in c.examples(s, np.random.default_rng(0))]
    assert any(own)


def test_examples_are_of_the_samples_corpus(meld, goemotions, tokenizer):
    pool = [*meld.samples("train"), *goemotions.samples("train")]
    c = collator(tokenizer, shots=5, pool=pool)
    for s in (meld.samples("test")[0], goemotions.samples("test")[0]):
        assert {e.labels.corpus for e in c.examples(s, np.random.default_rng(0))} == {s.labels.corpus}


def test_the_pool_is_the_training_split(tiny_llama, meld):
    model = system(tiny_llama, meld, shots=2)
    c = model.collator(training=False)
    assert c.pool == meld.samples("train") and c.examples_seed == meld.run_seed == 7
    assert system(tiny_llama, meld).collator(training=True).pool == ()


# ---- word dropout
def test_words_are_dropped_in_training_only(meld, tokenizer):
    samples = meld.samples("train")[:40]
    seen = dropped = 0
    for training in (True, False):
        c = collator(tokenizer, word_dropout=0.3, training=training)
        for seed, s in enumerate(samples):
            ids, _ = c.prompt_ids(s, np.random.default_rng(seed))
            text = tokenizer.decode(ids, skip_special_tokens=True)
            before, said = text_of(s).lower().split("\n")[:-2], s.target.text.lower().split()
            assert text.split("\n")[:-2] == before  # the history is whole
            kept = text.split("\n")[-2].split()
            if not training:
                assert kept == said
                continue
            rest = iter(said)
            assert kept and all(word in rest for word in kept)  # what is left is in order
            seen, dropped = seen + len(said), dropped + len(said) - len(kept)
    assert abs(dropped / seen - 0.3) < 0.08
    c = collator(tokenizer, word_dropout=0.3)
    a, b, other = (c(samples, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(a["input_ids"], b["input_ids"]) and not torch.equal(a["mask"].sum(1), other["mask"].sum(1))
    assert list(a["samples"]) == samples  # what is scored is the sample as it was
    all_lost = collator(tokenizer, word_dropout=0.999)
    assert all_lost.prompt_ids(samples[0], np.random.default_rng(0))[0] == ids_of(tokenizer, samples[0])[0]


# ---- answers as tokens
def metaspace_tokenizer():
    """Like sentencepiece and Llama-2's: a space is part of the word after it, and every text gets one in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(tiny_texts(), trainer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def closing_tokenizer():
    """One that ends every text."""
    tokenizer = make_tokenizer(tiny_texts(), 640)
    both = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = both
    return tokenizer


TOKENIZERS = {
    "opens": lambda: make_tokenizer(tiny_texts(), 640),
    "closes": closing_tokenizer,
    "in pieces": lambda: make_tokenizer(tiny_texts(), 262),
    "metaspace": metaspace_tokenizer,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_answer_ids_are_the_tail_of_the_whole_text_in_training_and_scoring(meld, kind):
    tokenizer = TOKENIZERS[kind]()
    closes = [EOS] if kind == "closes" else []
    assert tokenizer("joy")["input_ids"][-1:] == (closes or tokenizer("joy")["input_ids"][-1:])
    for s in ragged(meld):
        whole = tokenizer(f"{text_of(s)} {s.target.label}")["input_ids"]
        whole = whole[: len(whole) - len(closes)]
        batch = collator(tokenizer)([s], np.random.default_rng(0))
        assert batch["input_ids"][0].tolist() == [*whole, EOS]
        scored = answer_ids(tokenizer, s.target.label)
        assert batch["input_ids"][0][batch["answer"][0]].tolist() == [*scored, EOS]
        prompt = collator(tokenizer, training=False)([s], np.random.default_rng(0))["input_ids"][0].tolist()
        assert prompt == whole[: len(whole) - len(scored)] and BOS not in scored and EOS not in scored
    assert (len(answer_ids(tokenizer, "surprise")) == 1) == (kind != "in pieces")


def test_the_plain_way_would_differ_for_sentencepiece():
    """Encoding `` joy`` by itself gives a second space: training would teach another word than scoring compares."""
    tokenizer = metaspace_tokenizer()
    assert tokenizer(" joy", add_special_tokens=False)["input_ids"] != answer_ids(tokenizer, "joy")
    assert tokenizer.convert_ids_to_tokens(answer_ids(tokenizer, "joy")) == ["▁joy"]


def test_a_tokenizer_that_merges_the_colon_is_refused():
    words = models.WordLevel({": joy": 3, ":": 4, "<unk>": 0}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="<unk>")
    with pytest.raises(ValueError, match=r"merges ':' with what follows \('joy'\)"):
        answer_ids(tokenizer, "joy")


def test_the_verbalizer_is_taught_and_scored(tiny_llama, meld, tokenizer):
    samples = ragged(meld)
    said = {"joy": "great", "neutral": "okay then"}
    model = system(tiny_llama, FakeCorpus(samples), verbalizer=said)
    batch = collate(model, samples)
    for i, s in enumerate(samples):
        word = said.get(s.target.label, s.target.label)
        assert tokenizer.decode(batch["input_ids"][i][batch["answer"][i]]) == f" {word}</s>"
    assert any(s.target.label in said for s in samples)
    model.eval()
    for p in model.predict(collate(model, samples, training=False)):
        assert set(p.scores) == set(MELD.labels.names) and p.predicted in MELD.labels.names


# ---- answers
@torch.no_grad()
def reference_scores(plain, tokenizer, s, names):
    prompt = tokenizer(text_of(s))["input_ids"]
    totals = []
    for name in names:
        answer = tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
        totals.append(-token_losses(plain, prompt + answer)[len(prompt) - 1 :].sum())
    return dict(zip(names, torch.tensor(totals).softmax(0).tolist(), strict=True))


def other_labels(s, names, corpus):
    """The same utterance in a corpus of other labels."""
    target = dataclasses.replace(s.target, label=names[0])
    return Sample(f"{corpus}/{s.id}", f"{corpus}/{s.dialogue}", Labels(corpus, names), target, s.history)


def test_batches_that_mix_corpora_score_only_their_own_labels(tiny_llama, meld, goemotions, plain, tokenizer):
    samples = [
        *ragged(meld),
        *goemotions.samples("test")[:3],
        other_labels(ragged(meld)[1], ("anger", "stop alone", "stop that bicycle"), "other"),
        other_labels(ragged(meld)[2], meld.labels.names[::-1], "backwards"),  # the same words in another order
    ]
    model = system(tiny_llama, FakeCorpus(samples), stage="test").eval()
    predictions = model.predict(collate(model, samples, training=False))
    for s, p in zip(samples, predictions, strict=True):
        expected = reference_scores(plain, tokenizer, s, s.labels.names)
        assert list(p.scores) == list(s.labels.names)
        assert p.scores == pytest.approx(expected, abs=1e-5)
        assert p.predicted == max(expected, key=expected.get)
        assert (p.id, p.dialogue, p.label) == (s.id, s.dialogue, s.target.label)
        (alone,) = model.predict(collate(model, [s], training=False))
        assert alone.scores == pytest.approx(p.scores, abs=1e-5) and alone.predicted == p.predicted
    assert len({p.predicted for p in predictions}) > 1


@pytest.mark.parametrize("decode", ["greedy", "beam"])
def test_generated_answers_are_read_strictly(tiny_llama, meld, plain, tokenizer, decode):
    samples = ragged(meld)
    options = {"decode": decode, "max_new_tokens": 5, "beams": 3, "repetition_penalty": 1.2}
    model = system(tiny_llama, FakeCorpus(samples), **options).eval()
    asked = {"num_beams": 3, "repetition_penalty": 1.2} if decode == "beam" else {}
    for s, p in zip(samples, model.predict(collate(model, samples, training=False)), strict=True):
        row = torch.tensor([tokenizer(text_of(s))["input_ids"]])
        out = plain.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=5, **asked)
        assert p.text == tokenizer.decode(out[0, row.shape[1] :], skip_special_tokens=True)
        assert p.scores is None and p.predicted == model.read_answer(s, p.text)
    s = samples[0]
    assert model.read_answer(s, " Joy.") == "joy" and model.read_answer(s, "joy or anger") is None


def test_parsers(tiny_llama, meld):
    s = ragged(meld)[0]
    literal = system(tiny_llama, FakeCorpus([s]), parser="code_literal", decode="greedy")
    with pytest.raises(ValueError, match="generates none; set decode to greedy or beam"):
        system(tiny_llama, FakeCorpus([s]), parser="code_literal")
    strict = system(tiny_llama, FakeCorpus([s]))
    for text in ("not joy", "joy or anger", "nothing"):
        assert strict.read_answer(s, text) is None
        assert literal.read_answer(s, text) == parse_code_literal(text, s.labels, s.id) is not None


# ---- the authors' parser
@pytest.mark.parametrize(
    "answer, label",
    [
        ("joy", "joy"),
        ("JOYFUL!", "joy"),  # a part of a word is enough
        ("unhappy", "joy"),
        ("happy and sad", "joy"),
        ("sad and happy", "joy"),  # the order of the list decides, not that of the answer
        ("neutral joy", "joy"),
        ("anger, neutral", "neutral"),
        ("fear sad", "sadness"),
        ("surprise disgust fear anger", "anger"),
        ("surprised, disgusted", "disgust"),
        ("not joy", "joy"),
        ("4", "fear"),
        ("0", "neutral"),
        ("6", "surprise"),
        ("5 or 2", "sadness"),  # the order of the digits
        ("the label is 3 (fear)", "fear"),  # words before digits
        ("42", "sadness"),
        ("hm. joy", None),  # cut at the first stop
        ("hm\njoy", None),  # ... and line
        ("\njoy", None),
        ("", None),
        ("78 9", None),
        ("no idea", None),
    ],
)
def test_parse_code_literal(answer, label):
    got = parse_code_literal(answer, MELD.labels, seed="meld/test/dia0_utt0")
    if label is None:  # random, but the same for the same sample
        assert got == random.Random("meld/test/dia0_utt0").choice(MELD.labels.names)
        drawn = [parse_code_literal(answer, MELD.labels, seed=str(i)) for i in range(700)]
        assert all(70 < drawn.count(name) < 130 for name in MELD.labels.names)
    else:
        assert got == label


def test_the_authors_lists():
    """Each word and digit by itself; the numbers are those of systems.md: neutral 0, joy 1, sad 2, anger 3, ..."""
    for word, name in CODE_WORDS:
        assert parse_code_literal(f"It is {word.upper()}", MELD.labels, "") == name
    for i, name in enumerate(("neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise")):
        assert CODE_DIGITS[i] == name == parse_code_literal(str(i), MELD.labels, "")


def test_the_authors_parser_knows_one_label_set():
    with pytest.raises(ValueError, match=r"code_literal knows MELD's labels only; iemocap lacks \['disgust', 'fear',"):
        parse_code_literal("joy", Labels("iemocap", ("joy", "neutral", "sadness", "anger")), "x")


# ---- wrong settings
@pytest.mark.parametrize("option", [{"window": -1}, {"shots": -1}, {"max_length": 1}, {"word_dropout": 1.0}])
def test_impossible_settings_are_refused(tiny_llama, option):
    with pytest.raises(ValueError, match="need (window|shots) >= 0"):
        DialogueLLM(llm=str(tiny_llama), **option)


def test_settings_that_do_not_fit_the_data_are_refused(tiny_llama, meld):
    with pytest.raises(ValueError, match=r"no train sample has a description of kind 'smell'; .*\['audio', 'video'\]"):
        system(tiny_llama, meld, descriptions=["video", "smell"])
    with pytest.raises(ValueError, match="two labels of meld the same word"):
        system(tiny_llama, meld, verbalizer={"joy": "anger"})


def test_lora_of_the_paper_on_a_small_model(tiny_llama, meld):
    model = system(tiny_llama, meld, lora=LoRA(r=8, alpha=64, dropout=0.05), descriptions=["video"])
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert sum(trained) == 2 * 2 * 8 * (32 + 32)
    samples = ragged(meld)
    model.loss(collate(model, samples)).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
