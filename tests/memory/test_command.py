"""`zoo memory`: tables of a config, and what to change for a card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.runs_helper import refused, zoo
from zoo.memory.cards import CARDS, GIB, card_of, smallest, usable

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
CONFIGS = Path(__file__).parents[2] / "configs"
PAPER = ("--config", CONFIGS / "dialoguellm" / "meld.yaml")
FULL = (  # all weights of LLaMA-2-7B
    *("--model=DialogueLLM", "--model.llm=shape:llama-2-7b", "--model.max_length=512", "--data=MELD"),
    *("--data.root=nowhere", "--data.batch_size=8"),
)


def said_by(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    zoo("memory", *args)
    return capsys.readouterr().out


def peak_of(text: str) -> float:
    """The expected peak in GiB."""
    return float(re.search(r"^expected peak ([\d.]+) GiB$", text, re.M)[1])


def test_a_config_alone_is_enough(capsys, tmp_path):
    """Neither weights nor data are here, and nothing is left behind."""
    text = said_by(capsys, *PAPER)
    assert text.startswith("DialogueLLM: 6,742,609,920 parameters, 4,194,304 of them trained\n")
    assert "a step: 16 x 8 samples, prompts of 4080 tokens, bf16-mixed" in text
    moments = re.findall(r"^ +([\d.]+)  (optimizer step|backward pass)$", text, re.M)
    assert len(moments) == 2 and peak_of(text) == max(float(value) for value, _ in moments)
    fits = re.findall(r"^ +(\d+) GB +([\d.]+) GiB +(fits|too small)", text, re.M)
    assert [int(size) for size, _, _ in fits] == [card.size for card in CARDS]
    assert [what == "fits" for _, _, what in fits] == [peak_of(text) <= float(limit) for _, limit, _ in fits]
    assert not list(Path.cwd().iterdir())


def test_later_options_rule(capsys):
    text = said_by(capsys, *PAPER, "--model.max_length=256", "--data.batch_size=2", "--tokens=100")
    assert "16 x 2 samples, prompts of 100 tokens" in text and peak_of(text) < peak_of(said_by(capsys, *PAPER))


def test_a_card_that_is_large_enough(capsys):
    assert re.search(
        r"A100 40 GB \(37\.4 GiB usable\): fits, [\d.]+ GiB are left\n$", said_by(capsys, *PAPER, "--card=40")
    )


@pytest.mark.parametrize("args", [PAPER, FULL], ids=["LoRA", "full tuning"])
def test_each_change_says_what_the_command_says_of_it(args, capsys):
    text = said_by(capsys, *args, "--card=24")
    changes = re.findall(r"^ +([\d.]+) GiB  (fits|    )  (--.+)$", text, re.M)
    assert len(changes) >= 2
    for peak, verdict, label in changes:
        options = re.sub(r" \(.*\)| with(?= )", "", label).split()
        alone = peak_of(said_by(capsys, *args, *options))
        assert alone == float(peak)
        assert (verdict == "fits") == (alone <= card_of(24).usable / GIB)
    together = float(re.search(r"([\d.]+) GiB  fits  all of these", text)[1])
    assert together < min(float(peak) for peak, _, _ in changes)


def test_full_tuning_is_told_of_adapters(capsys):
    text = said_by(capsys, *FULL, "--card=24")
    assert "--model.lora.r 8 (adapters" in text and "--model.dtype bfloat16 with --model.lora.r 8" in text
    assert "--model.gradient_checkpointing true" in text and "--model.max_length 256" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--card=0"], "--card 0: expected the memory of a card in GB, e.g. 24"),
        (["--tokens=0"], "--tokens 0: expected the length of a prompt, at least 1"),
        (["--model.llm=nobody/nothing"], "--model.llm shape:NAME"),
    ],
)
def test_what_makes_no_sense_is_refused(args, message):
    said = refused("memory", *PAPER, *args)
    assert said.startswith("zoo memory: ") and message in said


def test_it_needs_a_system():
    assert "memory needs a system and a corpus" in refused("memory")


# ---- cards
def test_usable_memory_is_less_than_reported():
    assert all(0.8 * card.total < card.usable < card.total for card in CARDS)
    assert [card.size for card in CARDS] == [8, 12, 16, 24, 40, 48, 80, 141] and usable(0) == 0


def test_the_smallest_card_that_fits():
    assert smallest(20 * GIB) is card_of(24) and smallest(23 * GIB) is card_of(40)
    assert smallest(200 * GIB) is None and card_of(32).total == 32 * GIB
