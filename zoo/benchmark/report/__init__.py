"""The report of a bench: ``report.html``, one file that a browser opens without a network, and ``report.md``.

Every number is formatted here, once: Python computes texts and positions, the templates put them into place, and the
page's script only sorts, filters and turns pages. A browser is told (Content-Security-Policy) to load nothing and to
run no script but that one; single utterances reach it as JSON and are shown as text, never as markup.

A sortable cell carries the unrounded value in ``data-v``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.benchmark.report.content import check_results, sort_rows
from zoo.benchmark.report.html import render_page
from zoo.benchmark.report.markdown import render_markdown

__all__ = ["write_report"]


def write_report(results: Mapping[str, Any], folder: Path, utterances: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write ``report.html`` and ``report.md`` into a folder.

    Args:
        results: what the bench wrote to results.json: title, corpus, rows with scores in 0..1, failed runs, notes.
        folder: an existing folder.
        utterances: single utterances with what each system said, for the page that shows them side by side.

    Raises:
        ValueError: a score is not a finite number, a verdict or a group is unknown, a ranked row is not compared with
            the best, two rows have one name, the matched view names a row that is not there, or a face is not an
            embedded picture.
    """
    check_results(results, utterances)
    ranked = sort_rows(results, "ranked")
    transductive = sort_rows(results, "transductive")
    (folder / "report.html").write_text(render_page(results, ranked, transductive, utterances), encoding="utf-8")
    (folder / "report.md").write_text(render_markdown(results, ranked, transductive), encoding="utf-8")
