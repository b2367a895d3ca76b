"""A whole system as a folder for checkpoints/: config, weights, probe and card."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from zoo.arguments import named
from zoo.checkpoints import probes
from zoo.checkpoints.listing import INDEX, UNKNOWN, display_name, files_entry, index
from zoo.checkpoints.loading import build_module, config_folder, load
from zoo.configs import instantiated, read_run_config
from zoo.data import EmotionData
from zoo.imports import import_object
from zoo.runs import find_checkpoint, newest_config
from zoo.schema import Labels
from zoo.shipped import SHIPPED
from zoo.storage import parse_yaml, read_json, whole_folder
from zoo.training.given_features import is_given
from zoo.training.module import EmotionModule
from zoo.weights import read_checkpoint


def export_system(
    path: str, out: Path, dtype: str | None, options: Mapping[str, Any], terms: Mapping[str, Any]
) -> None:
    """Write config.yaml, weights.safetensors, the probe and a README that says what is known.

    Args:
        path: run folder or checkpoint.
        out: folder to write.
        dtype: of the written weights; None: the run's.
        options: options of the model whose values in the written config differ from the run's.
        terms: ``licence`` and ``commercial`` of the weights, as their owner states them.

    Raises:
        ValueError: an option that names a file of this machine, or weights that a dtype cannot hold.
    """
    file = find_checkpoint(path)
    if file.name == "model.safetensors":
        raise ValueError(f"{file} is a backbone, not a system; it is published as it is")
    home = config_folder(file)
    run = read_run_config(newest_config(home), data=True)
    state, contract = _whole(file)
    with whole_folder(out) as part:
        config = write_system(part, out.name, run, options, state, contract, dtype)
        if options.keys() & contract["bases"].keys():
            contract = _rebased(part / "config.yaml", state)
            write_system(part, out.name, run, options, state, contract, dtype)
        module = load(str(part), probe=False)
        data = build_corpus(run["data"])
        start = (run["model"].get("init_args") or {}).get("start_from")
        names = [base.path for base in module.backbones().values()] + ([start] if start else [])
        rights = {**terms, "trained_on": corpus_licences(data), "bases": base_licences(names)}
        probes.write(module, part, list(data.label_sets.values()), config["model"]["init_args"])
        probes.compare(load(str(part), probe=False), part)  # what another process will find
        card = _system_card(out.name, module, state, rights)
        (part / "README.md").write_text(card, encoding="utf-8")
    size = sum(p.stat().st_size for p in out.iterdir())
    print(
        f"wrote {out}: {len(state)} tensors, {size / 1e6:.1f} MB. To publish it, complete this and add it to {INDEX}:"
    )
    print(new_entry(out, {**rights, "reported": _scores(home)}), end="")


def _whole(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the tensors and the contract of a checkpoint as it would be without another run beside it."""
    checkpoint = read_checkpoint(file)
    if checkpoint.contract["start"] is None:
        return checkpoint.state, checkpoint.contract
    module = load(str(file), probe=False)
    module.store_whole()
    pristine = module.pristine()
    stored = checkpoint.state  # which may have another dtype than the module
    return {
        k: stored.get(k, v.detach()) for k, v in module.state_dict().items() if k not in pristine
    }, module.contract()


def _rebased(config: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the contract of weights that hold every tensor, on backbones of a config of their own.

    Of those backbones nothing but the shape and the tokenizer is needed.

    Raises:
        ValueError: tensors are missing, which only the run's own backbones have.
    """
    module = build_module(config)
    module.will_load_checkpoint = True
    module.configure_model()
    missing = sorted(set(module.state_dict()) - set(state))
    if missing:
        raise ValueError(
            f"the run stored all but {len(missing)} tensors of the model {missing[:3]}, which only its "
            "own backbones hold; publish those first, or leave --set of a backbone out"
        )
    module.untouched_tensors = set()
    return module.contract()


def write_system(
    folder: Path,
    name: str,
    run: Mapping[str, Any],
    changes: Mapping[str, Any],
    state: Mapping[str, Tensor],
    contract: Mapping[str, Any],
    dtype: str | None,
) -> dict[str, Any]:
    """Write weights.safetensors and the config of a system; return the config.

    Args:
        folder: where they are written.
        name: under which it will be known.
        run: the config of a run; seed, model and data are kept of it, without places on this machine.
        changes: options of the model that replace the run's.
        state: all tensors but those of published backbones; ``contract`` is theirs.
        contract: what a checkpoint says about its backbones.
        dtype: of the written weights; None: as they are.
    """
    config = {key: run[key] for key in ("seed_everything", "model", "data") if key in run}
    options = dict(config["model"].get("init_args") or {})
    if unknown := sorted(changes.keys() - options.keys()):
        raise ValueError(f"--set {', '.join(unknown)}: the run has no such model option; it has {', '.join(options)}")
    options |= changes
    unpublished = unpublished_options(config["model"]["class_path"], EmotionModule)
    options |= {key: None for key in unpublished if key in options}
    config["model"] = {
        "class_path": config["model"]["class_path"],
        "init_args": {key: _portable(value, key) for key, value in options.items()},
    }
    if "data" in config:
        config["data"] = portable_data(config["data"])
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(f"# zoo test --ckpt_path {name} --data.root DIR\n{text}", encoding="utf-8")
    state, tied = _without_tied(_convert(state, dtype))
    metadata = {"format": "pt", "zoo": json.dumps(contract)} | ({"tied": json.dumps(tied)} if tied else {})
    save_file(state, folder / "weights.safetensors", metadata)
    (folder / "weights.safetensors").chmod(0o644)  # safetensors gives it to its owner alone
    return config


def new_entry(folder: Path, facts: Mapping[str, Any]) -> str:
    """Return the entry of a folder in ``index.yaml``, as far as it is known, with the files as they are now."""
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
    return yaml.safe_dump({folder.name: empty | dict(facts) | {"files": files_entry(folder)}}, sort_keys=False)


def _scores(run: Path) -> list[dict[str, Any]]:
    """Return what the run's own test measured, as a row of the index."""
    record = read_json(run / "metrics.json") if (run / "metrics.json").is_file() else {}
    if "split" not in record:  # never tested; a training alone lists what it could not read
        return []
    corpora = record.get("corpora", {}) if "weighted_f1" not in record else {}  # of several protocols: none over all
    return [
        {"corpus": corpus, "split": record["split"], "n": scores["n"], "protocol": scores["eval_protocol"]}
        | {"metric": key, "value": round(scores[key], 4)}
        for corpus, scores in (corpora or {record["corpus"]: record}).items()
        for key in ("weighted_f1", "accuracy")
        if key in scores
    ]


def parse_pair(text: str) -> tuple[str, Any]:
    """Parse ``KEY=VALUE`` of --set."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected KEY=VALUE")
    return key, parse_yaml(value, f"--set {key}")


def _portable(value: Any, key: str) -> Any:
    """Return a model option as it may stand in a file that travels.

    Backbones of checkpoints/ are named, hub ids and plain values stay. ValueError for a path of this machine.
    """
    if isinstance(value, dict):
        return {k: _portable(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_portable(v, key) for v in value]
    if not isinstance(value, str):
        return value
    for place in (Path(value), SHIPPED / value):
        if place.is_dir() and place.resolve().parent == INDEX.parent.resolve():
            return place.name
    if _is_place(value):
        raise ValueError(
            f"model option {key} is {value!r}, a file or folder of this machine; a published config names published "
            f"weights, hub ids or nothing. Publish that first, or give what belongs there: --set {key}=VALUE"
        )
    return value


def _is_place(value: str) -> bool:
    """Whether a value is a file or folder of this machine."""
    path = Path(value)
    return (
        path.is_absolute()
        or is_given(value)
        or value.startswith(("~", "./", "../", "runs/", "lightning_logs/"))
        or ("/" in value and (path.exists() or (SHIPPED / path).exists()))
    )


def portable_data(section: Any) -> Any:
    """Return a data section without what its classes do not publish: places on a machine, and what a test says anew."""
    if isinstance(section, list):
        return [portable_data(item) for item in section]
    if not isinstance(section, Mapping):
        return section
    left_out = unpublished_options(section["class_path"], EmotionData) if "class_path" in section else frozenset()
    return {
        key: {k: portable_data(v) for k, v in value.items() if k not in left_out}
        if key == "init_args" and isinstance(value, Mapping)
        else portable_data(value)
        for key, value in section.items()
    }


def unpublished_options(class_path: str, base: type) -> frozenset[str]:
    """Return the options that a class leaves out of a published config, those of its bases among them.

    Args:
        class_path: an import path, or the short name of a subclass of ``base``.
        base: `EmotionModule` or `EmotionData`.
    """
    kind = import_object(class_path) if "." in class_path else named(base)[class_path]
    return frozenset(name for one in inspect.getmro(kind) for name in vars(one).get("unpublished_options", ()))


def data_labels(data: Mapping[str, Any]) -> list[Labels]:
    """Return the label sets of the run's data; its files must still be there."""
    return list(build_corpus(data).label_sets.values())


def build_corpus(data: Mapping[str, Any]) -> EmotionData:
    """Build the corpus of a config's data section."""
    corpus: EmotionData = instantiated("data", EmotionData, data, None)
    return corpus


def corpus_licences(data: EmotionData) -> dict[str, str]:
    """Return the licence of each corpus a run was trained on, which decides what may be done with the weights."""
    return {type(corpus).__name__: corpus.licence for corpus in data.corpora()}


def base_licences(paths: Sequence[str]) -> dict[str, str]:
    """Return the licence of each of the weights that a system stands on; `UNKNOWN` of what is not published here."""
    entries = index()
    return {name: entries.get(name, {}).get("licence", UNKNOWN) for name in map(display_name, paths)}


def _convert(state: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """Convert floating tensors to a dtype; tied ones stay tied. ValueError naming those that it cannot hold.

    A tensor that has the dtype already is not copied.
    """
    target, converted = getattr(torch, dtype) if dtype else None, dict[tuple[Any, ...], Tensor]()
    out = {}
    for name, v in state.items():
        key = (v.data_ptr(), v.shape, v.stride()) if v.numel() else (name,)
        if key not in converted:
            converted[key] = (v.to(target) if target and v.is_floating_point() else v).contiguous()
        out[name] = converted[key]
    lost = [k for k, v in out.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if lost:
        reason = f"as {dtype}: {lost[:3]}; choose another --dtype" if dtype else f": {lost[:3]}; training had diverged"
        raise ValueError(f"{len(lost)} tensors are not finite {reason}")
    return out


def _without_tied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state without tensors that are others under a second name, and second name -> first."""
    first: dict[int, str] = {}
    tied = {name: first[id(v)] for name, v in state.items() if first.setdefault(id(v), name) != name}
    return {name: v for name, v in state.items() if name not in tied}, tied


def _system_card(name: str, module: Any, state: Mapping[str, Tensor], rights: Mapping[str, Any]) -> str:
    bases = ", ".join(f"`{display_name(base.path)}`" for base in module.backbones().values())
    stored = sum(v.numel() for v in _without_tied(_convert(state, None))[0].values())
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
