import pytest

from zoo.data.meld import CLIPS, MELD
from zoo.data.synthetic import Synthetic
from zoo.sitcom.release import CLIP_FOLDERS
from zoo.sitcom.settings import Settings


def test_corpus():
    data = Synthetic(train_dialogues=5, dev_dialogues=3, test_dialogues=4)
    assert data.labels.corpus == "synthetic" and data.labels.names == MELD.labels.names
    for split, size in (("train", 5), ("dev", 3), ("test", 4)):
        samples, dialogues = data.samples(split), data.dialogues(split)
        assert len({s.dialogue for s in samples}) == size and len({s.id for s in samples}) == len(samples)
        assert [s.target.text for s in samples] == [u.text for d in dialogues for u in d.utterances]
    first, third = data.samples("train")[0], data.samples("train")[2]
    assert (first.id, first.dialogue, first.history) == ("synthetic/train/dia0_utt0", "synthetic/train/dia0", ())
    assert third.history == (first.target, data.samples("train")[1].target)
    assert set(first.target.descriptions) == {"audio", "video"} and first.label in range(7)
    assert first.target.video is None and first.target.audio is None
    assert data.reading("train").report() == {
        "n_used": len(data.samples("train")),
        "n_official": None,
        "excluded": {},
        "notes": {},
    }


def test_splits_share_no_dialogue():
    data = [Synthetic(corpus_seed=seed, train_dialogues=20, dev_dialogues=20, test_dialogues=20) for seed in (0, 1)]
    first = [tuple(u.text for u in d.utterances) for c in data for split in c.splits() for d in c.dialogues(split)]
    assert len(set(first)) == len(first) == 120


def test_arguments():
    wild = Synthetic(domain="wild", descriptions="noisy", test_dialogues=3, batch_size=4, limit=2)
    assert wild.dialogues("test")[0].utterances[0].settings == Settings("noisy", "wild")
    assert len({s.dialogue for s in wild.samples("test")}) == 2
    assert Synthetic(seed=7, test_dialogues=2).samples("test") == Synthetic(test_dialogues=2).samples("test")


@pytest.mark.parametrize(
    "options, said",
    [
        ({"corpus_seed": -1}, "corpus_seed"),
        ({"dev_dialogues": 0}, "dev_dialogues"),
        ({"descriptions": "perfect"}, "clean, noisy"),
        ({"domain": "moon"}, "studio, wild"),
        ({"batch_size": 0}, "batch"),
    ],
)
def test_corpus_says_what_is_wrong(options, said):
    with pytest.raises(ValueError, match=said):
        Synthetic(**options)


def test_clips_lie_where_meld_has_them():
    assert CLIP_FOLDERS == CLIPS
