"""Reasoning texts about labelled clips: two models explain, a third merges the two texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.backbones.llm_client import ChatModel, QueryFailed
from zoo.media import Media, Unreadable
from zoo.media.clips import utterance_frames, utterance_sound
from zoo.prepare.answer_filter import rejection_reason
from zoo.prepare.answer_store import AnswerStore, CachedClient, keep_settings, map_in_order
from zoo.prepare.prompt_files import fill_prompt, load_prompt
from zoo.prepare.ver.clips import Clip
from zoo.prepare.ver.ratings import write_ratings
from zoo.prepare.ver.rows import read_rows
from zoo.prompts import PromptTemplate, escape

MAX_WORDS = 400  # of an explanation


@dataclass
class Built:
    """What `build` did.

    Attributes:
        texts: rows of ver.jsonl, those of earlier runs included.
        asked: questions that were sent to a model.
        left_out: clip -> why it has no text, whatever is tried again.
        unanswered: clip -> why a model did not answer; the next run asks again.
    """

    texts: int = 0
    asked: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReasoningWriter:
    """A writer of reasoning texts: two models explain, a third merges.

    Attributes:
        models: two, with different names; each sees the frames and the sound.
        merger: reads their texts alone.
        reason, merge: prompts.
        language: en or zh.
        frames: per clip, 0: none, and models read words and descriptions only. A picture is one frame.
        size: shorter side of the frames in pixels.
        sound: whether the models hear the clip.
        client: asks each question once.
        media: decodes.
    """

    models: Sequence[ChatModel]
    merger: ChatModel
    reason: PromptTemplate
    merge: PromptTemplate
    language: str
    frames: int
    size: int
    sound: bool
    client: CachedClient
    media: Media

    def row(self, clip: Clip) -> dict[str, Any]:
        """Return the row of ver.jsonl about a clip, or ``left_out`` or ``unanswered`` with the reason."""
        turn = clip.turn
        words = {"kind": clip.kind, "label": escape(clip.label), "text": escape(turn.text)}
        n = min(self.frames, 1) if clip.kind == "image" else self.frames
        try:
            frames = utterance_frames(self.media, turn, n, side=self.size) if n else None
            sound = utterance_sound(self.media, turn) if self.sound and turn.audio is not None else None
            descriptions = {kind: escape(text) for kind, text in turn.descriptions.items()}
            prompt = fill_prompt(self.reason, **words, frames=n, sound=sound is not None, descriptions=descriptions)
            reasons = {model.name: self._ask(model, prompt, frames, sound) for model in self.models}
            prompt = fill_prompt(self.merge, **words, reasons=[escape(text) for text in reasons.values()])
            merged = self._ask(self.merger, prompt)
        except Unreadable as error:
            return {"left_out": error.reason}
        except _Unusable as error:
            return {"left_out": str(error)}
        except QueryFailed as error:
            return {"unanswered": str(error)}
        return {
            "id": clip.id,
            "kind": clip.kind,
            "path": clip.path,
            "label": clip.label,
            **({"text": turn.text} if turn.text else {}),
            "language": self.language,
            "reasons": reasons,
            "merger": self.merger.name,
            "merged": merged,
        }

    def _ask(self, model: ChatModel, prompt: str, *media: Any) -> str:
        answer = self.client(model, prompt, *media)
        if reason := rejection_reason(answer, MAX_WORDS, self.language):
            raise _Unusable(f"{model.name}: {reason}")
        return answer


class _Unusable(ValueError):
    """An answer that cannot be used: a refusal and the like."""


def build(
    clips: Sequence[Clip],
    models: Sequence[ChatModel],
    merger: ChatModel,
    out: Path,
    language: str = "en",
    frames: int = 8,
    size: int = 448,
    sound: bool = False,
    reason_template: Path | None = None,
    merge_template: Path | None = None,
    max_failures: int = 20,
    workers: int = 1,
    media: Media | None = None,
) -> Built:
    """Write a merged text for every clip that has none yet; a clip that stands in ver.jsonl is not even decoded.

    Args:
        models: two, with different names; each sees the frames and the sound.
        merger: reads their texts alone.
        frames: per clip, 0: none, and models read words and descriptions only. A picture is one frame.
        size: shorter side of the frames in pixels.
        sound: whether the models hear the clip.
        max_failures: questions without an answer before the run stops.
        workers: clips under way at once.

    Raises:
        AbortRun: too many failures. Whatever was answered until then is in the files.
        ValueError: files of other settings, or of another clip under the same id.
    """
    if len(models) != 2 or models[0].name == models[1].name:
        raise ValueError(f"expected two different models, got {', '.join(m.name for m in models)}; give --models A B")
    if frames < 0 or size < 1 or workers < 1:
        raise ValueError(f"frames are 0 or more, size and workers 1 or more; got {frames}, {size} and {workers}")
    reason, reason_sha = load_prompt(reason_template, "ver_reason", language)
    merge, merge_sha = load_prompt(merge_template, "ver_merge", language)
    texts = out / "ver.jsonl"
    settings = {
        "command": "ver",
        "language": language,
        "models": [m.name for m in models],
        "merger": merger.name,
        "frames": frames,
        "size": size,
        "sound": sound,
        "reason_template": reason_sha,
        "merge_template": merge_sha,
    }
    keep_settings(out / "settings.json", settings, [texts, out / "ratings.csv", out / "answers.jsonl"])
    built = Built()
    with AnswerStore(out / "answers.jsonl") as store:  # from here on no other run is at work in this folder
        written = {row["id"]: row for row in read_rows(texts)}
        _check_written(clips, written, texts)
        client = CachedClient(store, max_failures)
        writer = ReasoningWriter(models, merger, reason, merge, language, frames, size, sound, client, media or Media())
        todo = [clip for clip in clips if clip.id not in written]
        try:
            with texts.open("a", encoding="utf-8") as file:
                for clip, row in zip(todo, map_in_order(writer.row, todo, workers, "texts", "clips"), strict=True):
                    if "left_out" in row:
                        built.left_out[clip.id] = row["left_out"]
                    elif "unanswered" in row:
                        built.unanswered[clip.id] = row["unanswered"]
                    else:
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                        file.flush()
        finally:
            rows = read_rows(texts)
            write_ratings(out / "ratings.csv", rows)
            built.texts, built.asked = len(rows), client.sent
    return built


def _check_written(clips: Sequence[Clip], written: Mapping[str, Mapping[str, Any]], texts: Path) -> None:
    """Raise ValueError if a clip has a text that was written about another file or label."""
    for clip in clips:
        row = written.get(clip.id)
        if row is not None and (row["path"], row["label"]) != (clip.path, clip.label):
            raise ValueError(
                f"{texts} has {clip.id} as {row['path']} ({row['label']}), but it is now {clip.path} "
                f"({clip.label}); expected the same clips as before. Give another --out"
            )
