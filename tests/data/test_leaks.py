import pytest

from tests.data.miniature import dialogue, scene, write_csv, write_emorynlp, write_goemotions, write_meld
from zoo.data.leaks import find_leaks, leak_report, main, normalise
from zoo.data.meld import MELD


@pytest.fixture
def data(tmp_path):
    lines = {
        "train": ["Who left the ladder in the yard?", "Not me.", "Well — I didn’t, and you know it!", "Hello."],
        "test": ["who left the ladder, in the yard", "Not me.", "Well, I didn't and you know it...", "It is a new one"],
    }
    for split, texts in lines.items():
        write_csv(tmp_path / f"{split}_sent_emo.csv", dialogue(0, [(text, "neutral") for text in texts]))
    return MELD(root=tmp_path)


@pytest.mark.parametrize(
    "text, same", [("No -- I DON’T!", "no i dont"), ("  it's_him ", "its him"), ("“Zoë”?", "zoë"), ("...", "")]
)
def test_normalise(text, same):
    assert normalise(text) == same


def test_pairs(data):
    train, test = data.samples("train"), data.samples("test")
    pairs = [("meld/train/dia0_utt0", "meld/test/dia0_utt0"), ("meld/train/dia0_utt2", "meld/test/dia0_utt2")]
    assert find_leaks(train, test) == pairs
    assert find_leaks(test, train) == [(b, a) for a, b in pairs]
    assert find_leaks(train, test, min_words=9) == []
    assert ("meld/train/dia0_utt1", "meld/test/dia0_utt1") in find_leaks(train, test, min_words=2)
    assert find_leaks(train, train) == []


def test_report_agrees_with_the_pairs(data):
    table = leak_report({"train": data.samples("train"), "test": data.samples("test")})
    assert table.to_dict("records") == [
        {"a": "train", "b": "test", "utterances in a": 2, "also in b": 2, "share": 1.0},
        {"a": "test", "b": "train", "utterances in a": 3, "also in b": 2, "share": 2 / 3},
    ]


def test_main_prints_every_pair(tmp_path, capsys):
    meld, goemotions = write_meld(tmp_path / "m"), write_goemotions(tmp_path / "g")
    path = goemotions / "ekman_train.tsv"
    text = MELD(root=meld).samples("test")[0].target.text
    path.write_text(path.read_text() + f"{text.upper()}\t1,2\tleak\n")  # sentences with several labels count as well
    assert main(["--meld", str(meld), "--goemotions", str(goemotions)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 6 * 5 + 2 * 3  # every split with every other, and with each other corpus as a whole
    assert ["meld/test", "goemotions/train", "21", "1", "4.76%"] in rows
    assert ["meld/test", "goemotions", "21", "1", "4.76%"] in rows
    with pytest.raises(SystemExit):
        main([])


def test_words_are_counted_as_written(tmp_path):
    """Five words between spaces, however many are left without the dashes and without joining it's to its."""
    texts = ["Well -- I did it", "Well I-did it too", "It's not at all"]
    write_csv(tmp_path / "a" / "train_sent_emo.csv", dialogue(0, [(text, "joy") for text in texts]))
    others = [("Well, I did it", "joy"), ("Well, I did it, too", "joy")]
    write_csv(tmp_path / "b" / "test_sent_emo.csv", dialogue(0, others))
    a, b = MELD(root=tmp_path / "a").samples("train"), MELD(root=tmp_path / "b").samples("test")
    assert find_leaks(a, b) == [("meld/train/dia0_utt0", "meld/test/dia0_utt0")]
    (there, back) = leak_report({"a": a, "b": b}).to_dict("records")
    assert (there["utterances in a"], there["also in b"]) == (1, 1)  # the shorter spelling in b is the same line
    assert (back["utterances in a"], back["also in b"]) == (1, 1)


def test_two_files_of_one_corpus_count_once(tmp_path, capsys):
    """A line of MELD's test split that stands in EmoryNLP's train and dev files is one leak, not two."""
    meld, emorynlp = write_meld(tmp_path / "m"), write_emorynlp(tmp_path / "e")
    (emorynlp / "emorynlp_test_final.csv").unlink()
    texts = [s.target.text for s in MELD(root=meld).samples("test")]
    for split, lines in {"train": texts[:3], "dev": texts[2:4]}.items():
        write_csv(emorynlp / f"emorynlp_{split}_final.csv", scene(1, [(text.upper(), "mad") for text in lines]))
    assert main(["--meld", str(meld), "--emorynlp", str(emorynlp)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert ["meld/test", "emorynlp/train", "21", "3", "14.29%"] in rows
    assert ["meld/test", "emorynlp/dev", "21", "2", "9.52%"] in rows
    assert ["meld/test", "emorynlp", "21", "4", "19.05%"] in rows
