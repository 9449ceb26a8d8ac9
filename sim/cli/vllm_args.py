"""`--vllm-args "…"`: the flags of a running vLLM server, taken over as settings.

Names are those of `vllm serve` (EngineArgs). What shapes scheduling, memory or kernels is taken over; what only concerns
the HTTP side is passed over and named; what changes performance in a way that is not simulated is refused.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from stepline.traces.errors import ConfigError, nearest

TAKEN = {
    "model": "model",
    "tensor-parallel-size": "tensor_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size",
    "data-parallel-size": "data_parallel_size",
    "dtype": "dtype",
    "quantization": "dtype",
    "kv-cache-dtype": "kv_cache_dtype",
    "max-num-batched-tokens": "max_num_batched_tokens",
    "max-num-seqs": "max_num_seqs",
    "max-model-len": "max_model_len",
    "long-prefill-token-threshold": "long_prefill_token_threshold",
    "block-size": "block_size",
    "gpu-memory-utilization": "gpu_memory_utilization",
    "num-gpu-blocks-override": "num_gpu_blocks_override",
    "kv-offloading-size": "kv_offloading_size",
    "kv-offloading-backend": "kv_offloading_backend",
    "generation-config": "generation_config",
    "scheduling-policy": "policy",
    "attention-backend": "attention_backend",
    "speculative-config": "speculative_config",
    "max-loras": "max_loras",
    "max-lora-rank": "max_lora_rank",
}
"""Flags with a value: the setting that each becomes."""

SHORT = {
    "-tp": "tensor-parallel-size",
    "-dp": "data-parallel-size",
    "-q": "quantization",
    "-pp": "pipeline-parallel-size",
}

TURNED_ON = {
    "enforce-eager": "enforce_eager",
    "enable-expert-parallel": "enable_expert_parallel",
    "enable-lora": "enable_lora",
}
"""Flags without a value: the setting that each turns on; each also has a `--no-` form."""

SWITCHES = ("enable-prefix-caching", "enable-chunked-prefill", "async-scheduling")
"""Flags without a value; each also has a `--no-` form."""

PASSED_OVER = {
    "host", "port", "api-key", "served-model-name", "trust-remote-code", "download-dir", "load-format", "revision",
    "tokenizer", "tokenizer-mode", "tokenizer-revision", "chat-template", "enable-auto-tool-choice", "tool-call-parser",
    "reasoning-parser", "disable-log-requests", "enable-log-requests", "disable-log-stats", "uvicorn-log-level",
    "root-path", "ssl-keyfile", "ssl-certfile", "allowed-origins", "response-role", "max-log-len", "seed",
    "hf-token", "hf-overrides", "otlp-traces-endpoint", "distributed-executor-backend", "api-server-count", "task", "runner",
    "device", "swap-space", "max-seq-len-to-capture", "max-logprobs", "config-format", "code-revision", "lora-modules",
    "limit-mm-per-prompt", "mm-processor-kwargs", "override-generation-config", "guided-decoding-backend",
    "prefix-caching-hash-algo", "kv-events-config", "tool-parser-plugin", "middleware", "ssl-ca-certs", "lora-extra-vocab-size",
    "chat-template-content-format", "disable-frontend-multiprocessing", "enable-request-id-headers", "disable-fastapi-docs",
    "enable-server-load-tracking", "enable-force-include-usage", "return-tokens-as-token-ids", "disable-uvicorn-access-log",
    "enable-prompt-tokens-details", "calculate-kv-scales", "disable-mm-preprocessor-cache", "enable-sleep-mode",
}  # fmt: skip
"""Flags that do not change what the engine computes or when (swap space: vLLM V1 never swaps)."""

_VALUELESS = {
    "trust-remote-code", "enable-auto-tool-choice", "disable-log-requests", "enable-log-requests", "disable-log-stats",
    "disable-frontend-multiprocessing", "enable-request-id-headers", "disable-fastapi-docs", "enable-server-load-tracking",
    "enable-force-include-usage", "return-tokens-as-token-ids", "disable-uvicorn-access-log", "enable-prompt-tokens-details",
    "calculate-kv-scales", "disable-mm-preprocessor-cache", "enable-sleep-mode",
}  # fmt: skip

REFUSED = {
    "cpu-offload-gb": "weights in host memory are not simulated",
    "kv-transfer-config": "KV transfer between servers is not simulated",
    "max-num-partial-prefills": "concurrent partial prefills are not simulated",
    "kv-cache-memory-bytes": "give --num-gpu-blocks-override in its place",
    "preemption-mode": "give --preemption in its place",
    "num-scheduler-steps": "scheduling several steps at once is not simulated",
    "stream-interval": "outputs sent several tokens at a time are not simulated",
    "disable-custom-all-reduce": "collectives other than those that were timed are not simulated",
    "disable-sliding-window": "models run with the attention windows of their config",
    "decode-context-parallel-size": "context parallelism is not simulated",
    "enable-eplb": "moving experts between GPUs is not simulated",
}
"""Flags that change performance in ways that are not simulated, with what to say."""

_QUANTIZATION = {
    "fp8": "fp8", "awq": "int4", "awq_marlin": "int4", "gptq": "int4", "gptq_marlin": "int4", "nvfp4": "fp4",
    "modelopt_fp4": "fp4", "modelopt": "fp8", "w8a8_int8": "int8",
}  # fmt: skip
_BACKENDS = dict.fromkeys(
    ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLASHMLA", "FLASH_ATTN_MLA", "CUTLASS_MLA"), "auto"
)
"""All of them keep scores on chip and split the keys of decodes: the kernels that were timed stand for each."""

_POLICIES = {"fcfs": "chunked", "priority": "priority"}


@dataclass(frozen=True, slots=True)
class Imported:
    """`settings` as texts by name of the setting; `prefix_caching`; `passed_over`: flags without effect here."""

    settings: dict[str, str]
    prefix_caching: bool | None
    passed_over: tuple[str, ...]


def imported(text: str) -> Imported:
    """Read a server's command line, with or without `vllm serve` in front.

    Raises:
        ConfigError: a flag that vLLM does not have (with the nearest), one that is not simulated, a missing value.
    """
    words = _words(text)
    settings: dict[str, str] = {}
    passed_over: list[str] = []
    caching: bool | None = None
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            settings["model"] = word
            continue
        name, value = _split(word)
        plain = name.removeprefix("no-")
        if plain in SWITCHES:
            caching = _switch(plain, caching, on=_is_on(name, value, words))
        elif plain in TURNED_ON:
            settings[TURNED_ON[plain]] = str(_is_on(name, value, words)).lower()
        elif name in TAKEN:
            settings |= _setting(name, value if value is not None else _value(name, words))
        elif name in PASSED_OVER:
            passed_over.append(f"--{name}")
            if value is None and name not in _VALUELESS:
                _value(name, words)
        else:
            raise _refused(name)
    return Imported(settings, caching, tuple(passed_over))


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--vllm-args: {error} in {text!r}") from None
    if words[:1] == ["vllm"]:
        words = words[1:]
    return words[1:] if words[:1] == ["serve"] else words


def _split(word: str) -> tuple[str, str | None]:
    """The flag's long name with dashes, and its value if it came with `=`."""
    flag, sign, value = word.partition("=")
    name = SHORT.get(flag, flag.lstrip("-").replace("_", "-"))
    return name, value if sign else None


def _value(name: str, words: list[str]) -> str:
    if not words or words[0].startswith("--"):
        raise ConfigError(f"--vllm-args: --{name}: expected a value")
    return words.pop(0)


def _is_on(name: str, value: str | None, words: list[str]) -> bool:
    """What a flag without a value says; older servers gave some of them one, true or false."""
    if value is None and words and words[0].lower() in _TRUTH:
        value = words.pop(0)
    if value is not None and (value.lower() not in _TRUTH or name.startswith("no-")):
        raise ConfigError(f"--vllm-args: --{name}: got {value!r}, expected no value")
    said = value is None or _TRUTH[value.lower()]
    return said and not name.startswith("no-")


_TRUTH = {"true": True, "false": False}


def _switch(name: str, caching: bool | None, *, on: bool) -> bool | None:
    if name == "enable-prefix-caching":
        return on
    if not on:
        raise ConfigError(
            f"--vllm-args: --no-{name}: not simulated; --policy and --engine say how steps are planned"
        )
    return caching


def _setting(name: str, value: str) -> dict[str, str]:
    if name == "quantization":
        return {"dtype": _named(name, value, _QUANTIZATION)}
    if name == "attention-backend":
        return {"attention_backend": _named(name, value, _BACKENDS)}
    if name == "scheduling-policy":
        return {"policy": _named(name, value, _POLICIES)}
    if name == "max-model-len" and value.endswith("K"):  # vLLM: 1k is 1000, 1K is 1024
        value = str(int(float(value[:-1]) * 1024))
    return {TAKEN[name]: value}


def _named(name: str, value: str, known: dict[str, str]) -> str:
    if value not in known:
        raise ConfigError(f"--vllm-args: --{name}: got {value!r}{nearest(value, known)}")
    return known[value]


def _refused(name: str) -> ConfigError:
    """What to say of a flag that is not simulated, or not vLLM's."""
    if name in REFUSED:
        return ConfigError(f"--vllm-args: --{name}: {REFUSED[name]}")
    known = {*TAKEN, *TURNED_ON, *SWITCHES, *PASSED_OVER, *REFUSED}
    hint = nearest(name, known).split(" (known:", 1)[0]
    return ConfigError(f"--vllm-args: unknown flag --{name}{hint}")
