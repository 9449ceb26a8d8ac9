"""The accuracy of a validation as a Markdown page: a row a group, and the best peer's error below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from .validate import Validation

COLUMNS = {
    "ttft_mean": "TTFT", "ttft_p90": "TTFT p90", "tpot_mean": "TPOT", "e2e_mean": "E2E", "e2e_p90": "E2E p90",
    "e2e_p99": "E2E p99", "throughput_output_tokens": "tokens/s", "failed_fraction": "failed, points",
    "last_survivor_s": "last survivor",
}  # fmt: skip
ENOUGH = 0.5
"""Share of a group's experiments that a peer must have predicted to be named in it."""


def accuracy_page(result: Validation, command: str) -> str:
    """The page: the command, the table of the groups (mean errors in %, medians where they differ), what is beside it."""
    means, medians = result.groups(), result.groups(stat="median")
    shown = [c for c in COLUMNS if c in means and means[c].notna().any()]
    lines = [
        "# Accuracy against measured runs",
        "",
        f"`{command}`",
        "",
        "Mean absolute error in percent (of the failed fraction: in points); in brackets the median over the experiments",
        f"of a group where there are more than two. Below a group: the lowest error of any peer that predicted at least {ENOUGH:.0%}",
        "of its runs, metric by metric, so no single peer is that good. Rules: `simulate validate` prints them.",
        "",
        "| runs | n | " + " | ".join(COLUMNS[c] for c in shown) + " |",
        "|--|--:|" + "--:|" * len(shown),
    ]
    peers, by_group = result.against_peers(), medians.T
    for group, row in means.iterrows():
        lines.append(_row(str(group), int(row["n"]), [_both(row, by_group[str(group)], c) for c in shown]))
        best = _best(peers, str(group), row["n"])
        if best:
            lines.append(_row("best peer", None, [_percent(best.get(c)) for c in shown]))
    lines += ["", f"{len(result.skipped)} of {len(result.outcomes)} experiments were not replayed."]
    return "\n".join(lines) + "\n"


def _row(name: str, n: int | None, cells: list[str]) -> str:
    return f"| {name} | {'' if n is None else n} | " + " | ".join(cells) + " |"


def _both(mean: pd.Series[Any], median: pd.Series[Any], column: str) -> str:
    text = _percent(mean[column])
    return f"{text} ({_percent(median[column])})" if text != "–" and mean["n"] > 2 else text


def _best(peers: pd.DataFrame, group: str, n: float) -> dict[str, float]:
    """The lowest error of the group's peers by metric."""
    if peers.empty or group not in peers.index.get_level_values("group"):
        return {}
    part = peers.loc[[group]].reset_index()
    part = part[~part["peer"].str.startswith(" ") & (part["n"] >= ENOUGH * n)]
    return {c: float(part[c].min()) for c in COLUMNS if c in part and part[c].notna().any()}


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"
