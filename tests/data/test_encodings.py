"""Text is read in the encoding it is in, or refused; never as characters that nobody wrote."""

from __future__ import annotations

import pytest

from tests.data.miniature import write_csv
from tests.data.miniature_iemocap import write_iemocap
from zoo.data import IEMOCAP, MELD, MER2024, EmoryNLP
from zoo.data.text import read_table, read_text

SENTENCES = {
    "汤又凉了，我不想喝。": ("gb2312", "gbk", "gb18030"),
    "湯又涼了，我不想喝。你們為什麼來？": ("big5", "gbk", "euc_jp"),
    "국이 다 식었어요. 안 먹을래요.": ("euc_kr", "cp949"),
    "スープが冷めた。飲みたくない。": ("shift_jis", "euc_jp", "iso2022_jp", "cp932"),
    "本": ("shift_jis", "big5", "gb2312", "euc_kr"),
    "電": ("shift_jis", "big5", "euc_kr"),
    "我": ("big5", "gb2312", "shift_jis"),
    "愤怒": ("gb2312",),
    "怒": ("shift_jis", "euc_kr", "big5"),
    "Суп остыл, я не хочу.": ("koi8_r", "cp1251", "iso8859_5"),
    "я": ("koi8_r", "cp1251"),
    "Η σούπα κρύωσε": ("iso8859_7", "cp1253"),
    "המרק התקרר": ("cp1255",),
    "الحساء بارد": ("cp1256",),
    "ซุปเย็นแล้ว": ("tis_620",),
}
CASES = [(text, encoding) for text, encodings in SENTENCES.items() for encoding in encodings]


@pytest.mark.parametrize(("text", "encoding"), CASES)
@pytest.mark.parametrize("known", [(), ("cp1252",), ("gb18030",)], ids=str)
def test_what_is_not_refused_is_what_was_written(tmp_path, text, encoding, known):
    path = tmp_path / "t.csv"
    path.write_bytes(f"a,b\n1,{text}\n".encode(encoding))
    try:
        table = read_table(path, ("a", "b"), encoding=known)
    except ValueError as error:
        assert "t.csv" in str(error) and "expected UTF-8" in str(error)
    else:
        assert table["b"].tolist() == [text] and known == ("gb18030",)
        assert table.attrs["notes"] == {"t.csv is not UTF-8, read as gb18030": 1}
    assert read_text(path, encoding)[0] == f"a,b\n1,{text}\n"  # who names it has it read


@pytest.mark.parametrize(
    "text",
    [
        "it’s",
        "“Fine”, she said – really…",
        "they’re here, I’d say",
        "the end…",
        "wait—now",
        "parents’ house",
        "I’m “it’s”",
    ],
)
def test_windows_punctuation_in_ascii_is_read_as_before(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(f'a,b\n1,"{text}"\n'.encode("cp1252"))
    table = read_table(path, ("a", "b"))
    assert table["b"].tolist() == [text] and table.attrs["notes"] == {"t.csv is not UTF-8, read as cp1252": 1}


@pytest.mark.parametrize("text", ["my fiancé’s déjà-vu", "Émile, naïve", "¿Qué? ¡No!", "über", "O’Brien, D’Arcy", "£5"])
def test_western_letters_need_a_corpus_that_is_known_for_them(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_bytes(f'a,b\n1,"{text}"\n'.encode("cp1252"))
    assert read_table(path, ("a", "b"), encoding=("cp1252",))["b"].tolist() == [text]
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte \d+ is 0x"):
        read_table(path, ("a", "b"))


def test_an_encoding_that_does_not_fit_or_does_not_exist_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("a\n汤\n".encode("gb2312"))
    with pytest.raises(ValueError, match="is not utf-8 .*name the encoding it is in"):
        read_text(tmp_path / "t.csv", "utf-8")
    for wrong in ("gibberish", "hex", "", "rot13"):
        with pytest.raises(ValueError, match="encoding is the name of a text encoding"):
            MELD(root=tmp_path, encoding=wrong)


def test_mer2024_reads_chinese_of_a_chinese_windows(tmp_path):
    write_csv(tmp_path / "label-disdim.csv", [{"name": f"s{i}", "discrete": "happy", "valence": "1"} for i in range(9)])
    words = [{"name": f"s{i}", "chinese": "汤又凉了，我不想喝。"} for i in range(9)]
    write_csv(tmp_path / "label-transcription.csv", words, encoding="gb2312")
    reading = MER2024(root=tmp_path, subtitle_column="chinese").read("train")
    assert {s.target.text for s in reading.samples} == {"汤又凉了，我不想喝。"}
    assert reading.notes["label-transcription.csv is not UTF-8, read as gb18030"] == 1
    write_csv(tmp_path / "label-transcription.csv", [{"name": "s1", "chinese": "湯又涼了，我不想喝"}], encoding="big5")
    with pytest.raises(ValueError, match="nor plausible text in gb18030"):
        MER2024(root=tmp_path, subtitle_column="chinese").read("train")
    data = MER2024(root=tmp_path, subtitle_column="chinese", encoding="big5", dev_share=0.5, limit=9)
    reading = data.read("train")
    assert reading.notes["label-transcription.csv read as big5"] == 1


MELD_ROW = {"Utterance": "", "Speaker": "Ada", "Emotion": "joy", "Dialogue_ID": "0", "Utterance_ID": "0"}
EMORY_ROW = {
    "Utterance": "",
    "Speaker": "['Ada']",
    "Emotion": "Joyful",
    "Scene_ID": "1",
    "Utterance_ID": "1",
    "Season": "1",
    "Episode": "1",
}


@pytest.mark.parametrize(
    ("corpus", "name", "row"),
    [(MELD, "train_sent_emo.csv", MELD_ROW), (EmoryNLP, "emorynlp_train_final.csv", EMORY_ROW)],
)
def test_a_translated_copy_is_refused_unless_its_encoding_is_named(tmp_path, corpus, name, row):
    text = "汤又凉了，我不想喝。"
    write_csv(tmp_path / name, [row | {"Utterance": text}], encoding="gbk")
    with pytest.raises(ValueError, match=f"{name} is not UTF-8 .*--data.encoding"):
        corpus(root=tmp_path).read("train")
    reading = corpus(root=tmp_path, encoding="gbk").read("train")
    assert reading.samples[0].target.text == text and reading.notes[f"{name} read as gbk"] == 1


def test_captions_have_the_encoding_of_their_corpus(tmp_path):
    write_csv(tmp_path / "train_sent_emo.csv", [MELD_ROW | {"Utterance": "Hm."}])
    captions = tmp_path / "audio_description_train.json"
    captions.write_bytes('{"dia0_utt0": "她的声音很平静"}'.encode("gbk"))
    with pytest.raises(ValueError, match=r"audio_description_train\.json is not UTF-8"):
        MELD(root=tmp_path, descriptions=[captions]).read("train")
    sample = MELD(root=tmp_path, descriptions=[captions], encoding="gbk").read("train").samples[0]
    assert sample.target.descriptions == {"audio": "她的声音很平静"}


def test_iemocap_trees_are_not_read_as_mojibake(tmp_path):
    root = write_iemocap(tmp_path) or tmp_path
    file = root / "Session5/dialog/transcriptions/Ses05F_impro01.txt"
    text = file.read_text(encoding="utf-8").replace("Furious, ", "我不想喝。")
    file.write_bytes(text.encode("gbk"))
    with pytest.raises(ValueError, match=r"Ses05F_impro01\.txt is not UTF-8"):
        IEMOCAP(root=root).read("test")
    assert any("我不想喝。" in s.target.text for s in IEMOCAP(root=root, encoding="gbk").read("test").samples)


# ---- characters that are no line breaks
@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_a_character_inside_an_utterance_ends_no_line(tmp_path, mark):
    root = write_iemocap(tmp_path) or tmp_path
    file = root / "Session5/dialog/transcriptions/Ses05F_impro01.txt"
    before = {s.id: s.target.text for s in IEMOCAP(root=root).read("test").samples}
    file.write_text(file.read_text(encoding="utf-8").replace("Furious, ", f"Furious,{mark}"), encoding="utf-8")
    reading = IEMOCAP(root=root).read("test")
    read = "Furious,..." if mark == "\x85" else "Furious, "
    expected = {key: text.replace("Furious, ", read) for key, text in before.items()}
    assert {s.id: " ".join(s.target.text.split()) for s in reading.samples} == expected
    assert any("Furious" in text for text in expected.values())


def test_meld_reads_the_windows_ellipsis(tmp_path):
    write_csv(tmp_path / "train_sent_emo.csv", [MELD_ROW | {"Utterance": "Well\x85 no\u2028really"}])
    assert MELD(root=tmp_path).read("train").samples[0].target.text == "Well... no really"
