"""MERIT's step at test time on the shared-prefix engine, frames and sound as embeddings, against plain rows: CPU time.

    python tests/benchmarks/merit_step.py

A step: four prompts of 800 positions, of which 16 hold projected features of eight frames and eight parts of a
waveform, k = 5 answers of 16 tokens each, the paper's GRPO objective (beta 0), LoRA of rank 16 on q, k, v and o, one
prompt per backward pass. ``shared``: a prompt is computed once for its answers; ``plain``: every answer computes it
again. Random Qwen2 (width 384, 8 layers, 32,000 tokens) in fp32. Both arms in turn in one process with one thread, the
least CPU time of the repeats; both must give the same gradient. Exit code 1 if the ratio is below 3.2.
"""

import argparse
import gc
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there

import torch
from transformers import Qwen2Config

from zoo.backbones import LLM, LoRA
from zoo.backbones.shapes import SHAPES
from zoo.rl import Objective, accumulate_gradients, roll_out, token_weights

PROMPTS, P, C, K, SLOTS = 4, 800, 16, 5, 8
MUST, STRETCH = 3.2, 4.0


def step(llm: LLM, projections: torch.nn.ModuleList, ids: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
    """One step; returns the gradient of one adapter."""

    def encode(part: slice):  # noqa: ANN202
        embedded = llm.embed(ids[part]).clone()
        for i, (layer, own) in enumerate(zip(projections, features, strict=True)):
            embedded[:, i * SLOTS : (i + 1) * SLOTS] = layer(own[part])
        return llm.encode(embedded, torch.ones_like(ids[part], dtype=torch.bool))

    objective = Objective("reinforce_group", "sum")
    torch.manual_seed(0)
    with torch.no_grad():
        rollout = roll_out(llm, encode(slice(None)), K, max_new_tokens=C)
    rewards = torch.rand(PROMPTS, K, generator=torch.Generator().manual_seed(1))
    weights = token_weights(rollout.loss_mask, "sum", C)
    accumulate_gradients(
        llm,
        [lambda i=i: encode(slice(i, i + 1)) for i in range(PROMPTS)],
        rollout,
        objective.advantages(rewards),
        weights,
        objective,
    )
    trained = [p for p in llm.parameters() if p.requires_grad]
    gradient = torch.cat([p.grad.flatten() for p in trained])
    for p in trained:
        p.grad = None
    assert rollout.loss_mask.all()  # no answer ended early: all steps do the same work
    return gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    SHAPES["benchmark"] = (
        "qwen2",
        {
            k: v
            for k, v in Qwen2Config(
                vocab_size=32_000,
                hidden_size=384,
                intermediate_size=1024,
                num_hidden_layers=8,
                num_attention_heads=6,
                num_key_value_heads=2,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
            )
            .to_dict()
            .items()
            if k not in ("model_type", "transformers_version", "architectures")
        },
    )
    torch.manual_seed(0)
    llm = LLM("shape:benchmark")
    llm.add_lora(LoRA(16, 32.0, targets=r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"))
    for name, p in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.02)
    projections = torch.nn.ModuleList([torch.nn.Linear(1024, 384), torch.nn.Linear(768, 384)]).requires_grad_(False)
    ids = torch.randint(0, 32_000, (PROMPTS, P))
    features = [torch.randn(PROMPTS, SLOTS, width) for width in (1024, 768)]

    times: dict[str, list[float]] = {"shared": [], "plain": []}
    gradients = {}
    for repeat in range(options.repeats + 1):  # the first warms up
        for arm in times:
            llm.prefix_sharing_unsupported_reason = None if arm == "shared" else "the benchmark asks for it"
            gc.collect()
            begun = time.process_time()
            gradients[arm] = step(llm, projections, ids, features)
            if repeat:
                times[arm].append(time.process_time() - begun)
    difference = float((gradients["shared"] - gradients["plain"]).norm() / gradients["plain"].norm())
    shared, plain = (min(times[arm]) for arm in ("shared", "plain"))
    print(
        f"shared {shared:.2f} s, plain {plain:.2f} s, ratio {plain / shared:.2f} (must {MUST}, stretch {STRETCH}); "
        f"gradients differ by {difference:.1e} of their norm; {options.repeats} repeats"
    )
    if plain / shared < MUST or difference > 1e-3:
        sys.exit("missed")


if __name__ == "__main__":
    main()
