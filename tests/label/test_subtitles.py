"""Subtitles as players accept them: what is read, what is listed as unreadable, and what is refused."""

from __future__ import annotations

import time

import pytest

from zoo.label.subtitles import MAX_BYTES, Subtitle, read_subtitles

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Who took</i>
it?

2
00:00:03,000 --> 00:00:04,000
Not me.
"""
LINES = (Subtitle(1.0, 2.5, "Who took it?"), Subtitle(3.0, 4.0, "Not me."))


def read(tmp_path, text, name="film.srt", encoding=None):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_subtitles(path, encoding)


@pytest.mark.parametrize(
    "text",
    [
        SRT,
        "\ufeff" + SRT,
        SRT.replace("\n", "\r\n"),
        SRT.replace("\n", "\r"),
        SRT.replace(",", "."),
        SRT.replace("00:00:0", "0:0"),  # hours left out
        SRT.replace("it?\n\n2\n", "it?\n2\n"),  # no blank line
        SRT.replace("1\n00", "00", 1).replace("2\n00", "00", 1),  # no numbers
        SRT.replace("02,500", "02,500  X1:40 X2:600 Y1:20 Y2:50"),
        SRT.replace("Who", r"{\an8}<font color='#ff0000'>Who"),
        SRT.replace("\n\n", "\n \t\n"),
        SRT + "\n\n\n",
        SRT.rstrip(),
    ],
)
def test_the_forms_that_players_accept(tmp_path, text):
    subtitles = read(tmp_path, text)
    assert subtitles.lines == LINES and subtitles.problems == ()


def test_webvtt(tmp_path):
    text = (
        "WEBVTT - a film\nKind: captions\n\nNOTE made by hand,\nin two lines\n\nSTYLE\n::cue { color: lime }\n\n"
        "intro\n00:01.000 --> 00:02.500 align:start position:0%\n<v.loud Anna Bell>Tom &amp; <c.red>I</c> "
        "<00:02.000>know</v>\n\n01:00:00.5 --> 01:00:01\n3 &lt; 5, 7 > 6 &copy-left\n"
    )
    first, second = read(tmp_path, text, "film.VTT").lines
    assert first == Subtitle(1.0, 2.5, "Tom & I know", "Anna Bell")
    assert second == Subtitle(3600.5, 3601.0, "3 < 5, 7 > 6 &copy-left")


def test_markup_is_text_and_nothing_more(tmp_path):
    text = SRT.replace("Not me.", "<script>alert(1)</script> <img src=x onerror=y> &lt;b&gt; a <b")
    assert read(tmp_path, text).lines[1].text == "alert(1) <b> a <b"


def test_a_tag_without_end_takes_no_quadratic_time(tmp_path):
    started = time.process_time()
    assert read(tmp_path, "00:01 --> 00:02\n<v" + " " * 1_000_000).lines[0].text == "<v"
    assert time.process_time() - started < 10


def test_overlapping_lines_come_in_the_order_of_their_beginning(tmp_path):
    text = "00:05 --> 00:09\nlate\n\n00:01 --> 00:07\nlong\n\n00:01 --> 00:03\nshort\n"
    assert [line.text for line in read(tmp_path, text, "a.vtt").lines] == ["short", "long", "late"]


def test_bad_blocks_are_listed(tmp_path):
    text = SRT + (
        "\n3\n00:00:05,000 -> 00:00:06,000\nan arrow too short\n\n4\n00:00:07,000 --> 00:00:06,000\nbackwards\n"
        "\n5\n00:00:61,000 --> 00:01:06,000\nno such second\n\n6\n00:00:08,000 --> 00:00:09,000\n<i></i>\n"
        "\n7\nabc --> def\nno times\n\n8\n00:00:10,000 --> 00:00:11,000\nLast.\n"
    )
    subtitles = read(tmp_path, text)
    assert [line.text for line in subtitles.lines] == ["Who took it?", "Not me.", "Last."]
    assert len(subtitles.problems) == 5
    for problem, message in zip(
        subtitles.problems, ("has no times", "does not end", "does not end", "no text", "no pair of times"), strict=True
    ):
        assert message in problem and problem.startswith("line ")


def test_another_encoding_is_named(tmp_path):
    text = SRT.replace("Not me.", "Café, c’est toi").encode("cp1252")
    assert read(tmp_path, text, encoding="cp1252").lines[1].text == "Café, c’est toi"
    with pytest.raises(ValueError, match="--encoding"):
        read(tmp_path, text)
    with pytest.raises(ValueError, match="--encoding is the name"):
        read(tmp_path, SRT, encoding="nonsense")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("film.srt", "", "it is empty"),
        ("film.srt", "\0\1\2" * 50, "film.srt"),
        ("film.srt", "only words\nand no times", "holds no subtitle"),
        ("film.vtt", "WEBVTT\n\nNOTE nothing", "it is empty"),
        ("film.sub", SRT, "expected .srt or .vtt"),
        ("film.srt", b" " * (MAX_BYTES + 1), "Is it a film"),
        ("film.srt", "<a" * 200_000 + "-->" + "&" * 200_000, "holds no subtitle"),
    ],
)
def test_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content, name)
    with pytest.raises(FileNotFoundError, match="expected subtitles"):
        read_subtitles(tmp_path / "none.srt")
