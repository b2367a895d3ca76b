"""The same utterance in two splits or corpora: what is scored on one must not be trained on the other."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import pandas as pd

from zoo.data.goemotions import GoEmotions
from zoo.data.meld import MELD
from zoo.data.synthetic import Synthetic
from zoo.schema import Sample


def normalise(text: str) -> str:
    """Lower case, apostrophes removed, other punctuation as space: what is equal here was said word for word.

    >>> normalise("No -- I DON’T!")
    'no i dont'
    """
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’‘`´]", "", text.lower())).split())


def find_leaks(a: Sequence[Sample], b: Sequence[Sample], min_words: int = 5) -> list[tuple[str, str]]:
    """Pairs (id in a, id in b) that say the same in at least ``min_words`` words; a sample is no leak of itself."""
    where = defaultdict(list)
    for sample in b:
        where[normalise(sample.target.text)].append(sample.id)
    return [
        (sample.id, other)
        for sample in a
        if len((text := normalise(sample.target.text)).split()) >= min_words
        for other in where.get(text, ())
        if other != sample.id
    ]


def leak_report(datasets: Mapping[str, Sequence[Sample]], min_words: int = 5) -> pd.DataFrame:
    """For each ordered pair of data sets: how many of a's utterances of at least ``min_words`` words stand in b too."""
    texts = {name: [normalise(s.target.text) for s in samples] for name, samples in datasets.items()}
    long = {name: [text for text in own if len(text.split()) >= min_words] for name, own in texts.items()}
    rows = []
    for a, b in permutations(datasets, 2):
        inside = set(long[b])
        shared = sum(text in inside for text in long[a])
        rows.append({"a": a, "b": b, "utterances in a": len(long[a]), "also in b": shared,
                     "share": shared / len(long[a]) if long[a] else 0.0})
    return pd.DataFrame(rows)


def main(argv: list[str]) -> int:
    """Prints the table for every pair of splits of the corpora given."""
    parser = argparse.ArgumentParser("zoo prepare leaks", description="Utterances that two splits or corpora share.")
    parser.add_argument("--meld", type=Path, metavar="DIR", help="folder of MELD's CSVs")
    parser.add_argument("--goemotions", type=Path, metavar="DIR", help="folder of the Ekman TSVs")
    parser.add_argument("--synthetic", type=int, metavar="N", help="training dialogues of the embedded corpus")
    parser.add_argument("--min_words", type=int, default=5, help="shorter utterances are everyday phrases (default: 5)")
    args = parser.parse_args(argv)
    corpora = []
    if args.meld:
        corpora.append(MELD(root=args.meld))
    if args.goemotions:
        corpora.append(GoEmotions(root=args.goemotions, multi_label="first"))  # all sentences
    if args.synthetic:
        corpora.append(Synthetic(train_dialogues=args.synthetic))
    if not corpora:
        parser.error("give --meld DIR, --goemotions DIR, --synthetic N, or several of them")
    datasets = {f"{c.labels.corpus}/{split}": c.samples(split) for c in corpora for split in c.splits()}
    print(f"utterances of at least {args.min_words} words, equal without case and punctuation")
    print(leak_report(datasets, args.min_words).to_string(index=False, formatters={"share": "{:.2%}".format}))
    return 0
