"""Answers to general questions: how each is read, and scores by the authors' rules, computed another way."""

from __future__ import annotations

import itertools
import statistics

import pytest

from zoo.metrics import general_scores
from zoo.metrics.general import normalise_answer, read_mme, read_option, read_pope, vqa_accuracy
from zoo.schema import ScoredQuestion

OPTIONS = ("a dog", "a cat", "vitamin C", "none of them")


# ---- reading
@pytest.mark.parametrize(
    ("answer", "mme", "pope"),
    [
        ("Yes, there is", "yes", "yes"),
        ("yes", "yes", "yes"),
        (" No.", "no", "no"),
        ("No, there is not a dog. Yes.", "no", "no"),
        ("There is not.", None, "no"),
        ("There is no dog", None, "no"),
        ("Yes. No.", "yes", "yes"),  # the first sentence
        ("yes or no", "yes", "no"),  # both words: each by its own authors' rule
        ("NO!", "no", "no"),
        ("", None, None),
        ("a dog", None, None),  # never a no, nor POPE's yes
        ("I know it", None, None),
        ("yesterday", "yes", None),
    ],
)
def test_yes_and_no(answer, mme, pope):
    assert (read_mme(answer), read_pope(answer)) == (mme, pope)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("b)", "B"),
        ("B. a cat", "B"),
        ("A: a dog, C or not", "A"),
        ("D. vitamin C", "D"),  # what stands behind the letter names no second one
        ("the answer is b", "B"),
        ("Answer: (C)", "C"),
        ("The correct option is D.", "D"),
        ("I think it is B because of its ears", "B"),
        ("A cat.", "B"),  # the text of an option
        ("the answer is a cat", None),  # "a" is an article here, and the text is not an option's alone
        ("A dog and a cat", None),
        ("B or C", None),
        ("A, B", None),
        ("(A) (B)", None),
        ("b\nIt has ears.", "B"),
        ("I'm not sure.", None),
        ("E", None),  # there are four
        ("", None),
        ("no idea", None),
    ],
)
def test_letters_of_options(answer, letter):
    assert read_option(answer, OPTIONS) == letter


def test_two_options_of_one_text_name_none():
    assert read_option("cat", ("cat", "Cat.")) is None


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The Two dogs", "2 dogs"),
        ("an apple, a pear", "apple pear"),
        ("100,978", "100978"),
        ("3.5", "3.5"),
        ("St. Mary's", "st mary's"),
        ("dont", "don't"),
        ("It’s 2:50 PM.", "it's 2:50 pm"),
        ("t-shirt/jacket", "t shirt jacket"),
        ("none", "0"),
        ("50%", "50%"),
        ("well", "well"),  # a word of its own, not "we'll"
        ("stop\n", "stop"),
    ],
)
def test_answers_are_normalised(answer, plain):
    assert normalise_answer(answer) == plain


def test_agreement_leaves_out_each_annotator_in_turn():
    for n in range(11):
        answers = ["two"] * n + ["red"] * (10 - n)
        subsets = [answers[:i] + answers[i + 1 :] for i in range(10)]
        expected = statistics.mean(min(subset.count("two") / 3, 1) for subset in subsets)
        assert vqa_accuracy("2", answers) == pytest.approx(expected)
    assert [vqa_accuracy("2", ["two"] * n + ["x"] * (10 - n)) for n in (1, 2, 3, 4)] == [0.3, 0.6, 0.9, 1.0]


# ---- scores
def asked(benchmark, gold, group="g", together=None, options=(), name="q"):
    return ScoredQuestion(benchmark, gold if isinstance(gold, tuple) else (gold,), group, together or name, options)


def scored(entries):
    """Scores of (picture, question, answer), each with a name."""
    rows = [{"id": f"q{i}", "dialogue": p, "text": text} for i, (p, _, text) in enumerate(entries)]
    return general_scores(rows, {f"q{i}": q for i, (_, q, _) in enumerate(entries)}, draws=200)


def test_mme_adds_accuracy_and_pairs_of_every_category():
    answers = {
        ("color", "a"): ("Yes", "No"),
        ("color", "b"): ("Yes", "Yes"),
        ("OCR", "c"): ("maybe", "No"),
        ("code_reasoning", "d"): ("yes", "no"),
    }
    entries = [
        (picture, asked("mme", gold, category, f"{category}_{picture}"), text)
        for (category, picture), texts in answers.items()
        for gold, text in zip(("yes", "no"), texts, strict=True)
    ]
    said = scored(entries)
    assert said["by_group"]["color"] == {"n": 4, "score": 125.0, "accuracy": 0.75, "accuracy_plus": 0.5}
    assert said["by_group"]["OCR"] == {"n": 2, "score": 50.0, "accuracy": 0.5, "accuracy_plus": 0.0}
    assert (said["perception"], said["cognition"], said["score"]) == (175.0, 200.0, 375.0)
    assert (said["n"], said["pictures"], said["unparsed"]) == (8, 4, 1 / 8)
    low, high = said["ci95"]["score"]
    assert low < 375 <= high <= 600
    assert "incomplete" not in said


def test_half_a_pair_is_no_pair():
    both = {f"q{i}": asked("mme", gold, "color", "p") for i, gold in enumerate(("yes", "no"))}
    said = general_scores([{"id": "q0", "dialogue": "p", "text": "yes"}], both, draws=10)
    assert said["incomplete"] == 1 and said["accuracy"] == 1 and said["score"] == 100


def test_pope_counts_yes_in_every_subset():
    golds = ["yes", "yes", "yes", "no", "no", "no"]
    texts = {"random": ["yes", "no", "a dog", "yes", "no", "a dog"], "popular": ["Yes"] * 3 + ["No"] * 3}
    entries = [
        (f"p{i}", asked("pope", gold, subset, name=f"{subset}{i}"), text)
        for subset, said in texts.items()
        for i, (gold, text) in enumerate(zip(golds, said, strict=True))
    ]
    said = scored(entries)
    one = said["by_group"]["random"]
    assert one["accuracy"] == pytest.approx(2 / 6)  # what says neither is wrong, whatever is right
    assert (one["precision"], one["recall"], one["f1"]) == pytest.approx((1 / 2, 1 / 3, 0.4))
    assert one["yes_ratio"] == pytest.approx(2 / 6)
    assert said["by_group"]["popular"]["f1"] == 1
    assert said["f1"] == pytest.approx(0.7) and said["accuracy"] == pytest.approx(4 / 6)
    assert said["unparsed"] == pytest.approx(2 / 12)


def test_a_question_counts_if_all_its_rotations_are_right():
    rotations = {"1": ("A", "B"), "2": ("B", "B"), "3": ("C",)}
    entries = [
        (f"p{key}", asked("mmbench", gold, "seeing" if key < "3" else "knowing", key, OPTIONS), "(B)")
        for key, golds in rotations.items()
        for gold in golds
    ]
    said = scored(entries)
    assert said["accuracy"] == pytest.approx(1 / 3) and said["accuracy_each"] == pytest.approx(3 / 5)
    assert said["by_group"]["seeing"] == {"n": 4, "accuracy": 0.5} and said["by_group"]["knowing"]["accuracy"] == 0


def test_vqa_is_a_mean_of_agreements():
    answers = ("red",) * 3 + ("dark red",) * 7
    said = scored(
        [
            ("p", asked("vqav2", answers, "other", name="1"), "Red."),
            ("p", asked("vqav2", answers, "other", name="2"), "dark red"),
            ("r", asked("vqav2", answers, "number", name="3"), ""),
        ]
    )
    assert said["accuracy"] == pytest.approx((0.9 + 1) / 3) and said["unparsed"] == pytest.approx(1 / 3)
    assert said["by_group"]["other"] == {"n": 2, "accuracy": pytest.approx(0.95)}


def test_intervals_are_over_pictures():
    many = [(f"p{i}", asked("scienceqa", "A", name=str(i), options=OPTIONS), "AB"[i % 2]) for i in range(40)]
    one = [("p", question, text) for _, question, text in many]
    assert scored(one)["ci95"]["accuracy"] == [0.5, 0.5]
    low, high = scored(many)["ci95"]["accuracy"]
    assert 0.3 < low < 0.5 < high < 0.7


def test_order_of_rows_and_a_name_of_a_benchmark():
    entries = [(f"p{i}", asked("scienceqa", "A", name=str(i), options=OPTIONS), "AB"[i % 2]) for i in range(4)]
    questions = {f"q{i}": q for i, (_, q, _) in enumerate(entries)}
    rows = [{"id": f"q{i}", "dialogue": p, "text": t} for i, (p, _, t) in enumerate(entries)]
    first, *others = [general_scores(list(order), questions, draws=20) for order in itertools.permutations(rows)]
    assert all(other == first for other in others)
    with pytest.raises(ValueError, match="questions of one benchmark, got none"):
        general_scores([], questions)
    mixed = questions | {"q0": asked("pope", "yes")}
    with pytest.raises(ValueError, match=r"one benchmark, got \['pope', 'scienceqa'\]"):
        general_scores(rows, mixed)
