import itertools
import random
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from zoo.sitcom import odds as probabilities
from zoo.sitcom.cues import LABELS
from zoo.sitcom.odds import odds
from zoo.sitcom.phrases import WORDINGS
from zoo.sitcom.posteriors import _scores, ceilings, likelihood, next_label, posterior, with_history
from zoo.sitcom.script import generate
from zoo.sitcom.settings import CAST, SHARES, TEXT_MODES, Settings

SETS = [
    ("text",),
    ("descriptions",),
    ("text", "descriptions"),
    ("face",),
    ("voice",),
    ("face", "voice"),
    ("text", "face", "voice"),
    ("text", "descriptions", "face", "voice"),
]
WORDS = SETS[:3]  # sets without a picture or a sound
PRIOR = np.array(SHARES) / sum(SHARES)


def utterances(dialogues):
    return [u for d in dialogues for u in d.utterances]


def index(label):
    return LABELS.index(label)


@lru_cache
def sitcom(captioner, domain="studio"):
    return generate(11, 600 if captioner == "clean" else 480, descriptions=captioner, domain=domain)


@lru_cache
def all_posteriors(captioner):
    """(given, extra) -> (n, 7), and the true labels, (n,), of the first 460 dialogues."""
    dialogues, p = sitcom(captioner)[:460], {}
    every = utterances(dialogues)
    for given in SETS if captioner == "noisy" else WORDS:  # faces and voices are the same whatever the captioner
        p[given, ""] = np.stack([posterior(u, given) for u in every])
        p[given, "past labels"] = np.stack([posterior(u, given, past_labels=True) for u in every])
        p[given, "history"] = np.concatenate([with_history(d, given) for d in dialogues])
    p[SETS[0], "history + past labels"] = np.concatenate([with_history(d, SETS[0], True) for d in dialogues])
    return p, np.array([index(u.label) for u in every])


@pytest.fixture
def corpus():
    return sitcom("clean")


captioners = pytest.mark.parametrize("captioner", ["clean", "noisy", "noisy_independent"])
domains = pytest.mark.parametrize("domain", ["studio", "wild"])


# ---- the same corpus again
def test_seed_decides():
    assert generate(5, 4) == generate(5, 4)
    texts = [{u.text for u in utterances(generate(seed, 20))} for seed in (5, 6)]
    assert len(texts[0] & texts[1]) < 0.2 * len(texts[0])


def test_known_line():
    """Golden: a change here changes every published number on the corpus."""
    u = generate(0, 1)[0].utterances[0]
    assert (u.id, u.speaker, u.label) == ("dia0_utt0", "Nina", "neutral")
    assert u.text == "Right, so that's how you spell it. Are you going to the reunion?"
    assert u.descriptions == {
        "audio": "The speaker sounds hard to read, too short to tell.",
        "video": "Nina looks out of focus: half out of the frame.",
    }


def test_longer_corpus_extends_shorter():
    assert generate(5, 9)[:4] == generate(5, 4)


def test_corpora_of_one_seed_are_paired():
    clean, noisy, wild = (
        utterances(generate(5, 10, **knobs)) for knobs in ({}, {"descriptions": "noisy"}, {"domain": "wild"})
    )
    plot = [[(u.speaker, u.label, u.truth.text_mode) for u in corpus] for corpus in (clean, noisy, wild)]
    assert plot[0] == plot[1] == plot[2]
    assert [u.text for u in clean] == [u.text for u in noisy]
    assert [u.descriptions for u in clean] != [u.descriptions for u in noisy]
    assert not {u.text for u in clean} & {u.text for u in wild}
    assert not {d for u in clean for d in u.descriptions.values()} & {d for u in wild for d in u.descriptions.values()}


def test_speed():
    odds(Settings())
    start = time.process_time()
    n = len(utterances(generate(3, 60)))
    assert (time.process_time() - start) / n < 0.002  # 2 s per 1000


# ---- what it looks like
def test_dialogues(corpus):
    lengths = Counter(len(d.utterances) for d in corpus)
    assert set(lengths) == set(range(5, 13))
    for number, dialogue in enumerate(corpus):
        speakers = {u.speaker for u in dialogue.utterances}
        assert speakers <= set(CAST) and len(speakers) in (2, 3)
        assert [u.id for u in dialogue.utterances] == [f"dia{number}_utt{i}" for i in range(len(dialogue.utterances))]
        last = {}
        for before, u in zip((None, *dialogue.utterances), dialogue.utterances, strict=False):
            assert (u.own_last, u.previous) == (last.get(u.speaker), before.label if before else None)
            assert set(u.descriptions) == {"audio", "video"}
            last[u.speaker] = u.label


def test_shares(corpus):
    every = utterances(corpus)
    counts = np.array([sum(u.label == label for u in every) for label in LABELS])
    assert np.abs(counts / len(every) - PRIOR).max() < 0.03  # labels of one dialogue are alike: wider than binomial
    modes = Counter(u.truth.text_mode for u in every)
    assert [modes[m] / len(every) for m in TEXT_MODES] == pytest.approx([0.50, 0.32, 0.18], abs=0.025)


def test_labels_keep_their_shares_in_a_dialogue():
    """posterior() without past labels is exact only if every position has the prior."""
    np.testing.assert_allclose(PRIOR @ odds(Settings()).follows, PRIOR, atol=1e-12)
    for own, previous in ((True, True), (True, False), (False, True)):
        p = sum(
            PRIOR[a] * next_label(Settings(), LABELS[a] if own else None, LABELS[a] if previous else None)
            for a in range(7)
        )
        np.testing.assert_allclose(p, PRIOR, atol=1e-12)


@pytest.mark.parametrize(
    "captioner, wrong",
    [("clean", (0.06, 0.06, 0.06)), ("noisy", (0.55, 0.10, 0.10)), ("noisy_independent", (0.35, 0.35, 0.35))],
)
def test_captioners(captioner, wrong):
    states = defaultdict(Counter)
    for u in utterances(sitcom(captioner)):
        states[u.truth.text_mode][u.truth.description_state] += 1
        shown = {"good": u.label, "vague": None}.get(u.truth.description_state, u.truth.description_shown)
        assert u.truth.description_shown == shown and (u.truth.description_state == "wrong") <= (
            u.truth.description_shown != u.label
        )
    for mode, rate in zip(TEXT_MODES, wrong, strict=True):
        assert states[mode]["wrong"] / states[mode].total() == pytest.approx(rate, abs=0.04)


def test_texts_are_mostly_distinct(corpus):
    texts = [u.text for u in utterances(corpus)][:5000]
    assert len(texts) == 5000 and len(set(texts)) > 0.8 * 5000


def test_texts_are_clean(corpus):
    for u in utterances(corpus) + utterances(generate(1, 60, domain="wild")):
        for text in (u.text, *u.descriptions.values()):
            assert text[0] == text[0].upper() and text[-1] in ".!?" and text == " ".join(text.split())
            assert not re.search(r"[{}/]| [.,!?]|[,.]{2}(?<!\.\.)|(?<![A-Za-z.])i(?![a-z])", text), text


def test_banks():
    for domain, cues, remarks in (("studio", 60, 100), ("wild", 30, 100)):
        words = WORDINGS[domain]
        assert all(len(words.cues[label]) >= cues for label in LABELS)
        assert sum(len(t.statements) + len(t.questions) for t in words.topics.values()) >= remarks
        assert all(topic in words.topics for favourites in probabilities.TOPICS.values() for topic in favourites)
    assert list(WORDINGS["studio"].topics) == list(WORDINGS["wild"].topics)


# ---- the surface shows the choices: a parser that was written apart finds them, and finds nothing else
@dataclass
class Rule:
    """One sentence of the language: what it matches and which choices it shows."""

    pattern: re.Pattern
    kind: str
    choice: tuple[str, object]
    mark: str
    topic: str | None


def either(phrases):
    return f"(?:{'|'.join(map(re.escape, phrases))})"


def rules(words):
    things = either(thing for topic in words.topics.values() for thing in topic.things)
    name, hedge = either(CAST), either(words.hedges)

    def body(phrase):
        filled = re.escape(phrase.removesuffix("?"))
        return filled.replace(r"\{thing\}", f"(?P<thing>{things})").replace(r"\{who\}", name)

    for cue in {cue for bank in words.cues.values() for cue in bank}:
        kind, marks = ("question mark", r"\?!|\?") if cue.endswith("?") else ("cue mark", r"\.\.\.|[.!]")
        pattern = f"{body(cue)}(?:, {name})?(?P<mark>{marks})(?: |$)"
        yield Rule(re.compile(pattern, re.I), "cue", ("cue", cue), kind, None)
    for name_of_topic, topic in words.topics.items():
        for remark in topic.questions:
            pattern = rf"(?:{name}, )?{body(remark)}(?P<mark>\?!|\?)(?: |$)"
            yield Rule(re.compile(pattern, re.I), "remark", ("asks", True), "question mark", name_of_topic)
        for remark in topic.statements:
            pattern = rf"(?:{name}, )?(?:{hedge} )?{body(remark)}(?P<mark>\.\.\.|[.!?])(?: |$)"
            yield Rule(re.compile(pattern, re.I), "remark", ("asks", False), "statement mark", name_of_topic)


def sentences(text, grammar):
    """Every way to read sentences off the front of a text -> [(rule, match), ...], rest."""
    yield [], text
    for rule in grammar:
        if match := rule.pattern.match(text):
            for more, rest in sentences(text[match.end() :], grammar):
                yield [(rule, match), *more], rest


def derivations(text, words, grammar):
    """Every way a text can have come about, as a Counter of (table, value)."""
    topic_of = {thing.lower(): name for name, topic in words.topics.items() for thing in topic.things}
    leading, trailing = ({t for bank in banks.values() for t in bank} for banks in (words.leading, words.trailing))
    openers = {o for bank in words.openers.values() for o in bank}
    forms = {form for odds_ in probabilities.FORMS.values() for form in odds_}
    starts = {"": ("opener", "")} | {o + " ": ("opener", o) for o in openers} | {t + " ": ("tell", t) for t in leading}
    for start, shown in starts.items():
        if not text.startswith(start):
            continue
        for found, rest in sentences(text[len(start) :], grammar):
            form = " ".join(rule.kind for rule, _ in found)
            topics = {
                rule.topic or topic_of[match["thing"].lower()]
                for rule, match in found
                if rule.topic or "thing" in match.groupdict()
            }
            if form not in forms or len(topics) > 1 or rest not in {"", *trailing}:
                continue
            if shown[0] == "tell" and rest:
                continue  # one tell only
            tell = [] if shown[0] == "tell" else [("tell", rest)]
            yield Counter(
                [
                    shown,
                    *tell,
                    ("form", form),
                    *(("topic", t) for t in topics),
                    *(rule.choice for rule, _ in found),
                    *((rule.mark, match["mark"]) for rule, match in found),
                ]
            )


@domains
def test_a_text_shows_its_choices_and_no_others(domain):
    words = WORDINGS[domain]
    assert len({thing for topic in words.topics.values() for thing in topic.things}) == sum(
        len(topic.things) for topic in words.topics.values()
    )
    grammar = list(rules(words))
    for u in utterances(generate(4, 30, domain=domain)):
        assert list(derivations(u.text, words, grammar)) == [Counter(u.choices["text"])], u.text


@domains
def test_no_phrase_is_another_one_with_a_word_in_front(domain):
    words = WORDINGS[domain]
    cues = {cue for bank in words.cues.values() for cue in bank}
    remarks = {r for topic in words.topics.values() for r in topic.statements + topic.questions}
    assert not cues & remarks
    phrases = {phrase.lower() for phrase in cues | remarks}
    for word in {o.lower() for bank in words.openers.values() for o in bank} | set(words.hedges):
        assert not phrases & {p.removeprefix(word + " ") for p in phrases if p.startswith(word + " ")}, word


@domains
def test_captions_show_their_choices(domain):
    words = WORDINGS[domain]
    for u in utterances(generate(4, 60, domain=domain)):
        voice, face, unsure = (value for _, value in u.choices["descriptions"])
        for kind, (word, detail), names in (
            ("audio", voice, words.sure),
            ("video", face, words.unsure if unsure else words.sure),
        ):
            readable = {
                t.format(subject=n.format(name=u.speaker), word=word, detail=detail).lower() + "."
                for t in getattr(words, kind)
                for n in names
            }
            assert u.descriptions[kind].lower() in readable
    # no word has the mark that ends it in a caption, so a caption can be read in one way only
    for bank in (words.voice, words.face):
        for words_, _ in bank.values():
            assert not any(mark in word for word in words_ for mark in (",", ":", " - "))


# ---- likelihoods: by hand and by brute force
def test_tables_are_distributions():
    for settings in (Settings(), Settings(domain="wild", descriptions="noisy", text_modes=(0.2, 0.3, 0.5))):
        for name, table in odds(settings).tables.items():
            if name in ("expression", "prosody"):  # densities, see test_cues.py
                continue
            assert (table.odds >= 0).all(), name
            np.testing.assert_allclose(sum(table.likelihood(value) for value in table.values), 1, atol=1e-9)
        np.testing.assert_allclose(odds(settings).hidden.sum((0, 1, 2)), 1, atol=1e-12)


def test_draws_follow_the_odds():
    table, rng, n = odds(Settings()).tables["opener"], random.Random(0), 20_000
    hidden = (3, TEXT_MODES.index("explicit"), 0, index("disgust"))
    drawn = Counter(table.draw(rng, hidden) for _ in range(n))
    for value in table.values:
        p = table.likelihood(value)[0, hidden[1], 0, hidden[3]]
        assert abs(drawn[value] - n * p) <= 4 * np.sqrt(n * p * (1 - p)), value


def test_cue_by_hand():
    """P(cue | mode, label), written out for two phrases."""
    words, table = WORDINGS["studio"], odds(Settings()).tables["cue"]
    first = {label: 1 / sum(r**-0.7 for r in range(1, len(words.cues[label]) + 1)) for label in LABELS}
    explicit, _, misleading = table.likelihood("I love it")[0, :, 0]  # the first of joy
    assert explicit[index("joy")] == pytest.approx(0.82 * first["joy"])
    assert explicit[index("surprise")] == pytest.approx(0.18 / 3 * first["joy"])
    assert explicit[index("anger")] == 0
    assert misleading[index("joy")] == 0
    assert misleading[index("sadness")] == pytest.approx(1 / 2 * first["joy"])
    second = table.likelihood("shut up")[0, 0, 0]
    assert second[index("anger")] == pytest.approx(0.82 * first["anger"] * 2**-0.7)


def test_caption_by_brute_force():
    """P(pair | shown) summed over the bank it may come from."""
    words, table = WORDINGS["studio"], odds(Settings()).tables["voice"]
    pair = ("calm", "in an even tone")
    neutral = 1.0
    for bank, value in zip(words.voice["neutral"], pair, strict=True):
        neutral *= (bank.index(value) + 1) ** -0.7 / sum(r**-0.7 for r in range(1, len(bank) + 1))
    for shown, share in (("neutral", 0.70), ("joy", 0.15), ("sadness", 0.15), ("disgust", 0.15), ("anger", 0)):
        assert table.likelihood(pair)[0, 0, index(shown), 0] == pytest.approx(share * neutral)


def test_posterior_by_simulation():
    """One coarse event on a restricted corpus: the labels of the lines that are just one question with "?"."""
    p = PRIOR * [probabilities.QUESTION[label] * probabilities.QUESTION_MARKS[label][0] for label in LABELS]
    counts, expected = np.zeros(7), []
    for u in utterances(generate(9, 300, text_modes=(0, 1, 0), inertia=0, contagion=0)):
        shown = dict(u.choices["text"])
        if shown["form"] == "remark" and shown.get("question mark") == "?":
            counts[index(u.label)] += 1
            expected.append(posterior(u, ("text",)))
    n = counts.sum()
    assert n > 300
    bound = 4 * np.sqrt(p / p.sum() / n)
    assert (np.abs(counts / n - p / p.sum()) < bound).all()
    assert (np.abs(np.mean(expected, 0) - p / p.sum()) < bound).all()


def test_history_by_enumeration():
    """with_history against the sum over every theme and every sequence of labels, written out."""
    dialogue = next(d for d in generate(8, 40) if len({u.speaker for u in d.utterances[:4]}) == 3)
    dialogue = replace(dialogue, utterances=dialogue.utterances[:4])
    evidence = [likelihood(u.settings, u.choices, ("text",)) for u in dialogue.utterances]
    sums = np.zeros((4, 7))
    for labels in itertools.product(range(7), repeat=4):
        p, last, per_theme = 1.0, {}, np.ones(len(evidence[0]))
        for t, (u, y) in enumerate(zip(dialogue.utterances, labels, strict=True)):
            p *= next_label(u.settings, last.get(u.speaker), LABELS[labels[t - 1]] if t else None)[y]
            per_theme = per_theme * evidence[t][:, y]
            sums[t, y] += p * per_theme.sum() / 7 ** (3 - t)
            last[u.speaker] = LABELS[y]
    np.testing.assert_allclose(with_history(dialogue, ("text",)), sums / sums.sum(1, keepdims=True), atol=1e-9)

    per_theme = np.ones(len(evidence[0]))  # true labels known: only the theme is left to sum over
    rows = with_history(dialogue, ("text",), past_labels=True)
    for u, seen, row in zip(dialogue.utterances, evidence, rows, strict=True):
        p = next_label(u.settings, u.own_last, u.previous) * (per_theme[:, None] * seen).sum(0)
        np.testing.assert_allclose(row, p / p.sum(), atol=1e-9)
        per_theme = per_theme * seen[:, index(u.label)]


# ---- posteriors: calibrated, so exact
@captioners
def test_posteriors_are_calibrated(captioner):
    """An exact posterior says how often it is right; one wrong likelihood and this fails."""
    posteriors, truth = all_posteriors(captioner)
    n = len(truth)
    assert n > 3700 and len(posteriors) == 3 * len(SETS if captioner == "noisy" else WORDS) + 1
    for name, p in posteriors.items():
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
        top = p.max(1)
        error = np.sqrt((top * (1 - top)).sum()) / n
        assert abs((p.argmax(1) == truth).mean() - top.mean()) < 2.5 * error, name
        right, expected = p[np.arange(n), truth], (p**2).sum(1)  # E[p(true label)] = E[sum of p^2]
        error = np.sqrt(((p**3).sum(1) - expected**2).sum()) / n
        assert abs((right - expected).mean()) < 2.5 * error, name


def score(p, truth, g):
    """Score test: if ``p`` is exact, sum(g(true label) - E g) / sqrt(sum Var g) is N(0, 1) whatever g is."""
    mean = (p * g).sum(1)
    return (g[np.arange(len(p)), truth] - mean).sum() / np.sqrt(((p * g**2).sum(1) - mean**2).sum())


TEXT_TABLES = ("cue", "opener", "tell", "topic", "asks", "cue mark", "statement mark", "question mark", "form")
DESCRIPTION_TABLES = ("voice", "face", "unsure")


@lru_cache
def likelihood_without(modality, table=None):
    """P(what a modality shows but for one table | label), (n, 7), for the utterances of ``all_posteriors("noisy")``."""
    rows = []
    for u in utterances(sitcom("noisy")[:460]):
        kept = tuple(choice for choice in u.choices[modality] if choice[0] != table)
        rows.append(likelihood(u.settings, {modality: kept}, (modality,)).mean(0))
    return np.stack(rows)


def adds(modality, table):
    """What a table adds to the log-likelihood, (n, 7); cut at +-4, since some interjections rule out a label."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.log(likelihood_without(modality)) - np.log(likelihood_without(modality, table))
    return np.nan_to_num(gain, nan=0).clip(-4, 4)


def test_every_factor_counts_as_it_should():
    """No table counts too little or too much, whatever else is known: the score along what it adds."""
    posteriors, truth = all_posteriors("noisy")
    every, z = utterances(sitcom("noisy")[:460]), {}
    for modality, tables in (("text", TEXT_TABLES), ("descriptions", DESCRIPTION_TABLES)):
        assert set(tables) == {table for u in every for table, _ in u.choices[modality]}
        z |= {
            (*name, table): score(p, truth, adds(modality, table))
            for name, p in posteriors.items()
            if modality in name[0]
            for table in tables
        }
    past = np.log([next_label(u.settings, u.own_last, u.previous) for u in every]) - np.log(PRIOR)
    z |= {(given, "past"): score(posteriors[given, "past labels"], truth, past) for given in SETS}
    assert len(z) == 9 * (3 * 4 + 1) + 3 * 3 * 3 + len(SETS)
    assert max(map(abs, z.values())) < 3.7, max(z.items(), key=lambda item: abs(item[1]))


@pytest.mark.parametrize(
    "modality, table",
    [*(("text", table) for table in TEXT_TABLES), *(("descriptions", table) for table in DESCRIPTION_TABLES)],
)
def test_a_forgotten_factor_is_found(modality, table):
    """The test above can fail: leave a table out of the likelihood, and its score is far off."""
    p = PRIOR * likelihood_without(modality, table)
    assert score(p / p.sum(1, keepdims=True), all_posteriors("noisy")[1], adds(modality, table)) > 5


@captioners
def test_more_information_never_hurts(captioner):
    posteriors, truth = all_posteriors(captioner)
    accuracy = {name: (p.argmax(1) == truth).mean() for name, p in posteriors.items()}
    slack = 1 / np.sqrt(len(truth))  # two standard errors at most
    sets = {given for given, _ in posteriors}
    for given in sets:
        assert accuracy[given, "history"] > accuracy[given, ""] - slack
        assert accuracy[given, "past labels"] > accuracy[given, "history"] - slack
    for extra in ("", "history", "past labels"):
        for less, more in itertools.product(sets, sets):
            if set(less) < set(more):
                assert accuracy[more, extra] > accuracy[less, extra] - slack, (less, more)


@pytest.mark.parametrize(
    "captioner, design", [("clean", (67, 80, 87)), ("noisy", (67, 60, 79)), ("noisy_independent", (67, 60, 75))]
)
def test_ceilings_are_as_designed(captioner, design):
    """Accuracy in percent from text, descriptions and both; true past labels add about 4.5 to text."""
    posteriors, truth = all_posteriors(captioner)
    accuracy = {name: 100 * (p.argmax(1) == truth).mean() for name, p in posteriors.items()}
    assert [accuracy[given, ""] for given in WORDS] == pytest.approx(design, abs=4)
    assert accuracy[SETS[0], "past labels"] - accuracy[SETS[0], ""] == pytest.approx(4.5, abs=2)


def test_ceilings_of_faces_and_voices_are_as_designed():
    posteriors, truth = all_posteriors("noisy")
    accuracy = {given: 100 * (p.argmax(1) == truth).mean() for (given, extra), p in posteriors.items() if not extra}
    assert [accuracy[modality,] for modality in ("face", "voice")] == pytest.approx([73, 62], abs=3)
    assert accuracy["text", "face", "voice"] > accuracy["text",] + 15
    assert 88 < accuracy["text", "descriptions", "face", "voice"] < 95


def test_ceilings():
    dialogues = sitcom("noisy")[:40]
    posteriors, truth = all_posteriors("noisy")
    n = len(utterances(dialogues))
    scores = ceilings(dialogues, SETS)
    assert len(scores) == 4 * len(SETS)
    for (given, extra), p in posteriors.items():
        got = scores[" + ".join((*given, *filter(None, [extra])))]
        assert got == pytest.approx(_scores(p[:n].argmax(1), truth[:n]))
        assert 0 < got["weighted_f1"] < 1


def test_ceilings_of_every_set():
    scores = ceilings(sitcom("noisy")[:5])
    assert len(scores) == 4 * (2**4 - 1) and "text + descriptions + face + voice + history + past labels" in scores


def test_effect_of_descriptions(corpus):
    for u in utterances(corpus[:60]):
        without, with_ = (posterior(u, given).argmax() == index(u.label) for given in (SETS[0], SETS[2]))
        assert u.truth.effect == {(False, True): "help", (True, False): "hurt"}.get((without, with_), "needless")
    effects = Counter(u.truth.effect for u in utterances(corpus))  # clean
    assert effects["help"] > 3 * effects["hurt"] > 0


def test_scores_agree_with_torchmetrics():
    from torch import from_numpy
    from torchmetrics.functional import accuracy, f1_score

    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 7, 300), rng.integers(0, 6, 300)
    ours, to = _scores(predicted, truth), {"task": "multiclass", "num_classes": 7}
    pair = from_numpy(predicted), from_numpy(truth)
    assert ours["accuracy"] == pytest.approx(float(accuracy(*pair, **to, average="micro")))
    assert ours["weighted_f1"] == pytest.approx(float(f1_score(*pair, **to, average="weighted")))


def test_probe_stays_below_the_text_ceiling(corpus):
    """TF-IDF + logistic regression learns a good part of it and does not beat Bayes."""
    train, test = utterances(generate(21, 400)), utterances(corpus[:460])
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"[\w']+|[?!.,]+", min_df=2)
    probe = LogisticRegression(C=4, max_iter=200)
    probe.fit(words.fit_transform([u.text for u in train]), [u.label for u in train])
    right = np.mean(probe.predict(words.transform([u.text for u in test])) == [u.label for u in test])
    posteriors, truth = all_posteriors("clean")
    ceiling = (posteriors[SETS[0], ""].argmax(1) == truth).mean()
    assert PRIOR.max() + 0.05 < right < ceiling + 3 * 0.5 / np.sqrt(len(test))


# ---- what is refused
@pytest.mark.parametrize(
    "options, said",
    [
        ({"dialogues": 0}, "dialogues"),
        ({"descriptions": "perfect"}, "descriptions"),
        ({"domain": "moon"}, "domain"),
        ({"shares": (1, 2)}, "7 positive"),
        ({"shares": (0, 1, 1, 1, 1, 1, 1)}, "positive"),
        ({"text_modes": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"text_modes": (1.5, -0.5, 0.0)}, "sum to 1"),
        ({"inertia": 0.8, "contagion": 0.3}, "together"),
        ({"inertia": -0.1}, "at least 0"),
    ],
)
def test_generate_says_what_is_wrong(options, said):
    with pytest.raises(ValueError, match=said):
        generate(**{"seed": 0, "dialogues": 1} | options)


def test_unknown_modality():
    u = generate(0, 1)[0].utterances[0]
    with pytest.raises(ValueError, match="text, descriptions, face, voice, got 'smell'"):
        posterior(u, ("smell",))
    with pytest.raises(ValueError, match="at least one"):
        ceilings([])
    np.testing.assert_allclose(posterior(u, ()), PRIOR)
