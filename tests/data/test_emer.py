import pytest

from tests.builders import make_llm
from tests.data.miniature import write_csv
from tests.data.miniature_clips import EMER_ROWS, clip, write_emer, write_mer2024
from tests.runs_helper import fit_corpus, metrics, refused, rows, zoo
from zoo.data import EMER
from zoo.data.emer import QUESTION
from zoo.metrics import reason_overlap


@pytest.fixture
def corpus(tmp_path):
    return write_emer(tmp_path)


def test_first_version(corpus):
    data = EMER(root=corpus, version="v1")
    reading = data.reading("test")
    assert [(s.id, s.target.label, s.target.text) for s in reading.samples] == [
        (f"emer/test/{row['names']}", row["emotions"], row["subtitles"]) for row in EMER_ROWS
    ]
    assert (reading.official, data.protocol, data.splits()) == (100, "emer_v1", ("test",))
    assert reading.notes["without words"] == 1 and reading.notes["without an emotion word"] == 0
    assert data.reasons() == {f"emer/test/{row['names']}": row["reasons"] for row in EMER_ROWS}


def test_no_prompt_can_show_the_reference(corpus):
    assert all(s.target.descriptions == {} for s in EMER(root=corpus).samples("test"))


def test_second_version_takes_words_and_labels_where_there_are_any(corpus):
    reading = EMER(root=corpus).reading("test")
    assert [s.target.label for s in reading.samples] == ["angry", "happy", None, None]
    assert (reading.official, reading.notes["without an emotion word"]) == (332, 2)
    (corpus / "gt-eng.csv").unlink()
    assert [s.target.label for s in EMER(root=corpus).samples("test")] == [None] * 4
    write_csv(
        corpus / "label-disdim.csv",
        [{"name": "sample_00000100", "discrete": "neutral"}, {"name": "sample_00000001", "discrete": "sad"}],
    )
    write_csv(corpus / "label-transcription.csv", [{"name": "sample_00000100", "chinese": "", "english": "So be it."}])
    samples = EMER(root=corpus).samples("test")
    assert [s.target.label for s in samples] == ["sad", None, "neutral", None]
    assert [s.target.text for s in samples] == ["", "", "So be it.", ""]
    write_csv(corpus / "dataset-v1" / "gt-eng.csv", EMER_ROWS)
    assert EMER(root=corpus).samples("test")[0].target.label == "angry"  # the later and corrected table


def test_clips(corpus):
    clip(corpus / "video/sample_00000002.avi", 0, sound=False)
    samples = EMER(root=corpus).samples("test")
    assert [s.target.video is not None for s in samples] == [False, True, False, False]


def test_an_explanation_can_be_asked_for(corpus):
    """Of every clip; the reference is the answer that is compared, and no label is scored."""
    data, labelled = EMER(root=corpus, task="explain"), EMER(root=corpus)
    samples = data.samples("test")
    assert {s.id: s.answer for s in samples} == data.reasons() == labelled.reasons() and len(samples) == 4
    assert {s.question for s in samples} == {QUESTION} and {s.target.label for s in samples} == {None}
    assert all(s.target.descriptions == {} and s.answer not in s.question for s in samples)
    assert data.protocol == "emer_v2_explanations" and {s.question for s in labelled.samples("test")} == {None}
    with pytest.raises(ValueError, match="task is label or explain, got 'why'"):
        EMER(root=corpus, task="why")


def test_there_is_a_test_split_only(corpus):
    with pytest.raises(ValueError, match="EMER has a test split only, not train: train on another corpus"):
        EMER(root=corpus).setup("fit")
    with pytest.raises(ValueError, match="version is v1 or v2, got 'v3'"):
        EMER(root=corpus, version="v3")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([EMER_ROWS[0] | {"emotions": "fear"}], r"unknown label 'fear' in row 2 \(sample_00000001\)"),
        ([EMER_ROWS[0] | {"names": ""}], "the column names is empty in row 2"),
        ([EMER_ROWS[0], EMER_ROWS[0] | {"reasons": "Other."}], "different contents for sample_00000001"),
        ([{"name": "x", "emotions": "sad", "subtitles": "", "reasons": "y"}], "names is not .closest to names: name"),
    ],
)
def test_damaged_tables_are_refused(corpus, table, message):
    write_csv(corpus / "gt-eng.csv", table)
    with pytest.raises(ValueError, match=message):
        EMER(root=corpus, version="v1").samples("test")


def test_empty_explanation_and_repeated_row_are_named(corpus):
    write_csv(corpus / "gt-eng.csv", [*EMER_ROWS, EMER_ROWS[1], EMER_ROWS[0] | {"names": "z", "reasons": " "}])
    data = EMER(root=corpus, version="v1")
    assert data.reading("test").excluded == {
        "sample_00000002 (row 5)": "repeats an earlier row word for word",
        "z": "empty explanation",
    }
    assert len(data.reasons()) == 3
    (corpus / "final-EMER-reason.csv").unlink()
    with pytest.raises(FileNotFoundError, match="EMER: no final-EMER-reason.csv .*dataset-v2/final-EMER-reason.csv"):
        EMER(root=corpus).samples("test")


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_a_model_of_mer2024_is_scored_by_word_and_by_explanation(tmp_path):
    make_llm(tmp_path / "llm")
    mer, emer = write_mer2024(tmp_path / "mer"), write_emer(tmp_path / "emer")
    run = fit_corpus(tmp_path, "CausalLM", "MER2024", mer, 1, model__llm=tmp_path / "llm", data__batch_size=6)
    overlay = tmp_path / "emer.yaml"
    overlay.write_text(f"data: {{class_path: zoo.data.EMER, init_args: {{root: {emer}, version: v1}}}}\n")
    zoo("test", f"--ckpt_path={run}", "--config", overlay)
    said = metrics(run)
    assert (said["corpus"], said["eval_protocol"], said["n"]) == ("emer", "emer_v1", 3)
    assert said["population"]["n_official"] == 100
    assert "have no label to score against" in refused(
        "test", f"--ckpt_path={run}", "--config", overlay, "--data.version=v2"
    )
    zoo("predict", f"--ckpt_path={run}", "--config", overlay, "--data.version=v2")
    scores = reason_overlap(rows(run), EMER(root=emer).reasons())
    assert scores["n"] == 4 and 0 <= scores["clue_overlap/f1"] <= 1
