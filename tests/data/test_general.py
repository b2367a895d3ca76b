"""General benchmarks as released, read and asked through `zoo test`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.builders import make_corpus, make_llm, make_patch_vision
from tests.data.miniature_general import COLOURS, WRITERS, png, write_json, write_mmbench, write_mme, write_pope
from tests.runs_helper import QUIET, flags, metrics, newest, refused, rows, zoo
from zoo.backbones.tiny_image_text import make_image_text_folder
from zoo.data import General
from zoo.media import read_frames

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


def made(root: Path, benchmark: str, **options) -> General:
    return General(benchmark, root=WRITERS[benchmark](root), **options)


# ---- reading
EXPECTED = {  # samples, pictures, groups, what is asked first, gold of the first, notes
    "mme": (8, 4, {"color", "landmark"}, "Is it red? Please answer yes or no.", ("yes",), {}),
    "mmbench": (
        3,
        2,
        {"seeing", "knowing"},
        'It is "plain".\nWhich colour?\nA. red\nB. green\n'
        "Answer with the option's letter from the given choices directly.",
        ("A",),
        {},
    ),
    "pope": (
        8,
        2,
        {"random", "adversarial"},
        "Is there a adversarial dog in the image?\nAnswer the question using a single word or phrase.",
        ("no",),
        {},
    ),
    "scienceqa": (
        2,
        2,
        {"nature"},
        "Which is larger?\nA. a cat\nB. an ox\nAnswer with the option's letter from the given choices directly.",
        ("B",),
        {"questions without a picture, not asked": 1},
    ),
    "seedbench": (
        2,
        2,
        {"Scene Understanding", "Instances Counting"},
        "Where is it?\nA. A farm\nB. A road\nC. A bus\nD. A boat\n"
        "Answer with the option's letter from the given choices directly.",
        ("B",),
        {"questions about videos or several pictures, not asked": 1},
    ),
    "textvqa": (
        2,
        2,
        {"all"},
        "what does it say?\nAnswer the question using a single word or phrase.",
        ("stop",) * 9 + ("go",),
        {},
    ),
    "vqav2": (2, 2, {"yes/no"}, "Is it big?\nAnswer the question using a single word or phrase.", ("yes",) * 10, {}),
}


@pytest.mark.parametrize("benchmark", sorted(WRITERS))
def test_released_files_become_questions(benchmark, tmp_path):
    data = made(tmp_path, benchmark)
    n, pictures, groups, text, gold, notes = EXPECTED[benchmark]
    samples, questions = data.samples("test"), data.scored_questions("test")
    assert len(samples) == n and set(questions) == {s.id for s in samples}
    assert len({s.dialogue for s in samples}) == pictures
    assert {q.group for q in questions.values()} == groups and {q.benchmark for q in questions.values()} == {benchmark}
    assert (samples[0].question, questions[samples[0].id].gold) == (text, gold)
    assert samples[0].target.label is None and samples[0].answer == gold[0]
    assert data.reading("test").report() == {"n_used": n, "n_official": None, "excluded": {}, "notes": notes}
    for sample in samples:
        assert read_frames(sample.target.video).shape[1] == 3
    assert data.splits() == ("test",)
    with pytest.raises(ValueError, match="has no train split to be learnt from"):
        data.samples("train")


@pytest.mark.parametrize("benchmark", sorted(set(WRITERS) - {"mmbench"}))
def test_a_missing_picture_leaves_its_questions_out(benchmark, tmp_path):
    data = made(tmp_path, benchmark)
    before = len(data.samples("test"))
    question = data.samples("test")[0]
    question.target.video.unlink()
    again = General(benchmark, root=tmp_path)
    without_picture = sum(s.dialogue == question.dialogue for s in data.samples("test"))
    assert len(again.samples("test")) == before - without_picture and question.id not in again.scored_questions("test")
    assert len(again.rows_without_file("test")) == without_picture
    assert all("is not there" in reason for reason in again.reading("test").excluded.values())


def test_rotations_show_one_picture_and_count_together(tmp_path):
    data = made(tmp_path, "mmbench", pictures=tmp_path / "elsewhere")
    first, rotated, second = data.samples("test")
    assert first.target.video == rotated.target.video != second.target.video
    assert first.target.video.read_bytes() == png("red") and first.target.video.parent == tmp_path / "elsewhere"
    asked = data.scored_questions("test")
    assert [asked[s.id].together for s in (first, rotated, second)] == ["3", "3", "4"]
    assert [asked[s.id].gold for s in (first, rotated, second)] == [("A",), ("B",), ("A",)]
    assert asked[second.id].options == ("blue", "green", "None", "white")  # a word, not an empty cell


def test_pairs_count_together(tmp_path):
    asked = made(tmp_path, "mme").scored_questions("test")
    names = [q.together for q in asked.values()]
    assert sorted(set(names)) == ["color_0000", "color_0001", "landmark_0000", "landmark_0001"] and len(names) == 8


# ---- faults of files
def test_what_is_no_release_is_refused(tmp_path):
    for benchmark, expected in {
        "mme": "no questions of MME in",
        "mmbench": "expected one .tsv of MMBench in .*, got none",
        "pope": "no coco_pope_random.json",
        "scienceqa": "no problems.json",
        "seedbench": "no SEED-Bench.json",
        "textvqa": "no TextVQA_0.5.1_val.json",
        "vqav2": "no v2_OpenEnded_mscoco_val2014_questions.json",
    }.items():
        with pytest.raises(FileNotFoundError, match=expected):
            General(benchmark, root=tmp_path).samples("test")
    with pytest.raises(ValueError, match="benchmark"):
        General("mmmu", root=tmp_path)  # type: ignore[arg-type]


def test_faults_of_rows_are_named(tmp_path):
    root = write_mme(tmp_path / "mme")
    (root / "color/0001.txt").write_text("Is it?\tYes\nIs it not?\tperhaps\n")
    with pytest.raises(
        ValueError, match="0001.txt has 2 lines, line 2 is .*expected two lines, each a question, a tab"
    ):
        General("mme", root=root).samples("test")
    root = write_pope(tmp_path / "pope")
    (root / "coco_pope_random.json").write_text(
        '{"question_id": 1, "image": "../x.jpg", "text": "Is there?", "label": "yes"}\n'
    )
    with pytest.raises(ValueError, match=r"line 1 names '../x.jpg', which leads out of the folder"):
        General("pope", root=root).samples("test")
    (root / "coco_pope_random.json").write_text('{"question_id": 1, "image": "x.jpg", "text": "Is there?"}\n')
    with pytest.raises(ValueError, match=r"line 1: expected label \(str\), got"):
        General("pope", root=root).samples("test")
    row = dict.fromkeys(("hint", "A", "B", "C", "D", "category", "l2-category"), "x") | {"question": "?", "image": "5"}
    root = write_mmbench(tmp_path / "kept_back", [row | {"index": "5", "answer": ""}])
    with pytest.raises(
        ValueError, match="the answer is ''; expected one of A, B, C, D. Test sets whose answers are kept"
    ):
        General("mmbench", root=root).samples("test")
    root = WRITERS["textvqa"](tmp_path / "textvqa")
    content = json.loads((root / "TextVQA_0.5.1_val.json").read_text())
    content["data"][1]["answers"] = []
    write_json(root / "TextVQA_0.5.1_val.json", content)
    with pytest.raises(ValueError, match="question 2 has the answers .*; expected those of ten annotators"):
        General("textvqa", root=root).samples("test")


# ---- runs
@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> Path:
    return make_image_text_folder(tmp_path_factory.mktemp("vlm") / "qwen", "tiny-qwen2.5-vl")


def asked(vlm: Path, tmp_path: Path, benchmark: str, *more: str) -> Path:
    """The run folder of a test of a small random image-text model on a benchmark."""
    root = WRITERS[benchmark](tmp_path / benchmark)
    options = flags(model="ImageText", model__vlm=vlm, model__frames=2, model__side=32, model__max_new_tokens=3)
    options += flags(data="General", data__benchmark=benchmark, data__root=root, trainer__default_root_dir=tmp_path)
    zoo("test", "--zero_shot=true", *QUIET, *options, *more)
    return newest(tmp_path)


@pytest.mark.parametrize("benchmark", ["mme", "mmbench", "seedbench"])
def test_an_image_text_model_is_asked(vlm, benchmark, tmp_path):
    run = asked(vlm, tmp_path, benchmark)
    scores, answers = metrics(run), rows(run)
    n, pictures, groups, *_ = EXPECTED[benchmark]
    assert (scores["n"], scores["pictures"], scores["benchmark"]) == (n, pictures, benchmark) and len(answers) == n
    assert set(scores["by_group"]) == groups and scores["eval_protocol"] == "benchmark_rule"
    assert all(isinstance(row["text"], str) and row["label"] is None for row in answers)
    assert len(scores["ci95"]["accuracy"]) == 2 and 0 <= scores["unparsed"] <= 1
    assert "no_clip" not in scores["events"] and "samples without a readable clip" not in scores["events"]


def test_what_is_written_is_scored(vlm, tmp_path, monkeypatch):
    """Whatever the weights: with answers that are known the scores are."""
    from zoo.backbones.image_text import ImageTextModel

    monkeypatch.setattr(ImageTextModel, "write", lambda self, inputs, n: "Yes, there is.")
    scores = metrics(asked(vlm, tmp_path, "pope"))
    assert (scores["accuracy"], scores["recall"], scores["yes_ratio"], scores["unparsed"]) == (0.5, 1.0, 1.0, 0.0)
    assert scores["by_group"]["random"]["precision"] == 0.5
    monkeypatch.setattr(ImageTextModel, "write", lambda self, inputs, n: "I see " + COLOURS[0])
    scores = metrics(asked(vlm, tmp_path / "unread", "pope"))
    assert (scores["accuracy"], scores["f1"], scores["yes_ratio"], scores["unparsed"]) == (0.0, 0.0, 0.0, 1.0)


def test_a_checkpoint_of_emotion_qwen_is_asked(tmp_path, capsys):
    make_llm(tmp_path / "llm")
    make_patch_vision(tmp_path / "vision")
    make_corpus(tmp_path / "meld", (1, 1, 1), clips=True)
    options = flags(model="EmotionQwen", model__llm=tmp_path / "llm", model__vision=tmp_path / "vision")
    options += flags(model__template="plain", model__frames=2, model__min_pixels=64, model__video_max_pixels=1024)
    options += (
        r"--model.train=[compressor\..*]",
        "--trainer.max_steps=1",
        "--data=MELD",
        f"--data.root={tmp_path / 'meld'}",
    )
    zoo("fit", *QUIET, f"--trainer.default_root_dir={tmp_path}", *options)
    run = newest(tmp_path)
    root = WRITERS["pope"](tmp_path / "pope")
    zoo("test", f"--ckpt_path={run}", "--data=General", "--data.benchmark=pope", f"--data.root={root}", *QUIET)
    scores, printed = metrics(run), capsys.readouterr().out
    assert "pope: 8 questions about 2 pictures" in printed and "yes ratio" in printed
    assert "random       accuracy" in printed
    assert scores["benchmark"] == "pope" and scores["n"] == 8 and set(scores["by_group"]) == {"random", "adversarial"}
    assert all(row["text"] is not None and "gate_emotion" in row["details"] for row in rows(run))
    root = WRITERS["seedbench"](tmp_path / "seedbench")
    zoo("test", f"--ckpt_path={run}", "--data=General", "--data.benchmark=seedbench", f"--data.root={root}", *QUIET)
    assert metrics(run)["n"] == 2 and metrics(run)["events"].get("samples without a readable clip", 0) == 0
    root = WRITERS["pope"](tmp_path / "pope")
    message = refused("fit", *QUIET, *flags(data="General", data__benchmark="pope", data__root=root), *options[:6])
    assert "tested on; it has no train split" in message


def test_a_system_that_asks_for_emotions_is_refused(tmp_path):
    make_llm(tmp_path / "llm")
    root = WRITERS["pope"](tmp_path / "pope")
    options = flags(
        model="CausalLM", model__llm=tmp_path / "llm", data="General", data__benchmark="pope", data__root=root
    )
    message = refused("test", "--zero_shot=true", *QUIET, f"--trainer.default_root_dir={tmp_path}", *options)
    assert "General asks questions of its own, and CausalLM asks for an emotion; EmotionQwen and ImageText" in message
