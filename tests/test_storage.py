"""Files are read with limits, written whole, and locked by the kernel."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from zoo.cli import explained
from zoo.storage import (
    InUse,
    jsonl,
    locked,
    parse_json,
    parse_yaml,
    read_jsonl,
    replacing,
    split_lines,
    write_unsynced,
    write_whole,
)

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' stands twice, first in line 1"),
        ("model: {lr: 1, window: 2, lr: 3}", "'lr' stands twice"),
        (ALIASES, "aliases stand for more than"),
        ("[" * 5000 + "]" * 5000, "nested deeper than 100"),
        ("a: &a [*a]\n", "."),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ("a: [1", "expected"),
        ("? [1, 2]\n: 3", "a key is a list"),
    ],
)
def test_yaml_that_is_not_what_it_looks_like_is_refused(text, message):
    started = time.process_time()
    if message == ".":  # an alias to what is being read is no endless loop, whether it is refused or not
        try:
            parse_yaml(text, "f.yaml")
        except ValueError as error:
            assert "f.yaml" in str(error)
    else:
        with pytest.raises(ValueError, match=f"^f.yaml.*{message}"):
            parse_yaml(text, "f.yaml")
    assert time.process_time() - started < 5


def test_yaml_of_plain_values():
    assert parse_yaml("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nnone:", "f")["more"] == {"x": 1, "y": 3}
    assert parse_yaml("", "f") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 200 + "]" * 200, "nested"), ("[" * 10**6, "."), ("1" * 5000, "5000 digits"), ("{", ".")],
)
def test_json_beyond_the_limits_is_refused(text, message):
    with pytest.raises(ValueError, match=f"^f.json is not readable JSON .*{message}"):
        parse_json(text, "f.json")


def test_characters_inside_a_text_end_no_line(tmp_path):
    text = "a\x85b\u2028c\u2029d\x0be\x0cf\x1cg"
    assert split_lines(f"{text}\r\n{text}\rx\n\n") == [text, text, "x", ""]
    assert split_lines("") == []
    write_whole(tmp_path / "rows.jsonl", jsonl([{"text": text}, {"text": "2"}]))
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"text": text}, {"text": "2"}]
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match="rows.jsonl line 2 is not readable JSON"):
        read_jsonl(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes("['é']".encode("cp1252"))
    with pytest.raises(ValueError, match="rows.jsonl is not UTF-8"):
        read_jsonl(tmp_path / "rows.jsonl")


def child(code: str, *args: object) -> subprocess.Popen:
    code = f"import sys, time\nfrom pathlib import Path\nfrom zoo.storage import *\n{code}"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(tmp_path):
    file = tmp_path / "file"
    write_whole(file, "old")
    writer = child(
        """
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
""",
        file,
    )
    assert writer.stdout.readline() == "writing\n"
    write_whole(file, "other")  # while the first is being written: its temporary file is left alone
    assert len(list(tmp_path.iterdir())) == 2
    writer.kill()
    writer.wait()
    assert file.read_text() == "other" and len(list(tmp_path.iterdir())) == 2
    write_whole(file, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))


def test_a_writer_that_fails_changes_nothing(tmp_path):
    write_whole(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").symlink_to("elsewhere/real")
    for content in ("new", "newer"):  # also where nothing lies there yet
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").is_symlink() and (tmp_path / "elsewhere" / "real").read_text() == content
    assert len(list(tmp_path.iterdir())) == 2 and len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError) as error, replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write to an open file does
    assert str(tmp_path / "file") in (explained(error.value) or "") and "the disk is full" in explained(error.value)
    with pytest.raises(FileNotFoundError) as error, replacing(tmp_path / "file"):
        (tmp_path / "nosuch").read_text()
    assert error.value.filename.endswith("nosuch")


def test_a_full_disk_names_the_file_of_a_cache(tmp_path):
    def parts():
        yield b"x"
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write to an open file does

    with pytest.raises(OSError) as error:
        write_unsynced(tmp_path / "file", parts())
    assert str(tmp_path / "file") in (explained(error.value) or "") and not list(tmp_path.iterdir())


HOLD = """
import os
with locked(Path(sys.argv[1]), "it"):
    worker = os.fork()  # as a loader's worker
    if worker == 0:
        print(os.getpid(), flush=True)  # by the worker, which has let go of the lock by now
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    holder = child(HOLD, tmp_path / ".lock", "some", "words")
    worker = int(holder.stdout.readline())
    with (
        pytest.raises(InUse, match=f"the run is in use by process {holder.pid} on .*some words; wait"),
        locked(tmp_path / ".lock", "the run"),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / ".lock", "the run"):  # its worker still lives
        pass
    os.kill(worker, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_holds_inside_one_process_and_can_be_waited_for(tmp_path):
    with locked(tmp_path / ".lock", "the run"), pytest.raises(InUse), locked(tmp_path / ".lock", "the run"):
        pass
    holder = child(
        """
with locked(Path(sys.argv[1]), "it"):
    print("holding", flush=True)
    time.sleep(0.5)
    Path(sys.argv[1]).with_name("done").touch()
""",
        tmp_path / ".lock",
    )
    holder.stdout.readline()
    with locked(tmp_path / ".lock", "it", wait=True):
        assert (tmp_path / "done").exists()
    holder.wait()


def test_json_of_the_module_is_json():
    assert json.loads(jsonl([{"a": "é"}])) == {"a": "é"}
