"""How published closed-loop sweeps were run, where their rows do not say: load generator, lengths, server flags.

A point of such a sweep is a mean over few requests a client, so TTFT hangs on how the clients start and on the token
budget of a step. Nobody recorded either beside the points, but the programs that made them are public.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .measured import Experiment

Flags = Callable[[Experiment], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A load generator and the server it met.

    All clients start at once, and each sends its next request when the one before has ended.

    rounds         requests a client sends
    shortest_frac  lengths are uniform between this fraction of the nominal one and all of it (1: all alike)
    flags          `RunConfig` settings of the server, from its experiment
    """

    name: str
    rounds: int
    shortest_frac: float
    flags: Flags


def _none(_: Experiment) -> Mapping[str, Any]:
    return {}


def _generated(experiment: Experiment) -> Mapping[str, Any]:
    """Flags that AIConfigurator writes for an aggregated server: `max_num_tokens = max_batch_size + isl + slack`.

    TensorRT-LLM gets a `free_gpu_memory_fraction` of 0.8 too. SGLang keeps its defaults: the releases of that time wrote
    no token budget for it.
    """
    family = experiment.engine.lower()
    slack = SLACK_TOKENS.get(family)
    if slack is None:
        return {}
    tokens = round((experiment.concurrency or 0) + (experiment.input_spec_tokens or 0)) + slack
    return {"max_num_batched_tokens": tokens} | (
        {"gpu_memory_utilization": 0.8} if family == "trtllm" else {}
    )


SLACK_TOKENS = {"vllm": 1500, "trtllm": 500}
"""Tokens of a step beyond one prompt and a token a client (`generator/rule_plugin` of `aiconfigurator` 0.12: `vllm.rule`,
`trtllm.rule`). For TensorRT-LLM its rules for benchmarks and releases 0.2 to 0.5 say 1500, but an iteration of the
measured servers took one prompt of 1024 tokens, not two: by the time a prompt takes from decoding (the same for 1024 and
2048 tokens where launches bind) and by TTFT at TP 1, 2 and 8."""

PLAIN = Sweep("plain", 10, 1.0, _none)
"""Nothing is known: ten requests a client (`num_prompts` of most benchmark scripts is ten times the concurrency)."""

AICONFIGURATOR = Sweep("aiconfigurator", 10, 1.0, _generated)
"""`aiconfigurator` 0.2 to 0.5, `eval/benchmarks/genai_perf_runner.py`: `--request-count` ten times the concurrency after
twice as many to warm up, standard deviation of both lengths 0, `ignore_eos`; server flags by its generator."""

INFERENCEMAX = Sweep("inferencemax", 10, 0.8, _none)
"""InferenceMAX (2025-10): `benchmark_serving.py --random-range-ratio 0.8 --request-rate inf --ignore-eos`, prompts ten times
the concurrency; vLLM's default budget. Quoted from memory of its scripts, and the points inferred to be its own by their
shapes: with lengths all alike their TTFT comes out 2 to 3 times too long."""

INFERENCEMAX_SHAPES = {(1024, 1024), (1024, 8192), (8192, 1024)}
"""(input, output) tokens of InferenceMAX."""


def sweep_of(experiment: Experiment) -> Sweep:
    """The sweep that a closed-loop point belongs to.

    Points that AIConfigurator publishes are its own where it recorded the engine's version; those without one that have
    the three shapes of InferenceMAX are taken for that benchmark's.
    """
    if not experiment.source.lower().startswith("aiconfigurator"):
        return PLAIN
    shape = (experiment.input_spec_tokens, experiment.output_tokens)
    if not experiment.engine_version and shape in INFERENCEMAX_SHAPES:
        return INFERENCEMAX
    return AICONFIGURATOR
