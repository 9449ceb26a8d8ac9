"""What only a fleet has to tell: transfers between pools, outages, scaling, hardware that differs. One line a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepline.traces.wording import counted

from .units import rate_text, seconds_text, share_text


def fleet_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(part, line) of the parts that a run's summary has, drafts and adapters among them; empty for plain replicas."""
    parts = {
        **summary.get("fleet", {}),
        **{key: summary[key] for key in ("speculation", "lora") if key in summary},
    }
    return [(name, write(parts[key])) for key, (name, write) in _PARTS.items() if key in parts]


def _pools(part: Mapping[str, Any]) -> str:
    text = (
        f"{part['prefill_replicas']} prefill + {part['decode_replicas']} decode; {counted(part['transfers'], 'transfer')}, "
        f"{rate_text(part['transferred_bytes_per_gpu'] / 1e9)} GB a GPU, mean {seconds_text(part['mean_transfer_s'])} "
        f"after {seconds_text(part['mean_wait_s'])} wait for room"
    )
    return f"{text}; steps held up for {seconds_text(part['copy_s'])}" if part["copy_s"] else text


def _outages(part: Mapping[str, Any]) -> str:
    n = part["outages"]
    text = f"{counted(n, 'outage')}, {seconds_text(part['down_s'])} down"
    if not part["retried_requests"]:
        return f"{text}; nobody was hit"
    return (
        f"{text}; {counted(part['retried_requests'], 'request')} sent again, recovered after "
        f"{seconds_text(part['mean_recovery_s'])} (longest {seconds_text(part['longest_recovery_s'])})"
    )


def _scaling(part: Mapping[str, Any]) -> str:
    return (
        f"{counted(part['scale_outs'], 'replica')} started, {part['scale_ins']:,} retired, "
        f"at most {part['most_replicas']} at a time"
    )


def _hardware(part: Mapping[str, Any]) -> str:
    kinds = [
        f"{kind['replicas']} × {kind['gpu']} TP {kind['tp']}: {kind['gpu_hours']:.3g} GPU hours, "
        f"{share_text(kind['busy_gpu_hours'] / kind['gpu_hours'] if kind['gpu_hours'] else 0.0)} busy"
        for kind in part["kinds"]
    ]
    return "; ".join(kinds)


def _drafts(part: Mapping[str, Any]) -> str:
    return f"{part['tokens_per_verification']:.2f} tokens a verification of a sequence"


def _adapters(part: Mapping[str, Any]) -> str:
    return f"{counted(part['loads'], 'load')} to a GPU, steps held up for {seconds_text(part['load_s'])}"


_PARTS = {
    "disaggregation": ("pools", _pools),
    "failures": ("failures", _outages),
    "autoscaling": ("scaling", _scaling),
    "hardware": ("hardware", _hardware),
    "speculation": ("drafts", _drafts),
    "lora": ("adapters", _adapters),
}
"""Key in the summary: what the part is called, how it is told."""
