"""Published weights: list, verify, export. See `checkpoints/index.yaml`."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import torch
import yaml

from zoo.runs import REPOSITORY, find_checkpoint, run_of

PARTS = ("llm", "vision", "audio")  # names of backbones in a system
INDEX = REPOSITORY / "checkpoints" / "index.yaml"


def index() -> dict[str, dict[str, Any]]:
    """name -> what is published: ``files`` (name -> sha256), ``licence``, ``config``, ``reported``."""
    return yaml.safe_load(INDEX.read_text()) or {}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify(name: str) -> list[str]:
    """What is wrong with a published checkpoint, one line each; empty if every file has the recorded sha256."""
    folder = INDEX.parent / name
    problems = []
    for file, wanted in index()[name]["files"].items():
        if not (folder / file).is_file():
            problems.append(f"{name}/{file} is missing")
        elif sha256(folder / file) != wanted:
            problems.append(
                f"{name}/{file} is not the published file: sha256 {sha256(folder / file)[:12]}..., "
                f"expected {wanted[:12]}..."
            )
    return problems


def published(args: list[str]) -> None:
    """``zoo checkpoints [--verify | --hash NAME]``"""
    parser = argparse.ArgumentParser("zoo checkpoints", description="List the published checkpoints.")
    parser.add_argument(
        "--verify", action="store_true", help="compare every file with its recorded sha256; exit code 1 if one differs"
    )
    parser.add_argument("--hash", metavar="NAME", help="print the `files` entry of a folder that is to be published")
    options = parser.parse_args(args)
    if options.hash:
        files = sorted(p for p in (INDEX.parent / options.hash).iterdir() if p.is_file())
        print(yaml.safe_dump({"files": {p.name: sha256(p) for p in files}}), end="")
        return
    problems = []
    for name, entry in index().items():
        print(f"{name:<16} {entry['what']}; {entry['licence']}")
        for score in entry["reported"]:
            print(f"{'':<16} {score['metric']} {score['value']:.4f} on {score['split']}, n={score['n']}")
        if options.verify:
            problems += verify(name)
    if problems:
        raise ValueError("; ".join(problems))
    if options.verify:
        print("all files are as published")


def export(args: list[str]) -> None:
    """``zoo export --ckpt_path RUN --out FOLDER``: a backbone of the run as an ordinary model (or adapter) folder."""
    parser = argparse.ArgumentParser("zoo export", description=export.__doc__)
    parser.add_argument("--ckpt_path", required=True, help="run folder or .ckpt")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--part", choices=PARTS, help="which backbone; the first of these that the run has")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="dtype of the written weights; the run's if not given",
    )
    parser.add_argument(
        "--merge", action="store_true", help="fold LoRA into the weights; without it, an adapter folder is written"
    )
    parser.add_argument(
        "--adapter", metavar="NAME", help="which, of a system with several; --ckpt_path is its config.test.yaml then"
    )
    options = parser.parse_args(args)
    if options.out.exists() and any(options.out.iterdir()):
        raise FileExistsError(f"{options.out} is not empty; choose another folder")
    module = load(options.ckpt_path)
    has = [name for name in PARTS if isinstance(getattr(module, name, None), torch.nn.Module)]
    part = options.part or next(iter(has), None)
    if part not in has:
        raise ValueError(f"this run has no {part or 'backbone'}; it has {', '.join(has) or 'none'}")
    if part != "llm":
        if options.merge:
            raise ValueError("--merge: only a language model has LoRA; leave it out")
        backbone = getattr(module, part)
        backbone.save(options.out, options.dtype or str(backbone.dtype).removeprefix("torch."))
        print(f"wrote {options.out}")
        return
    llm = module.llm.eval()
    name = _adapter(llm, options.adapter)
    if options.merge:
        if name is None:
            raise ValueError("--merge: this run has no LoRA; leave it out")
        probe = torch.arange(1, 9)[None]
        with torch.no_grad():
            with llm.use(name) if llm.adapters else contextlib.nullcontext():
                before = llm.causal_lm(probe).logits
            merged = llm.model.merge_and_unload(adapter_names=[name])
            difference = (merged(probe).logits - before).abs().max().item()
        llm.model, llm.lora, name = merged, None, None
        print(f"largest logit difference, merged against adapter: {difference:.2e}")
        if difference > 1e-3 * before.abs().max().item() and llm.causal_lm.dtype == torch.float32:
            raise ValueError(f"merging changed the logits by {difference}; nothing was written")
    if options.dtype:
        llm.model.to(getattr(torch, options.dtype))
    if name is not None:  # a file that travels names its base by name, not by a place on this machine
        base = Path(llm.path).name if Path(llm.path).is_dir() else llm.path
        llm.model.peft_config[name].base_model_name_or_path = base
    own = {"selected_adapters": [name]} if name is not None else {}  # not the copy of a reference, nor the others
    llm.model.save_pretrained(options.out, **own)
    if name not in (None, "default"):  # peft puts it in a folder of its name
        for file in (options.out / name).iterdir():
            file.rename(options.out / file.name)
        (options.out / name).rmdir()
    (options.out / "README.md").unlink(missing_ok=True)  # peft's blank template
    llm.tokenizer.save_pretrained(options.out)
    print(f"wrote {options.out}" + (" (a PEFT adapter; --merge gives a whole model)" if name else ""))


def _adapter(llm: Any, wanted: str | None) -> str | None:
    """Name of the adapter that is meant; None if there is none. ValueError if it cannot be told."""
    names = llm.adapters or (("default",) if llm.lora is not None else ())
    if wanted is not None and wanted not in names:
        raise ValueError(f"--adapter {wanted}: there is none of this name; there are {', '.join(names) or 'none'}")
    if wanted is None and len(names) > 1:
        raise ValueError(f"this system has several adapters; give --adapter, one of {', '.join(names)}")
    return wanted or next(iter(names), None)


def load(path: str) -> Any:
    """The module of a run with its weights, from the run folder alone: ``load("lightning_logs/version_0").llm``; or, of
    a system whose weights all come from other runs, from the YAML that names them.

    Raises:
        FileNotFoundError: no checkpoint, or no config.yaml beside it.
        ValueError: the checkpoint does not fit the config (see `EmotionModule.on_load_checkpoint`).
    """
    from jsonargparse import ArgumentParser

    from zoo.module import EmotionModule, read_checkpoint

    parser = ArgumentParser()
    parser.add_subclass_arguments(EmotionModule, "model", required=True)

    def made(config: Path) -> Any:
        return parser.instantiate_classes(
            parser.parse_object({"model": yaml.safe_load(config.read_text())["model"]})).model  # fmt: skip

    if Path(path).suffix in (".yaml", ".yml"):
        module = made(Path(path))
        if not module.weights_elsewhere:
            raise ValueError(f"{path} has no weights of its own; give the run folder or its checkpoint")
        module.configure_model()
        return module
    file = find_checkpoint(path)
    run = run_of(file)
    if run is None:
        raise FileNotFoundError(f"{file} does not lie in a run folder, so its config.yaml is not known")
    module = made(run / "config.yaml")
    module.restored = True
    module.configure_model()
    content = read_checkpoint(file)
    try:
        module.on_load_checkpoint(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    module.load_state_dict(content["state_dict"])
    return module
