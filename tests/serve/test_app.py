"""The server of the page: what it takes, from whom, and what is left of an upload. The systems are stand-ins."""

import asyncio
import http.client
import json
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.serve import app as serve_app
from zoo.serve.answers import Rejected
from zoo.serve.app import Limits, Site
from zoo.serve.examples import Examples

QUESTION = {
    "systems": ["parts"],
    "parts": ["text", "face", "voice"],
    "lines": [["Nina", "Who  took\tit?"]],
    "segments": False,
}
EDGE = "xxEDGExx"


class StandIn:
    """Answers with what it was asked, and keeps the clip's bytes and the folder it lay in."""

    def __init__(self):
        self.choices = [{"name": "parts", "what": "words"}]
        self.asked, self.folders, self.wait, self.at_once, self.most_at_once = [], [], threading.Event(), 0, 0
        self.wait.set()

    def __call__(self, question, gone):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.wait.wait(20)
        time.sleep(0.05)
        self.at_once -= 1
        if question.lines and question.lines[0][1] == "break":
            raise RuntimeError("no memory")
        if question.clip is not None:
            self.folders.append(question.clip.parent)
            self.asked.append((question, question.clip.read_bytes(), gone()))
        else:
            self.asked.append((question, None, gone()))
        if question.lines and question.lines[0][1] == "refuse":
            raise Rejected("<b>no</b>")
        return {"utterances": [], "systems": []}


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A site with a stand-in: `ask`, `answers`, `port`. Its uploads lie in `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    answers = StandIn()
    site = Site(answers, Examples(), Limits(megabytes=0.01, upload_seconds=2, waiting=2))
    loop, address = asyncio.new_event_loop(), []
    started = threading.Event()

    def ready(url):
        address.append(url)
        started.set()

    task = loop.create_task(serve_app.run(site, "127.0.0.1", 0, ready))
    thread = threading.Thread(target=lambda: loop.run_until_complete(task))
    thread.start()
    assert started.wait(20)
    port = int(address[0].rpartition(":")[2])

    def ask(method, path, body=None, headers=None, host=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, body, {"Host": host or f"127.0.0.1:{port}", **(headers or {})})
        reply = connection.getresponse()
        return SimpleNamespace(status=reply.status, headers=reply.headers, body=reply.read())

    def end():
        loop.call_soon_threadsafe(task.cancel)

    yield SimpleNamespace(ask=ask, answers=answers, port=port, site=site, end=end)
    answers.wait.set()
    if thread.is_alive():
        end()
    thread.join(20)


def soon(holds):
    """Whether something holds within some seconds."""
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def form(*parts, question=QUESTION):
    """A form's body: parts are (name, file name, bytes)."""
    parts = [("question", None, json.dumps(question).encode()), *parts]
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename else ""
        body += f'--{EDGE}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return body + f"--{EDGE}--\r\n".encode()


def label(served, *parts, question=QUESTION, **more):
    headers = {"Content-Type": f"multipart/form-data; boundary={EDGE}", **more}
    reply = served.ask("POST", "/api/label", form(*parts, question=question), headers)
    return reply.status, json.loads(reply.body)


def test_a_clip_is_answered_and_deleted(served):
    status, answer = label(served, ("clip", "C:\\..\\../../etc/Passwd.MP4", b"film"), ("subtitles", "a.srt", b"1"))
    ((question, content, gone),) = served.answers.asked
    assert (status, answer) == (200, {"utterances": [], "systems": []}) and content == b"film" and not gone
    assert question.clip.name == "clip.mp4" and question.subtitles.name == "subtitles.srt"  # nothing of its own name
    assert question.lines == (("Nina", "Who took it?"),) and question.systems == ("parts",)
    assert not question.clip.parent.exists() and question.clip.is_relative_to(tempfile.gettempdir())


@pytest.mark.parametrize(
    ("parts", "question", "message"),
    [
        ([("clip", "notes.txt", b"x")], QUESTION, "the file ends in '.txt'; expected one of .mp4"),
        ([("clip", "clip", b"x")], QUESTION, "the file ends in '.clip'"),
        ([("clip", "a.mp4", b"")], QUESTION, "the file is empty"),
        ([("clip", "a.mp4", b"x" * 20_000)], QUESTION, "the file has over 0.01 MB"),
        ([("subtitles", "a.srt", b"x" * 300_000)], QUESTION, "the file has over"),
        ([("clip", "a.mp4", b"x"), ("clip", "b.mp4", b"y")], QUESTION, "a part twice"),
        ([("path", None, b"/etc/passwd")], QUESTION, "the form has a part 'path'"),
        ([], {**QUESTION, "clip": "/etc/passwd", "lines": [["", "refuse"]]}, "<b>no</b>"),
        ([], {"systems": []}, "the part question is JSON with systems"),
        ([], {**QUESTION, "parts": ["smell"]}, "the part question is JSON"),
        ([], {**QUESTION, "lines": [["one"]]}, "the part question is JSON"),
        ([], [1], "the part question is JSON"),
        ([("question", None, b"{}")], QUESTION, "a part twice"),
        ([("clip", "a\0b.mp4", b"x")], QUESTION, "the form cannot be read"),
    ],
)
def test_what_is_refused(served, parts, question, message):
    status, answer = label(served, *parts, question=question)
    assert status == 400 and message in answer["error"], answer
    assert not list(Path(tempfile.gettempdir()).glob("zoo-serve-*/clip*"))


def test_no_form_at_all(served):
    reply = served.ask("POST", "/api/label", b"{}", {"Content-Type": "application/json"})
    assert reply.status == 400 and "a question is a form" in json.loads(reply.body)["error"]
    reply = served.ask("POST", "/api/label", b"rubbish", {"Content-Type": f"multipart/form-data; boundary={EDGE}"})
    assert reply.status == 400 and "error" in json.loads(reply.body)


def test_a_form_without_a_question(served):
    body = (
        form(("clip", "a.mp4", b"x"))
        .replace(b"question", b"clip", 1)
        .replace(b'"clip"', b'"clip"; filename="b.mp4"', 1)
    )
    body = body[body.index(b"--" + EDGE.encode(), 5) :]  # the clip alone
    reply = served.ask("POST", "/api/label", body, {"Content-Type": f"multipart/form-data; boundary={EDGE}"})
    assert reply.status == 400 and "no part question" in json.loads(reply.body)["error"]


def test_an_error_of_a_system_is_said(served, capsys):
    question = {**QUESTION, "lines": [["", "break"]]}
    status, answer = label(served, question=question)
    assert status == 500 and "could not answer (RuntimeError)" in answer["error"]
    assert "RuntimeError: no memory" in capsys.readouterr().err
    assert label(served)[0] == 200


def test_the_page_opens_while_somebody_waits(served):
    served.ask("GET", "/api/systems")
    served.answers.wait.clear()
    user = threading.Thread(target=label, args=(served,))
    user.start()
    assert soon(lambda: served.answers.at_once)
    try:
        assert json.loads(served.ask("GET", "/api/systems").body)["systems"] == served.answers.choices
        assert len(json.loads(served.ask("GET", "/api/examples").body)) == 4
        assert user.is_alive()  # still: the stand-in gives up after 20 s
    finally:
        served.answers.wait.set()
        user.join(20)


def test_a_server_that_ends_waits_for_no_question(served):
    served.answers.wait.clear()
    user = threading.Thread(target=label, args=(served,))
    user.start()
    assert soon(lambda: served.answers.at_once)
    served.end()
    time.sleep(0.3)
    served.answers.wait.set()
    user.join(20)
    ((_, _, gone),) = served.answers.asked
    assert gone


def test_other_sites_are_refused(served):
    for host in ("evil.example", f"evil.example:{served.port}", "127.0.0.1.evil.example", "[::1", "localhost]"):
        assert served.ask("GET", "/", host=host).status == 403
    assert served.ask("GET", "/", host=f"localhost:{served.port}").status == 200
    for origin in ("http://evil.example", "null", "http://[::1"):
        assert label(served, Origin=origin)[0] == 403 and not served.answers.asked
    assert label(served, Origin=f"http://127.0.0.1:{served.port}")[0] == 200


def test_no_file_of_the_machine_can_be_asked_for(served):
    for path in (
        "/../answers.py",
        "/page/../../cli.py",
        "/%2e%2e/app.py",
        "//etc/passwd",
        "/api/examples/../../app.py",
    ):
        assert served.ask("GET", path).status == 404, path
    assert served.ask("GET", "/api/examples/99").status == 404


def test_the_page_loads_nothing_from_elsewhere(served):
    for path, name in serve_app.FILES.items():
        reply = served.ask("GET", path)
        assert reply.status == 200 and "default-src 'none'" in reply.headers["Content-Security-Policy"]
        text = reply.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "innerHTML" not in text, name
        assert "style=" not in text or name != "index.html"


def test_two_users_at_once_wait_for_each_other(served):
    served.answers.wait.clear()
    replies = []
    clips = [("clip", "a.mp4", b"film A"), ("clip", "a.mp4", b"film B")]
    users = [threading.Thread(target=lambda clip=clip: replies.append(label(served, clip)[0])) for clip in clips]
    for user in users:
        user.start()
    assert soon(lambda: served.site.waiting == 2)
    assert label(served) == (503, {"error": "2 questions are waiting; try again in a minute"})
    served.answers.wait.set()
    for user in users:
        user.join(20)
    assert replies == [200, 200] and served.answers.most_at_once == 1
    assert sorted(content for _, content, _ in served.answers.asked) == [b"film A", b"film B"]
    assert len(set(served.answers.folders)) == 2 and not any(folder.exists() for folder in served.answers.folders)


def test_a_cancelled_upload_leaves_nothing(served, caplog):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.putrequest("POST", "/api/label")
    body = form(("clip", "a.mp4", b"x" * 500))
    connection.putheader("Content-Type", f"multipart/form-data; boundary={EDGE}")
    connection.putheader("Content-Length", str(len(body) + 1000))
    connection.endheaders(body[:-200])
    uploads = Path(tempfile.gettempdir())
    assert soon(lambda: list(uploads.glob("zoo-serve-*")))
    connection.close()
    assert soon(lambda: not list(uploads.glob("zoo-serve-*"))) and not served.answers.asked
    assert label(served)[0] == 200
    assert not caplog.records  # it is no error of the server


def test_a_slow_upload_ends(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest("POST", "/api/label")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={EDGE}")
    connection.putheader("Content-Length", "5000")
    connection.endheaders(form()[:60])
    reply = connection.getresponse()
    assert reply.status == 400 and b"the upload took over 2 s" in reply.read()


def test_examples_are_films_of_the_sitcom(served):
    rows = json.loads(served.ask("GET", "/api/examples").body)
    film = served.ask("GET", "/api/examples/0")
    assert len(rows) == 4 and rows[0].keys() == {"number", "speaker", "text", "label"}
    assert film.headers["Content-Type"] == "video/mp4" and b"ftyp" in film.body[:12]
