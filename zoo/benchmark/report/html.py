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

from zoo.benchmark.plan import PUBLISHED, published_columns
from zoo.benchmark.report.content import COSTS, EXPLAINED, METRICS, TRANSDUCTIVE, VERDICTS, Row, few_dialogues
from zoo.benchmark.report.drawing import curve, scatter, score_axis
from zoo.benchmark.report.figures import HEIGHT, PLOT, WIDTH, lay_out
from zoo.benchmark.report.numbers import amount, memory, percent, pvalue, seconds, signed

TEMPLATES = Path(__file__).parents[1] / "templates"


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
        figures=[
            lay_out(figure, {r["name"]: r for r in rows}, metric) | {"width": WIDTH, "height": HEIGHT, "plot": PLOT}
            for figure in results.get("figures", ())
        ],
        support=_label_counts(rows, results["labels"]),
        papers=[
            paper
            | {
                "ours": [{**r, "repeats": _repeats(r, results)} for r in rows if _stands_in(r, key, paper["package"])],
                "corpora": {_corpus(c) for t in paper["tables"] for c in t["columns"]},
                "tables": [t | {"decimals": _decimals(t)} for t in paper["tables"]],
            }
            for key, paper in papers.items()
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


def _stands_in(row: Row, paper: str, package: str) -> bool:
    """Return whether a row is shown beside a paper's tables: it repeats a row of them, or is the paper's system."""
    repeated = row.get("published") or ""
    return repeated.startswith(f"{paper}: ") if repeated else (row.get("model") or "").startswith(package + ".")


def _repeats(row: Row, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the published numbers on this corpus that a row repeats, table by table.

    Returns:
        ``table``, ``protocol`` and ``columns``, of `zoo.benchmark.plan.published_columns`, of each.
    """
    repeated = row.get("published")
    tables: dict[str, dict[str, Any]] = {}
    for column in published_columns(repeated) if repeated else ():
        if _corpus(column) == results["corpus"].lower():
            table = tables.setdefault(column["table"], {"table": column["table"], "protocol": column["protocol"]})
            table.setdefault("columns", []).append(column)
    return list(tables.values())


def _corpus(column: Mapping[str, Any]) -> str:
    """Return a published column's corpus as the zoo calls it: CMU-MOSEI is mosei."""
    return str(column["corpus"]).lower().rpartition("-")[2]


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
