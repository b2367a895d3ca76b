"""Convert the authors' weight files to ours and back, by one strict map.

They published none; these are the layouts their code writes:

    pruned   best.pth.tar after pruning: {"model_state_dict": {"mp.0.weight", "mp.0.bias"}} (three layers: 0, 3 and 6)
    full     epochN.pth.tar: the same with lm.*, vm.* (the face ViT under transformers 4's names) and input_embeddings.*
    lora     the same of a LoRA run, as PEFT wraps it: base_model.model.*, .base_layer, .modules_to_save.default
    peft     a PEFT folder, adapter_config.json and adapter_model.safetensors, with mp.0 in modules_to_save

    python -m zoo.models.farcer.weights FILE_OR_FOLDER --config configs/farcer/meld.yaml --out FOLDER

reads such a file into the model of a config and writes FOLDER/weights.safetensors, and beside it config.yaml and
checkpoints/best.ckpt as a run has them, for ``--ckpt_path FOLDER`` and ``--model.start_from FOLDER``. Nothing is
unpickled but tensors and plain values; a key that is missing, left over or of another shape is an error that names it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.configs import instantiated, read_run_config
from zoo.models.farcer.model import FARCER
from zoo.storage import replacing

Layout = Literal["pruned", "full", "lora", "peft"]

# layout -> (beginning of our name, beginning of theirs); a name that begins with none of them is not in the layout
PARTS: dict[Layout, tuple[tuple[str, str], ...]] = {
    "pruned": (("mp.", "mp."),),
    "full": (("mp.", "mp."), ("llm.model.", "lm."), ("vision.model.", "vm.")),
    "lora": (
        ("mp.", "base_model.model.mp."),
        ("llm.model.base_model.model.", "base_model.model.lm."),
        ("vision.model.", "base_model.model.vm."),
    ),
    "peft": (("mp.", "base_model.model.mp."), ("llm.model.base_model.model.", "base_model.model.lm.")),
}
# inside the ViT: transformers 5 <-> transformers 4
VIT = (
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),  # after attention.output.dense: the later one is the shorter
)
SAVED = ".modules_to_save.default."  # where PEFT keeps the trained projection, and
ORIGINAL = ".original_module."  # what it was before


def to_theirs(name: str, layout: Layout) -> str | None:
    """Return the authors' name of a tensor of ours, or None if the layout does not hold it."""
    pair = next((p for p in PARTS[layout] if name.startswith(p[0])), None)
    if pair is None:
        return None
    ours, theirs = pair
    rest = name.removeprefix(ours)
    if ours.startswith("vision."):
        rest = re.sub(r"^vit\.layers\.", "vit.encoder.layer.", rest)
        renamed = next((pair for pair in VIT if pair[0] in rest), None)
        rest = rest.replace(*renamed) if renamed else rest
    elif ours == "mp." and layout == "lora":
        rest = re.sub(r"^(\d+)\.", rf"\1{SAVED}", rest)
    elif layout == "peft" and ours != "mp.":
        if not re.search(r"\.lora_[AB]\.default\.weight$", rest):
            return None  # the frozen model is not in the folder
        rest = rest.replace(".default.", ".")
    return theirs + rest


def published_names(module: FARCER, layout: Layout) -> dict[str, str]:
    """Map the authors' name to ours, for every tensor a file of this layout holds for this model."""
    return {theirs: name for name in module.state_dict() if (theirs := to_theirs(name, layout)) is not None}


def _aliases(module: FARCER, layout: Layout) -> dict[str, str]:
    """Map their names of tensors they hold twice to ours; what PEFT keeps as it was before is not compared."""
    names = published_names(module, layout)
    begin = "" if layout == "full" else "base_model.model."
    aliases = {f"{begin}input_embeddings.weight": names[f"{begin}lm.model.embed_tokens.weight"]}
    if layout == "lora":
        aliases |= {theirs.replace(SAVED, ORIGINAL): name for theirs, name in names.items() if SAVED in theirs}
    return aliases


def read(path: str | Path, module: FARCER) -> tuple[Layout, dict[str, Tensor]]:
    """Read the tensors of an authors' file or PEFT folder under our names, all that the layout has and nothing else.

    Raises:
        ValueError: not one of the layouts, options that the authors' model does not know, a rank or alpha that differs,
            or keys that are missing, left over, of another shape, or differ though they are the same tensor.
    """
    path = Path(path)
    _check_options(module)
    layout: Layout
    if path.is_dir():
        layout, state = "peft", _read_folder(path, module)
    else:
        layout, state = _read_file(path)
    if layout in ("lora", "peft") and module.lora is None:
        raise ValueError(f"{path} is of a LoRA run, but this config has no lora; add --config .../ablations/lora.yaml")
    if layout in ("pruned", "full") and module.lora is not None:
        raise ValueError(f"{path} is of a run without LoRA, but this config has lora; leave it out")
    names = published_names(module, layout)
    aliases = _aliases(module, layout) if layout in ("full", "lora") else {}
    _check_tensors(path, layout, state, names | aliases, module.state_dict())
    first = {name: theirs for theirs, name in names.items()}
    differ = [k for k, name in aliases.items() if ORIGINAL not in k and not torch.equal(state[k], state[first[name]])]
    if differ:
        raise ValueError(
            f"{path}: {differ} should be the same tensor as {[first[aliases[k]] for k in differ]}, but is not"
        )
    return layout, {name: state[theirs] for theirs, name in names.items()}


def _read_file(path: Path) -> tuple[Layout, dict[str, Tensor]]:
    """Read an authors' file and tell its layout."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types; the cause stays chained
        raise ValueError(
            f"{path} could not be read as weights ({type(error).__name__}: {str(error)[:200]}); "
            "is it truncated, or a pickle of more than tensors and plain values?"
        ) from error
    if not isinstance(content, dict) or "model_state_dict" not in content:
        held = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has no model_state_dict, which the authors' files have; it holds {held}")
    state = dict(content["model_state_dict"])
    if any(k.startswith("base_model.model.") for k in state):
        return "lora", state
    return "full" if any(k.startswith(("lm.", "vm.")) for k in state) else "pruned", state


def _check_tensors(
    path: Path, layout: Layout, state: Mapping[str, Tensor], names: Mapping[str, str], model_state: Mapping[str, Tensor]
) -> None:
    """Raise ValueError for keys that are missing, left over or of another shape.

    Args:
        state: tensors of the file.
        names: the authors' name -> ours, of all that the file must hold.
        own: our tensors.
    """
    missing, extra = sorted(set(names) - set(state)), sorted(set(state) - set(names))
    shapes = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(model_state[name].shape)}"
        for k, name in names.items()
        if k in state and state[k].shape != model_state[name].shape
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"{path} (layout {layout}) does not fit this model: {len(missing)} keys missing {missing[:3]}, "
            f"{len(extra)} left over {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )


def _read_folder(path: Path, module: FARCER) -> dict[str, Tensor]:
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / file).is_file():
            raise ValueError(
                f"{path} is no PEFT folder: it has no {file}; it holds {sorted(p.name for p in path.iterdir())}"
            )
    config = json.loads((path / "adapter_config.json").read_text())
    if module.lora is not None:
        stored, expected = (config.get("r"), config.get("lora_alpha")), (module.lora.r, module.lora.alpha)
        if stored != expected:
            raise ValueError(
                f"{path} has LoRA r, alpha {stored}, but this config has {expected}; set --model.lora.r and .alpha"
            )
    return load_file(path / "adapter_model.safetensors")


def _check_options(module: FARCER) -> None:
    """Raise ValueError for options that the authors' model does not know."""
    if module.standardise or module.embedding_scale is not None or module.faces == "none":
        raise ValueError(
            "the authors' model has a projection and neither standardises nor scales; use a config with "
            "standardise: false, embedding_scale: null and faces other than none"
        )


def load(path: str | Path, module: FARCER) -> Layout:
    """Load the authors' weights into a built model (`configure_model`), in the dtype of the files, tensor by tensor.

    What equals the base models' own weights stays theirs, so a checkpoint of this model leaves it out.
    """
    layout, state = read(path, module)
    model_state = module.state_dict()
    module.untouched_tensors -= {
        name
        for name, tensor in state.items()
        if not torch.equal(tensor.to(model_state[name].dtype), model_state[name].cpu())
    }
    module.load_state_dict(model_state | state, assign=True)
    return layout


def write(module: FARCER, path: str | Path, layout: Layout) -> Path:
    """Write a built model as the authors' code would have: a file, or a folder for ``peft``.

    The tensors PEFT keeps from before training (``original_module``) are not known any more; the trained ones stand in
    their place.

    Raises:
        ValueError: a layout that this model does not have.
        FileExistsError: ``path`` exists.
    """
    path = Path(path)
    _check_options(module)
    if (layout in ("lora", "peft")) != (module.lora is not None):
        raise ValueError(
            f"layout {layout} is {'' if module.lora is None else 'not '}of a LoRA run, this model is "
            f"{'not' if module.lora is None else ''}"
        )
    if path.exists():
        raise FileExistsError(f"{path} exists; choose another place or delete it first")
    model_state = module.state_dict()
    state = {
        theirs: model_state[name].detach().cpu().contiguous()
        for theirs, name in published_names(module, layout).items()
    }
    if layout in ("full", "lora"):
        state |= {theirs: model_state[name].detach().cpu() for theirs, name in _aliases(module, layout).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout != "peft":
        torch.save({"model_state_dict": dict(sorted(state.items()))}, path)
        return path
    if module.lora is None:
        raise ValueError("a peft folder is of a LoRA run, but this one has no lora")
    path.mkdir()
    save_file(state, path / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": module.lora.r,
        "lora_alpha": module.lora.alpha,
        "lora_dropout": module.lora.dropout,
        "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "modules_to_save": ["mp.0"],
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return path


def save(module: FARCER, folder: str | Path) -> Path:
    """Write weights.safetensors and checkpoints/best.ckpt with the zoo's contract.

    They hold all tensors but those of the base models.
    """
    folder = Path(folder)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    pristine = module.pristine()
    state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items() if k not in pristine}
    # a run that started from an earlier content of the folder may have linked its files
    with replacing(folder / "weights.safetensors") as temporary:
        save_file(state, temporary, {"zoo": json.dumps(module.contract())})
    content = {
        "state_dict": state,
        "zoo": module.contract(),
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        "global_step": 0,
    }
    with replacing(folder / "checkpoints" / "best.ckpt") as temporary, temporary.open("wb") as file:
        torch.save(content, file)  # Lightning's own reader knows no safetensors
    return folder / "weights.safetensors"


def main(arguments: list[str] | None = None) -> None:
    """Convert an authors' file or PEFT folder into a run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the authors' .pth.tar, or a PEFT folder")
    parser.add_argument("--config", type=Path, required=True, help="config whose model the weights belong to")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    options = parser.parse_args(arguments)
    config = read_run_config(options.config)
    module: FARCER = instantiated("model", FARCER, config["model"], options.config)
    module.start_from = None
    module.configure_model()
    layout = load(options.source, module)
    print(f"read {options.source} (layout {layout}), wrote {save(module, options.out)}")
    shutil.copy(options.config, options.out / "config.yaml")


__all__ = ["Layout", "load", "published_names", "read", "save", "to_theirs", "write"]

if __name__ == "__main__":
    main()
