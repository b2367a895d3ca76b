"""The scripts of `zoo completion`, tried in a real bash and a real zsh."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runs_helper import refused
from zoo.checkpoints.commands import VERBS
from zoo.cli import LIGHTNING_VERBS, ZOO_VERBS
from zoo.completion import SECOND, script

ALL = LIGHTNING_VERBS | ZOO_VERBS


def completed(*words: str, folder: str = ".") -> list[str]:
    """What bash offers for the last of the words."""
    asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _zoo"
    ask = "\n".join([script("bash", ALL), asked, "printf '%s\\n' \"${COMPREPLY[@]}\""])
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_verbs_names_options_and_files(tmp_path):
    assert completed("zoo", "co") == ["compare", "completion"]
    assert completed("zoo", "checkpoints", "pu") == ["pull", "publish", "push"]
    assert completed("zoo", "fit", "--model", "FAR") == ["FARCER"]
    assert completed("zoo", "fit", "--data", "ME") == ["MELD", "MER2024"]
    assert "dialoguellm-sitcom" in completed("zoo", "test", "--ckpt_path", "dia")
    assert completed("zoo", "fit", "--trainer.p") == ["--trainer.precision"]
    (tmp_path / "mine.yaml").write_text("")
    assert completed("zoo", "fit", "--config", "mi", folder=str(tmp_path)) == ["mine.yaml"]
    (tmp_path / "my own.yaml").write_text("")
    assert completed("zoo", "fit", "--config", "my", folder=str(tmp_path)) == ["my own.yaml"]
    assert completed("zoo", "test", "--ckpt_path", "my", folder=str(tmp_path)) == ["my own.yaml"]
    assert completed("zoo", "fit", "--model", "=", "FAR") == ["FARCER"]
    assert "MELD" in completed("zoo", "fit", "--data", "=")


def test_words_after_a_verb_are_those_that_it_knows():
    assert f'checkpoints) offers="{" ".join(VERBS)}"' in script("bash", ALL)
    assert set(SECOND) < set(ALL)


TYPING = r"""
zmodload zsh/zpty
zpty shell env TERM=dumb HOME=$PWD ZDOTDIR=$PWD zsh -fi
zpty -w shell 'source start.zsh'
for line in "$@"; do zpty -n -w shell "$line"$'\t\x14'; done
zpty -w shell exit
while zpty -r shell; do :; done
"""
START = """
autoload -Uz compinit && compinit -u
_mine() { compadd kept }
compdef _mine mine
source zoo.zsh
written() { print -r -- "$BUFFER" >> lines; BUFFER="" }
zle -N written
bindkey '^T' written
"""


def typed_in_zsh(folder: Path, *lines: str) -> list[str]:
    """What the lines become when a tab is typed after each, in an interactive zsh that works in a folder."""
    (folder / "zoo.zsh").write_text(script("zsh", ALL))
    (folder / "start.zsh").write_text(START)
    typing = ["zsh", "-fc", TYPING, "zsh", *lines]
    subprocess.run(typing, cwd=folder, check=True, timeout=60, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return (folder / "lines").read_text().splitlines()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_completes_verbs_names_options_and_files(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "my own.yaml").write_text("")
    become = {
        "zoo che": "zoo checkpoints ",
        "zoo checkpoints pul": "zoo checkpoints pull ",
        "zoo fit --con": "zoo fit --config ",
        "zoo fit --config conf": "zoo fit --config configs/",
        "zoo fit --config configs/my": r"zoo fit --config configs/my\ own.yaml ",
        "zoo fit --config=~/conf": "zoo fit --config=~/configs/",
        "zoo fit --model FAR": "zoo fit --model FARCER ",
        "zoo fit --model=FAR": "zoo fit --model=FARCER ",
        "zoo test --ckpt_path conf": "zoo test --ckpt_path configs/",
        "zoo test --ckpt_path bes": "zoo test --ckpt_path best ",
        "zoo unknown": "zoo unknown",
        "lightning pred": "lightning predict ",
        "mine ": "mine kept ",  # what the start-up file had given other commands
    }
    assert typed_in_zsh(tmp_path, *become) == list(become.values())


def test_zsh_begins_what_it_needs_and_another_shell_is_refused():
    assert "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }" in script("zsh", ALL)
    assert "compinit" not in script("bash", ALL)
    assert "expected zoo completion bash or zoo completion zsh" in refused("completion", "fish")
    assert "expected zoo completion bash or zoo completion zsh" in refused("completion")
