"""A trained system of the zoo, found by the name or place of its checkpoint, that answers single samples."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from zoo.checkpoints import load
from zoo.configs import instantiated, read_run_config
from zoo.data import EmotionData
from zoo.label.samples import AnswerCallback, AnswerHandler, RequestedSamples
from zoo.runs import find_checkpoint, newest_config, run_of
from zoo.schema import Labels, Sample
from zoo.training.module import EmotionModule


class System:
    """A trained system, by the name or place of its checkpoint, and what its config.yaml says.

    Args:
        path: as --ckpt_path takes it.
        changes: options that replace those of the config, e.g. ``{"data.root": "DIR", "model.llm": "DIR"}``.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no config.yaml with it.
    """

    def __init__(self, path: str, changes: Mapping[str, Any] | None = None) -> None:
        self.path = path
        file = Path(path)
        if file.suffix not in (".yaml", ".yml"):
            checkpoint = find_checkpoint(path)
            file = newest_config(run_of(checkpoint) or checkpoint.parent)
        if not file.is_file():
            raise FileNotFoundError(
                f"{path}: no config.yaml lies with it, so its labels are not known; give a run "
                "folder or a published name"
            )
        config = read_run_config(file, data=True)
        self.name = config["model"]["class_path"].rpartition(".")[2]
        self.model: dict[str, Any] = {}
        if "data.encoding" in (changes or {}):
            raise ValueError(
                "--data.encoding is of the corpus that the system was trained with, of which zoo label "
                "reads no text; give --encoding for your tables"
            )
        for key, value in (changes or {}).items():
            section, _, option = key.partition(".")
            if section == "model":
                self.model[option] = value
            else:
                _set_option(config["data"], option.split("."), value)
        self.absent: list[str] = []
        data = _without_absent(config["data"], self.absent)
        self.corpus: EmotionData = instantiated("data", EmotionData, data, file, changes or ())
        self.seed = self.corpus.seed if self.corpus.seed is not None else int(config.get("seed_everything") or 0)
        self.trained = config.get("trainer") or {}

    @property
    def table_columns(self) -> Mapping[str, str]:
        """What the columns of a table are called, where the system was trained on one with names of its own."""
        corpora = self.corpus.corpora()
        return corpora[0].table_columns if len(corpora) == 1 else {}

    def labels(self, corpus: str | None = None) -> Labels:
        """Return the label set of the system, or of one of its corpora.

        Raises:
            ValueError: there is none, or several to choose from.
        """
        sets = self.corpus.label_sets
        if corpus is None and len(sets) > 1 or corpus is not None and corpus not in sets:
            raise ValueError(f"{self.path} knows the labels of {', '.join(sets)}; choose with --labels")
        labels = sets[corpus or next(iter(sets))]
        if not labels.names:
            raise ValueError(f"{self.path} was trained on answers without labels, so it names no emotion")
        return labels

    def describe_training(self) -> str:
        """Say what the system was trained on, so that no answer about other material is taken for a measured one."""
        corpora = self.corpus.corpora()
        materials = "; ".join(f"{type(corpus).__name__} ({corpus.material})" for corpus in corpora)
        names = "; ".join(", ".join(labels.names) for labels in self.corpus.label_sets.values() if labels.names)
        return (
            f"{self.path} was trained on {materials}; its labels are {names or 'none'}. How good its answers are about "
            "other material is not known."
        )

    @functools.cached_property
    def module(self) -> EmotionModule:
        """The system itself, loaded when it is first asked; what it was trained on is said on stderr then."""
        print(self.describe_training(), file=sys.stderr)
        module: EmotionModule = load(self.path, model=self.model)
        return module

    def answer(self, samples: Sequence[Sample], folder: Path, handle: AnswerHandler) -> dict[str, str]:
        """Answer samples, batch by batch.

        Args:
            samples: what is asked about.
            folder: the system writes its rows there, as in ``zoo predict``.
            handle: called with every answer.

        Returns:
            id -> reason, of the samples without an answer.
        """
        data = RequestedSamples(samples, self.corpus, self.absent, self.seed)
        trainer = Trainer(
            accelerator="cpu" if self.trained.get("accelerator") == "cpu" else "auto",
            devices=1,
            precision=self.trained.get("precision"),
            logger=False,
            default_root_dir=folder,
            callbacks=[AnswerCallback(handle)],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.predict(self.module, datamodule=data, return_predictions=False)
        return data.failed


def silence_lightning() -> None:
    """Silence what Lightning says about a run: stdout is for the answers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*does not have many workers.*")
    warnings.filterwarnings("ignore", r".*LeafSpec.*")


def _set_option(section: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set an option of a class of a config, by its dotted name."""
    for key in keys[:-1]:
        section = (section.setdefault("init_args", {}) if "class_path" in section else section).setdefault(key, {})
    (section.setdefault("init_args", {}) if "class_path" in section else section)[keys[-1]] = value


def _without_absent(node: Any, absent: list[str]) -> Any:
    """Return a data section without the folders of corpora that are not here; these are appended to ``absent``."""
    if isinstance(node, list):
        return [_without_absent(item, absent) for item in node]
    if not isinstance(node, dict):
        return node
    missing = isinstance(node.get("root"), str) and not Path(node["root"]).is_dir()
    absent += [node["root"]] if missing else []
    return {key: None if missing and key == "root" else _without_absent(value, absent) for key, value in node.items()}
