"""The sitcom's general questions, explanations and named domains."""

import json
from pathlib import Path

import pytest

from zoo.data import Joint, NamedSynthetic, SyntheticQuestions, SyntheticReasons
from zoo.data.synthetic import Synthetic
from zoo.sitcom import release
from zoo.sitcom.cues import LABELS


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A written sitcom whose clips are empty files."""
    out = tmp_path_factory.mktemp("sitcom") / "corpus"
    write, release.write_clips = release.write_clips, _empty
    pool, release.ProcessPoolExecutor = release.ProcessPoolExecutor, _Here
    try:
        release.write(out, {"train": 3, "dev": 1, "test": 2})
    finally:
        release.write_clips, release.ProcessPoolExecutor = write, pool
    return out


def _empty(job) -> int:
    dialogue, _, folder = job
    for u in dialogue.utterances:
        (folder / f"{u.id}.mp4").touch()
    return 0


class _Here:
    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def map(self, call, jobs, **_):
        return map(call, jobs)


def test_every_kind_is_a_corpus_with_its_choices(root):
    data = SyntheticQuestions(root=root)
    assert {c: labels.names for c, labels in data.label_sets.items()} == {
        "people": ("none", "one", "two"),
        "wall": ("red", "yellow", "green", "blue", "purple", "white"),
        "object": ("lamp", "plant", "clock", "window", "picture"),
        "side": ("left", "right"),
    }
    samples, sitcom = data.samples("train"), Synthetic(root=root).samples("train")
    asked = [json.loads(x) for x in (root / "questions.jsonl").read_text().splitlines()]
    asked = [row for row in asked if row["id"].startswith("synthetic/train/")]
    assert len(samples) == len(asked) == 4 * len(sitcom)
    for s, row in zip(samples, asked, strict=True):
        assert (s.question, s.target.label) == (row["question"], row["answer"])
        assert s.labels.names == tuple(row["choices"])
        assert s.id == f"{s.labels.corpus}/{row['id'].partition('/')[2]}" and s.answer is None
        assert s.target.text == "" and not s.history and not s.target.descriptions and s.target.audio is None
    assert samples[0].target.video == sitcom[0].target.video and samples[0].dialogue == "people/train/dia0"
    assert len({s.id for s in samples}) == len(samples)


def test_a_scene_in_words_holds_every_answer_and_no_clip(root):
    seen = SyntheticQuestions(root=root).samples("dev")
    for s, own in zip(SyntheticQuestions(root=root, scene_in_words=True).samples("dev"), seen, strict=True):
        assert s.target.label in s.target.text.replace(".", "").split() and s.target.video is None
        assert (s.id, s.question, s.target.label) == (own.id, own.question, own.target.label)


def test_some_kinds_per_dialogue_under_a_name(root):
    data = SyntheticQuestions(root=root, kinds=["side", "wall"], name="wild", per="dialogue", limit=2)
    assert list(data.label_sets) == ["wild_side", "wild_wall"]
    assert len(data.samples("train")) == 4  # two scenes of three
    assert [s.id for s in data.samples("test")] == [
        f"wild_{kind}/test/dia{d}_utt0" for d in range(2) for kind in ("side", "wall")
    ]


def test_explanations_end_with_the_label_and_stand_in_no_prompt(root):
    data = SyntheticReasons(root=root)
    truth = {r["id"]: r["rationale"] for r in map(json.loads, (root / "truth.jsonl").read_text().splitlines())}
    for s in data.samples("test"):
        assert s.answer == truth[s.id.replace("reasons/", "synthetic/")] and s.answer.endswith(f"{s.target.label}.")
        assert s.question and s.answer not in str(s.target) and s.labels.corpus == "reasons"


def test_emotions_of_two_domains_and_questions_together(root):
    parts = [
        NamedSynthetic("studio", root=root),
        NamedSynthetic("wild", root=root),
        SyntheticQuestions(root=root),
        SyntheticReasons(root=root),
    ]
    joint = Joint(parts)
    assert list(joint.label_sets) == ["studio", "wild", "people", "wall", "object", "side", "reasons"]
    samples = joint.samples("test")
    n = len(Synthetic(root=root).samples("test"))
    assert len(samples) == 7 * n == len({s.id for s in samples})
    assert all(s.id.startswith(f"{s.labels.corpus}/test/") and s.label >= 0 for s in samples)
    assert joint.label_sets["wild"].names == LABELS


def test_refusals(root, tmp_path):
    with pytest.raises(ValueError, match="kinds are some of people, wall, object, side, each once"):
        SyntheticQuestions(root=root, kinds=["people", "age"])
    with pytest.raises(ValueError, match="give --data.root"):
        SyntheticQuestions()
    with pytest.raises(ValueError, match="a corpus name is made of"):
        NamedSynthetic("a/b")
    for name in ("corpus.json", *(p.name for p in root.glob("*_sent_emo.csv")), *(p.name for p in root.glob("*.json"))):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    with pytest.raises(FileNotFoundError, match="questions.jsonl does not exist"):
        SyntheticQuestions(root=tmp_path).samples("test")
    (tmp_path / "questions.jsonl").write_text('{"id": "synthetic/test/dia0_utt0", "question": "?", "answer": "red"}\n')
    with pytest.raises(ValueError, match="line 1 is no question of the sitcom"):
        SyntheticQuestions(root=tmp_path).samples("test")
    (tmp_path / "questions.jsonl").write_text("")
    with pytest.raises(ValueError, match="asks nothing about synthetic/test/dia0_utt0"):
        SyntheticQuestions(root=tmp_path).samples("test")
