"""The cheap baselines through the user's entry point, against scikit-learn and against counting by hand."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import BertConfig, BertModel, BertTokenizerFast

from tests.builders import make_corpus
from tests.data.miniature import LABELS
from tests.runs_helper import (
    TRACE,
    checkpoint,
    fit,
    flags,
    in_child,
    logged,
    metrics,
    newest,
    refused,
    rows,
    same,
    trace,
    zoo,
)
from zoo.backbones.sentence import SentenceEncoder
from zoo.data import MELD, Synthetic
from zoo.models.baselines import Majority, SentenceClassifier, TfidfLogistic
from zoo.models.baselines.model import SentenceCollator

WORD_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

MAJORITY = ("--model=Majority",)
TFIDF = ("--model=TfidfLogistic", "--model.width=4096", "--model.least=1")
KINDS = pytest.mark.parametrize("model", [MAJORITY, TFIDF], ids=["majority", "tfidf"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("baselines") / "meld", (8, 3, 3))


@pytest.fixture
def options(corpus):
    def options(**more: object) -> list[str]:
        base = {"data": "MELD", "data__root": corpus, "data__batch_size": 4, "trainer__max_epochs": 1}
        return [*flags(**base | more)]

    return options


def answers(run: Path) -> list[dict]:
    zoo("test", f"--ckpt_path={run}")
    return rows(run)


# ---- both
@KINDS
def test_runs_like_every_system(model, options, tmp_path):
    run = fit(tmp_path / "a", *model, *options())
    said = answers(run)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert len(logged(run, "val/wf1")) == 1 and metrics(run)["n"] == len(said) > 10
    assert metrics(run)["unparsed"] == 0 and metrics(run)["parameters"] > 0
    for r in said:
        assert sum(r["scores"].values()) == pytest.approx(1, abs=1e-5) and tuple(r["scores"]) == LABELS
        assert r["predicted"] == max(r["scores"], key=r["scores"].get)
    # neither the seed nor what Lightning does with batches changes what was fitted
    ways = {"seed_everything": 3, "trainer__limit_train_batches": 2, "trainer__max_epochs": 2, "data__batch_size": 7}
    other = fit(tmp_path / "b", *model, *options(**ways))
    assert same(checkpoint(other)["state_dict"], checkpoint(run)["state_dict"])
    assert answers(other) == said
    zoo("test", f"--ckpt_path={run}", "--data.eval_batch_size=1", "--data.num_workers=1")
    assert rows(run) == said


@KINDS
def test_killed_and_resumed(model, options, tmp_path):
    whole = fit(tmp_path / "whole", *model, *options(trainer__max_epochs=2))
    arguments = (*model, *options(trainer__max_epochs=2, save_last_every=2), TRACE)
    assert in_child(lambda: fit(tmp_path / "cut", *arguments), kill=("batch_end", 1, 1)) == -9
    run = newest(tmp_path / "cut")
    assert 0 < checkpoint(run)["global_step"] < checkpoint(whole)["global_step"]
    fit(tmp_path / "cut", f"--ckpt_path={run}")
    for name in ("best", "last"):
        assert same(checkpoint(run, name)["state_dict"], checkpoint(whole, name)["state_dict"])
        assert checkpoint(run, name)["global_step"] == checkpoint(whole, name)["global_step"]
    assert answers(run) == answers(whole)


@KINDS
def test_several_corpora_keep_their_own_labels(model, options, corpus, tmp_path):
    joint = tmp_path / "joint.yaml"
    joint.write_text(f"""
data:
  class_path: zoo.data.Joint
  init_args:
    parts:
      - {{class_path: zoo.data.MELD, init_args: {{root: {corpus}}}}}
      - {{class_path: zoo.data.Synthetic, init_args: {{train_dialogues: 30, dev_dialogues: 4, test_dialogues: 4}}}}
""")
    run = fit(tmp_path / "j", f"--config={joint}", *model, "--trainer.max_epochs=1")
    together = {r["id"]: r for r in answers(run)}
    alone = answers(fit(tmp_path / "a", *model, *options()))
    assert [together[r["id"]] for r in alone] == alone  # the other corpus changes nothing
    assert sum(name.startswith("synthetic/") for name in together) == len(together) - len(alone) > 10


@KINDS
def test_what_was_not_fitted_is_refused(model, options, tmp_path):
    run = fit(tmp_path, *model, *options())
    said = refused("test", f"--ckpt_path={run}", "--data=Synthetic", "--data.test_dialogues=2", "--data.root=null")
    assert "fitted to the labels of meld" in said and "synthetic" in said
    # nothing is trained at a rate
    assert "--model.lr is no option of" in refused("fit", *model, *options(model__lr=1))
    zoo("fit", *model, *options(trainer__fast_dev_run=True, trainer__accelerator="cpu"))


# ---- each against its definition
def test_majority_counts(options, corpus, tmp_path):
    with (corpus / "train_sent_emo.csv").open(newline="") as file:
        counts = Counter(r["Emotion"] for r in csv.DictReader(file))
    said = answers(fit(tmp_path, *MAJORITY, *options()))
    most = max(counts.values())
    first = next(name for name in LABELS if counts[name] == most)
    assert {r["predicted"] for r in said} == {first}
    shares = {name: counts[name] / sum(counts.values()) for name in LABELS}
    assert all(r["scores"] == pytest.approx(shares, abs=1e-6) for r in said)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_tfidf_is_scikit_learns(power):
    """Without collisions in the table the answers are those of scikit-learn's own parts."""
    data = Synthetic(train_dialogues=15, dev_dialogues=6)
    train, dev = data.samples("train"), data.samples("dev")
    model = TfidfLogistic(C=5.0, class_weight=power, width=2**20)
    model.part = lambda labels, name: fitted[name]
    fitted = model.fitted(data.labels, train)
    table = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+|[!?.]+")
    reference = LogisticRegression(C=5.0, class_weight="balanced" if power else None, max_iter=2000)
    reference.fit(table.fit_transform(s.target.text for s in train), [s.label for s in train])
    expected = reference.predict_proba(table.transform(s.target.text for s in dev))
    got = model.probabilities(data.labels, dev)
    alike = np.abs(got - expected).max(1) < 1e-6
    assert alike.mean() > 0.95 and got.std() > 0.05  # not: new words that share a place with a known one
    assert np.count_nonzero(fitted["idf"]) == len(table.vocabulary_)


def test_words_of_other_places_are_features_of_their_own(corpus):
    sample = MELD(root=corpus, descriptions=[corpus]).samples("train")[1]
    plain = list(TfidfLogistic().grams(sample))
    more = list(TfidfLogistic(window=1, descriptions=["audio"], pairs=False).grams(sample))
    words = [g for g in plain if " " not in g]
    assert more[: len(words)] == words and len(plain) == 2 * len(words) - 1
    rest = more[len(words) :]
    assert {g.split(" ")[0] for g in rest} == {"before", "audio:"}
    assert sum(g.startswith("before ") for g in rest) == len(
        list(TfidfLogistic(pairs=False).grams(MELD(root=corpus).samples("train")[0]))
    )


def test_labels_that_training_lacks():
    data = Synthetic(train_dialogues=20, dev_dialogues=5)
    for kept in ({"joy"}, {"joy", "anger"}, {"joy", "anger", "neutral"}):
        train = [s for s in data.samples("train") if s.target.label in kept]
        model = TfidfLogistic(width=1024)
        fitted = model.fitted(data.labels, train)
        model.part = lambda labels, name, fitted=fitted: fitted[name]
        p = model.probabilities(data.labels, data.samples("dev"))
        lacking = [i for i, name in enumerate(data.labels.names) if name not in kept]
        assert p[:, lacking].max() == 0 and np.allclose(p.sum(1), 1)
        assert all(math.isfinite(v) for v in fitted["intercept"])
        right = [
            data.labels.names[i] == s.target.label
            for s, i in zip(train, model.probabilities(data.labels, train).argmax(1), strict=True)
        ]
        assert np.mean(right) > 0.8


def test_bad_input_is_refused(options, tmp_path):
    assert "C > 0" in refused("fit", *TFIDF, *options(model__C=0))
    assert "no train sample has a description of kind 'video'" in refused(
        "fit", *TFIDF, *options(model__descriptions="[video]")
    )


# ---- the sentence encoder
@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A BERT of 2 layers of 32 with random weights and a vocabulary of the miniature's words."""
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def sentence(encoder):
    return ("--model=SentenceClassifier", f"--model.encoder={encoder}", "--model.max_length=32")


def test_sentence_runs_like_every_system(sentence, options, encoder, tmp_path):
    learns = {"model__lr": 3e-3, "trainer__max_epochs": 2}
    run = fit(tmp_path / "a", TRACE, *sentence, *options(**learns))
    (end,) = trace(run, "end")
    assert end["trained"] > 10 and end["without_gradient"] == []
    said = answers(run)
    best = logged(run, "val/wf1").index(max(logged(run, "val/wf1")))
    assert metrics(run)["n"] == len(said) and len(trace(run, "validation")) == 2 and best in (0, 1)
    assert all(sum(r["scores"].values()) == pytest.approx(1, abs=1e-5) for r in said)
    again = fit(tmp_path / "b", TRACE, *sentence, *options(**learns))
    assert trace(again) == trace(run) and same(checkpoint(again)["state_dict"], checkpoint(run)["state_dict"])
    zoo("test", f"--ckpt_path={run}", "--data.eval_batch_size=1")
    for a, b in zip(rows(run), said, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_a_frozen_encoder_is_neither_trained_nor_stored(sentence, options, encoder, tmp_path):
    run = fit(tmp_path, TRACE, *sentence, *options(), r"--model.train=['head\..*']", "--model.dropout=0")
    state = checkpoint(run)["state_dict"]
    assert set(state) == {"head.meld.weight", "head.meld.bias"}
    whole = fit(tmp_path / "whole", *sentence, *options(trainer__max_steps=1))
    assert any(name.startswith("encoder.") for name in checkpoint(whole)["state_dict"])
    model = SentenceEncoder(str(encoder))
    assert model.train().model.training and not model.requires_grad_(False).train().model.training  # no dropout


@pytest.mark.parametrize("trained", [True, False])
def test_dropout_of_the_encoder_is_on_where_it_is_trained(trained, sentence, options, tmp_path, monkeypatch):
    modes, logits = set(), SentenceClassifier.logits

    def watched(self, batch):
        modes.add((torch.is_grad_enabled(), self.encoder.model.training))
        return logits(self, batch)

    monkeypatch.setattr(SentenceClassifier, "logits", watched)
    only = () if trained else (r"--model.train=['head\..*']",)
    fit(tmp_path, *sentence, *options(trainer__max_steps=3), *only)
    assert modes == {(True, trained), (False, False)}


def test_sentence_learns_by_heart(sentence, corpus, tmp_path):
    seven = make_corpus(tmp_path / "seven", (1, 1, 1), test_is="train")
    arguments = flags(
        data="MELD",
        data__root=seven,
        data__batch_size=7,
        trainer__max_epochs=40,
        model__lr=0.01,
        model__dropout=0,
        model__schedule="constant",
        trainer__limit_val_batches=0,
    )
    run = fit(tmp_path, *sentence, *arguments)
    answers(run)
    assert metrics(run)["accuracy"] == 1.0


def test_mean_over_the_tokens_of_a_text_alone(encoder):
    """Padding changes nothing, earlier turns and descriptions are read, and the end of a long text is kept."""
    samples = MELD(root=make_corpus(encoder / "meld", (2, 1, 1)), descriptions=[encoder / "meld"]).samples("train")[:6]
    model = SentenceEncoder(str(encoder)).eval()
    plain = SentenceCollator(model.tokenizer, 0, (), 32)
    batch = plain(samples, None)
    together = model(batch["input_ids"], batch["mask"])
    assert len({int(n) for n in batch["mask"].sum(1)}) > 1
    for sample, row in zip(samples, together, strict=True):
        ids = model.tokenizer(sample.target.text, return_tensors="pt")["input_ids"]
        hidden = model.model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(row, hidden.mean(0), atol=1e-5, rtol=1e-4)
    texts = SentenceCollator(model.tokenizer, 1, ("audio",), 32).texts(samples[3])
    turn = samples[3].target
    assert texts == [samples[3].history[-1].text, turn.text, turn.descriptions["audio"]]
    short = SentenceCollator(model.tokenizer, 0, (), 3)(samples, None)
    whole = model.tokenizer(turn.text)["input_ids"]
    assert short["truncated"] == 6 and short["input_ids"][3].tolist() == [whole[0], *whole[-2:]]


def test_which_sentence_encoder(options, sentence, tmp_path):
    said = refused("fit", *sentence, *options(), "--model.encoder=nowhere")
    assert "no sentence encoder at 'nowhere'" in said
    assert "reads 64 tokens at most" in refused("fit", *sentence, *options(model__max_length=65))


def make_encoder(folder: Path) -> Path:
    texts = " ".join(s.target.text for s in Synthetic(train_dialogues=5).samples("train")).lower()
    words = sorted(set(re.findall(r"[a-z']+", texts)))
    pieces = [*WORD_CHARACTERS, *(f"##{c}" for c in WORD_CHARACTERS)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces + words)]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data *= 8 if "embeddings" in name else 4  # far from uniform: it learns within some steps
    model.save_pretrained(folder)
    return folder


def test_outside_a_run_it_says_where_it_can_be_read():
    """`zoo label` and `zoo export` load a model without a run; the shape of this one is that of its corpus."""
    with pytest.raises(ValueError, match="zoo test or zoo predict --ckpt_path RUN"):
        Majority().configure_model()
