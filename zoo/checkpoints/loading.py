"""A system with its weights, from a run folder, a published name or folder, or a YAML that names other runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoints.listing import refuse_changed
from zoo.checkpoints.probes import PROBE, compare
from zoo.configs import instantiated, read_run_config
from zoo.runs import find_checkpoint, newest_config, run_of
from zoo.training.checkpointing import read_checkpoint
from zoo.training.module import EmotionModule


def load(path: str, probe: bool = True, model: Mapping[str, Any] | None = None) -> Any:
    """Load the module of a run with its weights.

    From the run folder alone: ``load("lightning_logs/version_0").llm``; from a published name
    (``load("tiny-vit-sitcom")``) or folder; or, for a system whose weights all come from other runs, from the YAML that
    names them.

    A published name is compared with its sha256, and its stored inputs must give the stored outputs. ``zoo test`` and
    the other verbs compare the sha256 alone: their options (a window, a precision) may rightly change the outputs.

    Args:
        path: of the run, the folder or the YAML; or a published name.
        probe: False leaves out the comparison of outputs, which takes about a second.
        model: options of the model that replace those of its config, by dotted name: ``{"lora.r": 8}``. The outputs are
            not compared then.

    Raises:
        FileNotFoundError: no checkpoint, or no config.yaml beside it.
        ValueError: the checkpoint does not fit the config (see `EmotionModule.on_load_checkpoint`), is not the
            published one, or answers its probe differently.
    """
    if Path(path).suffix in (".yaml", ".yml"):
        module = build_module(Path(path), model)
        if not module.owns_no_weights:
            raise ValueError(f"{path} has no weights of its own; give the run folder or its checkpoint")
        module.configure_model()
        return module
    file = find_checkpoint(path)
    home = config_folder(file)
    refuse_changed(file)
    module = build_module(newest_config(home), model)
    if file.name == "model.safetensors":  # a backbone: its folder is the model, there is nothing more to load
        module.configure_model()
    else:
        module.will_load_checkpoint, module.checkpoint_file = True, file
        module.configure_model()
        content = read_checkpoint(file)
        try:
            module.on_load_checkpoint(content)
        except ValueError as error:
            raise (error if str(file) in str(error) else ValueError(f"{file}: {error}")) from error
        module.load_state_dict(content["state_dict"])
    if probe and not model and (home / PROBE).is_file():
        compare(module, home)
    return module


def config_folder(file: Path) -> Path:
    """Return the folder with the config.yaml of a checkpoint: its run, or the folder it was published in.

    Raises:
        FileNotFoundError: there is none.
    """
    published = file.suffix == ".safetensors" and (file.parent / "config.yaml").is_file()
    home = run_of(file) or (file.parent if published else None)
    if home is None:
        raise FileNotFoundError(f"{file} does not lie in a run folder, so its config.yaml is not known")
    return home


def build_module(config: Path, changes: Mapping[str, Any] | None = None) -> EmotionModule:
    """Build the system of a config, without weights.

    Raises:
        ValueError: no config of a run, or one that names what it may not import (`zoo.imports.check_imports`).
    """
    model_config = read_run_config(config)["model"]
    for name, value in (changes or {}).items():
        options = model_config.setdefault("init_args", {})
        *outer, last = name.split(".")
        for key in outer:
            options = options.setdefault(key, {})
        options[last] = value
    changed = [f"model.{name}" for name in changes or {}]
    module: EmotionModule = instantiated("model", EmotionModule, model_config, config, changed)
    return module
