"""The help of the bare command, short enough for one screen."""

from __future__ import annotations

from .main import verbs

_TEXT = """\
usage: simulate --trace FILE [--policy NAME ...] [options]     one run, or a comparison of several
       simulate VERB ...   {verbs}

Replay a trace of requests on a simulated LLM server and see throughput, tail latency and what bounds them.

examples:
  simulate --trace chat.jsonl --policy chunked
  simulate --trace chat.jsonl --policy static,continuous,chunked          compared on the same arrivals
  simulate --trace chat.jsonl --model llama-3.1-70b --gpu h200 --tp 2,4 --slo 'ttft_p99<0.5,tpot_p99<50ms'
  simulate --trace chat.jsonl --policy my_policy.py:MyPolicy:budget=512 --json | jq .ttft_s.p99

load       --trace FILE  --trace-format NAME  --hash-block-size TOKENS  --request-rate PER_S  --spread-quantum
           --replay open|closed  --rate-scale X  --rate-scale-mode sessions|compress
           --max-concurrency N  --client-timeout S  --slo LIMITS|mlperf:NAME  --seed N
hardware   --model NAME|config.json  --gpu NAME|FILE  --dtype FORMAT  --vllm-args 'FLAGS OF A SERVER'
           --kv-cache-dtype FORMAT  --cost-model NAME|module:Class  --calibration NAME|FILE  --usd-per-gpu-hour USD
parallel   --tp N (--tensor-parallel-size)  --pp N (--pipeline-parallel-size)  --dp N (--data-parallel-size)
           --enable-expert-parallel  --expert-skew A
what if    --attention-backend auto|flash|flash-decoding|naive  --elementwise fused|separate  --enforce-eager
scheduling --policy NAME|module:Class[:k=v,...]  --engine NAME  --preemption NAME  --admission NAME
           --speculative-config JSON  --enable-lora  --max-loras N  --max-lora-rank N  --generation-config NAME
           --max-num-batched-tokens N  --max-num-seqs N  --max-model-len N  --long-prefill-token-threshold N
fleet      --replicas N  --routing NAME  --router-scrape-interval S  --fleet gpu=G,tp=N,count=N[+...]
           --disaggregate prefill=N,decode=N[,link=NAME,...]  --decode-routing NAME  --stragglers frac=X,factor=X
           --failures mtbf=S,mttr=S|replica=N,at=S,for=S  --autoscale min=N,max=N,target=X[,metric=NAME,...]
KV cache   --kv-eviction NAME  --kv-compression NAME  --[no-]enable-prefix-caching  --block-size N
           --gpu-memory-utilization FRAC  --num-gpu-blocks-override N  --kv-offloading-size GIB
           --kv-offloading-ssd-size GIB  --kv-offloading-backend native[:k=v,...]
results    --out DIR  --no-save  --record-steps  --uncertainty [DRAWS]  --json  --quiet
files      --report [FILE]  --vllm-bench-json FILE  --prometheus FILE  --perfetto FILE

Options of the server take several values: repeat them, or use commas. --help-all explains every option and its default."""


def short_help() -> str:
    """What `simulate --help` prints."""
    return _TEXT.format(verbs="|".join(verbs()))
