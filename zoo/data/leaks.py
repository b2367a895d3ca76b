"""The same utterance in two splits or corpora: what is scored on one must not be trained on the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

import pandas as pd
from jsonargparse import ArgumentParser

from zoo.data.base import EmotionData
from zoo.data.emorynlp import EmoryNLP
from zoo.data.goemotions import GoEmotions
from zoo.data.meld import MELD
from zoo.data.synthetic import Synthetic
from zoo.data.text import normalise, whole_number
from zoo.schema import Sample


def find_leaks(a: Sequence[Sample], b: Sequence[Sample], min_words: int = 5) -> list[tuple[str, str]]:
    """Find pairs (id in a, id in b) that are equal after `normalise`; a sample is no leak of itself.

    Only those of a's utterances that have at least ``min_words`` words as written, i.e. between spaces.
    """
    where = defaultdict(list)
    for sample in b:
        where[normalise(sample.target.text)].append(sample.id)
    return [
        (sample.id, other)
        for sample in a
        if len(sample.target.text.split()) >= min_words
        for other in where.get(normalise(sample.target.text), ())
        if other != sample.id
    ]


def leak_report(
    datasets: Mapping[str, Sequence[Sample]], min_words: int = 5, pairs: Sequence[tuple[str, str]] | None = None
) -> pd.DataFrame:
    """Count, for each ordered pair of data sets, how many utterances of a stand in b too.

    Of at least ``min_words`` words, as written; for the pairs given, or all.
    """
    every = {name: {normalise(s.target.text) for s in samples} for name, samples in datasets.items()}
    long = {
        name: [normalise(s.target.text) for s in samples if len(s.target.text.split()) >= min_words]
        for name, samples in datasets.items()
    }
    rows = []
    for a, b in permutations(datasets, 2) if pairs is None else pairs:
        shared = sum(text in every[b] for text in long[a])
        rows.append(
            {
                "a": a,
                "b": b,
                "utterances in a": len(long[a]),
                "also in b": shared,
                "share": shared / len(long[a]) if long[a] else 0.0,
            }
        )
    return pd.DataFrame(rows)


def main(argv: list[str]) -> int:
    """Print the table for every pair of splits of the corpora given, and of every split with each other corpus."""
    parser = ArgumentParser(prog="zoo prepare leaks", description="Utterances that two splits or corpora share.")
    parser.add_subclass_arguments(EmotionData, "data", required=False, help="a corpus, as of `zoo fit`: --data Table")
    parser.add_argument("--meld", type=Path, metavar="DIR", help="folder of MELD's CSVs")
    parser.add_argument("--emorynlp", type=Path, metavar="DIR", help="folder of EmoryNLP's CSVs")
    parser.add_argument("--goemotions", type=Path, metavar="DIR", help="folder of the Ekman TSVs")
    parser.add_argument("--synthetic", type=int, metavar="N", help="training dialogues of the embedded corpus")
    parser.add_argument("--min_words", type=int, default=5, help="shorter utterances are everyday phrases (default: 5)")
    parsed = parser.parse_args(argv)
    args = parser.instantiate(parsed)
    whole_number("--min_words", args.min_words)
    corpora: list[EmotionData] = [] if args.data is None else [args.data]
    if args.meld:
        corpora.append(MELD(root=args.meld))
    if args.emorynlp:
        corpora.append(EmoryNLP(root=args.emorynlp))
    if args.goemotions:
        corpora.append(GoEmotions(root=args.goemotions, multi_label="first"))  # all sentences
    if args.synthetic is not None:
        corpora.append(Synthetic(train_dialogues=args.synthetic))
    if not corpora:
        parser.error(
            "give --meld DIR, --emorynlp DIR, --goemotions DIR, --synthetic N, --data NAME, or several of them"
        )
    whole = {c.labels.corpus: {f"{c.labels.corpus}/{split}": c.samples(split) for split in c.splits()} for c in corpora}
    datasets = {name: samples for splits in whole.values() for name, samples in splits.items()}
    pairs = list(permutations(datasets, 2))
    for corpus, groups in whole.items():
        datasets[corpus] = [sample for samples in groups.values() for sample in samples]
        pairs += [(split, corpus) for other in whole if other != corpus for split in whole[other]]
    print(f"utterances of at least {args.min_words} words, equal without case and punctuation")
    table = leak_report(datasets, args.min_words, pairs)
    print(table.to_string(index=False, formatters={"share": "{:.2%}".format}))
    return 0
