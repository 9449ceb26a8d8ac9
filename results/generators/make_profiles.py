"""Make the shipped profiles again: `python results/generators/make_profiles.py DATA_DIR`.

DATA_DIR holds the traces (`azure_conv.jsonl.gz`, `azure_code_first20min.jsonl.gz`, ...) and `generator_params.json`
with figures fitted to the full traces, of which some cuts are shorter.
"""

from __future__ import annotations

import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stepline.traces import read_trace, spread_quantum
from stepline.traces.random_streams import stream
from stepline.traces.synth.fit import fit_open
from stepline.traces.synth.fit_sessions import fit_sessions, with_lengths_of
from stepline.traces.synth.laws import law, normal_ppf, whole
from stepline.traces.synth.profile import PROFILE_DIR, PROFILE_VERSION, profile_text
from stepline.traces.synth.tables import quantile_table, tidy
from stepline.traces.trace import Trace


def azure_conv(data: Path, figures: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Four applications, told apart by lengths alone; their rates move apart over the hour."""
    rules = ["output_length>350", "input_length>=1250", "input_length>=300"]
    return {
        "duration_s": 3502,
        "source": "fitted to AzureLLMInferenceTrace_conv.csv (Azure/AzurePublicDataset; 19366 requests, one hour)",
        "license": "CC-BY-4.0 (the trace the figures were fitted to)",
        "notes": "An hour of chat as four applications whose rates change apart (the hour repeats): long outputs, "
        "long inputs, middle, short inputs. At the hour's peak the mean output falls from 254 to 143 tokens, as in "
        "the trace. Distances from it: results/generators/README.md.",
        "workload": fit_open(read(data / "azure_conv.jsonl.gz"), parts=rules),
    }


def azure_code(data: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """ON/OFF bursts. Laws of gaps and lengths are even blends of the first 20 minutes and the hour's figures."""
    trace, hour = read(data / "azure_code_first20min.jsonl.gz"), figures["azure_code"]
    gaps = np.diff(trace.arrival_s)
    gaps = gaps[gaps < 3.0]
    inputs = blend(trace.input_tokens, whole(table(hour["knots"], hour["input_q"])))
    outputs = blend(trace.output_tokens, whole(table(hour["knots"], hour["output_q"])))
    return {
        "duration_s": 3600,
        "source": "fitted to AzureLLMInferenceTrace_code.csv (Azure/AzurePublicDataset): its first 1200 s (3628 "
        "requests) and figures of the whole hour",
        "license": "CC-BY-4.0 (the trace the figures were fitted to)",
        "notes": "Code completion in bursts: 73 % of seconds are empty. ON and OFF periods are gamma laws between "
        "those of the first 20 minutes and those of the hour (shapes 0.86 and 1.11, 0.38 and 0.86), set so that the "
        "median index of dispersion at 60 s is the hour's 164. Inputs and outputs are independent (rank correlation "
        "-0.04 in the trace).",
        "workload": {
            "kind": "open",
            "arrivals": {
                "kind": "bursts",
                "on_s": {"kind": "gamma", "shape": 0.9, "mean": 12.5},
                "off_s": {"kind": "gamma", "shape": 0.55, "mean": 34},
                "gaps_s": quantile_table(blend(gaps, hour_gaps(hour["arrival"])), 0.005, whole=False, digits=4),
                "memory_frac": 0.16,
                "memory_gaps": 75,
            },
            "lengths": {
                "kind": "independent",
                "input": quantile_table(inputs, 0.003),
                "output": quantile_table(outputs, 0.003),
            },
        },
    }


def mooncake_conv(data: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """Sessions with the hour's figures; lengths of the first ten minutes while those last."""
    trace = spread_quantum(read(data / "mooncake_conversation_first10min.jsonl.gz"))
    hour, early = figures["mooncake_conv"], fit_sessions(trace)
    arrival = hour["arrival"]
    spec = {
        "kind": "sessions",
        "arrivals": {
            "kind": "renewal",
            "rate_per_s": arrival["session_rate"],
            "modulation": [
                {"kind": "curve", "time_s": arrival["profile_t"], "factor": arrival["profile"], "period_s": 3537},
                {"kind": "ou", "sigma": arrival["ou_sigma"], "tau_s": arrival["ou_tau"]},
            ],
        },
        "first_input": knots(hour["knots"], hour["root_input_q"]),
        "outputs": early["outputs"],
        "later_outputs": early["later_outputs"],
        "continue_first": [*hour["p_continue_turn0_by_input"], [1e9, hour["p_continue"][0]]],
        "continue_later": hour["p_continue"][1:],
        "gap_s": knots(hour["gap_knots"], hour["gap_q_s"]),
        "append": hour["p_append_by_parent_input"],
        "append_delta": knots(hour["append_delta_knots"], hour["append_delta_q"]),
        "branch_ratio": knots(hour["branch_match_frac_knots"], hour["branch_ratio_q"]),
        "branch_kept_frac": knots(hour["branch_match_frac_knots"], hour["branch_match_frac_q"]),
        "block_size": hour["block"],
        "systems": [{"blocks": hour["system_blocks"], "weight": 1}],
        "max_input_tokens": hour["max_context"],
        "warmup_s": arrival["warmup_s"],
    }
    first = with_lengths_of(spec, trace.input_tokens, 600.0)["first_input"]
    return {
        "duration_s": 3537,
        "source": "fitted to the conversation trace of kvcache-ai/Mooncake (FAST25 release): its first 600 s (1750 "
        "requests) and figures of the whole hour",
        "license": "Apache-2.0 (the trace the figures were fitted to)",
        "notes": "Chat with long prompts in sessions, 512-token chained ids, one block of system prompt for all. First "
        "prompts follow the first ten minutes while those last (they are longer than the hour's), then the hour. "
        "Arrivals are not on the trace's 3 s clock. `warmup_s` fills the sessions that are under way at time 0.",
        "workload": spec | {"first_input": [[600, first], [1e9, spec["first_input"]]]},
    }


def knots(p: list[float], q: list[float]) -> dict[str, Any]:
    """A quantile table from its two columns."""
    return {"kind": "quantiles", "p": p, "q": q}


def claude_code(data: Path, figures: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Agentic sessions, from 63 of them."""
    sessions: dict[str, list[dict[str, Any]]] = {}
    for row in json_rows(data / "claude_code_sessions.jsonl.gz"):
        sessions.setdefault(row["session_id"], []).append(row)
    steps = [(a, b) for rows in sessions.values() for a, b in pairwise(rows)]
    growth = np.array([b["input_length"] - a["input_length"] for a, b in steps])
    context = np.array([a["input_length"] for a, _ in steps])
    cut = growth < -2000
    kept = [shared_blocks(a, b) for a, b in steps]
    broken = np.array([k < a["input_length"] // 512 for k, (a, _) in zip(kept, steps, strict=True)])
    delays = np.array([b["delay"] / 1e3 for _, b in steps if "delay" in b])
    return {
        "duration_s": 8800,
        "source": "fitted to 63 sessions (2652 requests) of callanjfox/kv-cache-tester traces, 64-token blocks "
        "coarsened to 512",
        "license": "Apache-2.0 (the traces the figures were fitted to)",
        "notes": "63 agentic coding sessions with 512-token chained ids: contexts of 89 k tokens on average, 97 % of "
        "prompt tokens seen before. Think times are tools (median 11 s) and, in the tail, people; closed replay uses "
        "them, timestamps assume 0.5 s + 20 ms per output token.",
        "workload": {
            "kind": "agents",
            "arrivals": {"kind": "renewal", "rate_per_s": 0.0286},
            "sessions": 63,
            "turns": smooth([len(rows) for rows in sessions.values()], COARSE),
            "first_input": smooth([rows[0]["input_length"] for rows in sessions.values()], COARSE),
            "growth": [
                [high, smooth(growth[~cut & (context >= low) & (context < high)], FINE)]
                for low, high in pairwise((0, *GROWTH_BOUNDS, 1e9))
            ],
            "outputs": smooth([row["output_length"] for rows in sessions.values() for row in rows], FINE),
            "think_s": quantile_table(delays, 0.005),
            "session_frac": {"growth": 0.2, "outputs": 0.2, "think_s": 0.1},
            "break_chance": round(float(np.mean(broken & ~cut)), 4),
            "break_kept_blocks": smooth(np.array(kept)[broken], COARSE),
            "compact_chance": [[120_000, 0.003], [140_000, 0.008], [155_000, 0.02], [1e9, 0.06]],
            "compact_frac": smooth(
                [b["input_length"] / a["input_length"] for (a, b), c in zip(steps, cut, strict=True) if c], COARSE
            ),
            "max_input_tokens": 170_000,
            "max_session_s": 7200,  # no session of the set is longer
            "block_size": 512,
        },
    }


GROWTH_BOUNDS = (20_000, 40_000, 80_000)  # short contexts grow fastest: the agent reads the repository
COARSE = (0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1)  # knots for some tens of values
FINE = (0, 0.005, 0.025, 0.05, *(round(0.1 * k, 1) for k in range(1, 10)), 0.95, 0.975, 0.99, 0.998, 1)


def smooth(values: Any, knots: Any) -> dict[str, Any]:
    """A table of quantiles at `knots`, to 3 digits: from few values no more than their shape is kept."""
    at = [0, *knots, 1] if knots[0] != 0 else list(knots)
    return {"kind": "quantiles", "p": at, "q": [tidy(float(f"{q:.3g}")) for q in np.quantile(values, at)]}


def shared_blocks(a: dict[str, Any], b: dict[str, Any]) -> int:
    """Leading block ids that two rows have in common."""
    return next(
        (k for k, (x, y) in enumerate(zip(a["hash_ids"], b["hash_ids"], strict=False)) if x != y),
        min(len(a["hash_ids"]), len(b["hash_ids"])),
    )


def hour_gaps(arrival: dict[str, Any], n: int = 20_000) -> Any:
    """Gaps under 3 s from the lognormal mixture fitted to the hour (weights, mu, sigma of each part)."""
    u = [stream(0, "make_profiles", name).random(n) for name in ("part", "gap")]
    part = np.searchsorted(np.cumsum(arrival["iat_w"])[:-1], u[0])
    gaps = np.exp(np.array(arrival["iat_mu"])[part] + np.array(arrival["iat_sg"])[part] * normal_ppf(u[1]))
    return gaps[gaps < 3.0]


def table(knots: list[float], values: list[float], n: int = 20_000) -> Any:
    """n evenly spaced quantiles of a table."""
    return law({"kind": "quantiles", "p": knots, "q": values}).ppf((np.arange(n) + 0.5) / n)


def blend(a: Any, b: Any, n: int = 20_000) -> Any:
    """A sample of n evenly spaced quantiles of each, together: their even mixture."""
    at = ((np.arange(n) + 0.5) / n * np.array([[len(a)], [len(b)]])).astype(np.int64)
    return np.concatenate([np.sort(a)[at[0]], np.sort(b)[at[1]]])


def read(path: Path) -> Trace:
    """The trace in a gzipped native JSONL file, times from its first row."""
    return read_trace(path)


def json_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a gzipped JSONL file."""
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


PROFILES = {"azure_conv": azure_conv, "azure_code": azure_code, "mooncake_conv": mooncake_conv, "claude_code": claude_code}


def main(data: Path) -> None:
    """Write every profile."""
    figures = json.loads((data / "generator_params.json").read_text())
    for name, make in PROFILES.items():
        spec = {"version": PROFILE_VERSION, "name": name, **make(data, figures)}
        (PROFILE_DIR / f"{name}.json").write_text(profile_text(spec))
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
