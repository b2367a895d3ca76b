import json
from dataclasses import fields, replace

import pytest
from jsonargparse import ArgumentParser

from tests.data.miniature import write_goemotions, write_meld
from zoo.data import Adaptation, GoEmotions, Joint
from zoo.data.adaptation import without_labels
from zoo.data.base import EmotionData
from zoo.data.meld import MELD


@pytest.fixture
def root(tmp_path):
    return write_meld(tmp_path / "meld", dialogues=(2, 2, 9), kinds=("audio",))


def meld(root, **options):
    return MELD(root=root, descriptions=[root], **options)


def halves(root, seed):
    parts = [Adaptation(meld(root), "inductive", half, split_seed=seed) for half in (0, 1)]
    return [({s.id for s in d.samples("train")}, {s.id for s in d.samples("test")}) for d in parts]


def test_halves_cover_all_dialogues_once(root):
    (first, rest), (second, other) = halves(root, 0)
    whole = meld(root).samples("test")
    assert first | second == {s.id for s in whole} and not first & second
    assert (rest, other) == (second, first) and (len(first), len(second)) == (4 * 7, 5 * 7)
    by_dialogue = {s.id: s.dialogue for s in whole}
    assert not {by_dialogue[i] for i in first} & {by_dialogue[i] for i in second}


def test_halves_depend_on_their_seed_alone(root):
    assert halves(root, 0) == halves(root, 0) and len({frozenset(halves(root, seed)[0][0]) for seed in range(5)}) > 2
    data = Adaptation(meld(root, seed=7), "inductive", seed=5)
    assert {s.id for s in data.samples("train")} == halves(root, 0)[0][0]


def test_the_paper_adapts_to_what_it_reports_on(root):
    data = Adaptation(meld(root))
    ids = [s.id for s in meld(root).samples("test")]
    for split in ("train", "dev", "test"):
        assert [s.id for s in data.samples(split)] == ids
    assert data.protocol == "all_utterances, transductive" and data.reading("test").official == 2610
    assert Adaptation(meld(root, protocol="last_utterance"), "inductive").protocol == "last_utterance, inductive"


@pytest.mark.parametrize("protocol", ["transductive", "inductive"])
def test_no_label_but_everything_else_is_kept(root, protocol):
    """Neither of an utterance nor of what was said before it; the report has all of them."""
    data = Adaptation(meld(root), protocol)
    true = {s.id: s for s in meld(root).samples("test")}
    for split in ("train", "dev"):
        for s in data.samples(split):
            turns, known = (s.target, *s.history), (true[s.id].target, *true[s.id].history)
            assert s.label == -1 and len(turns) == len(known)
            for turn, own in zip(turns, known, strict=True):
                assert turn.label is None and own.label is not None
                for field in fields(turn):
                    assert field.name == "label" or getattr(turn, field.name) == getattr(own, field.name)
            assert (s.dialogue, s.labels, s.question) == (true[s.id].dialogue, true[s.id].labels, true[s.id].question)
    assert [data.truth(s.id) for s in data.samples("train")] == [true[s.id].label for s in data.samples("train")]
    for s in data.samples("test"):
        assert s == true[s.id] and s.label >= 0
    assert any(s.history for s in data.samples("train")) and any(s.target.descriptions for s in data.samples("train"))


def test_a_written_answer_is_a_label_too(root):
    sample = replace(meld(root).samples("test")[3], question="Which?", answer="Joy, because she laughs.")
    bare = without_labels(sample)
    assert (bare.answer, bare.question, bare.target.text) == (None, "Which?", sample.target.text)


def test_truth_is_known_of_what_is_adapted_to_alone(root):
    data = Adaptation(meld(root), "inductive", half=1)
    assert data.truth(data.samples("test")[0].id) is None
    held = {s.id for s in data.samples("train")}
    assert all((data.truth(s.id) is None) != (s.id in held) for s in meld(root).samples("test"))
    assert json.dumps(data.truth(next(iter(held)))).isdigit() and data.truth("meld/test/nosuch") is None
    assert data.labelled
    bare = Adaptation(meld(root))
    whole = bare.corpus.reading("test")
    whole.samples[3] = without_labels(whole.samples[3])
    assert not bare.labelled and bare.truth(whole.samples[4].id) is not None


def test_the_other_splits_of_the_corpus_are_never_read(root):
    for name in ("train", "dev"):
        (root / f"{name}_sent_emo.csv").unlink()
    assert len(Adaptation(meld(root)).samples("train")) == 63


def test_a_limit_counts_dialogues(root):
    data = Adaptation(meld(root), limit=2)
    assert len(data.samples("train")) == len(data.samples("test")) == 14
    assert data.reading("train").notes["left out by --data.limit"] == 49
    few = Adaptation(meld(root, limit=4), "inductive")
    assert len(few.samples("train")) == 14 and len(few.samples("test")) == 14


def test_what_the_corpus_left_out_is_said(root):
    path = root / "test_sent_emo.csv"
    path.write_bytes(path.read_bytes() + b'99,,Ada,joy,neutral,77,0,1,2,"00:00:01,000","00:00:02,000"\r\n')
    corpus, data = meld(root), Adaptation(meld(root))
    for split in ("train", "test"):
        assert data.reading(split).excluded == corpus.reading("test").excluded != {}
        data.reading(split).notes["a note"] = 1  # a system's own
    assert "a note" not in data.corpus.reading("test").notes


def test_refusals(root):
    with pytest.raises(ValueError, match=r"no folder of its own, got root .*give --data.corpus.root"):
        Adaptation(meld(root), root=root)
    with pytest.raises(ValueError, match="transductive or inductive and half 0 or 1, got 'both' and 0"):
        Adaptation(meld(root), "both")
    with pytest.raises(ValueError, match="got 'inductive' and 2"):
        Adaptation(meld(root), "inductive", half=2)


def test_from_a_config(root, tmp_path):
    parser = ArgumentParser()
    parser.add_subclass_arguments(EmotionData, "data")
    corpus = {"class_path": "zoo.data.meld.MELD", "init_args": {"root": str(root)}}
    init = {"corpus": corpus, "protocol": "inductive", "half": 1, "batch_size": 8}
    config = {"data": {"class_path": "zoo.data.Adaptation", "init_args": init}}
    data = parser.instantiate(parser.parse_object(config)).data
    assert (data.half, data.batch_size) == (1, 8) and data.labels == MELD.labels
    assert {s.id for s in data.samples("train")} == halves(root, 0)[1][0]


def test_corpora_that_are_joined_keep_their_labels(root, tmp_path):
    joint = Joint([meld(root), GoEmotions(root=write_goemotions(tmp_path / "goemotions"))])
    data = Adaptation(joint)
    assert data.label_sets == {"meld": MELD.labels, "goemotions": GoEmotions.labels}
    assert all(s.label == -1 and data.truth(s.id) is not None for s in data.samples("train"))
