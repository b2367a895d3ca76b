"""Every configuration that is shipped parses, and none holds a misspelt option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.runs_helper import refused, zoo

CONFIGS = Path(__file__).parents[1] / "configs"
CORPORA = sorted((CONFIGS / "data").glob("*.yaml"))  # each read after any base config
BASES = sorted(p for p in CONFIGS.rglob("*.yaml") if "ablations" not in p.parts and p not in CORPORA)
ABLATIONS = sorted(p for p in CONFIGS.rglob("*.yaml") if "ablations" in p.parts)


def base_of(ablation: Path) -> Path:
    """The config that an ablation is read after: the one that its name begins with; else the paper's on MELD, the small
    one for a small ablation."""
    named = [p for p in ablation.parents[1].glob("*.yaml") if ablation.stem.startswith(f"{p.stem}_")]
    if named:
        return max(named, key=lambda p: len(p.stem))
    names = ("meld_small.yaml", "sitcom.yaml") if ablation.stem.startswith("small") else ("meld.yaml",)
    names = ("meld_classifier.yaml",) if ablation.stem.startswith("classifier_") else names  # the selector's stage 2
    return next(path for name in names if (path := ablation.parents[1] / name).is_file())


def printed(capsys, *configs: Path) -> dict:
    args = [part for config in configs for part in ("--config", config)]
    with pytest.raises(SystemExit) as leaving:
        zoo("fit", *args, "--print_config")
    assert leaving.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def leaves(tree: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    out = {}
    for key, value in tree.items():
        out |= leaves(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return out


@pytest.fixture(autouse=True)
def _untouched(tmp_path, monkeypatch):
    """Parsing needs no folder of the repository, no weights and no data, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


def test_there_are_configs():
    assert len(BASES) + len(ABLATIONS) >= 8 and len(BASES) >= 4 and ABLATIONS


@pytest.mark.parametrize("config", [*BASES, *ABLATIONS], ids=lambda p: str(p.relative_to(CONFIGS)))
def test_parses_and_says_what_it_means(config, capsys):
    files = (config,) if config in BASES else (base_of(config), config)
    result = printed(capsys, *files)
    assert result["model"]["class_path"].startswith("zoo.models.")
    assert result["data"]["class_path"].startswith("zoo.data.")
    wanted = leaves(yaml.safe_load(config.read_text()))
    got = leaves(result)
    compared = {k for k in wanted if k[-1] not in ("class_path", "parts")}
    assert {k: got.get(k) for k in compared if not _equal(got.get(k), wanted[k])} == {}  # nothing overruled or lost
    assert config.read_text().startswith("# ")  # says what it is for


def _equal(a: object, b: object) -> bool:
    """Whether the parsed value is what the file says; parsing fills in the defaults of an option that has parts."""
    if isinstance(b, dict) and isinstance(a, dict):
        return all(_equal(a.get(k), v) for k, v in b.items())
    if isinstance(b, list) and a is not None:
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


def options_of(text: str) -> list[str]:
    """Options that stand alone on a line of a config."""
    return re.findall(r"^ +([a-z_]{4,}):", text, re.MULTILINE)


@pytest.mark.parametrize("config", BASES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_misspelt_option_is_named(config, tmp_path_factory):
    text = config.read_text()
    option = next(o for o in reversed(options_of(text)) if o not in ("init_args", "class_path"))
    broken = tmp_path_factory.mktemp("broken") / "broken.yaml"
    broken.write_text(re.sub(rf"^( +){option}:", rf"\1{option}x:", text, flags=re.MULTILINE))
    assert f"{option}x" in refused("fit", "--config", broken)


@pytest.mark.parametrize("config", CORPORA, ids=lambda p: p.stem)
def test_a_corpus_changes_the_data_only(config, capsys, tmp_path_factory):
    base = CONFIGS / "causal_lm" / "tiny.yaml"
    wanted, got = yaml.safe_load(config.read_text()), printed(capsys, base, config)
    assert set(wanted) == {"data"} and config.read_text().startswith("# ")
    assert got | {"data": None} == printed(capsys, base) | {"data": None}
    assert got["data"]["class_path"].startswith("zoo.data.")
    options = wanted["data"]["init_args"]
    assert {k: got["data"]["init_args"][k] for k in options} == options
    broken = tmp_path_factory.mktemp("broken") / "broken.yaml"
    broken.write_text(yaml.safe_dump({"data": {**wanted["data"], "init_args": {**options, "rootx": "x"}}}))
    assert "rootx" in refused("fit", "--config", base, "--config", broken)
