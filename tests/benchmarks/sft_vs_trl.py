"""Supervised fine-tuning of a real language model beside TRL's SFTTrainer, and dialogues as trees beside rows.

    python tests/benchmarks/sft_vs_trl.py --llm smollm2-135m --data-root ../shared/data/meld --json sft.json

Cells of the first table, with prompts of 47, 150, 287 and 522 tokens on average, each on the same rows of MELD's
training split (tokens and answers from the zoo's collator, in the model's chat format), an optimizer step per 32 rows,
LoRA of rank 16 on all linear layers, float32, one thread:

* short: DialogueLLM's ``short`` template, no earlier turns
* instructed: its ``default`` template with two earlier turns
* solved examples: the same with seven solved examples, drawn anew for every row
* long: the same with 20 earlier turns and 16 solved examples

and arms: ``zoo``; ``rows``, the zoo with every row computed by itself; ``trl``, SFTTrainer with completion-only loss
and ``train_sampling_strategy="group_by_length"``. Gradients are accumulated over passes of as many rows as about 10 GiB
hold, which are more where rows share what they begin with. A number is CPU seconds (user and system) per row over
the steps after one warm-up; each arm runs in a process of its own, the arms in turn.

The second table is about prompts that show the whole conversation (``window: null``), with the template
``causal_lm/instruction``, which asks first, and with ``default``, which asks and repeats the utterance behind it:
``tree``, where an utterance is a branch of its dialogue; ``kept``, where only what all rows begin with is computed
once. Training steps, and scoring the label words of the test split; beside the CPU seconds the peak of the resident
set.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import zoo.models.dialoguellm
import zoo.training.collator
from zoo.backbones import LLM, LoRA
from zoo.backbones.row_tree import share_rows
from zoo.data import MELD
from zoo.data.batches import Batches
from zoo.prompts import load_template
from zoo.schema import Sample, Split
from zoo.training.collator import PromptCollator

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCH = 32
CELLS: dict[str, dict[str, Any]] = {
    "short": {"template": "short", "window": 0, "pass": 8, "shared_pass": 32},
    "instructed": {"template": "default", "window": 2, "pass": 8, "shared_pass": 32},
    "solved examples": {"template": "default", "window": 2, "shots": 7, "pass": 4, "shared_pass": 8},
    "long": {"template": "default", "window": 20, "shots": 16, "pass": 2, "shared_pass": 4},
}
DIALOGUES: dict[str, dict[str, Any]] = {
    "asked first": {"template": "causal_lm/instruction", "window": None},
    "asked behind": {"template": "default", "window": None},
}
WHOLE = [f"{name}, {part}" for name in DIALOGUES for part in ("training", "test")]


def language_model(path: str) -> LLM:
    """Return the model with fresh adapters."""
    torch.manual_seed(0)
    llm = LLM(path)
    llm.add_lora(LoRA(16, 32, 0.0, rf"model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(LINEARS)})"))
    return llm


def collator_of(llm: LLM, cell: dict[str, Any], data: MELD, training: bool, share: bool) -> PromptCollator:
    """Return what writes the rows of a cell."""
    folder = Path(zoo.models.dialoguellm.__file__).parent / "templates"
    return PromptCollator(
        tokenizer=llm.tokenizer, pad_id=llm.pad_id, template=load_template(cell["template"], folder),
        window=cell["window"], max_length=4096, training=training, chat=True, share_beginnings=share,
        shots=cell.get("shots", 0), pool=data.samples("train") if cell.get("shots") else (),
    )  # fmt: skip


def use_sharing(arm: str) -> None:
    """Let rows share what the arm says."""
    how = functools.partial(share_rows, joined=(0.0,)) if arm == "kept" else share_rows
    setattr(zoo.training.collator, "share_rows", how)  # noqa: B010  (mypy sees what the collator imports as its own)


def loss_of(llm: LLM, batch: Any) -> torch.Tensor:
    """Return the loss as `zoo.training.sft` computes it."""
    embedded, tree = llm.embed(batch["input_ids"]), batch.get("tree")
    chosen = batch["answer"][:, 1:] & batch["mask"][:, :-1]
    if tree is None:
        hidden = llm.hidden(embedded, batch["mask"])[:, :-1][chosen]
    else:
        hidden = llm.hidden_of_tree(embedded, tree)[tree.places[:, :-1][chosen]]
    return torch.nn.functional.cross_entropy(llm.head(hidden), batch["target_ids"][:, 1:][chosen])


def peak_mib() -> float:
    """Return the peak of the resident set."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def meld(root: Path) -> MELD:
    """Return the corpus."""
    data = MELD(root=root)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


def train(llm: LLM, steps: list[list[Any]]) -> dict[str, float]:
    """Take a step per list of batches; return CPU seconds and rows without those of the first, and its loss."""
    optimizer = torch.optim.AdamW([p for p in llm.parameters() if p.requires_grad], lr=1e-4)
    seconds, losses = [], []
    for batches in steps:
        start = time.process_time()
        losses.append(0.0)
        tokens = [int(batch["answer"][:, 1:].sum()) for batch in batches]
        for batch, count in zip(batches, tokens, strict=True):
            loss = loss_of(llm, batch) * count / sum(tokens)
            loss.backward()
            losses[-1] += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    rows = sum(len(batch["samples"]) for batches in steps[1:] for batch in batches)
    return {"seconds": sum(seconds[1:]), "rows": rows, "loss": losses[0], "peak": peak_mib()}


def steps_of(
    samples: list[Any], collator: PromptCollator, size: int, training: bool, whole_dialogues: bool
) -> list[list[Any]]:
    """Return the batches of each step: 32 rows in passes of ``size``."""
    order = Batches(samples, collator, BATCH, training, True, whole_dialogues, 0).order(0)
    steps = []
    for number, indices in enumerate(order):
        rng = np.random.default_rng((0, 0, number, 0))  # one for a step, so that all arms draw the same
        rows = [samples[i] for i in indices]
        steps.append([collator(rows[i : i + size], rng) for i in range(0, len(rows), size)])
    return steps


def zoo_arm(options: argparse.Namespace, cell: dict[str, Any], share: bool) -> dict[str, float]:
    llm, data = language_model(options.llm), meld(options.data_root)
    samples = list(data.samples("train"))[: options.steps * BATCH]
    collator = collator_of(llm, cell, data, True, share)
    return train(llm, steps_of(samples, collator, cell["shared_pass" if share else "pass"], True, False))


def trl_arm(options: argparse.Namespace, cell: dict[str, Any]) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    llm, data = LLM(options.llm), meld(options.data_root)
    folder = tempfile.mkdtemp()
    llm.causal_lm.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    samples = list(data.samples("train"))[: options.steps * BATCH]
    collator = collator_of(llm, cell, data, True, False)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    for i, sample in enumerate(samples):
        rng = np.random.default_rng((0, 0, i, 0))
        prompt, answer = collator.prompt_ids(sample, rng)[0], collator.target_ids(sample, rng)
        rows["input_ids"].append(prompt + answer)
        rows["completion_mask"].append([0] * len(prompt) + [1] * len(answer))
    seconds: list[float] = []

    class Timed(SFTTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            seconds.append(time.process_time())
            return super().training_step(*args, **kwargs)

    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_dict(rows),
        peft_config=LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=folder, per_device_train_batch_size=cell["pass"], num_train_epochs=1, use_cpu=True, bf16=False,
            gradient_accumulation_steps=BATCH // cell["pass"],
            gradient_checkpointing=False, completion_only_loss=True, train_sampling_strategy="group_by_length",
            max_length=None, learning_rate=1e-4, save_strategy="no", report_to="none", logging_steps=1000,
            disable_tqdm=True, dataloader_pin_memory=False,
        ),
    )  # fmt: skip
    trainer.train()
    end = time.process_time()
    return {
        "seconds": end - seconds[BATCH // cell["pass"]],
        "rows": len(samples) - BATCH,
        "loss": float("nan"),
        "peak": peak_mib(),
    }


def drawn_dialogues(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return the first samples of the dialogues in random order, the same in every arm."""
    dialogues: dict[str, list[Sample]] = {}
    for sample in samples:
        dialogues.setdefault(sample.dialogue, []).append(sample)
    order = np.random.default_rng(0).permutation(list(dialogues))
    return [sample for dialogue in order for sample in dialogues[dialogue]][:count]


def dialogue_arm(options: argparse.Namespace, cell: dict[str, Any], training: bool) -> dict[str, float]:
    llm, data = language_model(options.llm), meld(options.data_root)
    samples = drawn_dialogues(data.samples("train" if training else "test"), options.steps * BATCH)
    steps = steps_of(samples, collator_of(llm, cell, data, training, True), BATCH, training, True)
    if training:
        return train(llm, steps)
    llm.eval()
    words = [llm.tokenizer(name, add_special_tokens=False)["input_ids"] for name in data.labels.names]
    start, scores = time.process_time(), []
    for batch in itertools.chain(*steps):
        scores.append(llm.score(llm.encode(batch["input_ids"], batch["mask"], tree=batch.get("tree")), words))
    seconds = time.process_time() - start
    return {"seconds": seconds, "rows": len(samples), "loss": torch.cat(scores).mean().item(), "peak": peak_mib()}


def count_tokens(options: argparse.Namespace, cell: dict[str, Any], split: Split) -> list[float]:
    """Return utterances of a split, and tokens for each: of trees, with the fixed beginning once, and of rows."""
    llm, data = LLM(options.llm), meld(options.data_root)
    samples = list(data.samples(split))
    means: list[float] = [len(samples)]
    for arm in ("tree", "kept", "rows"):
        use_sharing(arm)
        collator = collator_of(llm, cell, data, split == "train", arm != "rows")
        tokens = 0
        for batch in itertools.chain(*steps_of(samples, collator, BATCH, split == "train", True)):
            tree = batch.get("tree")
            tokens += int(batch["mask"].sum()) if tree is None else len(tree.tokens)
        means.append(tokens / len(samples))
    return means


def in_process(options: argparse.Namespace, cell: str, arm: str) -> dict[str, float]:
    """Run one arm in a process of its own."""
    command = [sys.executable, __file__, "--llm", options.llm, "--data-root", str(options.data_root)]
    command += ["--steps", str(options.steps), "--cell", cell, "--arm", arm]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{cell}, {arm}:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{cell} {arm}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def one_arm(options: argparse.Namespace) -> dict[str, float]:
    name, _, part = options.cell.partition(", ")
    if name in DIALOGUES:
        use_sharing(options.arm)
        return dialogue_arm(options, DIALOGUES[name], part == "training")
    if options.arm == "trl":
        return trl_arm(options, CELLS[options.cell])
    return zoo_arm(options, CELLS[options.cell], options.arm == "zoo")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--llm", required=True, help="model folder or published name")
    parser.add_argument("--data-root", type=Path, required=True, help="MELD's folder")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cells", nargs="*", default=[*CELLS, *WHOLE])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tokens", action="store_true", help="count the tokens of whole splits, and do nothing else")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(one_arm(options)))
        return
    if options.tokens:
        print("| question | split | n | dialogue trees | only the fixed beginning once | rows |")
        print("|---|---|---|---|---|---|")
        splits: tuple[Split, ...] = ("train", "test")
        for name, split in itertools.product(DIALOGUES, splits):
            n, *counts = count_tokens(options, DIALOGUES[name], split)
            print(f"| {name} | {split} | {n} | {' | '.join(f'{tokens:.1f}' for tokens in counts)} |", flush=True)
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    for cell in options.cells:
        arms = ("tree", "kept") if cell in WHOLE else ("zoo", "rows", "trl")
        results[cell] = {arm: in_process(options, cell, arm) for arm in arms}
        losses = [r["loss"] for r in results[cell].values() if r["loss"] == r["loss"]]
        if max(losses) - min(losses) > 1e-4 * abs(losses[0]):
            raise RuntimeError(f"{cell}: the arms do not compute the same: {losses}")
    for title, chosen in (("fine-tuning", CELLS), ("whole conversations", WHOLE)):
        print(f"\n{title}: CPU milliseconds per row ({options.steps} steps of {BATCH})")
        for cell in (c for c in options.cells if c in chosen):
            first, *others = results[cell].items()
            each = {arm: 1000 * r["seconds"] / r["rows"] for arm, r in results[cell].items()}
            text = ", ".join(f"{arm} {ms:.0f} (peak {results[cell][arm]['peak']:.0f} MiB)" for arm, ms in each.items())
            ratios = ", ".join(f"{arm} / {first[0]} {each[arm] / each[first[0]]:.2f}" for arm, _ in others)
            print(f"  {cell}: {text}; {ratios}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
