import pytest

from tests.data.miniature import dialogue, write_csv, write_goemotions, write_meld
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


@pytest.mark.parametrize("text, same", [
    ("No -- I DON’T!", "no i dont"), ("  it's_him ", "its him"), ("“Zoë”?", "zoë"), ("...", ""),
])
def test_normalise(text, same):
    assert normalise(text) == same


def test_pairs(data):
    train, test = data.samples("train"), data.samples("test")
    pairs = [("meld/train/dia0_utt0", "meld/test/dia0_utt0"), ("meld/train/dia0_utt2", "meld/test/dia0_utt2")]
    assert find_leaks(train, test) == pairs
    assert find_leaks(test, train) == [(b, a) for a, b in pairs]
    assert find_leaks(train, test, min_words=8) == []
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
    assert len(rows) == 6 * 5
    assert ["meld/test", "goemotions/train", "21", "1", "4.76%"] in rows
    with pytest.raises(SystemExit):
        main([])
