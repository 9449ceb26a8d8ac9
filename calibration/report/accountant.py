"""The decode accountant: pick a model, a GPU, a batch and a context in the page; Vega does the arithmetic.

The table below holds what the operators say of each model; the page only multiplies and adds, so that it
works offline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepline.sim.cost.catalogue import known_gpus, known_models, load_gpu, load_model
from stepline.sim.cost.operators import bytes_per_element, head_linear, kv_bytes, latent_bytes
from stepline.sim.cost.parameters import parameter_count
from stepline.traces.errors import ConfigError

from .theme import PART_COLOURS, styled

if TYPE_CHECKING:
    from stepline.sim.cost.specs import ModelSpec

WEIGHT_TYPES = ("bf16", "fp8", "int4", "fp4")
KV_TYPES = ("bf16", "fp8", "int4")
TP_SIZES = (1, 2, 4, 8)
SWEEP = tuple(2**i for i in range(11))


def model_row(model: ModelSpec) -> dict[str, Any]:
    """What a decode step of a model needs to know, in parameters and elements (not bytes).

    linear: parameters of linear layers outside the routed experts; head: of the LM head, 16 bits in every
    format;
    experts, n_experts, top_k: all routed experts, of which T tokens touch N (1 - (1 - k/N)^T); kv_full,
    kv_window:
    KV elements a token of layers without and with a window of `window` tokens; kv_split: most GPUs that can
    share
    the KV; held: everything in memory that is not linear (embedding, norms); active: parameters a token
    computes with.
    """
    count = parameter_count(model)
    moe, windows = model.moe, model.windows
    one = _kv_elements(model)
    return {
        "model": model.name,
        "linear": count.attention + count.dense_ffn + count.shared + count.router,
        "head": head_linear(model).n * head_linear(model).k,
        "experts": count.experts,
        "n_experts": moe.n_experts if moe else 1,
        "top_k": moe.top_k if moe else 1,
        "kv_full": one * sum(n for w, n in windows if w is None),
        "kv_window": one * sum(n for w, n in windows if w is not None),
        "window": max((w for w, _ in windows if w is not None), default=1),
        "kv_split": 1 if model.mla else model.n_kv_heads,
        "held": count.embedding + count.norms + count.extra,
        "active": count.active - count.embedding,
    }


def _kv_elements(model: ModelSpec) -> float:
    bf16 = bytes_per_element("bf16")
    if model.mla is not None:
        return float(latent_bytes(1, model.mla.kv_lora_rank, model.mla.qk_rope_head_dim)) / bf16
    return float(kv_bytes(1, model.n_kv_heads, model.head_dim)) / bf16


def models() -> list[dict[str, Any]]:
    """`model_row` of every model of the catalogue that can be priced."""
    rows = []
    for name in known_models():
        try:
            rows.append(model_row(load_model(name)))
        except ConfigError:  # counts without a step price (encoder-decoder)
            continue
    return rows


STEPS: tuple[tuple[str, str], ...] = (
    ("w_bytes", "datum.w_types[weights]"),
    ("c_bytes", "datum.w_types[kv]"),
    ("touched", "datum.experts * (1 - pow(1 - datum.top_k / datum.n_experts, datum.tokens))"),
    ("weight_gb", "((datum.linear + datum.touched) * datum.w_bytes + datum.head * 2) / tp / 1e9"),
    ("kv_tokens", "datum.kv_full * context + datum.kv_window * min(context, datum.window)"),
    ("kv_gb", "datum.tokens * datum.kv_tokens * datum.c_bytes / min(tp, datum.kv_split) / 1e9"),
    ("held_gb", "((datum.linear + datum.experts) * datum.w_bytes + (datum.head + datum.held) * 2) / tp / 1e9"),
    ("memory_gb", "datum.held_gb + datum.kv_gb"),
    ("read_s", "(datum.weight_gb + datum.kv_gb) / (datum.gpus[gpu].bandwidth / 1e9)"),
    ("compute_s", "2 * datum.active * datum.tokens / tp / datum.gpus[gpu].peak"),
    ("step_s", "max(datum.read_s, datum.compute_s)"),
    ("rate", "datum.tokens / datum.step_s"),
    ("kv_share", "datum.kv_gb / (datum.kv_gb + datum.weight_gb)"),
    ("fits", "datum.memory_gb < datum.gpus[gpu].memory"),
)  # fmt: skip
"""The arithmetic of the page, in Vega expressions: name, expression; parameters are model, gpu, batch, context ..."""

LEVER = (
    "!datum.fits ? 'does not fit: more GPUs, smaller weights or KV' : "
    "datum.compute_s > datum.read_s ? 'beyond the knee: compute-bound, more batch gains nothing' : "
    "datum.kv_share > 0.5 ? 'KV-bound: quantise, share or shorten the KV cache' : "
    "'weight-bound: quantise weights, or batch more'"
)


def accountant(model: str, gpu: str, batch: int, context: int) -> Any:
    """The interactive chart: GB of weights and KV on one GPU at the chosen batch, and the ceiling over batch."""
    import altair as alt

    base = _base(_parameters(model, gpu, batch, context))
    bars, text = _bars(base), _text(base)
    title = alt.TitleParams(
        "Decode accountant",
        subtitle=["what one step must read on one GPU, and the tokens/s that its bandwidth and peak allow;",
                  "a real engine reaches 60-80 % of it. Move the sliders below."],
    )  # fmt: skip
    return styled(
        alt.hconcat(alt.vconcat(bars, text), _sweep(base))
        .resolve_scale(color="independent")
        .properties(title=title)
    )


def _parameters(model: str, gpu: str, batch: int, context: int) -> dict[str, Any]:
    import altair as alt

    def choice(name: str, values: Any, value: Any) -> Any:
        return alt.param(
            name=name, value=value, bind=alt.binding_select(options=list(values), name=f"{name} ")
        )

    def slider(name: str, value: float, high: float) -> Any:
        ticks = alt.binding_range(min=0, max=high, step=0.5, name=f"log2 of {name} ")
        return alt.param(name=f"log_{name}", value=value, bind=ticks)

    from math import log2

    return {
        "model": choice("model", [row["model"] for row in models()], model),
        "gpu": choice("gpu", known_gpus(), gpu),
        "tp": choice("tp", TP_SIZES, 1),
        "weights": choice("weights", WEIGHT_TYPES, "bf16"),
        "kv": choice("kv", KV_TYPES, "bf16"),
        "log_batch": slider("batch", log2(batch), 10),
        "log_context": slider("context", log2(context), 17),
        "batch": alt.param(name="batch", expr="round(pow(2, log_batch))"),
        "context": alt.param(name="context", expr="round(pow(2, log_context))"),
    }


def _base(parameters: dict[str, Any]) -> Any:
    """One row a batch of the sweep and one for the chosen batch, with everything computed."""
    import json

    import altair as alt

    types = {t: bytes_per_element(t) for t in (*WEIGHT_TYPES, *KV_TYPES)}
    gpus = {
        g.name: {"bandwidth": g.hbm_bytes_per_s, "peak": g.peak_flops["bf16"], "memory": g.memory_bytes / 1e9}
        for g in (load_gpu(name) for name in known_gpus())
    }
    chart = (
        alt.Chart({"values": models()})
        .add_params(*parameters.values())
        .transform_filter("datum.model == model")
        .transform_calculate(
            sweep=f"[{', '.join(str(b) for b in SWEEP)}, batch]",
            w_types=json.dumps(types),
            gpus=json.dumps(gpus),
        )
        .transform_flatten(["sweep"], as_=["tokens"])
        .transform_window(row="row_number()")
    )
    for name, expression in STEPS:
        chart = chart.transform_calculate(**{name: expression})
    return chart.transform_calculate(lever=LEVER, chosen=f"datum.row == {len(SWEEP) + 1}")


def _bars(base: Any) -> Any:
    import altair as alt

    colour = alt.Scale(
        domain=["weights", "KV cache"], range=[PART_COLOURS["weights"], PART_COLOURS["KV cache"]]
    )
    parts = (
        base.transform_filter("datum.chosen")
        .transform_fold(["weight_gb", "kv_gb"], as_=["field", "gb"])
        .transform_calculate(part="datum.field == 'kv_gb' ? 'KV cache' : 'weights'")
    )
    x = alt.X("gb:Q", title="GB read in a step, on one GPU")
    bars = parts.mark_bar(height=34).encode(
        y=alt.Y("part:N", title=None, sort=["weights", "KV cache"]), x=x,
        color=alt.Color("part:N", title=None, scale=colour, legend=None),
    )  # fmt: skip
    labels = parts.mark_text(align="left", dx=5, fontSize=12).encode(
        y=alt.Y("part:N", sort=["weights", "KV cache"]), x=x, text=alt.Text("gb:Q", format=",.3~g")
    )
    return (bars + labels).properties(width=330, height=110)


def _text(base: Any) -> Any:
    import altair as alt

    lines = (
        "['ceiling ' + format(datum.rate, ',.0f') + ' tok/s, step ' + format(1000 * datum.step_s, '.2f') + ' ms, batch '"
        " + datum.tokens + ', context ' + context, 'KV is ' + format(datum.kv_share, '.0%') + ' of the bytes; memory '"
        " + format(datum.memory_gb, ',.0f') + ' of ' + format(datum.gpus[gpu].memory, ',.0f') + ' GB', datum.lever]"
    )
    return (
        base.transform_filter("datum.chosen")
        .transform_calculate(lines=lines)
        .mark_text(align="left", baseline="top", fontSize=13, lineHeight=20, color="#222")
        .encode(text="lines:N", x=alt.value(0), y=alt.value(4))
        .properties(width=330, height=80)
    )


def _sweep(base: Any) -> Any:
    import altair as alt

    x = alt.X("tokens:Q", title="sequences in the batch", scale=alt.Scale(type="log", base=2, domain=(1, 1024)),
              axis=alt.Axis(values=[4**i for i in range(6)], format="d"))  # fmt: skip
    y = alt.Y("rate:Q", title="ceiling, tokens/s", scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    colour = alt.Color(
        "fits:N", title="fits in memory", scale=alt.Scale(domain=[True, False], range=["#2f6db5", "#c9ced3"])
    )
    sweep = base.transform_filter("!datum.chosen")
    line = sweep.mark_line(color="#9fb6cf").encode(x=x, y=y)
    dots = sweep.mark_point(filled=True, size=46, opacity=1).encode(x=x, y=y, color=colour)
    here = (
        base.transform_filter("datum.chosen")
        .mark_point(size=170, color="#d1495b", strokeWidth=2.4)
        .encode(x=x, y=y)
    )
    return (line + dots + here).properties(width=330, height=220)
