"""One GRPO step of ours beside one of TRL's GRPOTrainer: CPU seconds of every part, and memory.

    python tests/benchmarks/grpo_vs_trl.py --json grpo.json                        # three cells, about half an hour
    python tests/benchmarks/grpo_vs_trl.py --json grpo.json --cells 800,60,4 --repeats 1
    python tests/benchmarks/grpo_vs_trl.py --dead 0.5 --cells 800,16,5             # groups without advantage, ours only

A cell is P,C,G or P,C,G,BETA: prompt tokens, answer tokens, answers per prompt, weight of the divergence (0.04; 0 for
800,16,5, MERIT's step of short answers). A step has four prompts, one of them per backward pass.

Every arm runs in a process of its own with one thread, the arms in turn, `--repeats` times. A number is the least CPU
time (user and system, `time.process_time`) over the steps after one warm-up and over the repeats. The work is the same:
a random Qwen2 (width 384, 8 layers, 32,000 tokens) in fp32, LoRA of rank 8 on its seven linear layers with B far from
zero (else the divergence is 0), no dropout, no recomputed activations, temperature 1, answers forced to their length,
rewards from a fixed function, new random prompts at every step, one update per sampling. Weights and prompts are the
same numbers in all arms; each arm reports the log-probability of one fixed answer, and a difference stops the command.

* ``trl``: GRPOTrainer of TRL with the compaction of the head switched on, which TRL leaves off on a CPU (all prompt
  positions would reach the vocabulary there, and a ratio against that would be no achievement).
* ``zoo``: `zoo.backbones` and `zoo.rl`, nothing else.
* ``plain``: the same with every answer computing its prompt again; training part only, in the first repeat only. It is
  the other side of the memory goal: growth of the resident set over the training part, at its peak. Half of that can be
  memory that is free but not given back, so both are measured once more with an allocator that keeps nothing
  (``memory_live``: what the tensors need).

Prints a table with the goals and writes ``{"cells": [{"P", "C", "G", "ratio_total", "ratio_train", "ratio_rollout",
"memory", ...}]}``; train is ref + fwd + bwd. Exit code 1 if a goal is missed.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

PROMPTS = 4  # of a step
VOCABULARY = 32_000
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GOALS = {  # cell -> what is measured -> (must, stretch); ratios are TRL / ours, memory is ours / plain
    (600, 128, 4): {"total": (1.8, 2.2), "train": (2.0, 2.3), "rollout": (1.6, 2.0), "memory": (0.5, 0.38)},
    (800, 60, 4): {"total": (2.2, 2.6), "train": (2.4, 2.8), "rollout": (2.0, 2.4), "memory": (0.5, 0.38)},
    (800, 16, 5): {"total": (3.2, 4.0), "train": (3.5, 4.2), "memory": (0.35, 0.25)},
}


class Cell(NamedTuple):
    prompt: int
    answer: int
    group: int
    beta: float

    @staticmethod
    def parse(text: str) -> "Cell":
        sizes = text.split(",")
        if len(sizes) not in (3, 4):
            raise argparse.ArgumentTypeError(f"a cell is P,C,G or P,C,G,BETA, not {text!r}")
        p, c, g = map(int, sizes[:3])
        beta = float(sizes[3]) if len(sizes) == 4 else 0.0 if (p, c, g) == (800, 16, 5) else 0.04
        return Cell(p, c, g, beta)

    def __str__(self) -> str:
        return ",".join(f"{x:g}" for x in self)


# ------------------------------------------------------------------------------------------------ the same for all arms
def random_model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=384,
            intermediate_size=2048,
            num_hidden_layers=8,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.05,
            attn_implementation="sdpa",  # type: ignore[call-arg]  # passed on to PreTrainedConfig
        )
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every word w4, w5, ..."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = {word: i for i, word in enumerate(special.values())} | {f"w{i}": i for i in range(4, VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def fill_adapters(model: torch.nn.Module) -> None:
    """The same adapters in every arm: A as large as PEFT draws it, B far from zero."""
    generator = torch.Generator().manual_seed(1)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name:
            scale = 0.02 if "lora_B" in name else (3 * p.shape[1]) ** -0.5
            p.data = torch.randn(p.shape, generator=generator) * scale


def random_prompts(cell: Cell, steps: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(f"w{rng.randrange(4, VOCABULARY)}" for _ in range(cell.prompt)) for _ in range(PROMPTS * steps)]


def reward(ids: list[int]) -> float:
    return sum(ids) % 97 / 97


PROBE = torch.arange(16) * 1009 % (VOCABULARY - 4) + 4  # an answer whose log-probability every arm reports


# ------------------------------------------------------------------------------------------------------------ measuring
class Clock:
    """CPU seconds of the named parts of one step after the other."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []

    def around(self, function: Callable, name: str | Callable[[], str]) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            key, start = name() if callable(name) else name, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.now[key] = self.now.get(key, 0.0) + time.process_time() - start

        return timed

    def end_step(self) -> None:
        self.steps.append(self.now)
        self.now = {}

    def least(self) -> dict[str, float]:
        """Of each part over the steps after the first; the training part is the least sum, not the sum of the least."""
        steps = [s | {"train": sum(s.get(k, 0.0) for k in ("ref", "fwd", "bwd"))} for s in self.steps[1:]]
        return {key: round(min(s[key] for s in steps), 4) for key in steps[0]}


def memory(field: str) -> float:
    """MiB of this process: VmRSS resident now, VmHWM at its peak."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(field))


def forget_peak() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free but kept would hide as much growth
    Path("/proc/self/clear_refs").write_text("5")


# ----------------------------------------------------------------------------------------------------------------- arms
def trl_arm(cell: Cell, steps: int) -> dict[str, Any]:
    import trl.trainer.utils
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    vars(trl.trainer.utils)["_use_triton"] = lambda device: (
        True
    )  # only answer positions reach the vocabulary, as on a GPU
    model, clock = random_model(), Clock()
    model.config._name_or_path = "random"
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, completion_ids, **_: [reward(ids) for ids in completion_ids],
        train_dataset=Dataset.from_list([{"prompt": p} for p in random_prompts(cell, steps + 1)]),
        processing_class=word_tokenizer(),
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=cell.group,
            gradient_accumulation_steps=PROMPTS,
            num_generations=cell.group,
            max_completion_length=cell.answer,
            beta=cell.beta,
            loss_type="grpo",
            temperature=1.0,
            learning_rate=1e-5,
            max_steps=steps + 1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            generation_kwargs={"min_new_tokens": cell.answer},
            shuffle_dataset=False,
            dataloader_pin_memory=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
        ),
    )
    fill_adapters(trainer.model)
    ids = torch.cat([torch.tensor(word_tokenizer()(random_prompts(cell, 1)[0])["input_ids"]), PROBE])[None]
    score = trainer._get_per_token_logps_and_entropies
    with torch.no_grad():
        probe = score(trainer.model, ids, torch.ones_like(ids), len(PROBE))[0].sum().item()

    lengths = set()
    generate, inner = trainer._generate_single_turn, trainer.training_step

    def generate_and_look(*args: Any, **kwargs: Any) -> Any:
        made = generate(*args, **kwargs)
        lengths.update(map(len, made[0]))
        return made

    trainer._generate_single_turn = clock.around(generate_and_look, "gen")
    trainer._get_per_token_logps_and_entropies = clock.around(
        score, lambda: "fwd" if torch.is_grad_enabled() else "ref"
    )
    trainer.accelerator.backward = clock.around(trainer.accelerator.backward, "bwd")
    timed, passes = clock.around(inner, "total"), 0

    def step(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        result, passes = timed(*args, **kwargs), passes + 1
        if passes % PROMPTS == 0:
            clock.end_step()
            if len(clock.steps) == 1:
                forget_peak()
        return result

    trainer.training_step = step
    before = memory("VmRSS")
    trainer.train()
    return {
        "seconds": clock.least(),
        "probe": probe,
        "lengths": sorted(lengths),
        "peak_step": memory("VmHWM") - before,
        "versions": {"trl": trl.__version__},
    }


class Ours:
    """The model, and a step of `zoo.rl`."""

    def __init__(self, cell: Cell) -> None:
        from zoo.backbones import LLM, LoRA
        from zoo.rl import Objective

        class Endless(LLM):
            """Answers are cut off at their length: no token ends one."""

            eos_ids = [-1]

        with tempfile.TemporaryDirectory() as folder:
            random_model().save_pretrained(folder)
            word_tokenizer().save_pretrained(folder)
            self.llm = Endless(folder)
        self.llm.add_lora(
            LoRA(r=8, alpha=16, dropout=0.0, targets=rf"model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(LINEARS)})")
        )
        fill_adapters(self.llm.model)
        self.cell, self.clock = cell, Clock()
        # as TRL's defaults; without divergence MERIT's objective
        self.objective = (
            Objective(normalize="sequence", beta=cell.beta, kl="k3_corrected")
            if cell.beta
            else (Objective("reinforce_group", normalize="sum"))
        )
        self.trained = [p for p in self.llm.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5)
        ids, mask = self.tokens(random_prompts(cell, 1)[:1])
        with torch.no_grad():
            one = torch.ones(1, 1, len(PROBE), dtype=torch.bool)
            self.probe = self.llm.logprobs(self.llm.encode(ids, mask), PROBE[None, None], one).sum().item()
        self.llm.logprobs = self.clock.around(self.llm.logprobs, lambda: "fwd" if torch.is_grad_enabled() else "ref")
        self.backward = self.clock.around(torch.Tensor.backward, "bwd")

    def tokens(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor(self.llm.tokenizer(texts)["input_ids"])
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def sample(self, texts: list[str]) -> tuple:
        from zoo.rl import roll_out

        ids, mask = self.tokens(texts)
        roll = self.clock.around(roll_out, "gen")
        return ids, mask, roll(self.llm, self.llm.encode(ids, mask), self.cell.group, max_new_tokens=self.cell.answer)

    def invent(self, texts: list[str]) -> tuple:
        """Random answers in place of sampled ones: training takes as long."""
        from zoo.rl import Rollout

        ids, mask = self.tokens(texts)
        shape = (PROMPTS, self.cell.group, self.cell.answer)
        answers, real = torch.randint(4, VOCABULARY, shape), torch.ones(shape, dtype=torch.bool)
        return ids, mask, Rollout(answers, real, torch.zeros(shape), ~real.any(2), torch.zeros(shape))

    def signal(self, rollout: Any) -> torch.Tensor:
        return self.objective.advantages(torch.tensor([[reward(a) for a in group] for group in rollout.ids.tolist()]))

    def train(self, ids: torch.Tensor, mask: torch.Tensor, rollout: Any, signal: torch.Tensor) -> None:
        from zoo.rl import accumulate_gradients, token_weights

        batches = [lambda i=i: self.llm.encode(ids[i : i + 1], mask[i : i + 1]) for i in range(PROMPTS)]
        weights = token_weights(rollout.loss_mask, self.objective.normalize, self.cell.answer)
        accumulate_gradients(self.llm, batches, rollout, signal, weights, self.objective, backward=self.backward)

    def step(self, texts: list[str], sampled: bool) -> None:
        def whole() -> None:
            ids, mask, rollout = self.sample(texts) if sampled else self.invent(texts)
            if set(rollout.loss_mask.sum(2).flatten().tolist()) != {self.cell.answer}:
                raise RuntimeError(f"answers are not {self.cell.answer} tokens long")
            self.train(ids, mask, rollout, self.signal(rollout))
            self.optimizer.step()
            self.optimizer.zero_grad()

        self.clock.around(whole, "total")()
        self.clock.end_step()

    def growth(self, texts: list[str]) -> float:
        """MiB by which the resident set grows over the training part."""
        made = self.invent(texts)
        signal = self.signal(made[2])
        forget_peak()
        before = memory("VmRSS")
        self.train(made[0], made[1], made[2], signal)
        return memory("VmHWM") - before


def zoo_arm(cell: Cell, steps: int, plain: bool) -> dict[str, Any]:
    ours, texts = Ours(cell), random_prompts(cell, steps + 2)
    if plain:
        ours.llm.prefix_sharing_unsupported_reason = "it is the other side of a comparison"
    if not steps:
        return {"growth": ours.growth(texts[-PROMPTS:])}
    for i in range(steps + 1):
        ours.step(texts[PROMPTS * i : PROMPTS * (i + 1)], sampled=not plain)
    seconds = ours.clock.least()
    return {
        "seconds": {"train": seconds["train"]} if plain else seconds,
        "probe": ours.probe,
        "growth": ours.growth(texts[-PROMPTS:]),
    }


def dead_arm(cell: Cell, share: float, repeats: int) -> dict[str, Any]:
    """Seconds of the training part with and without groups of equal rewards, and how far their gradient is from that of
    computing them."""
    ours = Ours(cell._replace(beta=0.0))
    dead = round(share * PROMPTS)
    made = ours.invent(random_prompts(cell, 1))
    some = ours.signal(made[2])
    some[:dead] = 0
    seconds: dict[str, list[float]] = {}
    gradients = {}
    kind = type(ours.objective)
    skips = kind.without_gradient
    for _ in range(repeats + 1):  # the first warms up
        for name in ("none dead", "dead, skipped", "dead, computed"):
            kind.without_gradient = (
                skips if name != "dead, computed" else lambda self, signal: torch.zeros(PROMPTS).bool()
            )
            signal = ours.signal(made[2]) if name == "none dead" else some
            start = time.process_time()
            ours.train(made[0], made[1], made[2], signal)
            seconds.setdefault(name, []).append(time.process_time() - start)
            gradients[name] = torch.cat([p.grad.flatten() for p in ours.trained])
            ours.optimizer.zero_grad()
    kind.without_gradient = skips
    skipped, computed = gradients["dead, skipped"], gradients["dead, computed"]
    return {
        "dead": dead,
        "seconds": {name: round(min(s[1:]), 4) for name, s in seconds.items()},
        "gradient_norm": computed.norm().item(),
        "gradient_difference": (skipped - computed).norm().item(),
    }


# -------------------------------------------------------------------------------------------------------------- command
def in_process(arm: str, cell: Cell, *options: object, **environment: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--arm", arm, "--cells", str(cell), "--json", out, *options]
        done = subprocess.run(list(map(str, command)), env=os.environ | environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the {arm} arm failed at {cell}:\n{done.stderr[-3000:]}")
        result = json.loads(out.read_text())
    print(f"{cell} {arm}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def least(results: list[dict[str, Any]]) -> dict[str, float]:
    return {key: min(r["seconds"][key] for r in results) for key in results[0]["seconds"]}


def compare(cell: Cell, steps: int, repeats: int) -> dict[str, Any]:
    trls, ours, plain = [], [], None
    for _ in range(repeats):
        trls.append(in_process("trl", cell, "--steps", steps))
        ours.append(in_process("zoo", cell, "--steps", steps))
        plain = plain or in_process("plain", cell, "--steps", 1)
        probes = [trls[-1]["probe"], ours[-1]["probe"], plain["probe"]]
        if max(probes) - min(probes) > 1e-5 * abs(probes[0]):
            raise RuntimeError(f"the arms do not have the same weights: log-probability of a fixed answer {probes}")
        if trls[-1]["lengths"] != [cell.answer]:
            raise RuntimeError(f"TRL's answers have {trls[-1]['lengths']} tokens, not {cell.answer}")
    a, b = least(trls), least(ours)
    growth = max(r["growth"] for r in ours)
    live = {
        arm: in_process(arm, cell, "--steps", 0, MALLOC_MMAP_THRESHOLD_="65536")["growth"] for arm in ("zoo", "plain")
    }
    return {
        "P": cell.prompt,
        "C": cell.answer,
        "G": cell.group,
        "ratio_total": round(a["total"] / b["total"], 3),
        "ratio_train": round(a["train"] / b["train"], 3),
        "ratio_rollout": round(a["gen"] / b["gen"], 3),
        "memory": round(growth / plain["growth"], 3),
        "beta": cell.beta,
        "prompts": PROMPTS,
        "repeats": repeats,
        "steps": steps,
        "seconds": {"trl": a, "zoo": b, "plain": plain["seconds"]},
        "totals": {"trl": [r["seconds"]["total"] for r in trls], "zoo": [r["seconds"]["total"] for r in ours]},
        "ratio_train_plain": round(plain["seconds"]["train"] / b["train"], 3),
        "growth_mib": {"zoo": round(growth), "plain": round(plain["growth"])},
        "memory_live": round(live["zoo"] / live["plain"], 3),
        "live_mib": {arm: round(v) for arm, v in live.items()},
        "peak_step_mib_trl": round(min(r["peak_step"] for r in trls)),
        "versions": {"torch": torch.__version__} | trls[0]["versions"],
    }


def report(cells: list[dict[str, Any]]) -> list[str]:
    """Prints the table; which goals are missed."""
    parts, missed = ("gen", "ref", "fwd", "bwd", "train", "total"), []
    print("| P,C,G | arm |", " | ".join(parts), "| growth in training (live), MiB |")
    print("|---|---|" + "---|" * (len(parts) + 1))
    for cell in cells:
        for arm, seconds in cell["seconds"].items():
            values = [f"{seconds[part]:.2f}" if part in seconds else "" for part in parts]
            grown = f"whole step: {cell['peak_step_mib_trl']}"
            if arm != "trl":
                grown = f"{cell['growth_mib'][arm]} ({cell['live_mib'][arm]})"
            print(f"| {cell['P']},{cell['C']},{cell['G']} | {arm} |", " | ".join(values), f"| {grown} |")
    print("\n| P,C,G | what | measured | goal | stretch | |\n|---|---|---|---|---|---|")
    for cell in cells:
        sizes = cell["P"], cell["C"], cell["G"]
        goals = GOALS.get(sizes, {})
        for what in ("total", "train", "rollout", "memory"):
            value, name = cell["memory" if what == "memory" else f"ratio_{what}"], ",".join(map(str, sizes))
            if what not in goals:
                print(f"| {name} | {what} | {value:.2f} | | | |")
                continue
            must, stretch = goals[what]
            sign = -1 if what == "memory" else 1
            reached = [word for word, bound in (("stretch", stretch), ("met", must)) if sign * (value - bound) >= 0]
            verdict = (reached or ["MISSED"])[0]
            print(f"| {name} | {what} | {value:.2f} | {must} | {stretch} | {verdict} |")
            if verdict == "MISSED":
                missed.append(f"{name} {what} {value:.2f}, goal {must}")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument(
        "--cells",
        type=Cell.parse,
        nargs="+",
        default=list(map(Cell.parse, map(",".join, ([str(x) for x in sizes] for sizes in GOALS)))),
        help="P,C,G or P,C,G,BETA",
    )
    parser.add_argument("--repeats", type=int, default=3, help="processes of each arm")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of each process, after one warm-up")
    parser.add_argument("--dead", type=float, metavar="SHARE", help="share of groups with equal rewards; ours only")
    parser.add_argument("--arm", choices=["trl", "zoo", "plain"], help="one arm, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.arm:
        warnings.filterwarnings("ignore")
        cell = options.cells[0]
        made: Any = (
            trl_arm(cell, options.steps)
            if options.arm == "trl"
            else zoo_arm(cell, options.steps, plain=options.arm == "plain")
        )
    elif options.dead is not None:
        made = {"cells": [cell._asdict() | dead_arm(cell, options.dead, options.repeats) for cell in options.cells]}
        print(json.dumps(made, indent=2))
    else:
        made = {"cells": [compare(cell, options.steps, options.repeats) for cell in options.cells]}
    if options.json:
        options.json.write_text(json.dumps(made, indent=2) + "\n")
    if not options.arm and options.dead is None:
        missed = report(made["cells"])
        sys.exit("goals missed: " + "; ".join(missed) if missed else None)


if __name__ == "__main__":
    main()
