"""A checkpoint of the zoo as a model of lmms-eval, which asks it the questions of any of its tasks.

lmms-eval (the package of that name) finds it by the entry point ``lmms_eval.models`` of this package, where both are
installed::

    python -m lmms_eval --model zoo --model_args checkpoint=RUN --tasks pope --batch_size 8 --output_path OUT

This is the only module that imports lmms-eval, and nothing in the zoo imports this one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from zoo.checkpoints import load
from zoo.checkpoints.loading import config_folder
from zoo.configs import read_run_config
from zoo.data import EmotionData, Reading
from zoo.runs import find_checkpoint, newest_config
from zoo.schema import Labels, Sample, Split, Turn


def manifest() -> ModelManifest:
    """Return what lmms-eval's registry holds about the zoo: the name and place of `ZooCheckpoint`."""
    return ModelManifest(model_id="zoo", simple_class_path=f"{__name__}.ZooCheckpoint")


class GivenQuestions(EmotionData):
    """Questions that somebody else asks, as the data of a prediction."""

    protocol = "lmms_eval"
    labels = Labels("lmms_eval", ())

    def __init__(self, samples: Sequence[Sample], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = samples

    def read(self, split: Split) -> Reading:
        return Reading(self.given)


class ZooCheckpoint(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A trained system that answers questions in writing (Emotion-Qwen, ImageText), greedily.

    Args:
        checkpoint: as ``zoo test --ckpt_path`` takes it: a run folder, a checkpoint or a published name.
        batch_size: questions that are computed together.
        device: ``cpu``, or None for what there is.
        max_batch_size: not used; lmms-eval gives it to every model.
        options: of the model, in place of those of its config: ``--model_args checkpoint=RUN,model.frames=8``.

    Raises:
        ValueError: the system asks for emotions alone, or an option is none of the model's.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        unknown = [name for name in options if not name.startswith("model.")]
        if unknown:
            raise ValueError(
                f"--model_args {', '.join(unknown)}: expected checkpoint, and options of the model as model.NAME, "
                "e.g. checkpoint=RUN,model.frames=8"
            )
        self.checkpoint, self.batch_size = str(checkpoint), int(batch_size)
        self.options = {name.removeprefix("model."): value for name, value in options.items()}
        trained = read_run_config(newest_config(config_folder(find_checkpoint(self.checkpoint)))).get("trainer") or {}
        self.precision = trained.get("precision")
        self.accelerator = "cpu" if "cpu" in (device, trained.get("accelerator")) else "auto"
        self._system: Any = None  # an EmotionModule

    def system(self, max_new_tokens: int) -> Any:
        """Return the system, loaded so that its answers may be so long; a later, longer answer loads it again."""
        if self._system is None or self._system.max_new_tokens < max_new_tokens:
            self._system = load(self.checkpoint, model=self.options | {"max_new_tokens": max_new_tokens})
            if not self._system.answers_questions:
                raise ValueError(
                    f"{self.checkpoint} is a {type(self._system).__name__}, which asks for an emotion and takes no "
                    "question; lmms-eval can ask EmotionQwen and ImageText"
                )
        return self._system

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers to requests, each cut where its task says that answers end.

        Raises:
            ValueError: a task wants sampled answers, or shows more than one picture or video.
        """
        answers: dict[int, str] = {}
        by_length: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            by_length.setdefault(_max_new_tokens(request.args[1]), []).append(number)
        for most, numbers in sorted(by_length.items(), reverse=True):  # the longest first: it is loaded once
            with tempfile.TemporaryDirectory() as folder:
                samples = [self._sample(number, requests[number], Path(folder)) for number in numbers]
                texts = self._answers(samples, most, Path(folder))
            for number, text in zip(numbers, texts, strict=True):
                context, settings = requests[number].args[:2]
                answers[number] = _cut(text, settings.get("until", ()))
                self.cache_hook.add_partial("generate_until", (context, settings), answers[number])
        return [answers[number] for number in range(len(requests))]

    def _sample(self, number: int, request: Any, folder: Path) -> Sample:
        """Return a request as a sample; its picture is written into the folder."""
        context, _, to_visual, document, task, split = request.args
        visuals = [] if to_visual is None else to_visual(self.task_dict[task][split][document])
        visuals = [one for one in (visuals if isinstance(visuals, list) else [visuals]) if one is not None]
        if len(visuals) > 1:
            raise ValueError(
                f"{task} shows {len(visuals)} pictures with question {document}; the zoo takes one a question"
            )
        name = f"lmms_eval/test/{number}"
        turn = Turn(str(number), "", "", video=_file(visuals[0], folder / str(number)) if visuals else None)
        question = context.replace("<image>", "").strip()
        return Sample(name, name, GivenQuestions.labels, turn, question=question, answer="")

    def _answers(self, samples: Sequence[Sample], max_new_tokens: int, folder: Path) -> list[str]:
        module = self.system(max_new_tokens)
        longest = module.max_new_tokens
        trainer = Trainer(
            accelerator=self.accelerator,
            devices=1,
            precision=self.precision,
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        try:
            module.max_new_tokens = max_new_tokens
            data = GivenQuestions(samples, batch_size=self.batch_size)
            trainer.predict(module, datamodule=data, return_predictions=False)
        finally:
            module.max_new_tokens = longest
        text = {prediction.id: prediction.text or "" for prediction in module.predictions}
        return [text[sample.id] for sample in samples]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: a task that compares probabilities of given texts."""
        raise NotImplementedError(
            "the zoo's checkpoints answer lmms-eval in writing; use a task whose output_type is generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: a task in which one answer leads to the next question."""
        raise NotImplementedError(
            "the zoo's checkpoints answer lmms-eval one question at a time; use a task whose output_type is "
            "generate_until"
        )


def _max_new_tokens(settings: dict[str, Any]) -> int:
    """Return how long an answer may be, of lmms-eval's settings. ValueError for settings of sampled answers."""
    if settings.get("do_sample") or (settings.get("num_beams") or 1) > 1:
        raise ValueError(
            f"the task wants answers by {settings}; the zoo writes the most probable one: give "
            "--gen_kwargs do_sample=False,num_beams=1"
        )
    return int(settings.get("max_new_tokens") or settings.get("max_gen_toks") or 128)


def _cut(text: str, until: str | Sequence[str]) -> str:
    """Return an answer up to the first of the texts that end it."""
    for end in [until] if isinstance(until, str) else until:
        if end:
            text = text.split(end)[0]
    return text.strip()


def _file(visual: Any, path: Path) -> Path:
    """Return the file of what is shown: that of a video or picture, or a picture in memory, written to ``path``."""
    if isinstance(visual, str | Path):
        return Path(visual)
    if not hasattr(visual, "convert"):
        raise ValueError(
            f"a task shows a {type(visual).__name__}; expected a picture, or the path of a picture or video"
        )
    file = path.with_suffix(".png")
    visual.convert("RGB").save(file)
    return file


__all__ = ["GivenQuestions", "ZooCheckpoint", "manifest"]
