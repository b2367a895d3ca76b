"""The authors' conversation JSON: turns to samples, places for clips, weights, and every kind of malformed row."""

import json
from pathlib import Path

import pytest
import yaml

from zoo.data import Conversations


def said(*contents: str) -> list[dict]:
    return [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


def row(id_, *contents, **files) -> dict:
    return {"id": id_, **files, "conversations": said(*contents)}


GOOD = [
    row("a", "<image>\nWhat is it?", "A bus.", "Which colour?", "Red.", image="a.png"),
    row("b", "Compare <image> with <image> please", "Alike.", image=["a.png", "deep/b.png"]),
    row("c", "<video> What happens?", "Rain.", video="c.mp4"),
    row(7, "No picture. Hello?", "Hello."),
]


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "files" / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png", "c.mp4"):
        (tmp_path / "files" / name).touch()
    return tmp_path


def made(home: Path, rows: object = GOOD, mixture: object = None, **options) -> Conversations:
    (home / "talk.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    files = [{"path": "talk.json", "root": "files"}]
    (home / "mix.yaml").write_text(yaml.safe_dump(mixture or {"train": files, "dev": files, "test": files}))
    return Conversations(home / "mix.yaml", **options)


def test_every_answer_is_a_sample(home):
    reading = made(home).reading("test")
    assert not reading.excluded and reading.notes["answers without a picture or video"] == 1
    first, second, compared, video, plain = reading.samples
    assert (first.id, first.dialogue) == ("conversations/test/talk_a_0", "conversations/test/talk_a")
    assert (first.question, first.answer, first.history) == ("<image>\nWhat is it?", "A bus.", ())
    assert first.target.video == home / "files" / "a.png" and first.target.text == "" and first.label == -1
    assert (second.question, second.answer, second.target.video) == ("Which colour?", "Red.", None)
    assert [(t.speaker, t.text, t.video) for t in second.history] == [
        ("user", "<image>\nWhat is it?", home / "files" / "a.png"),
        ("assistant", "A bus.", None),
    ]
    # several pictures in one message are turns of one picture each, in order
    assert [(t.text, t.video) for t in compared.history] == [("Compare <image>", home / "files" / "a.png")]
    assert (compared.question, compared.target.video) == (" with <image> please", home / "files" / "deep" / "b.png")
    assert video.target.video == home / "files" / "c.mp4" and plain.id == "conversations/test/talk_7_0"


@pytest.mark.parametrize(
    "bad, reason",
    [
        (row("x", "<image> and <image>?", "No.", image="a.png"), "more <image> in the words than files"),
        (row("x", "<image>?", "No."), "more <image> in the words than files"),
        (row("x", "<video>?", "No.", image="a.png"), "more <video> in the words than files"),
        (row("x", "What?", "No.", image="a.png"), "more files than places in the words: left over {'image': 1}"),
        (row("x", "<image>?", "No.", image="../a.png"), "leaves its root"),
        (row("x", "<image>?", "No.", image="/etc/hosts"), "leaves its root"),
        (row("x", "<image>?", "No.", image="C:\\a.png"), "leaves its root"),
        (row("x", "<image>?", "No.", image="gone.png"), "'gone.png' is not there"),
        (row("x", "<image>?", "No.", image=3), "image is 3, expected a path"),
        (row("x", "Why?"), "no conversation of two turns"),
        (row("x", "Why?", "No.", "Why?"), "the last turn is the user's"),
        (row("x", "Why?", " "), "the assistant is empty"),
        (row("x", "Why?", "See <image>"), "the assistant has a place for a clip"),
        ({"id": "x", "conversations": said("Why?", "No.")[::-1]}, "turn 0 is .*, expected the words of the user"),
        ({"id": "x", "conversations": [{"from": "human", "value": "Why?"}] * 2}, "turn 0 is"),
        ({"conversations": said("Why?", "No.")}, "no row with an id"),
        ("Why?", "no row with an id"),
        (GOOD[0], "a second row of this id"),
    ],
)
def test_malformed_rows_are_left_out_by_name(home, bad, reason):
    reading = made(home, [*GOOD, bad]).reading("train")
    ((name, why),) = reading.excluded.items()
    assert len(reading.samples) == 5 and name in ("talk_x", "talk_row4", "talk_a")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(why)


def test_a_file_of_malformed_rows_alone_is_refused(home):
    with pytest.raises(ValueError, match="has no train samples .* excluded: 1"):
        made(home, [row("x", "<image>?", "No.")]).samples("train")


def test_weights_draw_with_a_seed(home):
    rows = [row(i, "Why?", f"{i}") for i in range(100)]

    def drawn(weight, seed=0, **more):
        files = [{"path": "talk.json", "weight": weight, **more}]
        data = made(home, rows, {"train": files, "dev": [{"path": "talk.json"}]}, mix_seed=seed)
        return data.samples("train")

    half, one, more = drawn(0.5), drawn(1), drawn(2.25)
    assert (len(half), len(one), len(more)) == (50, 100, 225) and len({s.id for s in more}) == 225
    assert [s.id for s in half] == [s.id for s in drawn(0.5)] != [s.id for s in drawn(0.5, seed=1)]
    assert {s.id for s in half} < {s.id for s in one}
    assert drawn(1, template="{question} Be brief.")[3].question == "Why? Be brief."


def test_dev_is_a_share_of_train_where_there_is_none(home):
    data = made(home, [row(i, "Why?", f"{i}") for i in range(50)], {"train": [{"path": "talk.json"}]}, dev_share=0.1)
    names = {split: {s.id.rpartition("/")[2] for s in data.samples(split)} for split in data.splits()}
    assert set(names) == {"train", "dev"} and len(names["dev"]) == 5 and len(names["train"]) == 45
    assert not names["train"] & names["dev"]
    with pytest.raises(ValueError, match="has no test files"):
        data.samples("test")


@pytest.mark.parametrize(
    "mixture, reason",
    [
        (["talk.json"], "must have train, dev or test"),
        ({"valid": []}, "must have train, dev or test"),
        ({"train": []}, "must be a list of files"),
        ({"train": [{"file": "talk.json"}]}, "expected path"),
        ({"train": [{"path": "talk.json", "weight": 0}]}, "expected a number over 0"),
        ({"train": [{"path": "talk.json", "weight": True}]}, "expected a number over 0"),
        ({"test": [{"path": "talk.json", "weight": 2}]}, "weights belong to train"),
        ({"train": [{"path": "talk.json", "template": "Be brief"}]}, "in it once"),
        ({"train": [{"path": "/talk.json"}]}, "is absolute"),
        ({"train": [{"path": "talk.json"}] * 2}, "two files called"),
    ],
)
def test_mixtures_that_are_refused(home, mixture, reason):
    with pytest.raises(ValueError, match=reason):
        made(home, mixture=mixture).samples("train")


def test_files_that_are_refused(home):
    with pytest.raises(FileNotFoundError, match="no mixture at"):
        Conversations(home / "none.yaml").samples("train")
    with pytest.raises(FileNotFoundError, match="gone.json does not exist"):
        made(home, mixture={"train": [{"path": "gone.json"}]}).samples("train")
    with pytest.raises(FileNotFoundError, match="no folder"):
        made(home, mixture={"train": [{"path": "talk.json", "root": "gone"}]}).samples("train")
    for text, reason in (("{", "not JSON"), ("{}", "holds a dict")):
        with pytest.raises(ValueError, match=reason):
            made(home, text).samples("train")
    with pytest.raises(ValueError, match="leave --data.root out"):
        made(home, root=home)


def test_rows_by_line(home):
    (home / "talk.jsonl").write_text("\n".join(map(json.dumps, GOOD)))
    assert len(made(home, mixture={"test": [{"path": "talk.jsonl", "root": "files"}]}).samples("test")) == 5
