"""report.html: one page that a browser opens without a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from zoo.benchmark.report.content import COSTS, EXPLAINED, METRICS, TRANSDUCTIVE, VERDICTS, Row, few_dialogues
from zoo.benchmark.report.drawing import curve, scatter, score_axis
from zoo.benchmark.report.numbers import amount, memory, percent, pvalue, seconds, signed

TEMPLATES = Path(__file__).parents[1] / "templates"
PUBLISHED = Path(__file__).parents[1] / "published_results.json"


def render_page(
    results: Mapping[str, Any],
    ranked: Sequence[Row],
    transductive: Sequence[Row],
    utterances: Sequence[Mapping[str, Any]],
) -> str:
    """Render report.html."""
    rows = [*ranked, *transductive]
    metric = results["metric"]
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    papers = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "pvalue": pvalue,
        "amount": amount,
        "seconds": seconds,
        "memory": memory,
    }
    matched = results["matched"]
    return environment.get_template("report.html").render(
        results=results,
        ranked=ranked,
        transductive=transductive,
        matched=[r for r in rows if r["name"] in matched["rows"]] if matched else [],
        rows=rows,
        metric=metric,
        metrics=METRICS,
        verdicts=VERDICTS,
        axis=score_axis(rows, metric),
        few_dialogues=few_dialogues(results),
        costs=COSTS,
        pictures={
            cost: [
                scatter(rows, metric, cost, score_axis(rows, metric), width, height)
                for width, height in ((1080, 460), (360, 420))
            ]
            for cost in COSTS
        },
        curves={r["name"]: {key: curve(points) for key, points in r["curves"].items()} for r in rows},
        support=_label_counts(rows, results["labels"]),
        papers=[
            paper
            | {
                "ours": [r for r in rows if (r.get("model") or "").startswith(paper["package"] + ".")],
                "corpora": {c["corpus"].lower() for t in paper["tables"] for c in t["columns"]},
                "tables": [t | {"decimals": _decimals(t)} for t in paper["tables"]],
            }
            for paper in papers.values()
        ],
        data=_embed_data(results, rows, utterances),
        count=len(utterances),
        data_text=json.dumps(results["data"], indent=2, ensure_ascii=False, default=str),
        transductive_text=TRANSDUCTIVE,
        explained=EXPLAINED,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # ours, not data
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _decimals(published: Mapping[str, Any]) -> list[int]:
    """Count the decimals of each column of a published table."""
    columns = zip(*(row["values"] for row in published["rows"]), strict=True)
    return [max(len(str(value).partition(".")[2]) for value in column if value is not None) for column in columns]


def _label_counts(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, int]:
    """Count the test utterances of each label, from a row's confusion matrix, which is summed over seeds."""
    first = rows[0] if rows else None
    seeds = len(first["seeds"]) if first else 1
    return {name: sum(first["confusion"][i]) // seeds if first else 0 for i, name in enumerate(labels)}


def _embed_data(results: Mapping[str, Any], rows: Sequence[Row], utterances: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the utterances as JSON that cannot end its script element: ASCII, with ``<``, ``>`` and ``&`` escaped."""
    rounded = [
        {**one, "voice": None if one["voice"] is None else [round(v, 2) for v in one["voice"]]} for one in utterances
    ]
    data = {
        "labels": list(results["labels"]),
        "systems": [{"name": r["name"], "what": r["what"]} for r in rows],
        "utterances": rounded,
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
