"""A profile from any trace: `simulate trace fit`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..trace import Trace
from .fit_arrivals import fit_arrivals
from .tables import conditional_tables, quantile_table

_RULE = re.compile(r"\s*(input_length|output_length)\s*(>=|<=|>|<)\s*(\d+)\s*$")
LEAST_ROWS = 100  # fewer rows than this give no trustworthy table
LENGTH_TOLERANCE = 0.003  # Kolmogorov distance allowed to the table of input lengths
OUTPUT_TOLERANCE = 0.03  # the same for outputs within one bin of inputs; over all bins errors cancel


def fit_open(trace: Trace, *, parts: Sequence[str] = (), window_s: float = 300.0) -> dict[str, Any]:
    """A workload of independent requests (`open`, or `mix` where `parts` names applications).

    `parts`: rules such as `output_length>350`; a row belongs to the first rule it meets, else to the rest. Each part
    gets arrivals and lengths of its own, so that shares may change over time.
    Raises: ConfigError for a wrong rule or a part of fewer than `LEAST_ROWS` rows.
    """
    masks = part_masks(trace, parts)
    span_s = float(trace.arrival_s[-1])
    built = []
    for label, mask in masks:
        if mask.sum() < LEAST_ROWS:
            raise ConfigError(
                f"{trace.source}: {label}: got {mask.sum()} rows, expected at least {LEAST_ROWS}"
            )
        built.append(
            {
                "kind": "open",
                "arrivals": fit_arrivals(trace.arrival_s[mask], span_s, window_s=window_s),
                "lengths": fit_lengths(trace.input_tokens[mask], trace.output_tokens[mask]),
            }
        )
    return built[0] if len(built) == 1 else {"kind": "mix", "parts": built}


def fit_lengths(inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> dict[str, Any]:
    """Quantile table of inputs; tables of outputs in bins of inputs (about 60 to 400 rows each, at most 40 bins)."""
    bins = int(np.clip(len(inputs) / 100, 1, 40))
    tables = conditional_tables(inputs, outputs, bins=bins, tolerance=OUTPUT_TOLERANCE)
    return {"kind": "conditional", "input": quantile_table(inputs, LENGTH_TOLERANCE), **tables}


def part_masks(trace: Trace, rules: Sequence[str]) -> list[tuple[str, NDArray[np.bool_]]]:
    """(rule, rows) for each rule and, last, for the rows that meet none; without rules all rows."""
    left = np.ones(len(trace), dtype=bool)
    masks = []
    for rule in rules:
        found = _RULE.match(rule)
        if not found:
            raise ConfigError(
                f"part: got {rule!r}, expected e.g. 'output_length>350' or 'input_length<=2000'"
            )
        column = trace.input_tokens if found[1] == "input_length" else trace.output_tokens
        compare = {">=": np.greater_equal, "<=": np.less_equal, ">": np.greater, "<": np.less}[found[2]]
        chosen = left & compare(column, int(found[3]))
        masks.append((rule, chosen))
        left = left & ~chosen
    return [*masks, ("the rest" if rules else "the trace", left)]
