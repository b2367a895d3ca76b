"""Rewards of the modality selector's answers, and the file its decisions travel in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zoo.rl import Answer
from zoo.runs import run_of
from zoo.schema import Sample
from zoo.storage import parse_json, split_lines

TEMPLATES = Path(__file__).parent / "templates"
KEEP, DISCARD = "Yes, the captions should remain", "No, the captions should be removed"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
WHOLE = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def read_decision(text: str, tagged: bool = True) -> bool | None:
    """Return True (keep), False (discard), or None unless exactly one of the two phrases stands in the answer.

    Args:
        tagged: only the text inside <answer> counts; else all of it.
    """
    if tagged:
        blocks = ANSWER.findall(text)
        if len(blocks) != 1:
            return None
        text = blocks[0]
    present = [phrase.lower() in text.lower() for phrase in (KEEP, DISCARD)]
    return present[0] if sum(present) == 1 else None


@dataclass(frozen=True)
class Format:
    """Whether an answer is one <think> and one <answer> block.

    Args:
        kind: ``paper``: 1 if the whole answer is that, every tag exactly once, else 0. ``code_intended``: the authors'
            script with its two slips repaired: .125 for each tag that stands exactly once before a line break, .5 if
            the answer begins with the two blocks, .5 if each tag also has a line of its own. ``code_literal``: the
            script as it is: its patterns do not cross lines, so that the first .5 needs both blocks on one line, and
            the second has ``n</think>`` where a line break was meant: it needs one line of thoughts that ends in n.
    """

    kind: Literal["paper", "code_intended", "code_literal"] = "paper"

    def __call__(self, answer: Answer) -> float:
        text = answer.text
        if self.kind == "paper":
            return float(WHOLE.fullmatch(text) is not None and all(text.count(tag) == 1 for tag in TAGS))
        lines = re.DOTALL if self.kind == "code_intended" else re.NOFLAG
        marks = 0.125 * sum(text.count(f"{tag}\n") == 1 for tag in TAGS)
        soft = 0.5 * bool(re.match(r"<think>.*?</think>\s*<answer>.*?</answer>", text, lines))
        end = "</think>" if self.kind == "code_intended" else "n</think>"
        strict = rf"^<think>\n.*?\n?{end}\n<answer>\n.*?\n</answer>\n?$"
        return marks + soft + 0.5 * bool(re.match(strict, text, lines))


@dataclass(frozen=True)
class Response:
    """1 for an answer that decides, -.5 otherwise.

    Args:
        kind: ``paper``: exactly one of the two phrases, inside <answer>. ``code``: either phrase (also both) after the
            last <answer>, or anywhere if there is none.
        tagged: False for answers without <answer> tags (``reasoning: none``).
    """

    kind: Literal["paper", "code"] = "paper"
    tagged: bool = True

    def __call__(self, answer: Answer) -> float:
        if self.kind == "paper":
            return 1.0 if read_decision(answer.text, self.tagged) is not None else -0.5
        last = answer.text.rpartition("<answer>")[2].lower()
        return 1.0 if KEEP.lower() in last or DISCARD.lower() in last else -0.5


@dataclass
class Downstream:
    """A reward for what keeping the descriptions does to a classifier (ours).

    The paper's rewards never look at the emotion, so that for them a constant answer is optimal.

    Keeping is worth the gain, discarding 0, and an answer that decides nothing the worse of the two.

    Args:
        file: ``predictions.jsonl`` of a `SelectedClassifier` that was run with ``compare``, or its run folder.
        kind: ``log_probability``: of the right label, with descriptions minus without. ``probability``: the same of its
            probability, which one very sure and wrong answer cannot outweigh. ``entropy``: that of the label
            distribution without minus with; needs no label, and cannot tell help from wrong conviction.
        tagged: as in `Response`.

    Raises:
        ValueError: the file holds no comparisons, or a sample is asked about that it lacks (unless ``kind`` is entropy,
            those without label are left out).
    """

    file: str
    kind: Literal["log_probability", "probability", "entropy"] = "log_probability"
    tagged: bool = True
    gains: dict[str, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.gains = {}
        for row in read_rows(self.file, "predictions.jsonl"):
            both = row.get("details") or {}
            if "with" not in both or "without" not in both:
                raise ValueError(
                    f"{self.file} does not say what the classifier answers with and without descriptions; make it with "
                    "zoo predict --ckpt_path CLASSIFIER --model.compare true --data.predict_splits [train,dev,test]"
                )
            if self.kind != "entropy" and row["label"] is None:
                continue
            self.gains[row["id"]] = gain(both["with"], both["without"], row["label"], self.kind)

    def require(self, samples: Sequence[Sample], split: str) -> None:
        """Check that the file says something about every sample; ValueError naming those it lacks."""
        missing = [s.id for s in samples if s.id not in self.gains]
        if missing:
            unlabelled = "" if self.kind == "entropy" else " (or has no label for them)"
            raise ValueError(
                f"{self.file} says nothing about {len(missing)} of {len(samples)} {split} samples{unlabelled}: "
                f"{missing[:3]}; predict that split with the classifier, too (--data.predict_splits [train,dev,test]), "
                "on the same corpus"
            )

    def __call__(self, answer: Answer) -> float:
        if answer.sample.id not in self.gains:
            self.require([answer.sample], "of these")
        g = self.gains[answer.sample.id]
        decision = read_decision(answer.text, self.tagged)
        return min(g, 0.0) if decision is None else g if decision else 0.0


def gain(full: Mapping[str, float], bare: Mapping[str, float], label: str | None, kind: str) -> float:
    """Return the gain of `Downstream`. Probabilities below 1e-6, where the file rounds, count as that."""
    word = str(label)  # the two kinds of probability are of labelled samples
    if kind == "log_probability":
        return math.log(max(full[word], 1e-6)) - math.log(max(bare[word], 1e-6))
    if kind == "probability":
        return full[word] - bare[word]
    entropy = [-sum(p * math.log(p) for p in scores.values() if p > 0) for scores in (full, bare)]
    return entropy[1] - entropy[0]


def read_rows(path: str | Path, name: str) -> list[dict[str, Any]]:
    """Read the rows of a JSONL file, or of the file of that name in a run folder.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: a line that is no row.
    """
    argument = Path(path)
    folder = run_of(argument) if argument.suffix == ".ckpt" else argument
    file = folder / name if folder is not None and folder.is_dir() else argument
    if not file.is_file():
        raise FileNotFoundError(
            f"no {name} at {str(path)!r}: give the file, or a run folder that `zoo predict` wrote to"
        )
    rows = []
    for number, line in enumerate(split_lines(file.read_text(encoding="utf-8")), 1):
        expected = "expected a row as `zoo predict` writes; write the file again"
        try:
            row = parse_json(line, f"line {number}")
        except ValueError as error:
            raise ValueError(f"{file} line {number} is not JSON ({error}); {expected}") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            raise ValueError(f"{file} line {number} names no sample (id); {expected}")
        rows.append(row)
    return rows


def read_decisions(path: str | Path) -> dict[str, bool | None]:
    """Read sample id -> keep, discard, or None where the selector's answer could not be read.

    Raises:
        ValueError: rows without a decision, or two about one sample that differ.
    """
    decisions: dict[str, bool | None] = {}
    for row in read_rows(path, "decisions.jsonl"):
        word = (row.get("details") or {}).get("decision", "")
        if word not in ("keep", "discard", None):
            raise ValueError(
                f"{path}: {row['id']} has decision {word!r}, expected keep, discard or null in details.decision; "
                "is this the decisions.jsonl of a ModalitySelector?"
            )
        decision = None if word is None else word == "keep"
        if decisions.setdefault(row["id"], decision) != decision:
            raise ValueError(
                f"{path} decides twice about {row['id']}, and differently; expected one row for each sample"
            )
    return decisions
