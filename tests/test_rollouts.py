"""`zoo rollouts serve`: the line that starts an engine for a config."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.builders import make_home
from tests.runs_helper import in_child, refused, zoo

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("serve"), (1, 1, 1), clips=True)


def arguments(home, *more, model="GRPO"):
    rewards = ["--model.reward_funcs+=tests.runs_helper.checksum"] if model == "GRPO" else []
    return (
        *("rollouts", "serve", f"--model={model}", f"--model.llm={home / 'llm'}", *rewards),
        *("--data=MELD", f"--data.root={home / 'meld'}", "--trainer.accelerator=cpu", *more),
    )


def said(capsys, *args):
    """The words of the line."""
    capsys.readouterr()
    zoo(*args)
    return shlex.split(capsys.readouterr().out.splitlines()[0])


def value(words, flag):
    return words[words.index(flag) + 1]


def test_a_line_of_a_config(home, capsys):
    more = ("--model.lora.r=12", "--model.max_length=90", "--model.max_new_tokens=20", "--model.dtype=bfloat16")
    where = ("--model.sampler.url=http://127.0.0.1:8123", "--model.sampler.model=mine", "--vllm_python=/env/python")
    words = said(capsys, *arguments(home, *more, *where))
    assert words[: words.index("--model")] == [
        *("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_WORKER_MULTIPROC_METHOD=spawn"),
        *("/env/python", "-m", "vllm.entrypoints.openai.api_server"),
    ]
    expected = {
        "--model": str((home / "llm").resolve()),
        "--served-model-name": "mine",
        "--dtype": "bfloat16",
        "--max-model-len": "110",
        "--max-lora-rank": "16",
        "--max-loras": "2",
        "--logprobs-mode": "processed_logprobs",
        "--host": "127.0.0.1",
        "--port": "8123",
    }
    assert {flag: value(words, flag) for flag in expected} == expected
    at = words.index("--lora-target-modules")
    assert words[at + 1 : at + 4] == ["q_proj", "v_proj", "--enforce-eager"]  # none for the table of embeddings
    assert {"--enable-lora", "--enforce-eager", "--no-enable-chunked-prefill"} <= set(
        words
    ) and "--enable-prompt-embeds" not in words


def test_pictures_need_embeddings(home, capsys):
    more = (f"--model.vision={home / 'vision'}", f"--model.audio={home / 'audio'}")
    assert "--enable-prompt-embeds" in said(capsys, *arguments(home, *more, model="Merit"))


def test_a_model_without_adapters(home, capsys):
    words = said(capsys, *arguments(home, model="CausalLM"))
    assert "--enable-lora" not in words and "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" not in words


def test_another_machine(home, capsys):
    zoo(*arguments(home, "--model.sampler.url=http://example.org:90/v1"))
    line, note = capsys.readouterr().out.splitlines()
    assert "--port 90" in line and note.startswith("# to be run on example.org")


def test_run_becomes_the_engine(home, tmp_path, capfd):
    """Here a script that tells what it was started as."""
    python = tmp_path / "python"
    tell = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['VLLM_CPU_KVCACHE_SPACE']]))"
    script = f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nexec {sys.executable} -c "{tell}" "$@"\n'
    python.write_text(script)
    python.chmod(0o755)
    assert in_child(lambda: zoo(*arguments(home, "--run", f"--vllm_python={python}", "--model.lora.r=4"))) == 0
    line, told = capfd.readouterr().out.splitlines()[-2:]
    words = shlex.split(line)
    assert json.loads(told) == [words[words.index(str(python)) + 1 :], "1"]


def test_refused(home, tmp_path):
    assert "has no vllm; make an environment" in refused(*arguments(home, "--run", f"--vllm_python={sys.executable}"))
    assert "cannot be run" in refused(*arguments(home, "--run", f"--vllm_python={tmp_path / 'nothing'}"))
    assert "rank 512 at most, lora.r is 600" in refused(*arguments(home, "--model.lora.r=600"))
    assert "expected zoo rollouts serve" in refused("rollouts", "stop")
    shape = [a if "--model.llm" not in str(a) else "--model.llm=shape:llama-2-7b" for a in arguments(home)]
    assert "no folder that an engine could serve" in refused(*shape)
    wrong = ("rollouts", "serve", "--model=Majority", "--data=MELD", f"--data.root={home / 'meld'}")
    assert "asks no language model" in refused(*wrong)
    assert not list(Path.cwd().iterdir())
