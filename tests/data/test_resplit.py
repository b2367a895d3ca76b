"""Resplit: whole dialogues, a named seed, every labelled sample once."""

from __future__ import annotations

import pytest

from zoo.data import Adaptation, Resplit, Synthetic

SPLITS = ("train", "dev", "test")


def corpus(**options):
    return Synthetic(train_dialogues=12, dev_dialogues=4, test_dialogues=4, **options)


def dialogues(data) -> dict[str, set[str]]:
    return {split: {s.dialogue for s in data.samples(split)} for split in SPLITS}


def test_every_dialogue_is_in_one_split():
    data = Resplit(corpus())
    parts = dialogues(data)
    assert {k: len(v) for k, v in parts.items()} == {"dev": 2, "train": 14, "test": 4}  # 80 % of 20, a tenth of it
    every = [s.id for split in SPLITS for s in data.samples(split)]
    assert sorted(every) == sorted(s.id for split in SPLITS for s in corpus().samples(split))
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))  # none is in two
    assert data.protocol == "all_utterances, random 80% of dialogues, seed 0"


def test_the_seed_alone_decides():
    assert dialogues(Resplit(corpus(seed=1))) == dialogues(Resplit(corpus(seed=2)))
    assert dialogues(Resplit(corpus(), split_seed=1)) != dialogues(Resplit(corpus()))


def test_its_test_split_can_be_adapted_to():
    data = Adaptation(Resplit(corpus()), protocol="inductive")
    whole = {s.id for s in Resplit(corpus()).samples("test")}
    adapt, report = ({s.id for s in data.samples(split)} for split in ("train", "test"))
    assert adapt | report == whole and not adapt & report
    assert data.protocol.endswith("seed 0, inductive")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train_share": 1.0}, "between 0 and 1"),
        ({"dev_share": 0.0}, "between 0 and 1"),
        ({"root": "x"}, "corpus.root"),
    ],
)
def test_settings_that_make_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        Resplit(corpus(), **options)


def test_too_few_dialogues():
    with pytest.raises(ValueError, match="3 dialogues are too few"):
        Resplit(Synthetic(train_dialogues=1, dev_dialogues=1, test_dialogues=1), train_share=0.3).samples("train")
