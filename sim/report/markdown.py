"""A run or a comparison as Markdown, for pull requests and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepline.traces.wording import counted

from .comparison_tables import ComparisonTables, metric_name, records
from .fleet_lines import fleet_lines
from .run_tables import RunTables
from .side_by_side import LATENCIES, STATISTICS, requests_text, rows_of, tiers_text, time_text
from .titles import subtitle, trace_text
from .units import rate_text, seconds_text, share_text, signed_text, signed_together


def run_markdown(run: RunTables) -> str:
    """Headline, verdict, latency table and provenance of one run."""
    summary = run.summary
    rows = [[label, *(seconds_text(summary[key][s]) for s in STATISTICS)] for label, key, _ in LATENCIES]
    parts = [
        f"### {run.label}: {trace_text(run.config)}",
        subtitle([run]),
        f"**{summary['verdict']['headline']}**",
        _bullets(summary),
        _table(["latency", *(s.replace("_", ".") for s in STATISTICS)], rows),
        _provenance(run),
    ]
    return "\n\n".join(parts) + "\n"


def comparison_markdown(comparison: ComparisonTables) -> str:
    """Ranking, figures side by side, paired differences and provenance of a comparison."""
    runs = comparison.ranked
    summaries = [run.summary for run in runs]
    figures = []
    for row in rows_of(summaries):
        cells = zip(row.texts(summaries), row.best(summaries), strict=True)
        figures.append([row.label, *(f"**{text}**" if best else text for text, best in cells)])
    ranking = "\n".join(
        f"{p['place']}. **{_escape(p['run'])}**{' (a tie)' if p['is_tie'] else ''}: {_escape(p['why'])}"
        for p in comparison.ranking["places"]
    )
    parts = [
        f"### {' / '.join(comparison.labels)}: {trace_text(comparison.runs[0].config)}",
        subtitle(comparison.runs),
        ranking,
        _table(["", *(run.label for run in runs)], figures),
        _differences(comparison),
        _provenance(comparison.runs[0]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(summary: Mapping[str, Any]) -> str:
    rates, kv = summary["throughput"], summary["kv"]
    usd = summary["cost"]["usd_per_million_output_tokens"]
    lines = [
        requests_text(summary),
        f"{rate_text(rates['requests_per_s'])} requests/s, {rate_text(rates['output_tokens_per_s'])} output tokens/s",
        f"KV peak {share_text(kv['peak_used_frac'])} of {counted(kv['blocks_total'], 'block')}, "
        f"prefix hits {share_text(kv['prefix_hit_token_frac'])}",
        *([f"KV tiers: {tiers_text(kv)}"] if "tiers" in kv else []),
        f"GPU time: {time_text(summary)}",
        *(f"{name}: {line}" for name, line in fleet_lines(summary)),
    ]
    if usd is not None:
        lines.append(f"${usd:,.2f} per million output tokens")
    if slo := summary.get("slo"):
        lines.append(
            f"SLO {'met' if slo['met'] else 'missed'}: {share_text(slo['attainment_frac'])} of requests good"
        )
    lines += [f"because {fact}" for fact in summary["verdict"]["because"]]
    lines += [f"try {advice}" for advice in summary["verdict"]["try_first"]]
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _differences(comparison: ComparisonTables) -> str:
    table = comparison.differences
    shown = (table["unit"] == "s") & (table["run"] != comparison.baseline) & (table["stat"] != "p50")
    table = table[shown]
    if not len(table):
        return ""
    rows = [[d["run"], metric_name(d), seconds_text(d["value"]), _interval(d)] for d in records(table)]
    head = ["run", "metric", "value", f"minus {comparison.baseline} [95 % interval]"]
    return f"{_table(head, rows)}\n\n{comparison.method}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return "–"
    if row["low"] is None:
        return f"{signed_text(row['difference'])} (no interval)"
    middle, low, high = signed_together(row["difference"], row["low"], row["high"])
    return f"{middle} [{low}, {high}]{' (holds 0)' if row['low'] <= 0 <= row['high'] else ''}"


def _provenance(run: RunTables) -> str:
    trace, versions = run.config["trace"], run.manifest["versions"]
    command = run.manifest.get("command")
    made = f"`{command}`, " if command else ""
    calibration = run.config.get("calibration") or "none"
    facts = f"trace sha256 {str(trace['sha256'])[:16]}, stepline {versions['stepline']}, calibration {calibration}"
    return f"<sub>{made}{facts}</sub>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
