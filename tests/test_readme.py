"""Every command and link of the documents a user reads is real."""

import re
import shlex
from pathlib import Path

import pytest

from tests.builders import make_corpus, make_llm
from tests.runs_helper import fit
from zoo import cli

ROOT = Path(__file__).parents[1]
CARDS = [*sorted(ROOT.glob("zoo/models/*/README.md")), *sorted(ROOT.glob("checkpoints/*/README.md"))]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *CARDS]


def commands(document: Path) -> list[list[str]]:
    """Argument lists of the zoo and lightning commands in a document's code blocks."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", document.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("zoo ", "lightning "))]


ALL = [(d.relative_to(ROOT), words) for d in DOCUMENTS for words in commands(d)]


def test_there_is_something_to_check():
    assert len(DOCUMENTS) >= 3
    assert len(ALL) >= 8


@pytest.mark.parametrize(("document", "words"), ALL, ids=lambda v: " ".join(v)[:80] if isinstance(v, list) else str(v))
def test_command(document, words, capsys, monkeypatch):
    """Commands with a config parse to the end; the others name a verb that exists."""
    monkeypatch.chdir(ROOT)
    assert words[1] in (cli.LIGHTNING_VERBS if words[0] == "lightning" else cli.LIGHTNING_VERBS | cli.ZOO_VERBS)
    if any(word.startswith("--config") for word in words):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words[1:], "--print_config"])
        assert stop.value.code in (0, None)
        assert "class_path" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    for link in links:
        assert link.startswith("https://") or (document.parent / link).exists(), f"{document.name} links to {link}"


def test_make_targets():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {t for d in DOCUMENTS for t in re.findall(r"make ([a-z]+)", d.read_text())}
    assert named and named <= targets


def test_your_own_llama_trains_on_the_official_release_without_descriptions(tmp_path, monkeypatch, one_threaded):
    """The first command of the section, with a miniature of the release that holds its CSVs alone."""
    monkeypatch.chdir(ROOT)
    make_corpus(tmp_path / "MELD.Raw", (2, 1, 1))
    for file in (tmp_path / "MELD.Raw").glob("*description*"):
        file.unlink()
    (tmp_path / "llm").mkdir()
    make_llm(tmp_path / "llm")
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    (section,) = re.findall(r"## Your own LLaMA\n(.*?)\n## ", page, re.DOTALL)
    block = re.findall(r"```\n(.*?)```", section, re.DOTALL)[0].replace("\\\n", " ")
    command = block.replace("/models/Llama-2-7b-hf", str(tmp_path / "llm")).replace("/data/", f"{tmp_path}/")
    run = fit(
        tmp_path,
        *shlex.split(command)[2:],
        "--data.num_workers=0",
        "--trainer.max_steps=1",
        "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=1",
    )
    assert (run / "checkpoints" / "last.ckpt").is_file()
