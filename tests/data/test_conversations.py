"""The authors' conversation JSON: turns to samples, places for clips, weights, and every kind of malformed row."""

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from zoo.data import Conversations
from zoo.data.batches import Batches
from zoo.media import Media, Unreadable


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
        ({"id": "x", "conversations": [{"from": "human", "value": "Why?"}] * 2}, "turn 1 is"),
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
        ({"train": [{"path": 3}]}, "path is 3; expected a path as text"),
        ({"train": [{"path": "*/talk.json"}] * 2}, "two files called"),
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


# ---- files that are read by an index
def files_of(home: Path, kind: str, rows: list) -> dict:
    """Write rows as a file of a kind, and return its entry in a mixture."""
    if kind == "jsonl":
        (home / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return {"path": "talk.jsonl", "root": "files"}
    with tarfile.open(home / "talk.tar", "w") as tar:
        for r in rows:
            for kind_, names in ((k, r.get(k, [])) for k in ("image", "video")):
                for i, name in enumerate([names] if isinstance(names, str) else names):
                    add(tar, f"k{r['id']}.{i}.{name.rpartition('.')[2]}", f"{kind_} {name}".encode())
            add(tar, f"k{r['id']}.json", json.dumps(r).encode())
    return {"path": "talk.tar"}


def add(tar, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def without_places(sample):
    """A sample whose clips are named by their suffix alone."""
    bare = [replace(t, video=t.video and Path(t.video.suffix)) for t in (sample.target, *sample.history)]
    return replace(sample, target=bare[0], history=tuple(bare[1:]))


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
@pytest.mark.parametrize("answers", ["apart", "together"])
def test_an_index_gives_the_samples_of_the_list(home, kind, answers):
    rows = [GOOD[i % 4] | {"id": i} for i in range(40)]
    entry = files_of(home, kind, rows) | {"weight": 1.75, "template": "{question} Be brief."}
    of_list = {"path": "talk.json", "root": "files"} | {k: entry[k] for k in ("weight", "template")}
    options = {"answers": answers, "dev_share": 0.2}
    expected, got = (made(home, rows, {"train": [e]}, **options) for e in (of_list, entry))
    for split in ("train", "dev"):
        one, other = expected.reading(split), got.reading(split)
        assert [*map(without_places, other.samples)] == [*map(without_places, one.samples)] and len(one.samples) > 8
        assert (other.notes, other.excluded) == (one.notes, one.excluded)
        assert one.samples.dialogue_numbers().tolist() == other.samples.dialogue_numbers().tolist()
        assert other.notes["answers without a picture or video"] == sum(
            all(t.video is None for t in (s.target, *s.history)) for s in other.samples
        )
    limited = made(home, rows, {"train": [entry]}, limit=3, **options).samples("train")
    assert [s.id for s in limited] == [
        s.id for s in got.samples("train") if s.dialogue in {x.dialogue for x in limited}
    ]
    assert len({s.dialogue for s in limited}) == 3


def test_samples_that_are_made_when_asked_for(home):
    samples = made(home).samples("train")
    assert len(samples) == 5 and samples[-1] == samples[4] == [*samples][4] and samples[1:4:2][1] == samples[3]
    with pytest.raises(IndexError, match="no sample 5 of 5"):
        samples[5]
    lengths = samples.lengths()  # of both answers of the first row: half and whole
    assert lengths[0] == lengths[1] // 2 > lengths[4] // 2 > 0
    assert samples.dialogue_numbers().tolist() == [0, 0, 1, 2, 3]
    order = Batches(samples, None, 2, True, True, True, 0).order(0)
    assert sorted(np.concatenate(order).tolist()) == [0, 1, 2, 3, 4]


def test_all_answers_of_a_conversation_together(home):
    data = made(home, answers="together")
    first, *rest = data.samples("train")
    assert len(rest) == 3 and first.learn_history and first.answer == "Red." and first.id.endswith("talk_a_1")
    assert [t.speaker for t in first.history] == ["user", "assistant"] and first.history[1].text == "A bus."
    assert len(data.samples("test")) == 5 and not any(s.learn_history for s in data.samples("test"))
    data = made(
        home,
        mixture={"train": [{"path": "talk.json", "root": "files", "template": "{question} Briefly."}]},
        answers="together",
    )
    assert data.samples("train")[0].history[0].text == "<image>\nWhat is it? Briefly."
    with pytest.raises(ValueError, match="answers is apart or together, got 'all'"):
        made(home, answers="all")


OTHER_KEYS = {
    "id": "a",
    "images": ["a.png"],
    "messages": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A bus."},
    ],
}


def test_keys_of_others(home):
    sample, caption = made(home, [OTHER_KEYS, {"id": "b", "image": "a.png", "caption": "a bus"}]).samples("test")
    assert (sample.question, sample.answer, sample.target.video.name) == ("<image>\nWhat is it?", "A bus.", "a.png")
    assert [(t.speaker, t.text) for t in sample.history] == [("system", "Be kind.")]
    assert (caption.question, caption.answer, caption.target.video.name) == ("<image>", "a bus", "a.png")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"image": "a.png"}, "both image and images"),
        ({"caption": "a bus"}, "both messages and caption"),
        ({"messages": None, "caption": 7}, "caption is 7, expected text"),
        (
            {"messages": OTHER_KEYS["messages"][1:] + OTHER_KEYS["messages"][:1]},
            "the system, expected the words of the user",
        ),
        (
            {"messages": [{"from": "human", "value": "Hi"}, {"from": "bot", "value": "Hi"}]},
            "one of user, human, assistant",
        ),
        ({"messages": [{"from": "system", "value": "<image>"}, *OTHER_KEYS["messages"][1:]]}, "the system has a place"),
    ],
)
def test_malformed_rows_of_others(home, change, reason):
    ((_, why),) = made(home, [GOOD[0] | {"id": 1}, OTHER_KEYS | change]).reading("test").excluded.items()
    assert reason in why


def test_shards_by_a_pattern(home):
    for name in ("one", "two"):
        (home / name).mkdir()
        with tarfile.open(home / name / "00000.tar", "w") as tar:
            add(tar, f"{name}.jpg", b"picture")
            add(tar, f"{name}.txt", b"a caption of it")
    mixture = {
        "test": [
            {"path": f"../{home.name}/{name}/*.tar", "template": "{question} Describe."} for name in ("one", "two")
        ]
    }
    samples = made(home, mixture=mixture, index_folder=home / "kept").samples("test")
    assert [s.id for s in samples] == ["conversations/test/one-00000_one_0", "conversations/test/two-00000_two_0"]
    assert samples[0].question == "<image> Describe." and samples[0].answer == "a caption of it"
    assert len([*(home / "kept").iterdir()]) == 2 and len([*(home / "one").iterdir()]) == 1
    with pytest.raises(FileNotFoundError, match=r"no file is called .*none/\*\.tar"):
        made(home, mixture={"test": [{"path": "none/*.tar"}]}).samples("test")


def test_what_an_index_leaves_to_the_reading(home):
    """A picture that is not there, and a row that was in order when the index was made."""
    rows = [GOOD[0], row("gone", "<image>?", "No.", image="gone.png"), row("z", "Why?", "No.")]
    data = made(
        home, mixture={"train": [files_of(home, "jsonl", rows)], "dev": [{"path": "talk.json", "root": "files"}]}
    )
    samples = data.samples("train")
    assert [s.answer for s in samples] == ["A bus.", "Red.", "No.", "No."] and not data.reading("train").excluded
    path = home / "talk.jsonl"
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Why?", b'W"y?'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and time: only the row itself can tell
    broken = samples[3]
    assert (broken.question, broken.answer) == ("", "") and samples[0].answer == "A bus."
    media = Media()
    with pytest.raises(Unreadable):
        media.frames(broken.target.video)
    assert [r["file"] for r in media.new_problems()] == ["talk_row2.png"]


def test_another_encoding_than_utf8_has_no_index(home):
    with pytest.raises(ValueError, match="read by its index, as UTF-8 alone; got --data.encoding gb18030"):
        made(home, mixture={"test": [files_of(home, "jsonl", GOOD)]}, encoding="gb18030").samples("test")
