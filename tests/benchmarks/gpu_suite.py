"""What only a GPU can show, in one table: equality with the CPU, steps of paper size, decoding, kill and resume.

    python tests/benchmarks/gpu_suite.py                  # on the first CUDA device, about 8 minutes on an 80 GB card
    python tests/benchmarks/gpu_suite.py --only verbs,decoding
    python tests/benchmarks/gpu_suite.py --small          # tiny shapes, on whatever device there is
    pytest -m gpu tests/test_gpu_suite.py                 # the same through pytest

It needs torch, transformers, peft, timm and lightning; no file, no network. Weights are random (``shape:``): times and
memory do not depend on them. The parts:

* verbs: every verb of the language model (LLaMA, Qwen2, Qwen3 of 4 layers) against the CPU in float32: largest
  difference of a log-probability, in nats, and of a gradient, relative to its norm. More than 1e-3 is a failure.
* steps: one optimiser step per family of systems as the paper-size configs state it: seconds, tokens per second, peak
  memory, the attention kernels that ran.
* decoding: milliseconds per token at 64 answers (Qwen2.5-7B, prompts of 512 tokens), adapters apart and merged, with
  and without a CUDA graph.
* grpo: one GRPO step of Qwen2.5-7B (4 prompts of 800 tokens, 8 answers of 128) that computes a prompt once for all its
  answers, against one that computes it for every answer.
* resume: a Lightning fit that is killed in the middle and resumed, against one that is not: largest difference of a
  weight.

Exit code 1 if something failed; what does not fit on the card is said and is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.backbones import LLM, shapes
from zoo.backbones.audio import Audio
from zoo.backbones.llm import LoRA
from zoo.backbones.vision import Vision
from zoo.rl import Objective, accumulate_gradients, roll_out, token_weights

ATTENTION = r"model\.layers\.\d+\.self_attn\."
EVERY_LINEAR = r"model\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"
LARGEST_DIFFERENCE = 1e-3  # between GPU and CPU in float32


class Family(NamedTuple):
    """One optimiser step of a system at paper size."""

    system: str
    llm: str
    lora: LoRA | None  # None: the language model is frozen, a projection is trained
    prompts: int  # of one forward pass
    tokens: int  # of a prompt, features included
    answers: int  # per prompt; 1: supervised
    answer_tokens: int
    vision: str | None = None
    frames: int = 0  # per prompt
    audio: str | None = None
    seconds: int = 0  # of sound per prompt


FAMILIES = (  # batch, rank and lengths of configs/*/*.yaml
    Family("dialoguellm/meld", "llama-2-7b", LoRA(8, 64, 0.05, ATTENTION + "(q|v)_proj"), 8, 512, 1, 4),
    Family("instructerc/meld", "llama-2-7b", LoRA(16, 16, 0.05, ATTENTION + "(q|k|v)_proj"), 2, 1024, 1, 4),
    Family("selector/meld", "qwen2.5-7b", LoRA(8, 16, 0.1, ATTENTION + "(q|k|v|o)_proj"), 2, 1024, 4, 256),
    Family("farcer/meld", "llama-3-8b", None, 1, 1024, 1, 4, "vit-base-face", 16),
    Family(
        "farcer/lora", "llama-3-8b", LoRA(8, 16, 0.1, ATTENTION + "(q|k|v)_proj"), 1, 1024, 1, 4,
        "vit-base-face", 16,
    ),
    Family("emotion_qwen/tune_lora", "qwen2.5-7b", LoRA(64, 64, 0.05, ATTENTION + "(q|k|v|o)_proj"), 1, 2048, 1, 16),
    Family(
        "merit/mosei", "qwen2.5-32b", LoRA(16, 32, 0.0, ATTENTION + "(q|k|v|o)_proj"), 2, 512, 1, 4,
        "clip-vit-large-patch14", 8, "hubert-base", 10,
    ),
    Family("merit/mosei_ttrl", "qwen2.5-32b", LoRA(16, 32, 0.0, ATTENTION + "(q|k|v|o)_proj"), 4, 512, 5, 16),
)  # fmt: skip
SMALL_LLM = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
SMALL_LLM |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}


class Row(NamedTuple):
    """A line of the table."""

    part: str
    what: str
    result: str
    ok: bool = True


# ---- what is built
def use_small_shapes() -> None:
    """Let every name of a shape mean a tiny model of the same family."""
    for name, (kind, _) in list(shapes.SHAPES.items()):
        shapes.SHAPES[name] = (kind, dict(SMALL_LLM))
    for name, (kind, values, processor) in list(shapes.VISION_SHAPES.items()):
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        shapes.VISION_SHAPES[name] = (kind, values | small, processor)
    for name, (values, normalised) in list(shapes.AUDIO_SHAPES.items()):
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        convolutions = {"conv_dim": (32,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
        shapes.AUDIO_SHAPES[name] = (values | small | convolutions, normalised)


def language_model(name: str, device: torch.device, lora: LoRA | None, **options: Any) -> LLM:
    """Make a model of random weights on the device, with adapters that are not zero."""
    llm = LLM(f"shape:{name}", device=str(device), **options)
    if lora is not None:
        llm.add_lora(lora)
        for parameter_name, parameter in llm.named_parameters():
            if ".lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.02)
        llm.to(device)  # peft makes adapters on the CPU
    else:
        llm.requires_grad_(False)
    return llm


def wait_for(device: torch.device) -> None:
    """Wait until the device has done its work, so that a clock can be read."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Begin to measure the peak of memory anew."""
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Return the peak of allocated memory in GiB; 0 where it is not measured."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if torch.cuda.is_available() else 0.0


def seconds_of(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the least seconds of a call, after one that warms up."""
    call()
    least = float("inf")
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        call()
        wait_for(device)
        least = min(least, time.perf_counter() - start)
    return least


def attention_kernels(call: Callable[[], object], device: torch.device) -> str:
    """Return the names of the attention kernels that a call launches."""
    if not torch.cuda.is_available():
        return "not a CUDA device"
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        wait_for(device)
    names = {event.key for event in profile.key_averages()}
    parts = ("flash", "fmha", "cudnn", "mem_eff", "efficient", "softmax")
    kernels = sorted({name.split("<")[0][:40] for name in names if any(part in name.lower() for part in parts)})
    return ", ".join(kernels[:4]) or "none by name"


# ---- verbs
def verbs(device: torch.device, small: bool) -> Iterator[Row]:
    """Compare every verb with the CPU."""
    values = dict(SMALL_LLM) if small else SMALL_LLM | {"hidden_size": 512, "num_hidden_layers": 4, "head_dim": 128}
    for kind in ("llama", "qwen2", "qwen3"):
        shapes.SHAPES["verbs"] = (kind, values)
        torch.manual_seed(0)
        on_cpu = language_model("verbs", torch.device("cpu"), LoRA(4, 8, 0.0, EVERY_LINEAR))
        for parameter in on_cpu.parameters():
            nn.init.normal_(parameter, std=0.05)
        on_cpu.keep_reference()
        state = {name: tensor.clone() for name, tensor in on_cpu.state_dict().items()}
        on_gpu = language_model("verbs", torch.device("cpu"), LoRA(4, 8, 0.0, EVERY_LINEAR))
        on_gpu.keep_reference()
        on_gpu.load_state_dict(state)
        results = [run_verbs(on_cpu, torch.device("cpu")), run_verbs(on_gpu.to(device), device)]
        for name, expected in results[0].items():
            difference = float((results[1][name] - expected).abs().max() / expected.abs().max().clamp(min=1))
            yield Row("verbs", f"{kind} {name}", f"difference {difference:.1e}", difference < LARGEST_DIFFERENCE)
        for dtype in ("float32", "bfloat16"):
            shared = on_gpu.to(getattr(torch, dtype)).check_sharing()
            yield Row("verbs", f"{kind} check_sharing {dtype}", f"difference {shared:.1e}")


def run_verbs(llm: LLM, device: torch.device) -> dict[str, Tensor]:
    """Return the results of all verbs on the CPU."""
    torch.manual_seed(1)
    ids = torch.randint(3, 250, (3, 40)).to(device)
    answers = torch.randint(3, 250, (3, 4, 9)).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :17] = False
    real = torch.ones_like(answers, dtype=torch.bool)
    real[0, 2, 5:] = False
    logprobs = llm.logprobs(llm.encode(ids, mask), answers, real)
    logprobs.sum().backward()
    gradients = [p.grad.flatten() for p in llm.parameters() if p.grad is not None]
    static_prefix = llm.cache_prefix(torch.arange(5, 30).to(device))
    found = {
        "logprobs": logprobs.detach(),
        "gradients": torch.cat(gradients) / torch.cat(gradients).norm(),
        "score": llm.score(llm.encode(ids, mask), [[5, 6, 7], [5, 8], [9]]),
        "score behind a kept beginning": llm.score(llm.encode(ids, mask, static_prefix), [[5, 6, 7], [5, 8], [9]]),
    }
    with torch.no_grad(), llm.reference():
        found["reference"] = llm.logprobs(llm.encode(ids, mask), answers, real)
    for llm.merge_adapters in (False, True):
        sampled = llm.sample(llm.encode(ids, mask), 2, max_new_tokens=12, temperature=0.0)
        name = "merged" if llm.merge_adapters else "apart"
        found[f"greedy tokens, {name}"] = sampled.ids.float()
        found[f"greedy log-probabilities, {name}"] = sampled.logprobs
    llm.merge_adapters = False
    return {name: value.detach().cpu() for name, value in found.items()}


# ---- steps of paper size
def steps(device: torch.device, small: bool) -> Iterator[Row]:
    """Take a step of every family."""
    for family in FAMILIES:
        if small:
            family = family._replace(
                tokens=48, answer_tokens=min(family.answer_tokens, 8), seconds=min(1, family.seconds)
            )
        with fits(device) as problem:
            yield from step(family, device, repeats=1 if small else 2)
        if problem:
            yield Row("steps", family.system, problem[0])


@contextlib.contextmanager
def fits(device: torch.device) -> Iterator[list[str]]:
    """Inside, running out of memory is noted and ends the block."""
    problem: list[str] = []
    try:
        yield problem
    except torch.cuda.OutOfMemoryError:
        problem.append(f"does not fit: needs more than {peak_gib(device):.0f} GiB")
    forget_peak(device)


def step(family: Family, device: torch.device, repeats: int) -> Iterator[Row]:
    """Take steps of one family and measure them."""
    forget_peak(device)
    llm = language_model(family.llm, device, family.lora, dtype="bfloat16", gradient_checkpointing=True)
    encoders: list[tuple[Vision | Audio, Tensor]] = []
    torch.manual_seed(0)
    if family.vision is not None:
        vision = Vision(f"shape:{family.vision}", dtype="bfloat16", device=str(device)).freeze()
        pictures = torch.randint(0, 255, (family.prompts * family.frames, 3, 224, 224), dtype=torch.uint8).to(device)
        encoders.append((vision, pictures))
    if family.audio is not None:
        audio = Audio(f"shape:{family.audio}", dtype="bfloat16", device=str(device)).freeze()
        encoders.append((audio, torch.randn(family.prompts, 16000 * family.seconds).to(device)))
    projections = nn.ModuleList(nn.Linear(encoder.width, llm.width) for encoder, _ in encoders).to(device)
    trained = [p for part in (llm, projections) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ids = torch.randint(3, 200, (family.prompts, family.tokens)).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    shape = (family.prompts, family.answers, family.answer_tokens)
    answers, real = torch.randint(3, 200, shape).to(device), torch.ones(shape, dtype=torch.bool).to(device)
    objective = Objective(beta=0.04 if family.lora is not None else 0.0)

    def embed() -> Tensor:
        embedded = llm.embed(ids)
        for (encoder, shown), projection in zip(encoders, projections, strict=True):
            with torch.no_grad():
                features = features_of(encoder, shown)
            tokens = projection(features.float()).view(family.prompts, -1, llm.width).to(embedded.dtype)
            tokens = tokens[:, : family.tokens // 2]
            embedded = torch.cat([tokens, embedded[:, tokens.shape[1] :]], 1)
        return embedded

    def one_step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            if family.answers == 1:
                logprobs = llm.logprobs(llm.encode(embed(), mask), answers, real)
                (-logprobs.mean()).backward()
            else:
                rollout = roll_out(llm, llm.encode(embed(), mask), family.answers, max_new_tokens=family.answer_tokens)
                advantages = objective.advantages(torch.rand(rollout.ids.shape[:2], device=device))
                weights = token_weights(rollout.loss_mask, objective.normalize, family.answer_tokens)
                each = [lambda i=i: llm.encode(embed()[i : i + 1], mask[i : i + 1]) for i in range(family.prompts)]
                accumulate_gradients(llm, each, rollout, advantages, weights, objective)
        optimizer.step()
        optimizer.zero_grad()

    seconds = seconds_of(one_step, device, repeats)
    moved = all(p.dtype == torch.float32 for p in trained)
    tokens = family.prompts * (family.tokens + family.answers * family.answer_tokens)
    result = f"{seconds:.3f} s a step, {tokens / seconds:,.0f} tokens/s, peak {peak_gib(device):.1f} GiB"
    yield Row("steps", family.system, result, moved)
    yield Row("steps", f"{family.system} attention", attention_kernels(one_step, device))


def features_of(encoder: Vision | Audio, shown: Tensor) -> Tensor:
    """Return the features (N, T, D) of pictures, one each, or of sounds."""
    if isinstance(encoder, Vision):
        return encoder.cls(shown)[:, None]
    return encoder.pooled(shown, torch.full((len(shown),), shown.shape[1], device=shown.device), 4)


# ---- decoding
def decoding(device: torch.device, small: bool) -> Iterator[Row]:
    """Time a token of 64 answers."""
    llm = language_model("qwen2.5-7b", device, LoRA(8, 16, 0.0, EVERY_LINEAR), dtype="bfloat16")
    llm.causal_lm.generation_config.eos_token_id = -1  # no answer ends
    prompts, n, length, few, many = (4, 2, 24, 2, 20) if small else (8, 8, 512, 16, 144)
    ids = torch.randint(3, 200, (prompts, length)).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    graphs = (False, True) if device.type == "cuda" else (False,)
    for llm.merge_adapters in (False, True):
        for llm.cuda_graph in graphs:
            prefix = llm.encode(ids, mask)
            llm.prefill(prefix)

            def sample(tokens: int, prefix: Any = prefix) -> float:
                return seconds_of(lambda: llm.sample(prefix, n, max_new_tokens=tokens), device, 1 if small else 2)

            milliseconds = 1000 * (sample(many) - sample(few)) / (many - few)
            how = f"adapters {'merged' if llm.merge_adapters else 'apart'}{', CUDA graph' if llm.cuda_graph else ''}"
            yield Row("decoding", how, f"{milliseconds:.2f} ms a token of {prompts * n} answers")


# ---- GRPO
def grpo(device: torch.device, small: bool) -> Iterator[Row]:
    """Time the training part of a GRPO step with shared and with separate prompts."""
    prompts, length, n, tokens = (2, 32, 3, 6) if small else (4, 800, 8, 128)
    llm = language_model(
        "qwen2.5-7b", device, LoRA(8, 16, 0.0, EVERY_LINEAR), dtype="bfloat16", gradient_checkpointing=True
    )
    ids = torch.randint(3, 200, (prompts, length)).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    rollout = roll_out(llm, llm.encode(ids, mask), n, max_new_tokens=tokens)
    objective = Objective(beta=0.04)
    advantages = objective.advantages(torch.randn(prompts, n, device=device))
    weights = token_weights(rollout.loss_mask, objective.normalize, tokens)
    results = {}
    for how, reason in (("shared", None), ("plain rows", "compared with")):
        llm.prefix_sharing_unsupported_reason = reason

        def train() -> None:
            each = [lambda i=i: llm.encode(ids[i : i + 1], mask[i : i + 1]) for i in range(prompts)]
            with torch.autocast(device.type, torch.bfloat16):
                accumulate_gradients(llm, each, rollout, advantages, weights, objective)

        with fits(device) as problem:
            results[how] = seconds_of(train, device, 1 if small else 2), peak_gib(device)
            yield Row("grpo", how, f"{results[how][0]:.3f} s, peak {results[how][1]:.1f} GiB")
        if problem:
            yield Row("grpo", how, problem[0])
    if len(results) == 2:
        yield Row("grpo", "plain rows / shared", f"{results['plain rows'][0] / results['shared'][0]:.2f}x")


# ---- kill and resume
STEPS = 8  # of the run that is killed after half of them


def fit(folder: Path, device: str, resume: bool, kill_after: int | None) -> None:
    """Train a small model with dropout through Lightning, with a checkpoint at every step."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    shapes.SHAPES["resume"] = ("qwen2", dict(SMALL_LLM))

    class Small(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.llm = language_model("resume", torch.device("cpu"), LoRA(4, 8, 0.1, EVERY_LINEAR))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            # as in every system of the zoo, data and dropout of a step depend on its number alone
            torch.manual_seed(self.global_step)
            batch = torch.randint(3, 200, batch.shape, device="cpu").to(batch.device)
            hidden = self.llm.hidden(self.llm.embed(batch), torch.ones_like(batch, dtype=torch.bool))
            return cross_entropy(self.llm.head(hidden[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)

        def train_dataloader(self) -> Any:
            rows = torch.zeros(STEPS * 4, 24, dtype=torch.int64)
            return torch.utils.data.DataLoader(rows, batch_size=4)

    class Kill(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if kill_after is not None and trainer.global_step == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

    checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_top_k=0)
    trainer = pl.Trainer(
        accelerator="cpu" if device == "cpu" else "gpu", devices=1, max_steps=STEPS, logger=False,
        callbacks=[checkpoints, Kill()], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model = Small()
    last = folder / "last.ckpt"
    trainer.fit(model, ckpt_path=str(last) if resume else None, weights_only=True)
    weights = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    torch.save(weights, folder / "weights.pt")


def resume(device: torch.device, small: bool) -> Iterator[Row]:
    """Kill a fit in the middle, resume it, and compare with one that ran through."""
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        ends = []
        for folder, options in ((whole, []), (killed, ["--kill-after", str(STEPS // 2)]), (killed, ["--resume"])):
            command = [sys.executable, __file__, "--fit", str(folder), "--device", kind, *options]
            ends.append(subprocess.run(command, capture_output=True, text=True))
        if [done.returncode for done in ends] != [0, -signal.SIGKILL, 0]:
            message = (ends[0].stderr or "") + (ends[2].stderr or "")
            yield Row(
                "resume", "a run that was killed", f"ended with {[d.returncode for d in ends]}: {message[-300:]}", False
            )
            return
        one, other = (torch.load(folder / "weights.pt", weights_only=True) for folder in (whole, killed))
    difference = max(float((one[key] - other[key]).abs().max()) for key in one)
    yield Row("resume", f"killed and resumed on {kind}", f"largest difference {difference:.1e}", difference < 1e-5)


PARTS: dict[str, Callable[[torch.device, bool], Iterator[Row]]] = {
    "verbs": verbs, "steps": steps, "decoding": decoding, "grpo": grpo, "resume": resume,
}  # fmt: skip


def run(device: torch.device, small: bool, only: list[str] | None = None) -> list[Row]:
    """Run the parts, print each row when it is there, and return all."""
    if small:
        use_small_shapes()
    rows: list[Row] = []
    for name, part in PARTS.items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        try:
            for row in part(device, small):
                rows.append(row)
                print(f"{row.part:9} {row.what:42} {'' if row.ok else 'FAILED: '}{row.result}", flush=True)
        except Exception as error:  # the other parts run all the same
            rows.append(Row(name, "the part", f"{type(error).__name__}: {error}", False))
            print(f"{name:9} {'the part':42} FAILED: {rows[-1].result}", flush=True)
        print(f"{name:9} took {time.perf_counter() - start:.0f} s", flush=True)
        forget_peak(device)
    return rows


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", help="cuda, cpu; the first CUDA device where there is one")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill-after", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit is not None:
        options.fit.mkdir(parents=True, exist_ok=True)
        fit(options.fit, options.device, options.resume, options.kill_after)
        return 0
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cuda" and not options.small:
        parser.error("there is no CUDA device; --small runs tiny shapes on the CPU")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    rows = run(device, options.small, options.only.split(",") if options.only else None)
    if options.json:
        options.json.write_text(json.dumps({"device": name, "rows": [row._asdict() for row in rows]}, indent=1))
    failed = [row for row in rows if not row.ok]
    print(f"{len(rows)} rows, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
