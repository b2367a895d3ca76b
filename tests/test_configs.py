"""Every configuration that is shipped parses, and none holds a misspelt option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.runs_helper import refused, zoo
from zoo.backbones import LoRA
from zoo.data import Conversations
from zoo.models.emotion_qwen import EmotionQwen

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
CORPORA = sorted((CONFIGS / "data").glob("*.yaml"))  # overlays that change the data alone
TRAINERS = sorted((CONFIGS / "trainer").glob("*.yaml"))  # overlays that change the trainer alone
MIXTURES = sorted(CONFIGS.rglob("mixtures/*.yaml"))  # what zoo.data.Conversations reads
BENCHES = sorted((CONFIGS / "bench").glob("*.yaml"))  # what zoo bench reads: tests/benchmark/test_plan.py
ABLATIONS = sorted(CONFIGS.rglob("ablations/*.yaml"))  # overlays
OVERLAYS = [*ABLATIONS, *CORPORA, *TRAINERS]
BASES = sorted({*CONFIGS.rglob("*.yaml")} - {*OVERLAYS, *MIXTURES, *BENCHES})


def bases_of(overlay: Path) -> list[Path]:
    """The configs that an overlay's first line says it is read after."""
    first = overlay.read_text().partition("\n")[0]
    assert first.startswith("# Read after "), f"{overlay} does not begin with '# Read after CONFIG.yaml'"
    named = re.findall(r"[\w/]+\.yaml", first)
    return [ROOT / name if name.startswith("configs/") else overlay.parents[1] / name for name in named]


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


CHAINS = [(base,) for base in BASES] + [(base, overlay) for overlay in OVERLAYS for base in bases_of(overlay)]


@pytest.mark.parametrize("files", CHAINS, ids=lambda files: " ".join(str(f.relative_to(CONFIGS)) for f in files))
def test_parses_and_says_what_it_means(files, capsys):
    config = files[-1]
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
    assert [k for k, v in options.items() if not _equal(got["data"]["init_args"][k], v)] == []
    broken = tmp_path_factory.mktemp("broken") / "broken.yaml"
    broken.write_text(yaml.safe_dump({"data": {**wanted["data"], "init_args": {**options, "rootx": "x"}}}))
    assert "rootx" in refused("fit", "--config", base, "--config", broken)


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda p: p.stem)
def test_mixtures_are_read(mixture):
    assert mixture.read_text().startswith("# ") and Conversations(mixture).parts()["train"]


# ---- Emotion-Qwen at paper size, on the meta device
def built(config: Path, capsys: pytest.CaptureFixture, *more: Path):
    """The model of a config with shapes for weights."""
    said = printed(capsys, config, *more)["model"]["init_args"]
    said |= {"llm": "shape:qwen2.5-7b", "vision": "shape:qwen2.5-vl-vision", "start_from": None}
    model = EmotionQwen(**said | {"lora": LoRA(**said["lora"]) if said["lora"] else None})
    model.make_llm.keywords["device"] = model.make_vision.keywords["device"] = "meta"
    model.configure_model()
    return model


def trained(model) -> dict[str, int]:
    """Part -> trained parameters."""
    found: dict[str, int] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            part = ".".join(name.split(".")[: 2 if name.startswith("compressor") else 1])
            found[part] = found.get(part, 0) + p.numel()
    return found


EXPERT, TOWER, LANGUAGE = 44_580_352, 631_975_680, 7_615_616_512
GATE = 4 * 1280 * 1281 + 2 * 1281


@pytest.mark.parametrize(
    "config, overlay, expected",
    [
        ("stage1", None, {"vision": TOWER, "compressor.general": EXPERT}),
        ("stage2", None, {"vision": TOWER, "compressor.emotion": EXPERT, "compressor.gate": GATE}),
        ("stage3", None, {"llm": LANGUAGE}),
        ("tune_lora", None, {"llm": 40_370_176}),
        ("tune_lora", "tune_lora_authors", {"llm": 40_370_176 + 152_064 * 3584, "compressor.gate": GATE}),
        ("tune_full", "tune_full_authors", {"llm": LANGUAGE, "compressor.emotion": EXPERT}),
    ],
)
def test_emotion_qwen_at_paper_size(config, overlay, expected, capsys):
    folder = CONFIGS / "emotion_qwen"
    more = [folder / "ablations" / f"{overlay}.yaml"] if overlay else []
    model = built(folder / f"{config}.yaml", capsys, *more)
    assert trained(model) == expected
    assert sum(p.numel() for p in model.vision.parameters()) == TOWER
    state = model.state_dict()
    assert state["vision.model.patch_embed.proj.weight"].shape == (1280, 3, 2, 14, 14)
    assert state["vision.model.blocks.31.attn.qkv.weight"].shape == (3840, 1280)
    assert state["vision.model.blocks.31.mlp.gate_proj.weight"].shape == (3420, 1280)
    assert state["compressor.emotion.fc1.weight"].shape == (5120, 5120) and not any("merger." in k for k in state)
    assert state["compressor.emotion.fc2.weight"].shape == (3584, 5120)


@pytest.mark.parametrize("config", bases_of(CONFIGS / "trainer" / "fsdp2.yaml"), ids=lambda p: p.stem)
def test_fsdp2_is_parsed(config, capsys):
    trainer = printed(capsys, config, CONFIGS / "trainer" / "fsdp2.yaml")["trainer"]
    assert trainer["strategy"]["class_path"] == "lightning.pytorch.strategies.ModelParallelStrategy"
    assert trainer["strategy"]["init_args"]["data_parallel_size"] == trainer["devices"] == 8


# ---- what others say about the configs
CARDS = sorted([*ROOT.glob("*.md"), *ROOT.glob("zoo/**/README.md"), *ROOT.glob("docs/**/*.md")])
NOT_SHIPPED = {"config", "config.test", "mine", "MIXTURE"}  # of a run folder, or of a user


def named_configs(file: Path) -> list[str]:
    """Config files that the comments of a config, or a README, name."""
    text = file.read_text()
    if file.suffix == ".yaml":
        text = "\n".join(line.partition("#")[2] for line in text.splitlines())
    names = re.findall(r"(?<![\w/*.-])((?:[\w-]+/)*[\w.-]+)\.yaml\b", text)
    return [f"{name}.yaml" for name in names if name.rpartition("/")[2] not in NOT_SHIPPED]


def places_of(file: Path) -> list[Path]:
    """Folders that a config's name in a file may be relative to: the repository, and those of the paper's configs."""
    papers = [file.parents[1] if file.parent.name in ("ablations", "mixtures") else file.parent]
    if file.suffix == ".md":
        papers = (
            [CONFIGS / file.parent.name] if file.parent not in (ROOT, ROOT / "docs") else sorted(CONFIGS.glob("*/"))
        )
    return [ROOT, CONFIGS / "data", *(paper / part for paper in papers for part in ("", "ablations", "mixtures"))]


@pytest.mark.parametrize("file", [*sorted(CONFIGS.rglob("*.yaml")), *CARDS], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_that_is_named_exists(file):
    missing = [n for n in named_configs(file) if not any((place / n).is_file() for place in places_of(file))]
    assert not missing, f"{file.relative_to(ROOT)} names {missing}"


def test_the_names_of_configs_are_found():
    """The test above can fail: it sees most configs named, and one that does not exist."""
    named = {name for file in [*CONFIGS.rglob("*.yaml"), *CARDS] for name in named_configs(file)}
    assert len(named) > 60 and "configs/farcer/meld.yaml" in named
    assert named_configs(CONFIGS / "trainer" / "fsdp2.yaml")[0] == "configs/emotion_qwen/stage1.yaml"


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_config_takes_the_accelerator_that_is_there_or_says_why_not(config):
    for line in config.read_text().splitlines():
        if line.strip().startswith("accelerator:"):
            assert "accelerator: auto" in line or "  # " in line, f"{config}: {line}; write auto, or why not"
