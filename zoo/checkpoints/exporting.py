"""``zoo export``: a run as something that can be passed on: its language model, its adapter, or the whole system."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.checkpoints.backbone_export import PARTS, export_backbone
from zoo.checkpoints.listing import UNKNOWN
from zoo.checkpoints.system_export import export_system, parse_pair
from zoo.imports import take_imports
from zoo.runs import given_checkpoint

DTYPES = ("float32", "float16", "bfloat16")


def export(args: list[str]) -> None:
    """Run ``zoo export --ckpt_path RUN --out FOLDER``.

    A backbone of the run becomes an ordinary model (or adapter) folder; with --system all of it becomes a folder for
    checkpoints/.
    """
    options = _parser().parse_args(take_imports(args))
    if options.out.exists() and any(options.out.iterdir()):
        raise FileExistsError(f"{options.out} is not empty; choose another folder")
    checkpoint = given_checkpoint(options.ckpt_path)
    if options.system:
        if options.part or options.merge or options.adapter:
            raise ValueError("--system writes all of the run; leave out --part, --merge and --adapter")
        terms = {
            "licence": options.licence or UNKNOWN,
            "commercial": {"true": True, "false": False}.get(options.commercial, "unknown"),
        }
        export_system(checkpoint, options.out, options.dtype, dict(parse_pair(one) for one in options.set), terms)
        return
    if options.licence or options.commercial:
        raise ValueError("--licence and --commercial are written into the entry of a --system; leave them out")
    if options.set:
        raise ValueError("--set changes the config that --system writes; without --system none is written")
    export_backbone(checkpoint, options.out, options.part, options.dtype, options.merge, options.adapter)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of ``zoo export``."""
    parser = argparse.ArgumentParser("zoo export", description=export.__doc__)
    parser.add_argument("--ckpt_path", required=True, help="run folder, .ckpt, or best: of the newest run")
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
    return parser
