"""What it costs to score seven labels behind a long fixed prompt, as FARCER and DialogueLLM do for every utterance.

    python tests/benchmarks/label_scoring.py                     # both parts, a few minutes of one core

1. A random Qwen2 (that of trl_step.py: hidden 384, 8 layers, vocabulary 32,000, fp32), 500 fixed and 120 own tokens per
   prompt, 7 labels of 1 to 3 tokens, 4 prompts at a time. Arms, side by side: ours (fixed part kept, labels as a trie);
   transformers' greedy `generate` of 5 tokens, as FARCER's authors answer, on the batch of whole prompts (it gives no
   scores); one row per prompt and label, only the label positions through the head. CPU seconds of one thread,
   minimum over rounds. Scores of ours and of the rows must agree to 1e-5.
2. A test epoch of FARCER over the generated sitcom (text, 7 solved dialogues in the prompt), with the fixed part kept
   and with it written into every prompt. Predictions must agree.

Exit code 1 if ours is less than 4 times faster than `generate`, 20 times than a row per label, or scores differ.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from zoo.backbones import LLM
from zoo.data import Synthetic
from zoo.models.farcer import FARCER

FIXED, OWN, BATCH, VOCAB = 500, 120, 4, 32_000
LABELS = [[100], [101, 102], [103, 104, 105], [106], [101, 107], [108, 109, 110], [111, 112]]  # two share a beginning
LEAST = {"generate": 4.0, "row per label": 20.0}


def random_qwen2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=384,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.05,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **named).save_pretrained(folder)
    return folder


@torch.no_grad()
def rows(plain: Qwen2ForCausalLM, prompts: Tensor) -> Tensor:
    """(B, P) -> (B, 7) log-probabilities, a row per prompt and label; labels are padded on the right."""
    longest = max(map(len, LABELS))
    ids = torch.tensor([label + [0] * (longest - len(label)) for label in LABELS])
    real = torch.tensor([[1] * len(label) + [0] * (longest - len(label)) for label in LABELS])
    b, k = len(prompts), len(LABELS)
    whole = torch.cat([prompts.repeat_interleave(k, 0), ids.repeat(b, 1)], 1)
    mask = torch.cat([torch.ones(b * k, prompts.shape[1], dtype=torch.int64), real.repeat(b, 1)], 1)
    logits = plain(input_ids=whole, attention_mask=mask, logits_to_keep=longest + 1).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(2, ids.repeat(b, 1)[..., None])[..., 0]
    return (logp * real.repeat(b, 1)).sum(1).view(b, k)


def scoring(rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as made:
        folder = random_qwen2(Path(made))
        llm = LLM(str(folder)).eval()
        plain = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(1)
    fixed = torch.randint(200, VOCAB, (FIXED,), generator=generator)
    kept, spent, apart = llm.cache_prefix(fixed), {"ours": [], "generate": [], "row per label": []}, 0.0
    first = 0.0
    for i in range(rounds + 1):  # the first one warms up, and pays for the kept part
        own = torch.randint(200, VOCAB, (BATCH, OWN), generator=generator)
        prompts = torch.cat([fixed.expand(BATCH, -1), own], 1)

        def ours(own: Tensor = own) -> Tensor:
            return llm.score(llm.encode(own, torch.ones_like(own), static_prefix=kept), LABELS)

        def generate(prompts: Tensor = prompts) -> Tensor:
            return plain.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=5,
                min_new_tokens=5,
                do_sample=False,
            )

        found = {}
        for name, call in (("ours", ours), ("generate", generate), ("row per label", lambda p=prompts: rows(plain, p))):
            start = time.process_time()
            found[name] = call()
            spent[name].append(time.process_time() - start)
        if i == 0:
            first = spent["ours"][0]
        apart = max(apart, (found["ours"] - found["row per label"]).abs().max().item())
    seconds = {name: min(times[1:]) for name, times in spent.items()}
    print(f"{FIXED} fixed + {OWN} own tokens, 7 labels of 1 to 3 tokens, {BATCH} prompts at a time, {rounds} rounds\n")
    print("| arm | CPU ms per prompt | times ours |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {1000 * value / BATCH:.1f} | {value / seconds['ours']:.1f} |")
    print(
        f"\nfirst batch with the fixed part computed: {1000 * first / BATCH:.1f} ms per prompt; "
        f"largest difference of a score: {apart:.1e} nats"
    )
    problems = [
        f"{name} takes {seconds[name] / seconds['ours']:.1f} times as long, expected {least:g}"
        for name, least in LEAST.items()
        if seconds[name] < least * seconds["ours"]
    ]
    return problems + ([f"scores differ by {apart:.1e}, expected 1e-5"] if apart > 1e-5 else [])


def inlined(batch: dict) -> dict:
    """The same batch with the fixed part written into every prompt."""
    fixed, out = batch["fixed"], []
    for ids, image_at, mask in zip(batch["input_ids"], batch["image_at"], batch["mask"], strict=True):
        out.append((torch.cat([fixed, ids[mask]]), torch.cat([torch.zeros_like(fixed).bool(), image_at[mask]])))
    length = max(len(ids) for ids, _ in out)
    pad = torch.nn.functional.pad
    return batch | {
        "fixed": fixed[:0],
        "input_ids": torch.stack([pad(ids, (length - len(ids), 0)) for ids, _ in out]),
        "image_at": torch.stack([pad(at, (length - len(at), 0)) for _, at in out]),
        "mask": torch.stack([pad(torch.ones_like(ids).bool(), (length - len(ids), 0)) for ids, _ in out]),
    }


@torch.no_grad()
def epoch(dialogues: int) -> list[str]:
    data = Synthetic(corpus_seed=78, train_dialogues=100, dev_dialogues=1, test_dialogues=dialogues, eval_batch_size=32)
    model = FARCER(llm="tiny-llama-sitcom", faces="none", template="plain", window=2, shots=7, decode="score").eval()
    model.data = data
    model.configure_model()
    samples, collator, rng = data.samples("test"), model.collator(False), np.random.default_rng(0)
    order = sorted(samples, key=collator.length)
    batches = [collator(order[i : i + 32], rng) for i in range(0, len(order), 32)]
    seconds, said = {}, {}
    for name, prepare in (("kept", lambda b: b), ("in every prompt", inlined)):
        ready = [prepare(b) for b in batches]
        model.predict(ready[0])
        start = time.process_time()
        said[name] = [p for b in ready for p in model.predict(b)]
        seconds[name] = time.process_time() - start
    own = np.mean([float(b["mask"].sum(1).float().mean()) for b in batches])
    print(
        f"\nFARCER, text, 7 solved dialogues ({len(batches[0]['fixed'])} fixed tokens, {own:.0f} own), "
        "tiny-llama-sitcom, "
        f"{len(samples)} test utterances of the sitcom\n"
    )
    print("| fixed part | CPU ms per utterance | utterances per second |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {1000 * value / len(samples):.2f} | {len(samples) / value:.0f} |")
    pairs = list(zip(said["kept"], said["in every prompt"], strict=True))
    apart = max(abs(a.scores[k] - b.scores[k]) for a, b in pairs for k in a.scores)
    print(
        f"\n{seconds['in every prompt'] / seconds['kept']:.1f} times faster; "
        f"largest difference of a probability {apart:.0e}"
    )
    return [f"probabilities of the epoch differ by {apart}"] if apart > 1e-5 else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dialogues", type=int, default=100, help="test dialogues of the sitcom")
    parser.add_argument("--parts", nargs="+", choices=("scoring", "epoch"), default=["scoring", "epoch"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    problems = scoring(options.rounds) if "scoring" in options.parts else []
    problems += epoch(options.dialogues) if "epoch" in options.parts else []
    if problems:
        sys.exit("missed: " + "; ".join(problems))


if __name__ == "__main__":
    main()
