"""The policy studies: `python results/policies/studies.py [NAME ...] [--data DIR]` writes NAME.csv and NAME.svg here.

Every run is Llama-3.1-8B on one H100 with the defaults of `simulate`, unless the study says otherwise; loads are the
shipped sample traces or made here from a seed. `--data`: a folder with real traces and reference hit rates, for
`hit_rates` and `engine_hit_rates`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from stepline.sim import read_trace, simulate, summary
from stepline.sim.study.reuse import ceiling, frame, reuse
from stepline.traces.random_streams import stream
from stepline.traces.trace import Ragged, Trace
from stepline.traces.transform import rate_scale

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "traces" / "samples"
WIDTH, HEIGHT = 300, 220


def figures(trace: Trace, **settings: Any) -> dict[str, float]:
    """The figures of one run that these studies speak of: seconds, tokens per second, fractions of 1."""
    s = summary(simulate(trace, **settings))
    return {
        "tokens_per_s": s["throughput"]["output_tokens_per_s"],
        "ttft_mean_s": s["ttft_s"]["mean"],
        "ttft_p50_s": s["ttft_s"]["p50"],
        "ttft_p99_s": s["ttft_s"]["p99"],
        "tpot_mean_s": s["tpot_s"]["mean"],
        "itl_p50_s": s["itl_s"]["p50"],
        "itl_p99_s": s["itl_s"]["p99"],
        "e2e_mean_s": s["e2e_s"]["mean"],
        "e2e_p99_s": s["e2e_s"]["p99"],
        "hit_frac": s["kv"]["prefix_hit_token_frac"],
        "preemptions": s["requests"]["preemptions"],
    }


def sample(name: str, rate: float = 1.0) -> Trace:
    """A shipped sample at a multiple of its rate."""
    return rate_scale(read_trace(SAMPLES / f"{name}.jsonl"), rate)


def poisson(n: int, rate: float, inputs: Any, outputs: Any, seed: int = 0, **columns: Any) -> Trace:
    """n requests at `rate` per second; lengths as given (numbers or arrays)."""
    gaps = -np.log1p(-stream(seed, "arrivals").random(n)) / rate
    ones = np.ones(n, dtype=np.int64)
    return Trace(np.cumsum(gaps), ones * inputs, ones * outputs, columns=columns)


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table."""
    return pd.DataFrame(rows)


# -- the studies -----------------------------------------------------------------------------------------------------


def chunked_prefill() -> tuple[pd.DataFrame, Any]:
    """Chunked prefill flattens the tail of inter-token gaps; first tokens pay."""
    load = sample("code", 3.0)
    policies = (
        "continuous",
        "chunked",
        "sarathi:chunk_tokens=2048",
        "sarathi:chunk_tokens=512",
        "chunked-slo:tpot_s=0.03",
    )
    found = table([{"policy": policy, **figures(load, policy=policy)} for policy in policies])
    order = found["policy"].tolist()
    base = alt.Chart(
        found.assign(itl_ms=1e3 * found["itl_p99_s"], ttft_ms=1e3 * found["ttft_p99_s"]), height=alt.Step(24)
    )
    y = alt.Y("policy:N", sort=order, title=None)
    bars = [
        base.mark_bar()
        .encode(y=y, x=alt.X(f"{field}:Q", title=title), color=alt.Color("policy:N", legend=None, sort=order))
        .properties(width=WIDTH)
        for field, title in (("itl_ms", "p99 ITL, ms"), ("ttft_ms", "p99 TTFT, ms"))
    ]
    return found, alt.hconcat(*bars)


def token_budget() -> tuple[pd.DataFrame, Any]:
    """A larger token budget buys throughput with the tail of inter-token gaps."""
    load = poisson(2000, 40.0, 2000, 200)
    budgets = (256, 512, 1024, 2048, 4096, 8192, 16384)
    found = table([{"budget_tokens": b, **figures(load, max_num_batched_tokens=b)} for b in budgets])
    shown = found.assign(itl_ms=1e3 * found["itl_p99_s"])
    line = alt.Chart(shown, width=WIDTH * 1.5, height=HEIGHT).encode(
        x=alt.X("itl_ms:Q", title="p99 ITL, ms", scale=alt.Scale(type="log")),
        y=alt.Y("tokens_per_s:Q", title="output tokens/s", scale=alt.Scale(zero=False)),
    )
    labels = line.mark_text(align="left", dx=8, dy=4).encode(text="budget_tokens:Q")
    return found, line.mark_line(point=True) + labels


def batching() -> tuple[pd.DataFrame, Any]:
    """Continuous batching against request-level batching where output lengths vary."""
    load = sample("chat")
    rows = []
    for policy in ("static", "orca", "continuous", "chunked"):
        for rate in (0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0):
            at = rate_scale(load, rate)
            result = simulate(at, policy=policy)
            requests = result.requests
            per_token_s = ((requests["finish_s"] - requests["arrival_s"]) / requests["output_tokens"]).mean()
            rows.append(
                {"policy": policy, "requests_per_s": len(at) / at.arrival_s[-1], "s_per_token": per_token_s}
            )
            if per_token_s > 2.0:
                break
    found = table(rows)
    line = alt.Chart(found.assign(ms=1e3 * found["s_per_token"]), width=WIDTH * 1.5, height=HEIGHT).mark_line(
        point=True
    )
    return found, line.encode(
        x=alt.X("requests_per_s:Q", title="requests/s"),
        y=alt.Y(
            "ms:Q",
            title="mean latency per output token, ms",
            scale=alt.Scale(type="log", domain=[5, 2000], clamp=True),
        ),
        color=alt.Color("policy:N", title=None, sort=["static", "orca", "continuous", "chunked"]),
    )


def kv_cliff() -> tuple[pd.DataFrame, Any]:
    """A few per cent of KV blocks are nothing, until they are the difference between waiting and not."""
    load = poisson(3000, 6.0, 1500, 400)
    sizes = (6000, 5500, 5000, 4750, 4500, 4250, 4000, 3750, 3500, 3250, 3000, 2750)
    found = table([{"blocks": n, **figures(load, num_gpu_blocks_override=n)} for n in sizes])
    shown = found.assign(ttft_ms=1e3 * found["ttft_p99_s"])
    line = alt.Chart(shown, width=WIDTH * 1.5, height=HEIGHT).mark_line(point=True)
    return found, line.encode(
        x=alt.X("blocks:Q", title="KV blocks of 16 tokens", scale=alt.Scale(zero=False)),
        y=alt.Y("ttft_ms:Q", title="p99 TTFT, ms", scale=alt.Scale(type="log")),
    )


def swap_or_recompute() -> tuple[pd.DataFrame, Any]:
    """What one preemption costs: the victim's KV computed again, or moved over PCIe and back."""
    rows = []
    rules = {
        "recompute": "last-in",
        "swap, PCIe at 64 GB/s": "last-in:mode=swap,swap_gib=64",
        "swap, 50 µs a block more": "last-in:mode=swap,swap_gib=64,copy_s=5e-5",
        "swap, 100 µs a block more": "last-in:mode=swap,swap_gib=64,copy_s=1e-4",
    }
    for context in (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768):
        load = Trace(np.zeros(2), np.full(2, context), np.full(2, 64))
        need = 2 * -(-context // 16)
        settings = {"max_num_batched_tokens": 65536, "enable_prefix_caching": False}
        free_s = makespan(load, num_gpu_blocks_override=need + 100, **settings)
        for name, rule in rules.items():
            result = simulate(load, preemption=rule, num_gpu_blocks_override=need + 4, **settings)
            n = int(result.requests["preemptions"].sum())
            # the second sequence decodes alone for the rest: what two decodes together save is no cost of moving
            rows.append(
                {
                    "context_tokens": context,
                    "way": name,
                    "preemptions": n,
                    "busy_s": result.totals.busy_s,
                    "free_s": free_s,
                }
            )
    found = table(rows)
    base = found[found["way"] == "swap, PCIe at 64 GB/s"].set_index("context_tokens")["busy_s"]
    link_s = found["context_tokens"] * 2 * 131072 / 64e9
    found["cost_ms"] = 1e3 * (found["busy_s"] - found["context_tokens"].map(base) + link_s)
    line = alt.Chart(found, width=WIDTH * 1.5, height=HEIGHT).mark_line(point=True)
    return found, line.encode(
        x=alt.X(
            "context_tokens:Q", title="context of the victim, tokens", scale=alt.Scale(type="log", base=2)
        ),
        y=alt.Y("cost_ms:Q", title="GPU time of one preemption, ms", scale=alt.Scale(type="log")),
        color=alt.Color("way:N", title=None, sort=list(rules), legend=alt.Legend(labelLimit=250)),
    )


def makespan(trace: Trace, **settings: Any) -> float:
    """Busy seconds of a run."""
    return float(simulate(trace, **settings).totals.busy_s)


def queue_orders() -> tuple[pd.DataFrame, Any]:
    """Shortest first helps the mean and hurts the tail."""
    load = sample("longchat", 1.2)
    policies = (
        "chunked",
        "sjf",
        "sjf:patience_s=20",
        "srpt:predictor=history",
        "oracle-srpt",
        "mlfq",
        "control-longest-first",
    )
    found = table([{"policy": p, **figures(load, policy=p, enable_prefix_caching=False)} for p in policies])
    order = found["policy"].tolist()
    y = alt.Y("policy:N", sort=order, title=None)
    base = alt.Chart(found, height=alt.Step(24)).mark_bar()
    bars = [
        base.encode(
            y=y, x=alt.X(f"{field}:Q", title=title), color=alt.Color("policy:N", legend=None, sort=order)
        ).properties(width=WIDTH)
        for field, title in (("ttft_mean_s", "mean TTFT, s"), ("ttft_p99_s", "p99 TTFT, s"))
    ]
    return found, alt.hconcat(*bars)


def greedy_tenant() -> tuple[pd.DataFrame, Any]:
    """A tenant that floods the queue waits for itself under fair shares, and makes everybody wait under FCFS."""
    n_quiet, n_greedy = 240, 9000
    quiet = poisson(n_quiet, 1.0, 500, 200, seed=1)
    greedy = poisson(n_greedy, 100.0, 500, 200, seed=2)
    at = np.concatenate([quiet.arrival_s, 60.0 + greedy.arrival_s])
    order = np.argsort(at, kind="stable")
    tenants = np.array(["quiet"] * n_quiet + ["greedy"] * n_greedy)[order].tolist()
    n = n_quiet + n_greedy
    load = Trace(at[order], np.full(n, 500), np.full(n, 200), columns={"tenant": tenants})
    rows, points = [], []
    for policy in ("chunked", "fair", "fair:quiet=4"):
        result = simulate(load, policy=policy, max_num_seqs=128)
        requests = result.requests.sort_values("request_index")
        ttft_s = (requests["first_token_s"] - requests["arrival_s"]).to_numpy()
        for tenant in ("quiet", "greedy"):
            mine = np.array([t == tenant for t in tenants])
            rows.append({
                "policy": policy, "tenant": tenant, "ttft_mean_s": ttft_s[mine].mean(),
                "ttft_p99_s": np.quantile(ttft_s[mine], 0.99), "tokens_per_s": 200 * mine.sum() / (requests["finish_s"].max()),
            })  # fmt: skip
        quiet_rows = np.array(tenants) == "quiet"
        points += [
            {"policy": policy, "arrival_s": a, "ttft_s": max(t, 1e-3)}
            for a, t in zip(load.arrival_s[quiet_rows], ttft_s[quiet_rows], strict=True)
        ]
    chart = alt.Chart(pd.DataFrame(points), width=WIDTH * 1.5, height=HEIGHT).mark_line()
    return table(rows), chart.encode(
        x=alt.X("arrival_s:Q", title="arrival, s (the greedy tenant comes at 60 s)"),
        y=alt.Y("ttft_s:Q", title="TTFT of the quiet tenant, s", scale=alt.Scale(type="log")),
        color=alt.Color("policy:N", title=None),
    )


def prompt_cycle() -> tuple[pd.DataFrame, Any]:
    """Prompts that return later than the cache can hold: LRU loses each just before it is needed."""
    load = cycle_of_prompts()
    settings: dict[str, Any] = {
        "model": "llama-2-7b", "engine": "vllm-0.15.1", "max_num_batched_tokens": 2048, "max_num_seqs": 128, "max_model_len": 4096,
    }  # fmt: skip
    policies = (
        "lru",
        "fifo",
        "lfu",
        "2q",
        "arc",
        "gdsf",
        "s3-fifo",
        "mru",
        "random",
        "lru-k",
        "outputs-first",
        "oracle-optimal",
    )
    rows = [{"eviction": "lru, 16 000 blocks", **figures(load, num_gpu_blocks_override=16_000, **settings)}]
    settings["num_gpu_blocks_override"] = 7463  # measured at start-up of that run
    rows += [{"eviction": p, **figures(load, kv_eviction=p, **settings)} for p in policies]
    found = table(rows)
    found["ttft_over_tpot"] = found["ttft_mean_s"] / found["tpot_mean_s"]
    order = found["eviction"].tolist()
    bars = alt.Chart(found, width=WIDTH * 1.4, height=alt.Step(18)).mark_bar()
    return found, bars.encode(
        y=alt.Y("eviction:N", sort=order, title=None),
        x=alt.X("ttft_over_tpot:Q", title="mean TTFT / mean TPOT (measured: 4.7; runs that fit: about 3)"),
        color=alt.condition("datum.eviction == 'lru'", alt.value("#d62728"), alt.value("#4c78a8")),
    )


def cycle_of_prompts(
    n: int = 1200, rate: float = 1.0, prompts: int = 100, tokens: int = 1034, out: int = 1448
) -> Trace:
    """Request i sends prompt i mod 100; ten groups of ten prompts share their first 100 tokens. Blocks of 16 tokens.

    The law of the measured run: exponential gaps rescaled to 1200 s, 1034 + 1448 tokens.
    """
    gaps = -np.log1p(-stream(0, "prompt-cycle").random(n))
    at = np.cumsum(gaps) * (n / rate) / gaps.sum()
    shared = 100 // 16
    ids = [
        [
            10_000_000 + i % 10 * 1000 + b if b < shared else i % prompts * 1000 + b
            for b in range(-(-tokens // 16))
        ]
        for i in range(n)
    ]
    full = np.ones(n, dtype=np.int64)
    return Trace(at - at[0], full * tokens, full * out, hash_ids=Ragged.from_rows(ids), block_size=full * 16)


def tiers() -> tuple[pd.DataFrame, Any]:
    """Host memory behind the pool pays once it is larger than the pool, and over a link faster than computing."""
    load = sample("longchat", 0.6)
    ways: dict[str, Callable[[float], dict[str, Any]]] = {
        "host memory at 64 GB/s": lambda gib: {"kv_offloading_size": gib},
        "a tenth of it, the rest SSD": lambda gib: {
            "kv_offloading_size": 0.1 * gib,
            "kv_offloading_ssd_size": 0.9 * gib,
        },
        "host memory at 2 GB/s, by cost": lambda gib: {
            "kv_offloading_size": gib,
            "kv_offloading_backend": "native:pcie_gb_per_s=2",
        },
        "host memory at 2 GB/s, always": lambda gib: {
            "kv_offloading_size": gib,
            "kv_offloading_backend": "native:pcie_gb_per_s=2,load=always",
        },
    }
    none = figures(load)
    rows = [
        {"way": way, "gib": gib, **(figures(load, **settings(gib)) if gib else none)}
        for way, settings in ways.items()
        for gib in (0.0, 25.0, 50.0, 100.0, 200.0, 400.0, 800.0)
    ]
    found = table(rows)
    base = alt.Chart(found.assign(hit=100 * found["hit_frac"]), width=WIDTH, height=HEIGHT).mark_line(
        point=True
    )
    panels = [
        base.encode(
            x=alt.X(
                "gib:Q", title="GiB behind a pool of 55 GiB", scale=alt.Scale(type="symlog", constant=25)
            ),
            y=alt.Y(f"{field}:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("way:N", title=None, sort=list(ways), legend=alt.Legend(labelLimit=250)),
        )
        for field, title in (("hit", "prompt tokens that hit, %"), ("ttft_mean_s", "mean TTFT, s"))
    ]
    return found, alt.hconcat(*panels)


EVICTIONS = (
    "lru", "fifo", "lfu:aging=true", "lru-k", "2q", "arc", "s3-fifo", "gdsf", "radix-lru", "mru", "random", "oracle-optimal",
)  # fmt: skip


def hit_rates(data: Path | None = None) -> tuple[pd.DataFrame, Any]:
    """Hit rate by cache size and policy, second half of the requests."""
    traces = {"longchat": (SAMPLES / "longchat.jsonl", (100, 300, 1000, 3000, 10000))}
    if data is not None:
        traces["mooncake conversation"] = (
            data / "mooncake_conversation_first10min.jsonl.gz",
            (305, 1222, 4888, 9776),
        )
    parts = []
    for name, (path, sizes) in traces.items():
        trace = read_trace(path)
        found = frame(reuse(trace, EVICTIONS, sizes, warmup_frac=0.5))
        found["ceiling"] = ceiling(trace, 0.5)
        parts.append(found.assign(trace=name))
    table_ = pd.concat(parts, ignore_index=True)
    lines = alt.Chart(
        table_.assign(hit=100 * table_["hit_token_frac"]), width=WIDTH, height=HEIGHT
    ).mark_line(point=True)
    return table_, lines.encode(
        x=alt.X("capacity_blocks:Q", title="blocks of 512 tokens", scale=alt.Scale(type="log")),
        y=alt.Y("hit:Q", title="prompt tokens that hit, %"),
        color=alt.Color("policy:N", title=None, sort=list(EVICTIONS), scale=alt.Scale(scheme="tableau20")),
        column=alt.Column("trace:N", title=None),
    ).resolve_scale(x="independent")


REFERENCE = {"lru": "lru", "fifo": "fifo", "optimal": "oracle-optimal"}


OUTPUTS = ("cached", "first", "none", "none, blocks of 512")
"""What becomes of generated tokens under LRU: they stay as vLLM keeps them, go first, or there are none."""


def engine_hit_rates(data: Path | None = None) -> tuple[pd.DataFrame, Any]:
    """The engine's hit rates (blocks of 16, running sequences pinned, outputs cached) beside the reference replays."""
    if data is None:
        raise SystemExit("engine_hit_rates: needs --data DIR with the traces and their *.ref_hitrate.json")
    rows = []
    for file in sorted(data.glob("*.ref_hitrate.json")):
        name = file.name.removesuffix(".ref_hitrate.json")
        trace = read_trace(data / f"{name}.jsonl.gz")
        for point in json.loads(file.read_text())["points"]:
            blocks = point["cacheBlocks"]
            for theirs, ours in REFERENCE.items():
                for outputs in OUTPUTS if ours == "lru" else OUTPUTS[:1]:
                    hit = second_half_hits(
                        one_token_each(trace) if outputs.startswith("none") else trace,
                        "outputs-first" if outputs == "first" else ours,
                        blocks,
                        512 if outputs.endswith("512") else 16,
                    )
                    want = point["results"][theirs]["hitRate"]
                    rows.append({
                        "trace": name, "blocks_of_512": blocks, "policy": ours, "outputs": outputs, "engine": hit,
                        "reference": want, "points": 100 * (hit - want),
                    })  # fmt: skip
    found = table(rows)
    names = {"cached": "", **{o: f", outputs {o}" for o in OUTPUTS[1:]}}
    shown = found.assign(case=found["policy"] + found["outputs"].map(names))
    dots = alt.Chart(shown, width=WIDTH, height=HEIGHT).mark_point(filled=True, size=50)
    return found, dots.encode(
        x=alt.X("blocks_of_512:Q", title="blocks of 512 tokens", scale=alt.Scale(type="log")),
        y=alt.Y("points:Q", title="engine - reference, points"),
        color=alt.Color("case:N", title=None),
        column=alt.Column("trace:N", title=None),
    ).resolve_scale(x="independent")


def one_token_each(trace: Trace) -> Trace:
    """The same prompts, each answered with one token: nothing is cached that the replay does not know."""
    return replace(trace, output_tokens=np.ones_like(trace.output_tokens))


def second_half_hits(trace: Trace, eviction: str, blocks_of_512: int, block_size: int) -> float:
    """Cached share of the prompt tokens of the second half of the requests, on an engine that is never busy."""
    result = simulate(
        trace, kv_eviction=eviction, num_gpu_blocks_override=512 // block_size * blocks_of_512 + 1, block_size=block_size,
        cost_model=f"{HERE / 'quick.py'}:Quick", engine="ideal", model="llama-4-scout",
    )  # fmt: skip
    second = result.requests.sort_values("request_index").iloc[len(trace) // 2 :]
    return float(second["cached_tokens"].sum() / second["input_tokens"].sum())


STUDIES: dict[str, Callable[..., tuple[pd.DataFrame, Any]]] = {
    f.__name__: f
    for f in (
        chunked_prefill,
        token_budget,
        batching,
        kv_cliff,
        swap_or_recompute,
        queue_orders,
        greedy_tenant,
        prompt_cycle,
        tiers,
        hit_rates,
        engine_hit_rates,
    )
}


def main() -> None:
    """Run the studies that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*STUDIES, []], metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the Mooncake conversation cut")
    args = parser.parse_args()
    for name in args.names or STUDIES:
        study = STUDIES[name]
        found, chart = study(args.data) if "hit_rates" in name else study()
        found.to_csv(HERE / f"{name}.csv", index=False, float_format="%.5g")
        chart.save(HERE / f"{name}.svg")
        print(f"{name}\n{found.to_string(index=False)}\n")


if __name__ == "__main__":
    main()
