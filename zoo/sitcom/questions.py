"""General questions about the pictures of the synthetic sitcom, which have nothing to do with emotions."""

from __future__ import annotations

from typing import Any

from zoo.sitcom import faces

NUMBERS = ("none", "one", "two")


def scene_questions(place: faces.Scene) -> list[dict[str, Any]]:
    """Return the questions about a scene: ``question``, ``answer`` and the ``choices`` it is one of."""
    return [
        {"question": "How many other people are in the picture?", "answer": NUMBERS[place.people], "choices": NUMBERS},
        {"question": "Which colour is the wall?", "answer": place.wall, "choices": tuple(faces.WALLS)},
        {"question": "Which object is behind the speaker?", "answer": place.object, "choices": tuple(faces.OBJECTS)},
        {"question": f"On which side is the {place.object}?", "answer": place.place, "choices": ("left", "right")},
    ]
