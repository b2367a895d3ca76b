"""Rows by their offsets: lines and shards, whole or broken, and an index that fits or does not."""

import gzip
import io
import json
import pickle
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from zoo.data import row_index
from zoo.data.row_index import NO_CLIP, Facts, IndexedRows, Row, RowError
from zoo.media import Media
from zoo.media.container import open_file


def inspected(row: Row) -> Facts:
    if not isinstance(row.content, dict) or "id" not in row.content:
        raise RowError("no row with an id")
    return Facts(row.content.get("answers", 1), NO_CLIP)


def never(row: Row) -> Facts:
    raise AssertionError("the index is there, so no row is looked at")


def rows_of(path: Path, inspect=inspected) -> IndexedRows:
    return IndexedRows(path, path.with_name(f"{path.name}.index"), inspect)


def lines(path: Path, *rows) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


def shard(path: Path, *members, mode="w") -> Path:
    """Write members: name and bytes (or what is JSON), or a TarInfo."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return path


# ---- lines
def test_lines_are_read_where_they_begin(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", b'\xef\xbb\xbf{"id": "\xc3\xa9", "answers": 3}\r\n', b"\n", {"id": 2}, b'{"id": 3}'
    )
    rows = rows_of(path)
    assert [rows.read(i).content["id"] for i in (2, 0, 1)] == [3, "é", 2]
    assert rows.table["answers"].tolist() == [3, 1, 1] and rows.omitted == [] and rows.table.itemsize == 32
    with pytest.raises(IndexError):
        rows.read(3)


def test_what_is_no_row_is_left_out_by_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(row_index, "MAX_ROW", 40)
    long = {"id": "x" * 200}
    path = lines(tmp_path / "a.jsonl", {"id": 1}, b"{\n", long, b'{"id": "\xff"}\n', {"no": 1}, {"id": 1}, {"id": 9})
    rows = rows_of(path)
    assert [rows.read(int(i)).content["id"] for i in np.flatnonzero(rows.table["answers"])] == [1, 9]
    assert [(id_, place) for id_, place, *_ in rows.omitted] == [
        (None, "line2"),
        (None, "line3"),
        (None, "line4"),
        (None, "line5"),
        ("1", "byte245"),
    ]
    reasons = " ".join(row.reason for row in rows.omitted)
    for part in (
        "not JSON",
        "more than 40 bytes",
        "not UTF-8 (byte 8)",
        "no row with an id",
        "a second row of this id",
    ):
        assert part in reasons
    assert rows_of(path, never).omitted == rows.omitted


def test_a_file_without_a_row(tmp_path):
    path = lines(tmp_path / "a.jsonl", b"\n")
    assert len(rows_of(path).table) == len(rows_of(path, never).table) == 0


# ---- the index
def test_the_index_is_made_once_and_again_for_another_file(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"id": 1}, {"id": 2})
    rows_of(path)
    assert len(rows_of(path, never).table) == 2
    lines(path, {"id": 1}, {"id": 2}, {"id": 3})
    assert len(rows_of(path).table) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.index"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data[5:],
        lambda data: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data.replace(b'"version": 1', b'"version": 0'),
        lambda data: data.replace(b'"omitted": []', b'"omitted": 17'),
    ],
)
def test_a_damaged_index_is_made_again(tmp_path, damage):
    path = lines(tmp_path / "a.jsonl", {"id": 1}, {"id": 2})
    rows_of(path)
    index = tmp_path / "a.jsonl.index"
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    assert damage(whole) != whole
    assert [rows_of(path).read(i).content["id"] for i in range(2)] == [1, 2] and index.read_bytes() == whole


def test_processes_that_start_together_make_one_index(tmp_path):
    path, seen, made = lines(tmp_path / "a.jsonl", *({"id": i} for i in range(50))), [], []

    def slowly(row: Row) -> Facts:
        seen.append(row.content["id"])
        time.sleep(0.002)
        return Facts(1, NO_CLIP)

    threads = [threading.Thread(target=lambda: made.append(rows_of(path, slowly))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3 and seen == [*range(50)] and all(m.read(49).content == {"id": 49} for m in made)


def test_an_interrupted_index_leaves_nothing(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"id": 1})

    def interrupted(row: Row) -> Facts:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows_of(path, interrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_changed_while_it_is_used_is_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"id": 1}, {"id": 2})
    rows = rows_of(path)
    lines(path, {"id": 0}, {"id": 1}, {"id": 2})
    with pytest.raises(ValueError, match="was changed while it was used"):
        rows.read(0)


def test_an_index_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(row_index, "replacing", refuse)
    with pytest.raises(ValueError, match="Permission denied.* --data.index_folder"):
        rows_of(lines(tmp_path / "a.jsonl", {"id": 1}))


def test_another_process_maps_the_index_itself(tmp_path):
    rows = rows_of(lines(tmp_path / "a.jsonl", *({"id": i} for i in range(1000))))
    sent = pickle.dumps(rows)  # as the workers of a DataLoader get it; the bytes are the test's own
    assert len(sent) < 1000 and pickle.loads(sent).read(7).content == {"id": 7}
    (tmp_path / "a.jsonl.index").unlink()
    with pytest.raises(ValueError, match="is gone or was changed"):
        pickle.loads(sent)


# ---- shards
def test_members_of_a_key_are_a_row(tmp_path):
    folder, late = tarfile.TarInfo("deep"), tarfile.TarInfo(f"deep/{'n' * 120}.txt")
    folder.type = tarfile.DIRTYPE
    path = shard(
        tmp_path / "a.tar",
        ("1.json", {"id": "one"}),
        ("1.0.png", b"first"),
        ("1.1.JPG", b"second"),
        (folder, b""),
        ("deep/2.x.mp4", b"film"),
        ("deep/2.json", {"id": "two"}),
        ("deep/2.cls", b"17"),
        (late, b"a caption"),  # a name that takes a header of its own
        ("4.json", {"answers": 2}),
    )
    rows = rows_of(path)
    assert rows.omitted == []
    for number in (3, 2, 1, 0):
        row = rows.read(number)
        assert row.content["id"] == ["one", "two", f"deep/{'n' * 120}", "4"][number]
    assert rows.read(2).content["caption"] == "a caption" and rows.table["answers"].tolist() == [1, 1, 1, 2]
    files = rows.read(0).files
    assert [p.name for p in files["image"]] == ["1.0.png", "1.1.JPG"] and files["video"] == []
    paths = [*files["image"], *rows.read(1).files["video"]]
    for file, content in zip(paths, (b"first", b"second", b"film"), strict=True):
        with open_file(file) as handle, open(handle, "rb", closefd=False) as opened:
            assert opened.read() == content


def test_members_that_are_refused(tmp_path):
    link = tarfile.TarInfo("3.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
    path = shard(
        tmp_path / "a.tar",
        ("../1.json", {"id": 1}),
        ("/2.json", {"id": 2}),
        (link, b""),
        ("4.png", b"alone"),
        ("5.json", b"{"),
        ("6.json", {"id": 6}),
        ("6.json", {"id": 6}),
        ("7.json", ["a list"]),
        ("good.json", {}),
        ("again.json", {"id": "good"}),
    )
    rows = rows_of(path)
    assert [rows.read(int(i)).content["id"] for i in np.flatnonzero(rows.table["answers"])] == ["good"]
    reasons = [row.reason for row in rows.omitted]
    expected = [
        "'../1.json' leaves the shard",
        "'/2.json' leaves the shard",
        "'3.png' is a link",
        "'4' has neither .json nor .txt",
        "is not JSON",
        "'6.json' stands twice",
        "no row with an id",
        "a second row of this id",
    ]
    assert len(reasons) == len(expected) and all(e in r for e, r in zip(expected, reasons, strict=True)), reasons


def test_what_is_no_whole_tar_is_refused(tmp_path):
    whole = shard(tmp_path / "a.tar", ("1.json", {"id": 1}), ("2.json", {"id": 2})).read_bytes()
    wrong = bytearray(whole)
    wrong[1024 + 148] ^= 1  # a checksum
    for content in (gzip.compress(whole), whole[:1300], whole[:2048], bytes(wrong), b"no tar at all" * 100):
        path = tmp_path / "b.tar"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.tar is no whole, uncompressed tar"):
            rows_of(path)


def test_a_part_of_a_file_that_is_not_there_is_unreadable(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 100)
    media = Media()
    for part in ("@90+20/a.png", "@0+0/a.png", "@0+10/a.png", "@x/a.png", "a.png"):
        with pytest.raises(ValueError, match="beyond the end|empty|broken|cannot be opened"):
            media.frames(path / part)
    assert {row["file"] for row in media.new_problems()} == {"a.png"}
