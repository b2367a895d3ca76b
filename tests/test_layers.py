"""House rules that a machine can check: who may import whom, no addresses of somebody's machine, no unsafe loading.

Every import contract of pyproject.toml is broken on a copy of the package, so a contract that cannot fail is noticed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from importlinter import configuration
from importlinter.application import output, use_cases
from rich.console import Console

from tests.conftest import LONGEST

configuration.configure()
ROOT = Path(__file__).parents[1]
CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
# restated here, not read from pyproject.toml: the two have to agree
LAYERS = [
    ["__main__"],
    ["cli"],
    ["lightning_cli"],
    ["serve"],
    ["data_show", "label"],
    ["benchmark", "callbacks", "checkpoints", "memory", "prepare"],
    ["arguments"],
    ["models"],
    ["module", "reinforced", "senses"],
    ["training"],
    ["backbones", "data", "metrics", "prompts", "rl", "runs"],
    ["sitcom"],
    ["answers", "configs", "media", "weights"],
    ["imports"],
    ["errors", "interrupts", "progress", "renaming", "storage", "templates", "schema"],
]


# ---- who may import whom
def lint(folder: Path) -> tuple[set[str], str]:
    """Return the ids of the broken contracts of the package in ``folder``, and all that import-linter printed.

    It runs in this process, where a start of Python for each of the contracts would take most of the time. It looks for
    the package by its name, so the one that the tests imported is out of sight meanwhile.
    """
    imported = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "zoo"}
    path, report = list(sys.path), io.StringIO()
    sys.path[:] = [str(folder), *(entry for entry in path if Path(entry).resolve() != ROOT)]
    try:
        with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
            patch.setattr(output, "console", Console(file=report, width=1000, no_color=True, highlight=False))
            # not importlinter.cli, which switches off the loggers of every other test
            passed = use_cases.lint_imports(config_filename="pyproject.toml", cache_dir=None, no_logo=True)
    finally:
        sys.path[:] = path
        sys.modules.update(imported)
    text = report.getvalue()
    verdicts = {id_: re.search(rf"^{re.escape(name)} (KEPT|BROKEN)\b", text, re.M) for id_, name in CONTRACTS.items()}
    assert all(verdicts.values()), text
    broken = {id_ for id_, verdict in verdicts.items() if verdict[1] == "BROKEN"}
    assert passed == (not broken), text
    return broken, text


def plant(folder: Path, module: str, code: str = "") -> None:
    """Adds `code` to a module, which is made first, with its packages, if it does not exist."""
    *packages, last = module.split(".")
    place = folder
    for package in packages:
        place /= package
        place.mkdir(exist_ok=True)
        (place / "__init__.py").touch()
    file = place / last / "__init__.py" if (place / last).is_dir() else place / f"{last}.py"
    with file.open("a") as f:
        f.write(f"\n{code}\n")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with its contracts, where every layer exists."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo", ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    for layer in LAYERS:
        for module in layer:
            plant(tmp_path, f"zoo.{module}")
    return tmp_path


def test_contracts_hold():
    broken, said = lint(ROOT)
    assert not broken, said


def test_the_linter_sees_every_module():
    """A folder without __init__.py is importable, but import-linter would not look into it."""
    files = list((ROOT / "zoo").rglob("*.py"))
    assert len(files) >= 10
    assert not [str(f.parent) for f in files if not (f.parent / "__init__.py").exists()]


# contract, module, the line added to it, what the report has to say
BREAKS = [
    ("layers", "zoo.schema", "import zoo.prompts", "zoo.schema -> zoo.prompts"),
    ("layers", "zoo.metrics", "from zoo.data import base", "zoo.metrics -> zoo.data"),
    ("layers", "zoo.training", "def f():\n    from zoo.models import one", "zoo.training -> zoo.models"),
    ("layers", "zoo.utils", "", "- zoo.utils"),
    ("layers", "zoo.helpers.text", "", "- zoo.helpers"),
    ("papers", "zoo.models.one.model", "import zoo.models.other.parts", "zoo.models.one.model -> zoo.models.other"),
    ("papers", "zoo.models.one", "from ..other import parts", "zoo.models.one -> zoo.models.other"),
    ("data", "zoo.models.one.model", "from zoo.data import base", "zoo.models.one.model -> zoo.data"),
    ("data", "zoo.training", "import zoo.data", "zoo.training -> zoo.data"),
    ("hub", "zoo.training", "import transformers", "zoo.training -> transformers"),
    ("hub", "zoo.models.one.model", "from peft import LoraConfig", "zoo.models.one.model -> peft"),
    ("hub", "zoo.data.base", "def f():\n    import timm.models", "zoo.data.base -> timm"),
    ("hub", "zoo.prompts", "from tokenizers import Tokenizer", "zoo.prompts -> tokenizers"),
    ("lightning", "zoo.rl.grpo", "import lightning.pytorch as pl", "zoo.rl.grpo -> lightning"),
    ("lightning", "zoo.rl", "from lightning_fabric import Fabric", "zoo.rl -> lightning_fabric"),
    ("lightning", "zoo.prompts", "from pytorch_lightning import Trainer", "zoo.prompts -> pytorch_lightning"),
    ("lightning", "zoo.schema", "from lightning import Trainer", "zoo.schema -> lightning"),
    ("lightning", "zoo.rl.rewards", "from zoo.media import x", "zoo.media -> lightning"),
]


@pytest.mark.parametrize(("contract", "module", "line", "report"), BREAKS, ids=[f"{b[0]}: {b[3]}" for b in BREAKS])
def test_contract_can_fail(package: Path, contract: str, module: str, line: str, report: str):
    plant(package, "zoo.models.one.model")
    plant(package, "zoo.models.other.parts")
    if report == "zoo.media -> lightning":  # an import of an import counts too
        plant(package, "zoo.media", "import lightning")
    assert lint(package)[0] == set()
    plant(package, module, line)
    broken, said = lint(package)
    assert contract in broken, said  # others too, if what was planted is imported by what they watch
    assert report in said


def test_every_contract_can_fail():
    assert {contract for contract, *_ in BREAKS} == CONTRACTS.keys()
    assert len(CONTRACTS) == 5


def test_no_layer_imports_a_higher_one_or_its_neighbour(package: Path):
    """All forbidden pairs of top-level modules at once; each one has to be reported."""
    up = [(low, high) for higher, lower in combinations(LAYERS, 2) for low in lower for high in higher]
    beside = [(a, b) for layer in LAYERS for a in layer for b in layer if a != b]
    assert len(up) == 574
    for low, high in up + beside:
        plant(package, f"zoo.{low}", f"import zoo.{high}")
    broken, said = lint(package)
    assert "layers" in broken
    missed = [pair for pair in up + beside if "zoo.{} is not allowed to import zoo.{}:".format(*pair) not in said]
    assert not missed


# ---- the order of the tests
def test_the_longest_files_are_there():
    """A file that was moved would no longer come first."""
    missing = [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]
    assert not missing, f"correct LONGEST in tests/conftest.py: {missing}"


# ---- nothing of somebody's machine, no secrets
def text_files() -> Iterator[tuple[str, str]]:
    """(path, text) of every file that is or would be committed; without git, of all but what runs and tools leave."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(listing, cwd=ROOT, capture_output=True, check=False)
    if git.returncode == 0:
        names = [name for name in git.stdout.decode().split("\0") if name]
    else:
        left = re.compile(r"(^|/)(\.(?!ci/|gitignore)|runs/|lightning_logs/|__pycache__/|build/|[^/]*egg-info/)|^data/")
        names = [f.relative_to(ROOT).as_posix() for f in sorted(ROOT.rglob("*"))]
        names = [name for name in names if not left.search(name)]
    for name in names:
        file = ROOT / name
        if file.is_file() and b"\0" not in (content := file.read_bytes()):
            yield name, content.decode("utf-8", errors="replace")


FOREIGN = {
    "a path of somebody's machine": r"(?<![\w.~-])/(home|root|work|Users)/",
    "an address of a package registry": r"pypi\.org|pythonhosted|download\.pytorch\.org|anaconda\.org|/opt/wheels",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a token": r"\b((hf|gh[pousr])_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[0-9A-Z]{16}|sk-[A-Za-z0-9_-]{32,})",
    "a password in an address": r"://[^/\s:@\"'{}<>]+:[^/\s:@\"'{}<>]+@",
    "code of a checkpoint's author": r"trust_remote_code[\"']?\s*[:=]\s*[Tt]rue",
}


def test_no_addresses_no_secrets():
    files = dict(text_files())
    assert {"pyproject.toml", "constraints.txt", "Makefile", "zoo/metrics/scores.py", ".ci/run"} <= files.keys()
    del files["tests/test_layers.py"]  # holds the patterns
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1} {what}: {match[0]}"
        for name, text in files.items()
        for what, pattern in FOREIGN.items()
        for match in re.finditer(pattern, text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('root: "/home/me/meld"', "a path of somebody's machine"),
        ("cd /root/zoo", "a path of somebody's machine"),
        ("file:///work/main/", "a path of somebody's machine"),
        ("../work/notes ~/home/ https://a.org/home/x", None),
        ("--index-url https://pypi.org/simple", "an address of a package registry"),
        ("token = 'hf_" + "a1" * 17 + "'", "a token"),
        ("https://me:secret@host/x", "a password in an address"),
        ("trust_remote_code: true", "code of a checkpoint's author"),
        ("https://arxiv.org/abs/2310.11374 http://www.apache.org/licenses/LICENSE-2.0", None),
    ],
)
def test_foreign_text_is_noticed(text: str, what: str | None):
    assert [w for w, pattern in FOREIGN.items() if re.search(pattern, text)] == ([what] if what else [])


# ---- nothing that runs code of a file it reads
PICKLES = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "pandas.read_pickle", "joblib.load"),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
}
SWITCHES = ("trust_remote_code", "shell", "allow_pickle")


def unsafe(code: str) -> list[str]:
    """The unsafe calls of a piece of Python, by their full names whatever they were imported as."""
    nodes = list(ast.walk(ast.parse(code)))
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def full(node: ast.expr) -> str:
        if isinstance(node, ast.Attribute):
            return f"{full(node.value)}.{node.attr}"
        return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    found = []
    for node in nodes:
        if isinstance(node, ast.Call):
            name = full(node.func)
            given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else "?" for k in node.keywords}
            if name in PICKLES:
                found.append(name)
            if name == "torch.load" and given.get("weights_only") is not True:
                found.append("torch.load without weights_only=True")
            found += [f"{switch}={given[switch]}" for switch in SWITCHES if given.get(switch)]
    return found


def test_no_unsafe_code():
    sources = {name: text for name, text in text_files() if name.endswith(".py")}
    for name, text in text_files():
        if name.endswith(".ipynb"):
            for i, cell in enumerate(json.loads(text)["cells"]):
                if cell["cell_type"] == "code":
                    lines = "".join(cell["source"]).splitlines()
                    sources[f"{name} cell {i}"] = "\n".join(s for s in lines if not s.lstrip().startswith(("%", "!")))
    assert len(sources) >= 12
    found = {name: unsafe(code) for name, code in sources.items()}
    for name in found:  # a test may look at its own pickle, as a worker process would
        found[name] = [f for f in found[name] if not (f == "pickle.loads" and name.startswith("tests/"))]
    assert not {name: calls for name, calls in found.items() if calls}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import pickle\npickle.load(f)", ["pickle.load"]),
        ("from pickle import load as read\nread(f)", ["pickle.load"]),
        ("import yaml as y\ny.load(f, Loader=y.SafeLoader)", ["yaml.load"]),
        ("import yaml\nyaml.safe_load(f)", []),
        ("import torch\ntorch.load(f)", ["torch.load without weights_only=True"]),
        ("import torch\ntorch.load(f, weights_only=False)", ["torch.load without weights_only=True"]),
        ("import torch as t\nt.load(f, weights_only=True)", []),
        ("subprocess.run('ls', shell=True)", ["shell=True"]),
        ("AutoModel.from_pretrained(p, trust_remote_code=flag)", ["trust_remote_code=?"]),
        ("AutoModel.from_pretrained(p, trust_remote_code=False)", []),
        ("np.load(f, allow_pickle=True)", ["allow_pickle=True"]),
        ("json.load(f)", []),
    ],
)
def test_unsafe_code_is_noticed(code: str, found: list[str]):
    assert unsafe(code) == found


# ---- text files
SPLITLINES = {  # file -> why its texts may be cut at U+0085 and U+2028
    "zoo/benchmark/run.py": "the log of a command, shown in part",
    "zoo/media/cache.py": "bytes, which are cut at line breaks alone",
}


def test_no_text_is_cut_at_characters_that_are_no_line_breaks():
    """`str.splitlines` also divides at U+0085, U+2028 and six more, which stand inside utterances."""
    places: dict[str, list[int]] = {}
    for file in sorted((ROOT / "zoo").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "splitlines":
                places.setdefault(str(file.relative_to(ROOT)), []).append(node.lineno)
    assert places.keys() == SPLITLINES.keys(), f"use zoo.storage.split_lines: {places}"
