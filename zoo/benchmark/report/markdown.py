"""report.md: the tables of a bench and how they were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.benchmark.report.content import EXPLAINED, METRICS, TRANSDUCTIVE, Row, few_dialogues
from zoo.benchmark.report.numbers import amount, memory, percent, pvalue, seconds, signed


def render_markdown(results: Mapping[str, Any], ranked: Sequence[Row], transductive: Sequence[Row]) -> str:
    """Render report.md: the tables and how they were measured."""
    metric = results["metric"]
    parts = [f"# {escape_cell(results['title'])}", escape_cell(_summary(results))]
    if warning := few_dialogues(results):
        parts.append(f"⚠ {warning}")
    if results["failed"]:
        parts += [
            f"## ⚠ {len(results['failed'])} failed",
            "These runs are in no table.",
            _table(
                ["row", "seed", "reason", "log"],
                [[f["row"], f["seed"], f["reason"], f["log"]] for f in results["failed"]],
            ),
        ]
    parts += ["## Ranking", _ranking(ranked, metric)]
    if transductive:
        parts += ["## Transductive", TRANSDUCTIVE, _ranking(transductive, metric)]
    if matched := results["matched"]:
        chosen = [r for r in (*ranked, *transductive) if r["name"] in matched["rows"]]
        conditions = (
            f"Held equal: language model {matched['llm']}, data {matched['data']}, {matched['steps']} steps of batch "
            f"{matched['batch_size']}."
        )
        parts += ["## Matched", escape_cell(conditions), _ranking(chosen, metric)]
    facts: list[list[Any]] = [
        ["command", results["command"]],
        ["commit", results["git"] or "not known"],
        ["corpus, split", f"{results['corpus']}, {results['split']}"],
        ["protocol", results["eval_protocol"]],
        ["utterances, dialogues", f"{results['n']:,}, {results['dialogues']:,}"],
        ["labels", ", ".join(results["labels"])],
        ["data", json.dumps(results["data"], ensure_ascii=False, default=str)],
        ["versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())],
    ]
    if "seeds_note" in results:
        facts.append(["seeds", results["seeds_note"]])
    parts += ["## How it was measured", _table(["what", ""], facts), *EXPLAINED]
    parts += ["\n".join(f"- {escape_cell(note)}" for note in results["notes"])] if results["notes"] else []
    return "\n\n".join(parts) + "\n"


def _summary(results: Mapping[str, Any]) -> str:
    """Say what was measured, in one line."""
    return (
        f"{len(results['rows'])} rows on {results['corpus']}, {results['split']} split: {results['n']:,} utterances "
        f"of {results['dialogues']:,} dialogues, {results['eval_protocol'].replace('_', ' ')}."
    )


def _ranking(rows: Sequence[Row], metric: str) -> str:
    """Return a table of rows; the headline score first, with its interval and every seed."""
    others = [m for m in METRICS if m != metric]
    header = [
        "#",
        "system",
        "reads",
        METRICS[metric],
        "95 % interval",
        "seeds",
        "against the best",
        *(METRICS[m] for m in others),
        "of the reachable",
        "parameters (trained)",
        "training",
        "test per utterance",
    ]
    lines = []
    for rank, row in enumerate(rows, 1):
        score, cost = row["scores"][metric], row["cost"]
        lines.append(
            [
                rank,
                f"{row['what']} ({row['name']}, {row['size']})",
                "not known" if row["reads"] is None else ", ".join(row["reads"]) or "nothing",
                percent(score["mean"]),
                _interval(score),
                ", ".join(map(percent, score["values"])),
                _comparison(row),
                *(f"{percent(row['scores'][m]['mean'])} ({_interval(row['scores'][m])})" for m in others),
                percent(row["reachable"]["share"]) if row["reachable"] else "–",
                f"{amount(cost['parameters'])} ({amount(cost['trainable_parameters'])})",
                f"{seconds(cost['train_seconds'])}, {memory(cost['train_peak_mib'])}",
                f"{seconds(cost['test_seconds_per_sample'])}, {memory(cost['test_peak_mib'])}, "
                f"{amount(cost['tokens_per_sample'])} tokens",
            ]
        )
    return _table(header, lines) if lines else "No rows."


def _interval(score: Mapping[str, Any]) -> str:
    """Return ``58.9–63.4``."""
    return "–".join(map(percent, score["ci95"]))


def _comparison(row: Row) -> str:
    """Return ``−3.1 (−5.0 to −1.2): worse, p <.001 and .002``, or what stands there without a comparison."""
    if (test := row["against_best"]) is None:
        return "the best" if row["group"] == "ranked" else "not compared"
    low, high = map(signed, test["ci95"])
    ps = f"{pvalue(test['p_bootstrap_holm'])} and {pvalue(test['p_mcnemar_holm'])}"
    return f"{signed(test['difference'])} ({low} to {high}): {test['verdict']}, p {ps}"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; every cell is escaped."""
    lines = [header, ["---"] * len(header), *([escape_cell(str(value)) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape_cell(text: str) -> str:
    """Return a text as one line of Markdown without markup: no HTML, no link, no emphasis, no new column."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + c if c in "\\`*_[]|~#" else c for c in text)
