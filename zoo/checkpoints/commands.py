"""``zoo checkpoints list | show | pull | convert | verify | publish | push``"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.backbones.hub import FETCHED
from zoo.checkpoints import probes
from zoo.checkpoints.fetching import check_output, pull
from zoo.checkpoints.listing import bases_to_pull, differences, entry_of, folder_of, index, terms, verify
from zoo.checkpoints.loading import build_module, load
from zoo.checkpoints.pushing import push
from zoo.checkpoints.system_export import data_labels, new_entry, portable_data, write_system
from zoo.configs import read_run_config
from zoo.imports import take_imports, trust_words
from zoo.storage import whole_folder

VERBS = ("list", "show", "pull", "convert", "verify", "publish", "push")


def published(args: list[str]) -> None:
    """Run ``zoo checkpoints list | show NAME | pull NAME | convert NAME | verify [NAME ...] | publish NAME |
    push FOLDER``.

    ``--verify`` is ``verify``, and without a verb it lists.
    """
    parser = argparse.ArgumentParser(
        "zoo checkpoints", description="Published weights: checkpoints/index.yaml says what there is."
    )
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("list", help="names, licences and scores (also without a verb)")
    show = verbs.add_parser("show", help="everything that is known about one")
    show.add_argument("name")
    fetch = verbs.add_parser("pull", help="fetch the files of one that is not in the repository")
    fetch.add_argument("name")
    fetch.add_argument("--to", type=Path, help=f"folder for its files; {FETCHED}/NAME if not given")
    fetch.add_argument("--revision", help="commit of the hub's repository, where none is recorded")
    fetch.add_argument("--accept_licence", action="store_true", help="you have read the terms and accept them")
    turn = verbs.add_parser("convert", help="an authors' file as weights of the zoo, strictly, name by name")
    turn.add_argument("name", help="an entry, or a paper's folder under zoo/models")
    turn.add_argument("--from", dest="source", type=Path, required=True, help="the authors' file or folder")
    turn.add_argument("--config", type=Path, help="config whose model the weights belong to; the entry's if not given")
    turn.add_argument("--table", type=Path, help="YAML of names, where the authors' cannot be told apart")
    turn.add_argument("--out", type=Path, required=True, help="folder to write")
    check = verbs.add_parser("verify", help="compare files with their sha256 and answers with the stored ones")
    check.add_argument("names", nargs="*", help="all that came with the repository, if none is named")
    check.add_argument("--at", type=Path, help="folder that holds the files of the one that is named")
    make = verbs.add_parser("publish", help="write the probe of a folder of checkpoints/ and print its index entry")
    make.add_argument("name")
    send = verbs.add_parser("push", help="upload an exported folder to the model hub")
    send.add_argument("folder", type=Path, help="what zoo export wrote")
    send.add_argument("--to", required=True, metavar="OWNER/NAME", help="its place on the hub, private unless --public")
    send.add_argument("--licence", required=True, help="of the weights, as the hub spells it, e.g. apache-2.0")
    send.add_argument("--public", action="store_true", help="anyone may read it")
    send.add_argument("--dry_run", action="store_true", help="print what would go, and contact nobody")
    parser.add_argument("--import", metavar="DIR", help="folder whose modules the config.yaml of a checkpoint may name")
    args = take_imports(args)
    options = parser.parse_args(["verify" if arg == "--verify" else arg for arg in args])
    if options.verb in (None, "list"):
        for name, entry in index().items():
            _line(name, entry)
    elif options.verb == "show":
        _show(options.name)
    elif options.verb == "pull":
        pull(options.name, options.to, options.revision, options.accept_licence)
    elif options.verb == "convert":
        convert(options.name, options.source, options.out, options.config, options.table)
    elif options.verb == "verify":
        _verify(options.names, options.at)
    elif options.verb == "push":
        push(options.folder, options.to, options.licence, options.public, options.dry_run)
    else:
        _publish(options.name)


def _line(name: str, entry: dict[str, Any]) -> None:
    place = {"shipped": "", "hand": "; fetch it by hand"}.get(entry["source"], f"; zoo checkpoints pull {name}")
    print(f"{name:<18} {entry['what']}; {entry['licence']}{place}")
    for score in entry["reported"]:
        print(f"{'':<18} {_score(score)}")


def _score(score: dict[str, Any]) -> str:
    line = f"{score['metric']} {score['value']:.4f} on {score['corpus']}/{score['split']}"
    line += f", n={score['n']}" if score.get("n") else ", n not stated"
    return line + (f" ({score['protocol']})" if "protocol" in score else "")


def _show(name: str) -> None:
    entry = entry_of(name)
    print(terms(name, entry))
    if entry["source"] == "package":
        place: object = f"{entry['inside']} in the wheel of {entry['package']} {entry['version']}"
    else:
        place = folder_of(name) if entry["source"] == "shipped" else entry[entry["source"]]
    print(f"  paper: {entry['paper']}\n  source: {entry['source']}, {place}")
    for key in ("revision", "made_by", "use", "converter", "config"):
        if key in entry:
            absent = "none needed" if key == "converter" else "not known"
            print(f"  {key}: {absent if entry[key] is None else entry[key]}")
    size = entry.get("bytes")
    if entry["source"] == "shipped":
        held = [folder_of(name) / file for file in entry["files"]]
        size = sum(file.stat().st_size for file in held if file.is_file())
    print(f"  size: {f'{size / 1e6:.1f} MB' if size else 'not known'}")
    for score in entry["reported"]:
        print(f"  reported: {_score(score)}")
    for file, digest in entry["files"].items():
        print(f"  {digest or 'sha256 not known':<64}  {file}")


def _verify(names: list[str], folder: Path | None) -> None:
    """Raise ValueError naming everything that is not as published."""
    if folder is not None:
        if len(names) != 1:
            raise ValueError(f"--at holds the files of one entry; name it, got {names or 'none'}")
        entry = entry_of(names[0])
        problems = differences(names[0], folder, entry["files"])
        if problems:
            raise ValueError("; ".join(problems))
        check_output(names[0], entry, folder)
        unknown = [file for file, digest in entry["files"].items() if digest is None]
        print(f"{folder} holds {names[0]}" + (f"; no sha256 is recorded for {', '.join(unknown)}" if unknown else ""))
        return
    problems = []
    for name in names or [n for n, entry in index().items() if entry["source"] == "shipped"]:
        if entry_of(name)["source"] != "shipped":
            raise ValueError(f"{name} did not come with the repository; say where its files are: --at FOLDER")
        wrong, verdict = verify(name), "files and answers as published"
        if not wrong:  # loading damaged files would only repeat it in other words
            if not (folder_of(name) / probes.PROBE).is_file():
                wrong = [f"{name} has no {probes.PROBE}; write it with zoo checkpoints publish {name}"]
            elif bases := bases_to_pull(name):
                verdict = f"files as published; its answers need zoo checkpoints pull {' '.join(bases)}"
            else:
                try:
                    load(str(folder_of(name)))
                except ValueError as error:
                    wrong = [str(error)]
        print(f"{name}: {'; '.join(wrong) or verdict}")
        problems += wrong
    if problems:
        raise ValueError("; ".join(problems))
    print("all files are as published")


def _publish(name: str) -> None:
    """Write the probe of a folder, if it has none, and print its entry with the files as they are now."""
    folder = folder_of(name)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} has no config.yaml; zoo export --system --out {folder} writes a system")
    if not (folder / probes.PROBE).is_file():
        config = read_run_config(folder / "config.yaml", data=True)
        labels = data_labels(portable_data(config["data"]))
        probes.write(load(str(folder), probe=False), folder, labels, config["model"]["init_args"])
    print(new_entry(folder, index().get(name, {})), end="")


def convert(name: str, source: Path, out: Path, config: Path | None, table: Path | None) -> None:
    """Read an authors' file into the model of a config and write it as a system folder.

    It is for ``--ckpt_path OUT`` and ``--model.start_from OUT``.

    Args:
        name: an entry with a ``converter``, or a paper's folder: then its ``weights.load``. Such a function takes the
            authors' file or folder and the built model, fills it, and refuses what does not fit; with ``table``, too.
            What is written has the dtypes of the file. Beside it a function ``dtypes`` may stand, which takes the
            authors' file or folder and returns the model options with which the built model has these dtypes, so that
            it is no larger than the file.

    Raises:
        ValueError: nothing converts these weights, no config, or what the converter refuses.
        FileExistsError: ``out`` holds something.
    """
    entry = index().get(name, {})
    if "converter" in entry and entry["converter"] is None:
        raise ValueError(f"{name} needs no conversion; use it as {entry['use'].format(folder='FOLDER')}")
    place = entry.get("converter") or f"zoo.models.{name}.weights.load"
    reader = _function(place)
    if reader is None:
        raise ValueError(f"nothing converts {name!r}: neither an entry of the index nor a paper with weights.py")
    config = config or (Path(entry["config"]) if "config" in entry else None)
    if config is None:
        raise ValueError("give --config, the config whose model the weights belong to")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder")
    trust_words((), [config])  # which the user names himself
    dtypes = _function(f"{place.rpartition('.')[0]}.dtypes")
    module = build_module(config, dtypes(source) if dtypes is not None else None)
    module.will_load_checkpoint = True  # an earlier stage's weights would be overwritten
    module.configure_model()
    layout = reader(source, module, **({"table": table} if table is not None else {}))
    pristine = module.pristine()
    state = {k: v.detach().cpu() for k, v in module.state_dict().items() if k not in pristine}
    with whole_folder(out) as part:
        run_config = read_run_config(config)
        write_system(part, out.name, run_config, {}, state, module.contract(), None)
    print(f"read {source}{f' (layout {layout})' if isinstance(layout, str) else ''}, wrote {out}")


def _function(place: str) -> Callable[..., Any] | None:
    """Return the function of an import path; None if there is no such module."""
    module, _, name = place.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent does not exist
        return None
    return None if spec is None else getattr(importlib.import_module(module), name, None)
