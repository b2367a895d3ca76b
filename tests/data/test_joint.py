import pytest
from jsonargparse import ArgumentParser

from tests.data.miniature import write_goemotions, write_meld
from zoo.data.adaptation import Adaptation
from zoo.data.base import EmotionData
from zoo.data.goemotions import GoEmotions
from zoo.data.joint import Joint
from zoo.data.meld import MELD


@pytest.fixture
def roots(tmp_path):
    return write_meld(tmp_path / "meld"), write_goemotions(tmp_path / "goemotions")


def test_parts_follow_each_other_with_their_own_labels(roots):
    joint = Joint([MELD(root=roots[0]), GoEmotions(root=roots[1])])
    reading = joint.reading("dev")
    assert [s.labels.corpus for s in reading.samples] == ["meld"] * 21 + ["goemotions"] * 21
    assert joint.label_sets == {"meld": MELD.labels, "goemotions": GoEmotions.labels}
    assert reading.report() == {
        "n_used": 42,
        "n_official": 1109 + 5426,
        "excluded": {},
        "notes": {"meld: used": 21, "goemotions: used": 21},
    }
    assert joint.protocol == "all_utterances" and joint.splits() == ("train", "dev", "test")


def test_what_the_parts_left_out_is_said_with_their_names(roots):
    path = roots[1] / "ekman_train.tsv"
    path.write_text(path.read_text() + "\t3\tblank\nTwo\t1,2\ttwo\n")
    reading = Joint([MELD(root=roots[0], limit=1), GoEmotions(root=roots[1])]).reading("train")
    assert reading.excluded == {"goemotions/blank": "empty text"}
    assert reading.report()["notes"] == {
        "meld: used": 7,
        "meld: left out by --data.limit": 49,
        "goemotions: used": 70,
        "goemotions: sentences with several labels, left out": 1,
    }


def test_a_split_that_only_some_parts_have(roots):
    class NoTest(GoEmotions):
        def splits(self):
            return ("train", "dev")

    reading = Joint([MELD(root=roots[0]), NoTest(root=roots[1])]).reading("test")
    assert reading.notes["goemotions: has no test split"] == 1 and len(reading.samples) == 21


def test_refusals(roots):
    meld, goemotions = MELD(root=roots[0]), GoEmotions(root=roots[1])
    with pytest.raises(ValueError, match="Joint got the corpora meld, goemotions, meld; expected .* each once"):
        Joint([meld, goemotions, MELD(root=roots[0])])
    with pytest.raises(ValueError, match="Joint got the corpora none; expected at least one"):
        Joint([])
    with pytest.raises(ValueError, match="Joint got limit 3; expected it on each part"):
        Joint([meld, goemotions], limit=3)
    with pytest.raises(ValueError, match="Joint got root"):
        Joint([meld], root=roots[0])


def test_every_part_keeps_its_protocol(roots):
    last, goemotions = MELD(root=roots[0], protocol="last_utterance"), GoEmotions(root=roots[1])
    assert Joint([last]).protocol == "last_utterance"
    joint = Joint([last, goemotions])
    assert joint.protocols == {"meld": "last_utterance", "goemotions": "all_utterances"}
    assert joint.protocol == "meld: last_utterance, goemotions: all_utterances"
    assert Joint([joint]).protocols == joint.protocols
    adapted = Adaptation(joint).protocols
    assert adapted == {name: f"{protocol}, transductive" for name, protocol in joint.protocols.items()}
    assert [s.labels.corpus for s in joint.samples("test")].count("meld") == 3  # a test dialogue's last one each


def test_from_a_config(roots):
    parser = ArgumentParser()
    parser.add_subclass_arguments(EmotionData, "data")
    parts = [
        {"class_path": "zoo.data.meld.MELD", "init_args": {"root": str(roots[0]), "limit": 2}},
        {"class_path": "zoo.data.goemotions.GoEmotions", "init_args": {"root": str(roots[1])}},
    ]
    config = {"data": {"class_path": "zoo.data.joint.Joint", "init_args": {"parts": parts, "batch_size": 8}}}
    data = parser.instantiate(parser.parse_object(config)).data
    assert data.batch_size == 8 and len(data.samples("train")) == 14 + 70
