import pytest

from zoo.data.text import clean_text, drop_repeats, find_file, read_table, read_text


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("I didn\x92t", "I didn't"),
        ("\x91so\x92", "'so'"),
        ("\x93Stop\x94", '"Stop"'),
        ("wait\x85", "wait..."),
        ("no\x96wait\x97what", "no-wait-what"),
        ("caf\x80", "caf€"),
        ("it’s “fine” — really…", "it’s “fine” — really…"),
        ("itâ€™s â€œfineâ€\x9d", "it’s “fine”"),
        ("it\xe2\x80\x99s", "it’s"),  # the same bytes decoded as latin-1
        ("cafÃ©Â\xa0noir", "café noir"),
        ("good ðŸ˜€", "good 😀"),
        ("my fiancé…” said Zoë", "my fiancé…” said Zoë"),  # looks like a broken three-byte sequence, is none
        ("châteaux â la carte, À vous, ÂME", "châteaux â la carte, À vous, ÂME"),
        ("a\xa0b", "a b"),
        ("\ufeffa", "a"),
        (" a \r\n\t b ", "a b"),
        ("a\x00b\x1fc", "a b c"),
        (" \xa0\x81 ", ""),
        ("<|eot_id|> [INST] <image>", "<|eot_id|> [INST] <image>"),  # the prompt's business, not the reader's
        ("", ""),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean
    assert clean_text(clean) == clean


def test_table_cells_are_text_and_rows_are_numbered(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbf a , b\r\n\r\n01,NA\r\n,"x, y"\r\n,\r\n')
    table = read_table(path, ("a", "b"))
    assert table.to_dict("records") == [{"a": "01", "b": "NA"}, {"a": "", "b": "x, y"}]
    assert list(table.index) == [3, 4]  # as a text editor or spreadsheet counts them
    assert table.attrs["notes"] == {}


def test_cp1252_file_is_read_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("a,b\n1,it’s\n".encode("cp1252"))
    table = read_table(path, ("a", "b"))
    assert table["b"].tolist() == ["it’s"]
    assert table.attrs["notes"] == {"t.csv is not UTF-8, read as cp1252": 1}
    path.write_bytes("a,b\n1,it’s\n".encode() + b"2,didn\x92t\n")  # half UTF-8, half cp1252
    assert [clean_text(cell) for cell in read_table(path, ("a", "b"))["b"]] == ["it’s", "didn’t"]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"a,b\n1,\x81\x92\n", ["t.csv", "byte 6 is 0x81", "UTF-8 again"]),
        ("a,b\n1,x\n".encode("utf-16"), ["t.csv", "UTF-16", "UTF-8 again"]),
        (b"", ["t.csv", "is empty", "a, b", "download"]),
        (b"\xef\xbb\xbf\r\n", ["t.csv", "is empty"]),
        (b"a,b\n", ["t.csv", "is empty"]),
        (
            b"a,bb\n1,2\n",
            ["t.csv", "has the columns a, bb", "expected each of a, b once", "closest to b: bb", "Rename"],
        ),
        (b"A,b\n1,2\n", ["closest to a: A"]),
        (b"a;b\n1;2\n", ["has the columns a;b"]),
        (b"a,b,a\n1,2,3\n", ["expected each of a, b once, and a is not"]),
        (b"a,b\n1,2\n1,2,3\n", ["t.csv row 3 has 3 cells, expected 2", "quote"]),
        (b"a,b\n1\n", ["t.csv row 2 has 1 cells"]),
        (b'a,b\n1,"open\n', ["t.csv line", "unexpected end of data", "quotes"]),
    ],
)
def test_unreadable_tables_say_why(tmp_path, data, words):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_table(tmp_path / "t.csv", ("a", "b"))
    for word in words:
        assert word in str(error.value)


def test_tabs_mean_no_quoting_and_names_given(tmp_path):
    (tmp_path / "t.tsv").write_text('"open\t1\nsay "x"\t2\n', encoding="utf-8")
    table = read_table(tmp_path / "t.tsv", ("text", "id"), sep="\t", header=False)
    assert table["text"].tolist() == ['"open', 'say "x"']
    assert list(table.index) == [1, 2]


def test_find_file(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.csv").touch()
    (tmp_path / "other.txt").touch()
    assert find_file(tmp_path, ["x.csv", "train/x.csv"], "C", "Advice.") == tmp_path / "train" / "x.csv"
    for root, got in [
        (tmp_path, "which holds other.txt, train"),
        (tmp_path / "no", "which does not exist"),
        (tmp_path / "other.txt", "which is a file"),
        (None, "C needs its folder"),
    ]:
        with pytest.raises(FileNotFoundError, match="y.csv") as error:
            find_file(root, ["y.csv"], "C", "Advice.")
        assert got in str(error.value) and "Advice." in str(error.value)


def test_repeats(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("key,b\nk1,x\nk2,y\nk1,x\n")
    kept, repeats = drop_repeats(read_table(path, ("key", "b")), path)
    assert kept["key"].tolist() == ["k1", "k2"]
    assert repeats == {"k1 (row 4)": "repeats an earlier row word for word"}
    path.write_text("key,b\nk1,x\nk2,y\nk1,z\n")
    with pytest.raises(ValueError, match="t.csv has several rows with different contents for k1"):
        drop_repeats(read_table(path, ("key", "b")), path)


def test_read_text_drops_only_the_bom(tmp_path):
    (tmp_path / "t").write_bytes("\ufeffé\n".encode())
    assert read_text(tmp_path / "t") == ("é\n", {})
