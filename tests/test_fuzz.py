"""Files that were damaged on the way: bytes flipped, cut out, put in, cut off, values of another type. Every reader
ends in a refusal, or counts what it leaves out; never in another exception.

Bounded and seeded. ``ZOO_FUZZ=50`` tries fifty times as many.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.builders import label_clip, make_llm
from tests.data.miniature import write_meld
from tests.runs_helper import fit
from zoo import cli, configs, weights
from zoo.backbones import LLM
from zoo.benchmark import records
from zoo.checkpoints.system_export import _without_tied
from zoo.data import MELD
from zoo.label.requests import Request, read_turns
from zoo.media import Media, Unreadable
from zoo.schema import Labels
from zoo.storage import read_json, read_jsonl, read_yaml

TIMES = int(os.environ.get("ZOO_FUZZ", "1"))
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    float("nan"),
    "",
    "x",
    "\0",
    "../../x",
    "é\u2028",
    [],
    [1],
    {},
    {"a": 1},
    [[]],
]
PIECES = [
    b"",
    b"\0",
    b"\n",
    b"\r",
    b'"',
    b"{",
    b"[",
    b"]",
    b":",
    b"- ",
    b"\t",
    b"&a *a",
    b"!!python/name:os.system ",
    b"\xff",
    b"\xed\xa0\x80",
    b"9" * 400,
    b"1e999",
    b"NaN",
    b"NONE",
    "\u2028".encode(),
    b"," * 50,
]


# ------------------------------------------------------------------------------------------------------ damage
def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file with one to four faults of bytes."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(made) + 1)
        kind = rng.randrange(5)
        if kind == 0 and made:
            made[min(where, len(made) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[where:]
        elif kind == 2:
            del made[where : where + rng.choice((1, 3, 20, 300))]
        elif kind == 3:
            made[where:where] = rng.choice(PIECES)
        else:
            made[where:where] = made[where : where + rng.choice((1, 5, 60))]
    return bytes(made)


def swapped(content: Any, rng: random.Random) -> Any:
    """A JSON or YAML value with another type at one place, or a key less or more."""
    copy = json.loads(json.dumps(content))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(copy)
    if not places or rng.random() < 0.05:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)
    return copy


def refuses(read: Callable[[], Any], what: str) -> bool:
    """Whether a reader refuses; fails if it ends in an error that no user could follow."""
    try:
        read()
    except Unreadable:
        return True
    except Exception as error:
        message = cli.explained(error)
        assert message is not None, f"{what}: {type(error).__name__}: {error}"
        assert "Traceback" not in message
        return True
    return False


def fuzz(
    file: Path, read: Callable[[], Any], count: int, of_values: Callable[[Any], bytes] | None = None, value: Any = None
) -> int:
    """Reads a file damaged in many ways; how often it was refused. The file is as it was afterwards."""
    whole, refused = file.read_bytes(), 0
    assert not refuses(read, "the whole file")
    for seed in range(count * TIMES):
        rng = random.Random(f"{file.name} {seed}")
        if of_values is not None and rng.random() < 0.5:
            file.write_bytes(of_values(swapped(value, rng)))
        else:
            file.write_bytes(damaged(whole, rng))
        refused += refuses(read, f"{file.name}, seed {seed}")
    file.write_bytes(whole)
    return refused


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value).encode()


# ------------------------------------------------------------------------------------------------------ readers
def test_text_files(tmp_path):
    content = {"a": [1, 2.5, {"b": None}], "c": "é"}
    for name, write, read in (
        ("x.json", as_json, read_json),
        ("x.yaml", as_yaml, read_yaml),
        ("x.jsonl", lambda v: as_json(v) + b"\n" + as_json(v), read_jsonl),
    ):
        file = tmp_path / name
        file.write_bytes(write(content))
        assert fuzz(file, lambda read=read, file=file: read(file), 200) > 20


def test_run_configs(tmp_path):
    model = {"class_path": "zoo.models.causal_lm.CausalLM", "init_args": {"llm": "tiny-llama", "lr": 1e-3}}
    data = {"class_path": "zoo.data.Synthetic", "init_args": {"batch_size": 4}}
    trainer = {"accelerator": "cpu", "callbacks": None}
    config = {"seed_everything": 0, "trainer": trainer, "data": data, "model": model}
    file = tmp_path / "config.yaml"
    file.write_bytes(as_yaml(config))
    assert fuzz(file, lambda: configs.read_run_config(file, data=True), 250, as_yaml, config) > 50


def contract() -> dict[str, Any]:
    lora = {"r": 8, "alpha": 16.0, "dropout": 0.0, "targets": "x"}
    return {
        "format": 1,
        "class": "zoo.models.causal_lm.model.CausalLM",
        "adapters": {"llm": lora},
        "pristine": "0",
        "bases": {"llm": {"path": "x", "revision": None, "fingerprint": "0"}},
    }


def test_checkpoints(tmp_path):
    write_meld(tmp_path / "meld", dialogues=(2, 1, 1))
    run = fit(
        tmp_path,
        "--model=CausalLM",
        f"--model.llm={make_llm(tmp_path / 'llm')}",
        "--model.lora.r=1",
        "--data=MELD",
        f"--data.root={tmp_path / 'meld'}",
        "--trainer.max_steps=1",
    )
    file = run / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    tensors = {part: content.pop(part) for part in ("state_dict", "optimizer_states", "callbacks")}

    def read() -> None:
        weights.require_resumable(weights.look_into(file))
        weights.read_checkpoint(file)

    assert fuzz(file, read, 200) > 150
    for seed in range(100 * TIMES):  # whole files that say something else
        rng = random.Random(seed)
        other = swapped(content, rng)
        torch.save(tensors | other if isinstance(other, dict) else other, file)
        refuses(read, f"values, seed {seed}")


def test_published_weights(tmp_path):
    from safetensors.torch import save_file

    shared = torch.randn(3, 4)
    state, tied = _without_tied({"a": shared, "b": shared})
    file = tmp_path / "weights.safetensors"
    metadata = {"format": "pt", "zoo": json.dumps(contract()), "tied": json.dumps(tied)}
    save_file(state, file, metadata)
    assert fuzz(file, lambda: weights.read_checkpoint(file), 250) > 50
    for seed in range(150 * TIMES):
        other = swapped({"zoo": contract(), "tied": tied}, random.Random(seed))
        if isinstance(other, dict):
            save_file(state, file, {k: v if isinstance(v, str) else json.dumps(v) for k, v in other.items()})
            refuses(lambda: weights.look_into(file), f"values, seed {seed}")


def test_model_folders(tmp_path):
    folder = make_llm(tmp_path / "llm")
    for name, count in (
        ("config.json", 25),
        ("tokenizer.json", 15),
        ("tokenizer_config.json", 15),
        ("generation_config.json", 8),
        ("model.safetensors", 8),
    ):
        file = folder / name
        if not file.is_file():
            continue
        value = json.loads(file.read_bytes()) if name.endswith(".json") else None
        fuzz(file, lambda: LLM(str(folder)), count, as_json if value is not None else None, value)


def test_results_of_a_benchmark(tmp_path):
    row = {"id": "m/test/1", "dialogue": "m/test/0", "label": "joy", "predicted": None, "scores": {"joy": 0.5}}
    record = {
        "split": "test",
        "corpus": "m",
        "eval_protocol": "x",
        "model": "x",
        "parameters": 3,
        "events": {},
        "trainable_parameters": 0,
        "population": {"excluded": {}},
    }
    cost = {"seconds": 1.5, "peak_mib": 3.0, "interrupted": 0}
    for name, value, read in (
        ("predictions.jsonl", row, lambda f: records.read_rows(f, records.ROW)),
        ("metrics.json", record, lambda f: records.read_record(f, records.TEST)),
        ("fit.json", cost, lambda f: records.read_record(f, records.COST)),
    ):
        file = tmp_path / name
        file.write_bytes(as_json(value) + b"\n")
        fuzz(file, lambda read=read, file=file: read(file), 200, as_json, value)


def test_tables_of_a_corpus(tmp_path):
    write_meld(tmp_path, dialogues=(2, 1, 1))
    file = tmp_path / "test_sent_emo.csv"
    fuzz(file, lambda: MELD(root=tmp_path).reading("test"), 80)


def test_tables_to_label(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text('id,text,speaker,dialogue,label\n1,Oh!,Ann,d,joy\n2,"No, é",Bob,d,\n', encoding="utf-8")
    fuzz(file, lambda: read_turns(file, Request(), Labels("x", ("joy", "anger"))), 120)


def test_clips(tmp_path):
    file = tmp_path / "clip.mp4"
    file.write_bytes(label_clip("joy", "x"))

    def read() -> None:
        media = Media()
        for one in (lambda: media.frames(file, n=2), lambda: media.waveform(file)):
            refuses(one, "one half")

    fuzz(file, read, 25)
    shutil.rmtree(tmp_path)


TEXTS = ["{a: 1, a: 2}", "a: 1\na: 2\n", "&a [*a]", "a: &a {b: *a}", "[" * 200 + "]" * 200, "!!python/name:os.system"]


@pytest.mark.parametrize("text", TEXTS)
def test_values_of_the_command_line(text):
    with pytest.raises(yaml.YAMLError):
        configs._load(text)
