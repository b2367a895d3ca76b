"""``zoo export``: a run as something that can be passed on: its language model, its adapter, or the whole system."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from zoo.checkpoints import probes
from zoo.checkpoints.listing import INDEX, files_entry, index
from zoo.checkpoints.loading import home_of, load, made
from zoo.configs import instantiated, read_run_config
from zoo.data import EmotionData
from zoo.imports import take_imports
from zoo.module import read_checkpoint
from zoo.runs import REPOSITORY, find_checkpoint, newest_config
from zoo.schema import Labels
from zoo.storage import parse_yaml, read_json

UNKNOWN = "?"  # of what only the owner of weights or data can say
PARTS = ("llm", "vision", "audio")  # names of backbones in a system
DTYPES = ("float32", "float16", "bfloat16")
NOT_PUBLISHED = ("start_from", "cache", "downstream")  # of a model: files of the run's machine that nobody else needs
# of a corpus: where its files lie, how it is read, and which sitcom it is; whoever tests says this anew
OF_A_MACHINE = (
    "root",
    "captions",
    "drop_leaks_to",
    "dev_dialogues",
    "folds",
    "mixture",
    "limit",
    "seed",
    "num_workers",
    "predict_splits",
    "corpus_seed",
    "train_dialogues",
    "test_dialogues",
    "descriptions",
    "domain",
)


def export(args: list[str]) -> None:
    """``zoo export --ckpt_path RUN --out FOLDER``: a backbone of the run as an ordinary model (or adapter) folder; with
    --system all of it, as a folder for checkpoints/."""
    parser = argparse.ArgumentParser("zoo export", description=export.__doc__)
    parser.add_argument("--ckpt_path", required=True, help="run folder or .ckpt")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--part", choices=PARTS, help="which backbone; the first of these that the run has")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the written weights; the run's if not given")
    parser.add_argument(
        "--merge", action="store_true", help="fold LoRA into the weights; without it, an adapter folder is written"
    )
    parser.add_argument(
        "--adapter", metavar="NAME", help="which, of a system with several; --ckpt_path is its config.test.yaml then"
    )
    parser.add_argument(
        "--system",
        action="store_true",
        help="the whole system: config, all weights but those of its published backbones, a probe",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --system: a model option of the written config that differs from the run's, e.g. selection=always",
    )
    parser.add_argument("--import", metavar="DIR", help="folder whose modules the config.yaml of the run may name")
    parser.add_argument("--licence", help="with --system: under which you pass the weights on; not stated if left out")
    parser.add_argument(
        "--commercial",
        choices=("true", "false"),
        help="with --system: whether you allow commercial use; unknown if left out",
    )
    options = parser.parse_args(take_imports(args))
    if options.out.exists() and any(options.out.iterdir()):
        raise FileExistsError(f"{options.out} is not empty; choose another folder")
    if options.system:
        if options.part or options.merge or options.adapter:
            raise ValueError("--system writes all of the run; leave out --part, --merge and --adapter")
        terms = {
            "licence": options.licence or UNKNOWN,
            "commercial": {"true": True, "false": False}.get(options.commercial, "unknown"),
        }
        export_system(options.ckpt_path, options.out, options.dtype, dict(_pair(one) for one in options.set), terms)
        return
    if options.licence or options.commercial:
        raise ValueError("--licence and --commercial are written into the entry of a --system; leave them out")
    if options.set:
        raise ValueError("--set changes the config that --system writes; without --system none is written")
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
        about = "An image encoder" if part == "vision" else "A speech encoder"
        use = TIMM_USE if getattr(backbone, "kind", None) == "timm" else ENCODER_USE
        _card(options.out, about, module, _named(backbone.path), None, use)
        print(f"wrote {options.out}")
        return
    _export_llm(module, options.out, options.dtype, options.merge, options.adapter)


# ---------------------------------------------------------------------------------------------------- a language model
def _export_llm(module: Any, out: Path, dtype: str | None, merge: bool, adapter: str | None) -> None:
    llm = module.llm.eval()
    base, name = _named(llm.path), _adapter(llm, adapter)
    kind = "A language model whose every weight was trained" if name is None else "A LoRA adapter"
    difference = None
    if merge:
        if name is None:
            raise ValueError("--merge: this run has no LoRA; leave it out")
        probe = torch.arange(1, 9)[None]
        with torch.no_grad():
            with llm.use(name) if llm.adapters else contextlib.nullcontext():
                before = llm.causal_lm(probe).logits
            merged = llm.model.merge_and_unload(adapter_names=[name])
            difference = (merged(probe).logits - before).abs().max().item()
        llm.model, llm.lora, name = merged, None, None
        kind = "A language model into which a LoRA adapter was merged"
        print(f"largest logit difference, merged against adapter: {difference:.2e}")
        if difference > 1e-3 * before.abs().max().item() and llm.causal_lm.dtype == torch.float32:
            raise ValueError(f"merging changed the logits by {difference}; nothing was written")
    if dtype:
        llm.model.to(getattr(torch, dtype))
    place = _from_beside(llm.path, out)
    if name is not None:
        llm.model.peft_config[name].base_model_name_or_path = place
    own = {"selected_adapters": [name]} if name is not None else {}  # not the copy of a reference, nor the others
    llm.model.save_pretrained(out, **own)
    if name not in (None, "default"):  # peft puts it in a folder of its name
        for file in (out / name).iterdir():
            file.rename(out / file.name)
        (out / name).rmdir()
    llm.tokenizer.save_pretrained(out)
    _card(out, kind, module, base, difference, MODEL_USE if name is None else ADAPTER_USE.replace("BASE", place))
    print(f"wrote {out}" + (" (a PEFT adapter; --merge gives a whole model)" if name else ""))


def _adapter(llm: Any, wanted: str | None) -> str | None:
    """Name of the adapter that is meant; None if there is none. ValueError if it cannot be told."""
    names = llm.adapters or (("default",) if llm.lora is not None else ())
    if wanted is not None and wanted not in names:
        raise ValueError(f"--adapter {wanted}: there is none of this name; there are {', '.join(names) or 'none'}")
    if wanted is None and len(names) > 1:
        raise ValueError(f"this system has several adapters; give --adapter, one of {', '.join(names)}")
    return wanted or next(iter(names), None)


def _from_beside(path: str, out: Path) -> str:
    """A base model as an exported adapter names it: a hub id as it is, a folder by its path from the folder that holds
    the export. So it is loaded from the disk there, without a hub and without a path of this machine."""
    return Path(os.path.relpath(path, out.parent)).as_posix() if Path(path).is_dir() else path


def _named(path: str) -> str:
    return Path(path).name if Path(path).is_dir() else path


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
    """README.md of an exported part, in place of peft's blank one."""
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


# ------------------------------------------------------------------------------------------------------ a whole system
def export_system(
    path: str, out: Path, dtype: str | None, options: Mapping[str, Any], terms: Mapping[str, Any]
) -> None:
    """Writes config.yaml, weights.safetensors, the probe and a README that says what is known.

    Args:
        options: options of the model whose values in the written config differ from the run's.
        terms: ``licence`` and ``commercial`` of the weights, as their owner states them.

    Raises:
        ValueError: an option that names a file of this machine, or weights that a dtype cannot hold.
    """
    file = find_checkpoint(path)
    if file.name == "model.safetensors":
        raise ValueError(f"{file} is a backbone, not a system; it is published as it is")
    home = home_of(file)
    run = read_run_config(newest_config(home), data=True)
    content = read_checkpoint(file)
    with whole_or_none(out) as part:
        config = write_system(part, out.name, run, options, content["state_dict"], content["zoo"], dtype)
        if options.keys() & content["zoo"]["bases"].keys():
            contract = _rebased(part / "config.yaml", content["state_dict"])
            write_system(part, out.name, run, options, content["state_dict"], contract, dtype)
        module = load(str(part), probe=False)
        data = corpus_of(run["data"])
        start = (run["model"].get("init_args") or {}).get("start_from")
        names = [base.path for base in module.bases().values()] + ([start] if start else [])
        rights = {**terms, "trained_on": corpus_licences(data), "bases": base_licences(names)}
        probes.write(module, part, list(data.label_sets.values()), config["model"]["init_args"])
        probes.compare(load(str(part), probe=False), part)  # what another process will find
        card = _system_card(out.name, module, content["state_dict"], rights)
        (part / "README.md").write_text(card, encoding="utf-8")
    size = sum(p.stat().st_size for p in out.iterdir())
    print(
        f"wrote {out}: {len(content['state_dict'])} tensors, {size / 1e6:.1f} MB. To publish it, complete this and "
        f"add it to {INDEX}:"
    )
    print(new_entry(out, {**rights, "reported": _scores(home)}), end="")


def _rebased(config: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The contract of weights that hold every tensor, so that they stand on backbones of a config of theirs alone: of
    those nothing but the shape and the tokenizer is needed.

    Raises:
        ValueError: tensors are missing, which only the run's own backbones have.
    """
    module = made(config)
    module.restored = True
    module.configure_model()
    missing = sorted(set(module.state_dict()) - set(state))
    if missing:
        raise ValueError(
            f"the run stored all but {len(missing)} tensors of the model {missing[:3]}, which only its "
            "own backbones hold; publish those first, or leave --set of a backbone out"
        )
    module.from_hub = set()
    return module.contract()


@contextlib.contextmanager
def whole_or_none(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes it if all goes well, and is gone otherwise."""
    part = out.with_name(f"{out.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if out.exists():
            out.rmdir()  # empty, or this raises
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_system(
    folder: Path,
    name: str,
    run: Mapping[str, Any],
    given: Mapping[str, Any],
    state: Mapping[str, Tensor],
    contract: Mapping[str, Any],
    dtype: str | None,
) -> dict[str, Any]:
    """Writes weights.safetensors and the config of a system; returns the config.

    Args:
        name: under which it will be known.
        run: the config of a run; seed, model and data are kept of it, without places on this machine.
        given: options of the model that replace the run's.
        state: all tensors but those of published backbones; ``contract`` is theirs.
    """
    config = {key: run[key] for key in ("seed_everything", "model", "data") if key in run}
    options = dict(config["model"].get("init_args") or {})
    if unknown := sorted(given.keys() - options.keys()):
        raise ValueError(f"--set {', '.join(unknown)}: the run has no such model option; it has {', '.join(options)}")
    options |= given
    options |= {key: None for key in NOT_PUBLISHED if key in options}
    config["model"] = {
        "class_path": config["model"]["class_path"],
        "init_args": {key: _portable(value, key) for key, value in options.items()},
    }
    if "data" in config:
        config["data"] = without_places(config["data"])
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(f"# zoo test --ckpt_path {name} --data.root DIR\n{text}", encoding="utf-8")
    state, tied = _once(_converted(state, dtype))
    said = {"format": "pt", "zoo": json.dumps(contract)} | ({"tied": json.dumps(tied)} if tied else {})
    save_file(state, folder / "weights.safetensors", said)
    (folder / "weights.safetensors").chmod(0o644)  # safetensors gives it to its owner alone
    return config


def new_entry(folder: Path, known: Mapping[str, Any]) -> str:
    """The entry of a folder in ``index.yaml``, as far as it is known, with the files as they are now."""
    empty = {
        "what": UNKNOWN,
        "paper": UNKNOWN,
        "source": "shipped",
        "licence": UNKNOWN,
        "gated": False,
        "commercial": "unknown",
        "made_by": UNKNOWN,
        "reported": [],
    }
    return yaml.safe_dump({folder.name: empty | dict(known) | {"files": files_entry(folder)}}, sort_keys=False)


def _scores(run: Path) -> list[dict[str, Any]]:
    """What the run's own test measured, as a row of the index."""
    if not (run / "metrics.json").is_file():
        return []
    record = read_json(run / "metrics.json")
    row = {"corpus": record["corpus"], "split": record["split"], "n": record["n"], "protocol": record["eval_protocol"]}
    metrics = [key for key in ("weighted_f1", "accuracy") if key in record]
    return [row | {"metric": key, "value": round(record[key], 4)} for key in metrics]


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected KEY=VALUE")
    return key, parse_yaml(value, f"--set {key}")


def _portable(value: Any, key: str) -> Any:
    """A model option as it may stand in a file that travels: backbones of checkpoints/ by name, hub ids and plain
    values as they are. ValueError for a path of this machine."""
    if isinstance(value, dict):
        return {k: _portable(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_portable(v, key) for v in value]
    if not isinstance(value, str):
        return value
    for place in (Path(value), REPOSITORY / value):
        if place.is_dir() and place.resolve().parent == INDEX.parent.resolve():
            return place.name
    if _is_place(value):
        raise ValueError(
            f"model option {key} is {value!r}, a file or folder of this machine; a published config names published "
            f"weights, hub ids or nothing. Publish that first, or give what belongs there: --set {key}=VALUE"
        )
    return value


def _is_place(value: str) -> bool:
    path = Path(value)
    return (
        path.is_absolute()
        or value.startswith(("~", "./", "../", "runs/", "lightning_logs/"))
        or ("/" in value and (path.exists() or (REPOSITORY / path).exists()))
    )


def without_places(value: Any) -> Any:
    """The data section without what belongs to a machine or a sitcom."""
    if isinstance(value, dict):
        return {k: without_places(v) for k, v in value.items() if k not in OF_A_MACHINE}
    return [without_places(v) for v in value] if isinstance(value, list) else value


def labels_of(data: Mapping[str, Any]) -> list[Labels]:
    """The label sets of the run's data; its files must still be there."""
    return list(corpus_of(data).label_sets.values())


def corpus_of(data: Mapping[str, Any]) -> EmotionData:
    """The corpus of a config's data section."""
    return instantiated("data", EmotionData, data, None)


def corpus_licences(data: EmotionData) -> dict[str, str]:
    """Name of each corpus a run was trained on -> its licence, which decides what may be done with the weights."""
    return {type(corpus).__name__: corpus.licence for corpus in data.corpora()}


def base_licences(paths: Sequence[str]) -> dict[str, str]:
    """Name of the weights that a system stands on -> their licence; `UNKNOWN` of what is not published here."""
    entries = index()
    return {name: entries.get(name, {}).get("licence", UNKNOWN) for name in map(_named, paths)}


def _converted(state: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """Floating tensors in a dtype; tied ones stay tied. ValueError naming those that it cannot hold."""
    to, done = getattr(torch, dtype) if dtype else None, dict[tuple, Tensor]()
    out = {}
    for name, v in state.items():
        key = (v.data_ptr(), v.shape, v.stride()) if v.numel() else (name,)
        if key not in done:
            done[key] = (v.to(to) if to and v.is_floating_point() else v).contiguous().clone()
        out[name] = done[key]
    lost = [k for k, v in out.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if lost:
        said = f"as {dtype}: {lost[:3]}; choose another --dtype" if dtype else f": {lost[:3]}; training had diverged"
        raise ValueError(f"{len(lost)} tensors are not finite {said}")
    return out


def _once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state without tensors that are others under a second name, and second name -> first."""
    first: dict[int, str] = {}
    tied = {name: first[id(v)] for name, v in state.items() if first.setdefault(id(v), name) != name}
    return {name: v for name, v in state.items() if name not in tied}, tied


def _system_card(name: str, module: Any, state: Mapping[str, Tensor], rights: Mapping[str, Any]) -> str:
    bases = ", ".join(f"`{_named(base.path)}`" for base in module.bases().values())
    stored = sum(v.numel() for v in _once(_converted(state, None))[0].values())
    total = sum(p.numel() for p in module.parameters())
    return (
        f"# {name}\n\nA `{type(module).__name__}` of {total:,} parameters; {stored:,} numbers are stored here, the "
        f"rest is that of its frozen backbones. Backbones: {bases}.\n\n"
        f"- Licence of these weights: {rights['licence']}; commercial use: {rights['commercial']}.\n"
        + "".join(f"- Trained on {corpus}: {licence}.\n" for corpus, licence in rights["trained_on"].items())
        + "".join(f"- Backbone `{base}`: {licence}.\n" for base, licence in rights["bases"].items())
        + f"\nWhat is `{UNKNOWN}` is not known, and nothing is allowed by it.\n\n"
        f"```\nzoo test --ckpt_path {name} --data.root DIR\n```\n"
    )
