"""Answers to general questions about pictures, by the rules of the benchmarks that ask them.

| benchmark | an answer is read as | score |
|---|---|---|
| MME | yes or no within its first four characters | per category accuracy, and pictures with both answers right, in % |
| POPE | no, if its first sentence says no or not, else yes | per subset accuracy, precision, recall, F1 of yes |
| MMBench, ScienceQA, SEED-Bench | the letter of an option | accuracy; MMBench: right in every rotation |
| TextVQA, VQAv2 | itself, normalised | agreement with ten annotators |

An answer that cannot be read is wrong and is counted as ``unparsed``; it is never taken for a no, nor for a yes. This
is the one difference from POPE's own script, which takes whatever does not say no for a yes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from zoo.metrics.bootstrap import percentile_interval, resamples
from zoo.metrics.scores import Row
from zoo.schema import ScoredQuestion

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)  # MME's; its other categories are cognition
LETTERS = "ABCDEFGHIJ"  # of options

# ---- reading yes and no
YesNo = Literal["yes", "no"]


def read_mme(text: str) -> YesNo | None:
    """Return what an answer to MME says: yes, or else no, within its first four characters; None for neither.

    >>> read_mme("Yes, there is."), read_mme("No."), read_mme("It is not"), read_mme("yes or no")
    ('yes', 'no', None, 'yes')
    """
    beginning = text.strip().lower()[:4]
    return "yes" if "yes" in beginning else "no" if "no" in beginning else None


def read_pope(text: str) -> YesNo | None:
    """Return what an answer to POPE says: no, if a word of its first sentence is no or not, else yes if one is yes.

    Words are compared in any case and without punctuation around them.

    >>> read_pope("Yes, there is."), read_pope("There is not. Yes"), read_pope("yes and no"), read_pope("maybe")
    ('yes', 'no', 'no', None)
    """
    words = {word.strip("!?;:\"'()") for word in text.strip().split(".")[0].replace(",", "").lower().split()}
    return "no" if words & {"no", "not"} else "yes" if "yes" in words else None


# ---- reading the letter of an option
_CLOSED = r"(?=[^\S\n]*(?:[.):,;!\]\"]|'(?!\w)|\n|$))"  # behind a letter that is no article: "a dog" names no option
_FIRST = re.compile(rf"\W*([A-J]){_CLOSED}", re.IGNORECASE)  # "B", "(B)", "B. the dog", "b)"
_SAID = re.compile(rf"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[(\[\"']*([A-J]){_CLOSED}", re.IGNORECASE)
_ALONE = re.compile(r"(?<![\w'])([B-HJ])(?![\w'])|[(\[]([A-J])[)\]]")  # A and I alone are words of English
_MORE = re.compile(r"(?:\W|\b(?:and|or)\b|\b[A-J]\b)*", re.IGNORECASE)  # of a list of letters


def read_option(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer names, of the options there are; None for none, for two, or for another letter.

    Read is, whichever comes first: a letter at the beginning that is closed by a full stop, bracket, colon or comma or
    is all there is; the letter behind "answer", "option" or "choice"; capital letters in brackets or standing alone; or
    an answer that is the text of one option. No language model is asked to read the rest.

    >>> options = ("a dog", "a cat", "a bird")
    >>> [read_option(text, options) for text in ("B", "(B)", "B. a cat", "the answer is b", "A cat.", "B or C", "D")]
    ['B', 'B', 'B', 'B', 'B', None, None]
    """
    known = LETTERS[: len(options)]
    letters: set[str] = set()
    if first := _FIRST.match(text):
        rest = text[first.end() :]
        letters = {first[1].upper(), *(re.findall(r"\b[A-J]\b", rest.upper()) if _MORE.fullmatch(rest) else ())}
    letters = letters or {letter.upper() for letter in _SAID.findall(text)}
    letters = letters or {bare or bracketed for bare, bracketed in _ALONE.findall(text)}
    if letters:
        return letters.pop() if len(letters) == 1 and letters <= set(known) else None
    named = [letter for letter, option in zip(known, options, strict=True) if _plain(text) == _plain(option)]
    return named[0] if len(named) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .\n\t").split())


# ---- agreement with annotators
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(n) for n, word in enumerate(_COUNTED)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
# What stands before each ending. No word that means something else without its apostrophe (well, were, its, shell).
_CONTRACTED = {
    "n't": "is are was were do does did has have had would could should might must need ought ca wo ai sha",
    "'ve": "i you we they could would should might must who what",
    "'re": "you they what who why there",
    "'ll": "you they it that what who there how",
    "'d": "you they it there who how where someone something",
    "'s": "he that what where when who how why there someone somebody",
    "'m": "i",
    "'clock": "o",
    "'am": "ma",
    "'all": "y",
}
_CONTRACTIONS = {
    (word + ending).replace("'", ""): word + ending for ending, words in _CONTRACTED.items() for word in words.split()
}


def normalise_answer(text: str) -> str:
    """Return an answer as VQA compares it, by the published description of its evaluation.

    Lower case; no articles; number words up to ten as digits; a missing apostrophe put into a contraction; full stops
    left out unless a digit follows, commas between digits left out; all other punctuation a space, except apostrophes
    and colons (``girl's``, ``2:50``). The reference answers are written the same way.

    >>> normalise_answer("The two dogs."), normalise_answer("100,978"), normalise_answer("It isnt a t-shirt!")
    ('2 dogs', '100978', "it isn't t shirt")
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower().replace("’", "'"))
    text = _PUNCTUATION.sub(" ", re.sub(r"\.(?!\d)", "", text))
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """Return how far an answer agrees with annotators, from 0 to 1.

    min(n / 3, 1) for the n annotators who wrote the same, averaged over leaving out each of them in turn.

    >>> vqa_accuracy("2", ["two"] * 3 + ["3"] * 7)
    0.9
    """
    normalised = normalise_answer(text)
    same = [normalise_answer(answer) == normalised for answer in answers]
    n = sum(same)
    left_out = [min((n - one) / 3, 1.0) for one in same]
    return round(sum(left_out) / len(left_out), 12)


# ---- scores
@dataclass(frozen=True)
class Verdict:
    """What an answer was read as, None where it could not be read, and how far it is right, from 0 to 1."""

    read_as: str | None
    right: float


def judge(question: ScoredQuestion, text: str) -> Verdict:
    """Return how an answer is read, and whether it is right."""
    if question.benchmark in ("textvqa", "vqav2"):
        read_as: str | None = normalise_answer(text) or None
        return Verdict(read_as, 0.0 if read_as is None else vqa_accuracy(text, question.gold))
    if question.benchmark in ("mme", "pope"):
        read_as = (read_mme if question.benchmark == "mme" else read_pope)(text)
    else:
        read_as = read_option(text, question.options)
    return Verdict(read_as, float(read_as == question.gold[0]))


# What is counted of each group of questions, for each picture by itself.
N, RIGHT, TOGETHER, ALL_RIGHT, SAID_YES, IS_YES, TRUE_YES = range(7)
COLUMNS = 7
Scores = dict[str, np.ndarray]


def general_scores(
    rows: Sequence[Row], questions: Mapping[str, ScoredQuestion], draws: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return what metrics.json says about answers to the questions of one benchmark.

    Args:
        rows: predictions: ``id``, ``dialogue`` (the picture) and ``text``.
        questions: sample id -> how its answer is scored; those that were not asked are left out.
        draws: bootstrap resamples of pictures.
        seed: of the resampling.

    Returns:
        benchmark, n (questions), pictures, unparsed (share of n); the benchmark's scores: of MME ``score`` (the sum
        over categories, 200 each), ``perception`` and ``cognition``, in the authors' points, all others from 0 to 1;
        ci95 of each of them; by_group, the scores of each category, dimension or subset. ``incomplete``: pairs or
        rotations that were not asked whole (``--trainer.limit_test_batches``), which no score of them counts.

    Raises:
        ValueError: no rows, or questions of several benchmarks.
    """
    asked = {row["id"]: questions[row["id"]] for row in rows}
    benchmarks = {question.benchmark for question in asked.values()}
    if len(benchmarks) != 1:
        raise ValueError(f"expected answers to the questions of one benchmark, got {sorted(benchmarks) or 'none'}")
    verdicts = {row["id"]: judge(asked[row["id"]], row.get("text") or "") for row in rows}
    groups = sorted({question.group for question in asked.values()})
    counts, incomplete = _count(rows, asked, verdicts, groups, questions)
    rule = _RULES.get(benchmark := benchmarks.pop(), _option_scores)
    totals, by_group = rule(counts.sum(0), groups)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in totals}
    flat = counts.reshape(len(counts), -1)
    for times in resamples(len(counts), draws, seed):
        for name, values in rule((times @ flat).reshape(len(times), len(groups), COLUMNS), groups)[0].items():
            drawn[name].append(values)
    return {
        "benchmark": benchmark,
        "n": len(rows),
        "pictures": len(counts),
        **({"incomplete": incomplete} if incomplete else {}),
        **{name: float(value) for name, value in totals.items()},
        "unparsed": sum(verdict.read_as is None for verdict in verdicts.values()) / len(rows),
        "ci95": {name: percentile_interval(np.concatenate(values)) for name, values in drawn.items()},
        **({"by_group": _by_group(by_group, counts.sum(0), groups)} if len(groups) > 1 else {}),
    }


def _count(
    rows: Sequence[Row],
    asked: Mapping[str, ScoredQuestion],
    verdicts: Mapping[str, Verdict],
    groups: Sequence[str],
    questions: Mapping[str, ScoredQuestion],
) -> tuple[np.ndarray, int]:
    """Count (P, G, COLUMNS) per picture and group, and what was not asked whole."""
    picture = {name: i for i, name in enumerate(sorted({row["dialogue"] for row in rows}))}
    group = {name: i for i, name in enumerate(groups)}
    counts = np.zeros((len(picture), len(group), COLUMNS))
    sizes: dict[str, int] = {}
    for question in questions.values():
        sizes[question.together] = sizes.get(question.together, 0) + 1
    together: dict[str, list[float]] = {}
    place: dict[str, tuple[int, int]] = {}
    for row in rows:
        question, verdict = asked[row["id"]], verdicts[row["id"]]
        cell = place[question.together] = picture[row["dialogue"]], group[question.group]
        yes, is_yes = verdict.read_as == "yes", question.gold[0] == "yes"
        counts[cell] += (1, verdict.right, 0, 0, yes, is_yes, yes and is_yes)
        together.setdefault(question.together, []).append(verdict.right)
    whole = {name: right for name, right in together.items() if len(right) == sizes[name]}
    for name, right in whole.items():
        counts[place[name]][[TOGETHER, ALL_RIGHT]] += (1, all(one == 1 for one in right))
    return counts, len(together) - len(whole)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; 0 where there is nothing to divide by."""
    shares: np.ndarray = np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=whole > 0)
    return shares


def _mme_scores(sums: np.ndarray, groups: Sequence[str]) -> tuple[Scores, Scores]:
    """Accuracy and accuracy+ of each category in %, their sum its score; the scores of categories are added up."""
    accuracy = 100 * _share(sums[..., RIGHT], sums[..., N])
    pairs = 100 * _share(sums[..., ALL_RIGHT], sums[..., TOGETHER])
    score = accuracy + pairs
    seeing = np.array([group in PERCEPTION for group in groups])
    totals = {
        "score": score.sum(-1),
        "perception": score[..., seeing].sum(-1),
        "cognition": score[..., ~seeing].sum(-1),
    }
    totals |= {"accuracy": _share(sums[..., RIGHT].sum(-1), sums[..., N].sum(-1))}
    return totals, {"score": score, "accuracy": accuracy / 100, "accuracy_plus": pairs / 100}


def _pope_scores(sums: np.ndarray, groups: Sequence[str]) -> tuple[Scores, Scores]:
    """Accuracy, precision, recall and F1 of yes, and the share of yes among the answers; plain means over subsets."""
    precision = _share(sums[..., TRUE_YES], sums[..., SAID_YES])
    recall = _share(sums[..., TRUE_YES], sums[..., IS_YES])
    by_group = {
        "accuracy": _share(sums[..., RIGHT], sums[..., N]),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * sums[..., TRUE_YES], sums[..., SAID_YES] + sums[..., IS_YES]),
        "yes_ratio": _share(sums[..., SAID_YES], sums[..., N]),
    }
    occurs = sums[..., N] > 0  # in a resample a small subset may not
    return {name: _share((value * occurs).sum(-1), occurs.sum(-1)) for name, value in by_group.items()}, by_group


def _option_scores(sums: np.ndarray, groups: Sequence[str]) -> tuple[Scores, Scores]:
    """The share of questions that are right in all their rotations, and of single ones, where there are rotations."""
    accuracy = _share(sums[..., ALL_RIGHT].sum(-1), sums[..., TOGETHER].sum(-1))
    each = _share(sums[..., RIGHT].sum(-1), sums[..., N].sum(-1))
    totals = {"accuracy": accuracy, "accuracy_each": each}
    return totals, {"accuracy": _share(sums[..., ALL_RIGHT], sums[..., TOGETHER])}


def _vqa_scores(sums: np.ndarray, groups: Sequence[str]) -> tuple[Scores, Scores]:
    """The mean agreement with the annotators."""
    totals = {"accuracy": _share(sums[..., RIGHT].sum(-1), sums[..., N].sum(-1))}
    return totals, {"accuracy": _share(sums[..., RIGHT], sums[..., N])}


_RULES: dict[str, Callable[[np.ndarray, Sequence[str]], tuple[Scores, Scores]]] = {
    "mme": _mme_scores,
    "pope": _pope_scores,
    "textvqa": _vqa_scores,
    "vqav2": _vqa_scores,
}


def _by_group(scores: Scores, sums: np.ndarray, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    return {
        group: {"n": int(sums[i, N]), **{name: float(value[i]) for name, value in scores.items()}}
        for i, group in enumerate(groups)
    }


__all__ = ["general_scores", "judge", "normalise_answer", "read_mme", "read_option", "read_pope", "vqa_accuracy"]
