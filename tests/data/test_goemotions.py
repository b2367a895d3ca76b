import pytest

from tests.data.miniature import write_goemotions
from zoo.data.goemotions import OFFICIAL, GoEmotions
from zoo.data.meld import MELD


def read(folder, tsv, **options):
    write_goemotions(folder)
    (folder / "ekman_train.tsv").write_bytes(tsv.encode())
    return GoEmotions(root=folder, **options).reading("train")


def test_samples(tmp_path):
    reading = read(tmp_path, 'So "lovely, [NAME]!\t3\tabc\nWell then\t4\tdef\n')
    first = reading.samples[0]
    assert (first.id, first.dialogue, first.history) == ("goemotions/train/abc", "goemotions/train/abc", ())
    assert (first.target.text, first.target.speaker, first.target.label) == ('So "lovely, [NAME]!', "", "joy")
    assert reading.samples[1].target.label == "neutral"
    assert reading.report() == {"n_used": 2, "n_official": 43410, "excluded": {}, "notes": {}}


def test_indices_agree_with_meld():
    assert GoEmotions.labels.names == MELD.labels.names and GoEmotions.labels.corpus == "goemotions"
    assert OFFICIAL == {"train": 43410, "dev": 5426, "test": 5427}
    assert GoEmotions.protocol == "all_utterances"


def test_miniature(tmp_path):
    data = GoEmotions(root=write_goemotions(tmp_path))
    assert [len(data.samples(split)) for split in data.splits()] == [70, 21, 21]
    assert {s.target.label for s in data.samples("test")} == set(MELD.labels.names)


def test_label_order_is_the_files(tmp_path):
    write_goemotions(tmp_path)
    words = "\ufeffJoy\r\nanger\r\ndisgust\r\nfear\r\nneutral\r\nsadness\r\nsurprise\r\n"
    (tmp_path / "ekman_labels.txt").write_bytes(words.encode())
    (tmp_path / "ekman_train.tsv").write_text("Hooray\t0\ta\n")
    assert GoEmotions(root=tmp_path).samples("train")[0].target.label == "joy"


def test_several_labels(tmp_path):
    tsv = "One\t3\ta\nTwo\t5,0\tb\nThree\t1, 2\tc\n"
    out = read(tmp_path, tsv)
    assert [s.target.id for s in out.samples] == ["a"]
    assert out.report()["notes"] == {"sentences with several labels, left out": 2} and out.excluded == {}
    first = read(tmp_path, tsv, multi_label="first")
    assert [s.target.label for s in first.samples] == ["joy", "sadness", "disgust"]
    assert first.report()["notes"] == {"sentences with several labels, first taken": 2}
    with pytest.raises(ValueError, match="multi_label is exclude or first, got 'all'"):
        GoEmotions(multi_label="all")


@pytest.mark.parametrize("ids", ["7", "", "joy", "3,9", "-1", "3,", "1.0"])
def test_unknown_label_ids(tmp_path, ids):
    with pytest.raises(ValueError, match=f"ekman_train.tsv: label ids '{ids}' in row 2; expected numbers 0 to 6"):
        read(tmp_path, f"One\t3\ta\nTwo\t{ids}\tb\n")


@pytest.mark.parametrize("row", ["Two\t3", "Two\t3\tb\tc"])
def test_wrong_number_of_cells(tmp_path, row):
    with pytest.raises(ValueError, match=r"ekman_train.tsv row 2 has \d cells, expected 3 \(text, ids, comment\)"):
        read(tmp_path, f"One\t3\ta\n{row}\n")


def test_duplicate_comment_ids(tmp_path):
    reading = read(tmp_path, "One\t3\ta\nOne\t3\ta\n")
    assert len(reading.samples) == 1 and reading.excluded == {"a (row 2)": "repeats an earlier row word for word"}
    with pytest.raises(ValueError, match="ekman_train.tsv has several rows with different contents for a;"):
        read(tmp_path, "One\t3\ta\nTwo\t3\ta\n")


def test_empty_text_and_line_ends(tmp_path):
    reading = read(tmp_path, "\ufeffOne\t3\ta\r\n  \t3\tb\r\nIt\x92s\t3\tc\r\n")
    assert [s.target.text for s in reading.samples] == ["One", "It's"]
    assert reading.excluded == {"b": "empty text"}


def test_missing_files_and_wrong_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="GoEmotions: no ekman_train.tsv .*--data.root"):
        GoEmotions(root=tmp_path).reading("train")
    write_goemotions(tmp_path)
    (tmp_path / "ekman_labels.txt").write_text("anger\njoy\n")
    with pytest.raises(ValueError, match="ekman_labels.txt has the labels anger, joy; expected anger, disgust, fear"):
        GoEmotions(root=tmp_path).reading("train")
    (tmp_path / "ekman_labels.txt").unlink()
    with pytest.raises(FileNotFoundError, match="no ekman_labels.txt"):
        GoEmotions(root=tmp_path).reading("train")
    (tmp_path / "ekman_dev.tsv").write_text("")
    write_goemotions(tmp_path / "b")
    (tmp_path / "b" / "ekman_dev.tsv").write_text("")
    with pytest.raises(ValueError, match="ekman_dev.tsv is empty"):
        GoEmotions(root=tmp_path / "b").reading("dev")
