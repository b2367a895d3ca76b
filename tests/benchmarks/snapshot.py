"""What a restructuring of the code must leave as it is: the parsed options of every shipped config, and the tensors of
every system. Write a snapshot before, compare after:

    PYTHONPATH=. python tests/benchmarks/snapshot.py --out before.json
    PYTHONPATH=. python tests/benchmarks/snapshot.py --compare before.json

``--compare`` prints every difference and exits with 1 if there is one. Two kinds are listed, but allowed: an option
that the class renamed (its attribute ``renamed_options``, old -> new), and a class of the zoo that moved to another
module under the same name.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.builders import make_corpus, make_ears, make_eyes, make_llm
from tests.models.test_contract import SYSTEMS, System
from tests.runs_helper import checkpoint, fit, flags, zoo
from tests.test_configs import ABLATIONS, BASES, CONFIGS, CORPORA, TRAINERS, bases_of
from zoo.renaming import rename_options

STATE_FILE = "state.json"  # written by `StateNames` into the run's root


# ---- configs
def parsed(*configs: Path) -> dict[str, Any]:
    """Return what ``zoo fit --config ... --print_config`` prints, as nested dictionaries."""
    args = [part for config in configs for part in ("--config", config)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        zoo("fit", *args, "--print_config")
    result = yaml.safe_load(printed.getvalue())
    if not isinstance(result, dict):
        raise ValueError(f"{configs[-1]}: --print_config printed no options: {printed.getvalue()[:200]!r}")
    return json.loads(json.dumps(result))  # keys and numbers as a file holds them


def config_snapshot() -> dict[str, Any]:
    """Return the parsed options of every config, by its path under ``configs/``."""
    chains = [(path,) for path in BASES]
    chains += [(bases_of(path)[0], path) for path in (*ABLATIONS, *TRAINERS)]
    chains += [(CONFIGS / "causal_lm" / "tiny.yaml", path) for path in CORPORA]
    return {str(chain[-1].relative_to(CONFIGS)): parsed(*chain) for chain in chains}


# ---- systems
class StateNames(Callback):
    """A callback that writes name, shape and dtype of every tensor of the module when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tensors = {name: [list(v.shape), str(v.dtype)] for name, v in pl_module.state_dict().items()}
        (Path(trainer.default_root_dir) / STATE_FILE).write_text(json.dumps(tensors), encoding="utf-8")


def system_snapshot(system: System, home: Path, root: Path) -> dict[str, Any]:
    """Train a system for one step; return its tensors and what its checkpoint says about itself."""
    options = {"data": "MELD", "data__root": home / "meld", "data__descriptions": f"[{home / 'meld'}]"}
    options |= {f"model__{part}": home / part for part in (system.backbone, *system.others)}
    options |= {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1, "trainer__limit_val_batches": 1}
    options |= {"trainer__num_sanity_val_steps": 0, "data__batch_size": 2}
    with contextlib.redirect_stdout(io.StringIO()):
        names = "--trainer.callbacks+=tests.benchmarks.snapshot.StateNames"
        run = fit(root, names, *system.args, *flags(**options))
    file = checkpoint(run)
    contract = file["zoo"]
    return {
        "state_dict": json.loads((root / STATE_FILE).read_text(encoding="utf-8")),
        "stored": sorted(file["state_dict"]),
        "pristine": contract["pristine"],
        "class": contract["class"],
        "bases": sorted(contract["bases"]),
        "adapters": sorted(contract["adapters"]),
    }


def snapshot() -> dict[str, Any]:
    """Return the snapshot of the code as it is."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        make_llm(home / "llm")
        make_eyes(home / "vision")
        make_ears(home / "audio")
        make_corpus(home / "meld", (3, 2, 2), clips=True)
        systems = {name: system_snapshot(system, home, home / f"run_{name}") for name, system in SYSTEMS.items()}
    return {"configs": config_snapshot(), "systems": systems}


# ---- comparison
def moved(old: object, new: object) -> bool:
    """Return whether two values are paths of one class of the zoo in two modules."""
    paths = (old, new)
    if old == new or not all(isinstance(path, str) and path.startswith("zoo.") for path in paths):
        return False
    return str(old).rpartition(".")[2] == str(new).rpartition(".")[2]


def with_new_names(options: Mapping[str, Any], class_path: object) -> dict[str, Any]:
    """Return options of a class under their new names; as they are if the class cannot be imported."""
    module, _, name = str(class_path).rpartition(".")
    try:
        return rename_options(options, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError, ValueError):
        return dict(options)


def differences(old: Any, new: Any, place: str = "") -> tuple[list[str], list[str]]:
    """Return the differences between two values, and those that are allowed, a line each."""
    problems: list[str] = []
    allowed: list[str] = []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            where = f"{place}.{key}".lstrip(".")
            if key == "init_args" and "class_path" in new and isinstance(old.get(key), Mapping):
                renamed = with_new_names(old[key], new["class_path"])
                allowed += [f"{where}.{name}: renamed" for name in old[key] if name not in renamed]
                old = {**old, key: renamed}
            if key not in old:
                problems.append(f"{where}: new, {_short(new[key])}")
            elif key not in new:
                problems.append(f"{where}: gone, was {_short(old[key])}")
            else:
                more = differences(old[key], new[key], where)
                problems += more[0]
                allowed += more[1]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            more = differences(a, b, f"{place}[{i}]")
            problems += more[0]
            allowed += more[1]
    elif moved(old, new):
        allowed.append(f"{place}: {old} moved to {new}")
    elif old != new or type(old) is not type(new):
        problems.append(f"{place}: {_short(old)} became {_short(new)}")
    return problems, allowed


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--out", type=Path, help="write the snapshot to this file")
    action.add_argument("--compare", type=Path, help="compare with the snapshot in this file")
    args = parser.parse_args()
    now = snapshot()
    if args.out is not None:
        args.out.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        print(f"{args.out}: {len(now['configs'])} configs, {len(now['systems'])} systems")
        return
    before = json.loads(args.compare.read_text(encoding="utf-8"))
    problems, allowed = differences(before, now)
    for line in allowed:
        print(f"allowed: {line}")
    for line in problems:
        print(f"DIFFERENT: {line}")
    print(f"{len(now['configs'])} configs, {len(now['systems'])} systems: {len(problems)} differences")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
