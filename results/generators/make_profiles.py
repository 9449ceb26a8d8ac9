"""Make the shipped profiles again: `python results/generators/make_profiles.py DATA_DIR`.

DATA_DIR holds the traces (`azure_conv.jsonl.gz`, `azure_code_first20min.jsonl.gz`, ...) and `generator_params.json`
with figures fitted to the full traces, of which some cuts are shorter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from stepline.traces import read_trace, spread_quantum
from stepline.traces.random_streams import stream
from stepline.traces.synth.fit import fit_open
from stepline.traces.synth.fit_agents import fit_agents
from stepline.traces.synth.fit_sessions import fit_sessions, with_lengths_of
from stepline.traces.synth.laws import law, normal_ppf, whole
from stepline.traces.synth.profile import PROFILE_DIR, PROFILE_VERSION, profile_text
from stepline.traces.synth.tables import quantile_table
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
                "gaps_s": quantile_table(
                    blend(gaps, hour_gaps(hour["arrival"])), 0.005, whole=False, digits=4
                ),
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
                {
                    "kind": "curve",
                    "time_s": arrival["profile_t"],
                    "factor": arrival["profile"],
                    "period_s": 3537,
                },
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
    return {
        "duration_s": 9600,
        "source": "fitted to 63 sessions (2652 requests) of callanjfox/kv-cache-tester traces, 64-token blocks "
        "coarsened to 512",
        "license": "Apache-2.0 (the traces the figures were fitted to)",
        "notes": "63 agentic coding sessions with 512-token chained ids: contexts of 89 k tokens on average, 97 % of "
        "prompt tokens seen before. Think times are tools (median 11 s) and, in the tail, people; closed replay uses "
        "them. Sessions are balanced against the lengths of all prompts (`Balance`), so traces of "
        "different seeds differ less than two samples would.",
        "workload": fit_agents(read(data / "claude_code_sessions.jsonl.gz")),
    }


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


def poisson(input_law: Any, output_law: Any, **about: str) -> dict[str, Any]:
    """Independent requests at one per second on average for ten minutes; scale the rate to the load wanted."""
    arrivals = {"kind": "renewal", "rate_per_s": 1}
    lengths = {"kind": "independent", "input": input_law, "output": output_law}
    return {
        "duration_s": 600,
        **about,
        "workload": {"kind": "open", "arrivals": arrivals, "lengths": lengths},
    }


def guidellm(prompt: int, prompt_spread: int, output: int, output_spread: int, name: str) -> dict[str, Any]:
    """A scenario of guidellm: clipped normal lengths."""
    return poisson(
        {
            "kind": "normal",
            "centre": prompt,
            "spread": prompt_spread,
            "low": 1,
            "high": prompt + 4 * prompt_spread,
        },
        {
            "kind": "normal",
            "centre": output,
            "spread": output_spread,
            "low": 1,
            "high": output + 4 * output_spread,
        },
        source=f"guidellm scenario {name}: {prompt} prompt tokens, {output} output tokens",
        notes="Mean lengths are the scenario's; their spread (an eighth to a quarter of the mean) is nominal. Poisson "
        "arrivals at 1/s: scale the rate.",
    )


def mlperf(median: float, sigma: float, longest: int, output: Any, source: str, notes: str) -> dict[str, Any]:
    """MLPerf Inference, Server scenario: Poisson at the target rate for at least 600 s."""
    inputs = {"kind": "lognormal", "median": median, "sigma": sigma, "low": 1, "high": longest}
    return poisson(
        inputs,
        output,
        source=f"MLPerf Inference, Server scenario (Poisson at target_qps, min_duration 600 s); {source}",
        notes=f"{notes} Input lengths are nominal (lognormal). Poisson arrivals at 1/s: scale the rate to the target.",
    )


def made_outputs(mean: float, sigma: float, longest: int) -> dict[str, Any]:
    """Lognormal lengths of the given mean (before clipping), at most `longest`."""
    return {
        "kind": "lognormal",
        "median": round(mean / float(np.exp(sigma**2 / 2)), 1),
        "sigma": sigma,
        "low": 1,
        "high": longest,
    }


PRESETS = {
    "guidellm-chat": guidellm(512, 128, 256, 64, "chat"),
    "guidellm-rag": guidellm(4096, 512, 512, 128, "rag"),
    "mlperf-llama2-70b": mlperf(
        200, 0.9, 1024, made_outputs(294.45, 0.8, 1024), "OpenOrca, 24576 queries",
        "Mean output is the reference's 294.45 tokens per sample.",
    ),
    "mlperf-llama3.1-8b": mlperf(
        800, 0.45, 2540, 128, "CNN-DailyMail, 13368 queries", "Outputs are at their limit of 128 tokens.",
    ),
    "mlperf-llama3.1-405b": mlperf(
        7000, 0.8, 20000, made_outputs(684.68, 0.8, 2000), "LongBench and others, 8313 queries",
        "Mean output is the reference's 684.68 tokens per sample.",
    ),
    "mlperf-mixtral-8x7b": mlperf(
        250, 0.8, 2048, made_outputs(144.84, 0.8, 1024), "OpenOrca, GSM8K, MBXP",
        "Mean output is the reference's 144.84 tokens per sample.",
    ),
    "mlperf-deepseek-r1": mlperf(
        300, 1.0, 3136, made_outputs(3886.23, 0.8, 20000), "reasoning tasks",
        "Mean output is the reference's 3886.23 tokens per sample.",
    ),
}  # fmt: skip

PROFILES = {
    "azure_conv": azure_conv,
    "azure_code": azure_code,
    "mooncake_conv": mooncake_conv,
    "claude_code": claude_code,
}


def main(data: Path) -> None:
    """Write every profile."""
    figures = json.loads((data / "generator_params.json").read_text())
    made = {name: make(data, figures) for name, make in PROFILES.items()} | PRESETS
    for name, content in made.items():
        spec = {"version": PROFILE_VERSION, "name": name, **content}
        (PROFILE_DIR / f"{name}.json").write_text(profile_text(spec))
        print(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
