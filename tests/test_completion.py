"""The script of `zoo completion`, tried in a real bash."""

from __future__ import annotations

import shutil
import subprocess

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
    assert f'checkpoints) COMPREPLY=($(compgen -W "{" ".join(VERBS)}"' in script("bash", ALL)
    assert set(SECOND) < set(ALL)


def test_zsh_loads_what_it_needs_and_another_shell_is_refused():
    assert "bashcompinit" in script("zsh", ALL) and "bashcompinit" not in script("bash", ALL)
    assert "expected zoo completion bash or zoo completion zsh" in refused("completion", "fish")
