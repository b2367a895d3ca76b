"""Prompts and answers with the real tokenizers of Llama-2, Llama-3 and Qwen2.5, the modality selector's prompt in
Qwen2.5's chat form among them; exits 1 at the first fault.

    python tests/benchmarks/check_tokenizers.py --data-root ../shared/data
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from zoo.backbones import LLM
from zoo.backbones.shapes import SHAPES
from zoo.data.meld import MELD
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.farcer import FARCER
from zoo.models.farcer.collator import SLOT, PromptWriter
from zoo.models.selector import ModalitySelector
from zoo.models.selector.parts import DISCARD, KEEP, read_decision
from zoo.prompts import escape, load_template, render
from zoo.schema import Sample, Turn
from zoo.training.collator import PromptCollator
from zoo.training.prompting import answer_ids

HELLO = {  # of "Hello, world!"; llama3 and qwen as the README of the data says
    "llama2": [1, 15043, 29892, 3186, 29991],
    "llama3": [9906, 11, 1917, 0],
    "qwen": [9707, 11, 1879, 0],
}
SIZES = {"llama2": 32001, "llama3": 128256, "qwen": 151646}
SHAPE = {"llama2": "llama-2-7b", "llama3": "llama-3-8b", "qwen": "qwen2.5-7b"}
WORDS = {  # tokens of each of MELD's label words after a colon
    "llama2": {"neutral": 1, "surprise": 1, "fear": 1, "sadness": 2, "joy": 1, "disgust": 3, "anger": 1},
    "llama3": {"neutral": 1, "surprise": 1, "fear": 1, "sadness": 1, "joy": 1, "disgust": 1, "anger": 1},
    "qwen": {"neutral": 1, "surprise": 1, "fear": 1, "sadness": 1, "joy": 1, "disgust": 1, "anger": 1},
}
END = {"llama2": "</s>", "llama3": "<|end_of_text|>", "qwen": "<|im_end|>"}
SEEN = {"video": "a woman frowns — café, “naïve”, 漢字 🙂"}
HISTORY = (Turn("u0", "Ada", "Where's the ladder?", "neutral"), Turn("u1", "Bela", "Behind  you… watch out!", "fear"))
TARGET = Turn("u2", "Ada", "Oh <|eot_id|> no </s> [PAD]!", "joy", SEEN)
SAMPLE = Sample("meld/test/a", "meld/test/d", MELD.labels, TARGET, HISTORY)
FARCERS = [  # the own part of a FARCER prompt with past labels; None is an image
    271,
    35,
    33475,
    2279,
    512,
    96447,
    25,
    220,
    None,
    11208,
    596,
    279,
    36865,
    5380,
    7,
    96447,
    596,
    1510,
    20356,
    25,
    21277,
    340,
    33,
    8458,
    25,
    220,
    None,
    43474,
    220,
    499,
    1981,
    3821,
    704,
    4999,
    33,
    8458,
    596,
    17329,
    55101,
    57974,
    25,
    128009,
    128006,
    78191,
    128007,
    271,
]
FARCERS_ANSWERS = [[60668], [20370, 9868], [69, 686], [83214, 2136], [4215], [4338, 70, 592], [4091]]


# Qwen2.5's chat form; the folder holds the vocabulary alone
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: got {got}, expected {expected}")
    print(f"{what}: {got}")


def check(name: str, folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token=END[name])
    expect(f"{name} entries", len(tokenizer), SIZES[name])
    expect(f"{name} 'Hello, world!'", tokenizer("Hello, world!")["input_ids"], HELLO[name])

    lengths = {}
    for word in MELD.labels.names:
        ids = answer_ids(tokenizer, word)
        lengths[word] = len(ids)
        whole = tokenizer(f"### Response: {word}", add_special_tokens=False)["input_ids"]
        expect(f"{name} answer {word!r} {ids} ends the whole text", whole[-len(ids) :], ids)
    expect(f"{name} tokens per label", lengths, WORDS[name])

    special = tokenizer.get_added_vocab()
    for what, words, found in (("text", special, len(special)), ("escaped text", map(escape, special), 0)):
        ids = tokenizer("".join(words), add_special_tokens=False)["input_ids"]
        expect(f"{name} special tokens read in {what}", len(set(ids) & set(special.values())), found)

    template = load_template("default", DialogueLLM.templates)
    text = render(template, SAMPLE, window=2, descriptions=("video",), words=MELD.labels.names)
    ids = tokenizer(text)["input_ids"]
    same = tokenizer.decode(ids, skip_special_tokens=True) == text
    expect(f"{name} prompt of {len(ids)} tokens comes back", same, True)
    options = {"window": 2, "descriptions": ("video",), "verbalizer": None, "max_length": 4096, "training": True}
    batch = PromptCollator(tokenizer=tokenizer, pad_id=0, template=template, **options)(
        [SAMPLE], np.random.default_rng(0)
    )
    row = batch["input_ids"][0].tolist()
    same = row == [*ids, *answer_ids(tokenizer, "joy"), tokenizer.eos_token_id]
    expect(f"{name} training row is prompt, answer, end", same, True)
    expect(f"{name} training row as text", tokenizer.decode(row[-30:])[-20:], f"### Response: joy{END[name]}"[-20:])

    with tempfile.TemporaryDirectory() as made:  # as a user has it: a model folder (here without weights)
        kind, values = SHAPES[SHAPE[name]]
        (Path(made) / "config.json").write_text(json.dumps(values | {"model_type": kind}))
        for file in folder.glob("tokenizer*.json"):
            (Path(made) / file.name).symlink_to(file.resolve())
        llm = LLM(made, dtype="bfloat16", device="meta")
        print(f"{name} folder is read by {type(llm.tokenizer).__name__}")
        expect(f"{name} folder encodes the prompt alike", llm.tokenizer(text)["input_ids"] == ids, True)
        same = all(answer_ids(llm.tokenizer, w) == answer_ids(tokenizer, w) for w in MELD.labels.names)
        expect(f"{name} folder encodes the answers alike", same, True)
        rows = llm.causal_lm.get_input_embeddings().num_embeddings
        pad = (llm.tokenizer.pad_token, llm.tokenizer.pad_token_id)
        print(f"{name} pad token {pad}, rows {rows}, padded with {llm.pad_id}")
        expect(f"{name} padding has a row", llm.pad_id < rows, True)
        if name == "llama2":
            expect("llama2 [PAD] has no row, unk pads", (llm.tokenizer.pad_token_id, llm.pad_id), (32000, 0))


def check_farcer(folder: Path) -> None:
    """Fig. 2 with the real Llama-3 tokenizer: special tokens, places of images, label words; and that pieces tokenised
    apart are what the whole text gives, as the authors tokenise it, with <|end_of_text|> where an image goes."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    ada, bela = (replace(turn, video=Path("clip.mp4")) for turn in HISTORY)
    solved, sample = (Sample(f"meld/test/{d}", f"meld/test/{d}", MELD.labels, bela, (ada,)) for d in "de")
    writer = PromptWriter(
        tokenizer=tokenizer,
        template=load_template("chat", FARCER.templates),
        pictures=True,
        past_labels=True,
        shots={"meld": [(solved,) * 7]},
    )
    fixed, own = writer.encode(sample, [SLOT, SLOT], None)
    expect("FARCER own part", own, FARCERS)
    expect(
        "FARCER fixed part begins and ends",
        (fixed[:4], fixed[-4:]),
        ([128000, 128006, 9125, 128007], [128009, 128006, 882, 128007]),
    )
    expect("FARCER turns of seven solved dialogues", [fixed.count(i) for i in (128006, 128009)], [16, 15])
    expect("FARCER label words", writer.answers(MELD.labels), FARCERS_ANSWERS)
    expect("FARCER end of an answer", writer.end_id(MELD.labels), 128009)
    text = "".join(writer.text(sample, [SLOT, SLOT], None)).replace(SLOT, "<|end_of_text|>")
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    expect("FARCER pieces are the whole", fixed + [128001 if i is None else i for i in own] == whole, True)


def check_selector(tokenizer: PreTrainedTokenizerFast, meld: Path) -> None:
    """The selector's prompt as a user's message, its two answers, and how long prompts are on MELD."""
    tokenizer.chat_template = CHATML
    template = load_template("selector", ModalitySelector.templates)
    system = load_template("system", ModalitySelector.templates).render()
    options = {
        "window": 12,
        "verbalizer": None,
        "max_length": 1024,
        "training": False,
        "chat": True,
        "system_prompt": system,
    }
    collator = PromptCollator(
        tokenizer=tokenizer, pad_id=0, template=template, descriptions=("audio", "video"), **options
    )
    ids, cut = collator.prompt_ids(SAMPLE, np.random.default_rng(0))
    user = render(template, SAMPLE, window=12, descriptions=("audio", "video"), words=MELD.labels.names)
    said = {"system": system, "user": user}
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said.items())
    whole = f"{turns}<|im_start|>assistant\n"
    expect(f"selector prompt of {len(ids)} tokens comes back", tokenizer.decode(ids) == whole, True)
    special = {n: ids.count(i) for n, i in tokenizer.get_added_vocab().items() if i in ids}
    expect("selector prompt is three turns, nothing of the data", special, {"<|im_start|>": 3, "<|im_end|>": 2})
    expect("selector prompt is cut", cut, False)

    phrases = [answer_ids(tokenizer, phrase) for phrase in (KEEP, DISCARD)]
    # a reward for length therefore prefers a decision
    expect("selector phrases in tokens", [*map(len, phrases)], [6, 7])
    expect("selector phrases differ from the first token on", phrases[0][0] != phrases[1][0], True)
    for phrase, decision in ((KEEP, True), (DISCARD, False)):
        written = tokenizer(f"<think>\nBoth.\n</think>\n<answer>\n{phrase}\n</answer>")["input_ids"]
        expect(f"selector reads {phrase!r}", read_decision(tokenizer.decode(written)), decision)

    data = MELD(root=meld, descriptions=[meld])
    collator = PromptCollator(
        tokenizer=tokenizer, pad_id=0, template=template, descriptions=("speech",), **options | {"max_length": 10_000}
    )
    lengths = [len(collator.prompt_ids(s, np.random.default_rng(0))[0]) for s in data.samples("dev")]
    long = sum(n > 1024 for n in lengths)
    print(
        f"selector prompts of MELD's dev split with 12 turns and measured speech: {min(lengths)} to {max(lengths)} "
        f"tokens, mean {np.mean(lengths):.0f}, {long} of {len(lengths)} above 1024"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    where = "holds tokenizers/{llama2,llama3,qwen}/ and meld/"
    parser.add_argument("--data-root", type=Path, required=True, help=where)
    root = parser.parse_args().data_root
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    for name in HELLO:
        check(name, root / "tokenizers" / name)
    qwen = root / "tokenizers" / "qwen" / "tokenizer.json"
    check_selector(PreTrainedTokenizerFast(tokenizer_file=str(qwen), eos_token=END["qwen"]), root / "meld")
    check_farcer(root / "tokenizers" / "llama3")
    print(f"all as expected, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
