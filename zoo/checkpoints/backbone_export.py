"""A backbone of a run as an ordinary model folder, or its adapter as an adapter folder."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints.listing import UNKNOWN, display_name, index
from zoo.checkpoints.loading import load

PARTS = ("llm", "vision", "audio")  # names of backbones in a system


def export_backbone(
    path: str, out: Path, part: str | None, dtype: str | None, merge: bool, adapter: str | None
) -> None:
    """Write one backbone of a run.

    Args:
        path: run folder or checkpoint.
        out: folder to write.
        part: which, of `PARTS`; None: the first that the run has.
        dtype: of the written weights; None: the run's.
        merge: fold LoRA into the weights; else an adapter folder is written.
        adapter: which, of a system with several.
    """
    module = load(path)
    parts = [name for name in PARTS if isinstance(getattr(module, name, None), torch.nn.Module)]
    chosen = part or next(iter(parts), None)
    if chosen not in parts:
        raise ValueError(f"this run has no {chosen or 'backbone'}; it has {', '.join(parts) or 'none'}")
    if chosen == "llm":
        _export_llm(module, out, dtype, merge, adapter)
        return
    if merge:
        raise ValueError("--merge: only a language model has LoRA; leave it out")
    backbone = getattr(module, chosen)
    backbone.save(out, dtype or str(backbone.dtype).removeprefix("torch."))
    about = "An image encoder" if chosen == "vision" else "A speech encoder"
    use = TIMM_USE if getattr(backbone, "kind", None) == "timm" else ENCODER_USE
    _card(out, about, module, display_name(backbone.path), None, use)
    print(f"wrote {out}")


def _export_llm(module: Any, out: Path, dtype: str | None, merge: bool, adapter: str | None) -> None:
    """Write the language model of a system, or its adapter."""
    llm = module.llm.eval()
    base, name = display_name(llm.path), _adapter_name(llm, adapter)
    kind = "A language model whose every weight was trained" if name is None else "A LoRA adapter"
    difference = None
    if llm.quantize and (merge or name is None):
        raise ValueError(
            f"the language model of this run was quantised ({llm.quantize}), and rounded weights are not exported; "
            "export the adapter alone, without --merge"
        )
    if merge:
        difference = _merge_adapter(llm, name)
        kind, name = "A language model into which a LoRA adapter was merged", None
    if dtype:
        llm.model.to(getattr(torch, dtype))
    base_path = _from_beside(llm.path, out)
    if name is not None:
        llm.model.peft_config[name].base_model_name_or_path = base_path
    selection = {"selected_adapters": [name]} if name is not None else {}  # not the copy of a reference, nor the others
    llm.model.save_pretrained(out, **selection)
    if name not in (None, "default"):  # peft puts it in a folder of its name
        for file in (out / name).iterdir():
            file.rename(out / file.name)
        (out / name).rmdir()
    llm.tokenizer.save_pretrained(out)
    _card(out, kind, module, base, difference, MODEL_USE if name is None else ADAPTER_USE.replace("BASE", base_path))
    print(f"wrote {out}" + (" (a PEFT adapter; --merge gives a whole model)" if name else ""))


def _merge_adapter(llm: Any, name: str | None) -> float:
    """Fold an adapter into the weights; return the largest difference of a logit, merged against adapter."""
    if name is None:
        raise ValueError("--merge: this run has no LoRA; leave it out")
    probe = torch.arange(1, 9)[None]
    with torch.no_grad():
        with llm.use(name) if llm.adapters else contextlib.nullcontext():
            before = llm.causal_lm(probe).logits
        merged = llm.model.merge_and_unload(adapter_names=[name])
        difference = float((merged(probe).logits - before).abs().max())
    llm.model, llm.lora = merged, None
    print(f"largest logit difference, merged against adapter: {difference:.2e}")
    if difference > 1e-3 * before.abs().max().item() and llm.causal_lm.dtype == torch.float32:
        raise ValueError(f"merging changed the logits by {difference}; nothing was written")
    return difference


def _adapter_name(llm: Any, wanted: str | None) -> str | None:
    """Return the name of the adapter that is meant; None if there is none. ValueError if it cannot be told."""
    names = llm.adapters or (("default",) if llm.lora is not None else ())
    if wanted is not None and wanted not in names:
        raise ValueError(f"--adapter {wanted}: there is none of this name; there are {', '.join(names) or 'none'}")
    if wanted is None and len(names) > 1:
        raise ValueError(f"this system has several adapters; give --adapter, one of {', '.join(names)}")
    return wanted or next(iter(names), None)


def _from_beside(path: str, out: Path) -> str:
    """Return a base model as an exported adapter names it.

    A hub id stays; a folder is named by its path from the folder that holds the export, so it is loaded from the disk
    there, without a hub and without a path of this machine.
    """
    return Path(os.path.relpath(path, out.parent)).as_posix() if Path(path).is_dir() else path


# --------------------------------------------------------------------------------------------------------------- cards
MODEL_USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")"""
ADAPTER_USE = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("BASE")  # exactly the base it was trained on, seen from beside THIS_FOLDER
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")"""
ENCODER_USE = """from transformers import AutoModel

model = AutoModel.from_pretrained("THIS_FOLDER")"""
TIMM_USE = """import timm

model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True)"""


def _card(out: Path, kind: str, module: Any, base: str, difference: float | None, use: str) -> None:
    """Write README.md of an exported part, in place of peft's blank one."""
    licence = index().get(base, {}).get("licence")
    facts = [
        f"Base model: `{base}`; its licence: {licence or UNKNOWN}.",
        f"Licence of these weights: {UNKNOWN}; it is for their owner to state, as base model and training data allow.",
    ]
    if difference is not None:
        facts.append(f"Largest difference of a logit, merged against adapter: {difference:.2e} (8 tokens).")
    about = f"{kind}, from a run of `{type(module).__name__}` of the zoo."
    lines = "".join(f"- {fact}\n" for fact in facts)
    text = f"# {out.name}\n\n{about}\n\n{lines}\n```python\n{use}\n```\n"
    (out / "README.md").write_text(text.replace("THIS_FOLDER", out.name), encoding="utf-8")
