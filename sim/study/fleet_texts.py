"""Fleets as settings say them: `key=value,...` texts, several joined by `+`, made into the parts of a cluster.

>>> parts_of("gpu=h200,count=2+gpu=l40s", "--fleet")
[{'gpu': 'h200', 'count': '2'}, {'gpu': 'l40s'}]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError, nearest
from stepline.traces.random_streams import stream

from ..cluster.autoscaler import Autoscaling
from ..cluster.handoff import CONNECTORS, Disaggregation
from ..cluster.links import Link
from ..cluster.outages import Outages

if TYPE_CHECKING:
    from .config import RunConfig

OF_A_REPLICA: dict[str, str] = {
    "gpu": "gpu",
    "tp": "tensor_parallel_size",
    "tensor-parallel-size": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "data-parallel-size": "data_parallel_size",
    "dtype": "dtype",
    "kv-cache-dtype": "kv_cache_dtype",
    "max-num-seqs": "max_num_seqs",
    "max-num-batched-tokens": "max_num_batched_tokens",
    "gpu-memory-utilization": "gpu_memory_utilization",
    "num-gpu-blocks-override": "num_gpu_blocks_override",
    "calibration": "calibration",
    "usd-per-gpu-hour": "usd_per_gpu_hour",
}
"""What may differ between the replicas of a fleet: the key in `--fleet`, the setting."""

_TEXTS = ("gpu", "dtype", "kv_cache_dtype", "calibration")
_NUMBERS = ("gpu_memory_utilization", "usd_per_gpu_hour")


_Value = Callable[[str, str], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """Replicas that are set up alike: so many of this configuration."""

    config: RunConfig
    count: int


def parts_of(text: str, where: str) -> list[dict[str, str]]:
    """The pairs of each part. Raises `ConfigError`, naming the flag `where`."""
    found = []
    for part in text.split("+"):
        pairs = [piece.partition("=") for piece in part.split(",") if piece.strip()]
        for key, sign, value in pairs:
            if not sign or not value.strip():
                raise ConfigError(f"{where} {text}: got {key!r}, expected key=value")
        found.append({key.strip(): value.strip() for key, _, value in pairs})
        if not pairs or len(found[-1]) < len(pairs):
            raise ConfigError(
                f"{where} {text}: got {part!r}, expected key=value pairs, each key once (parts are joined by +)"
            )
    return found


def _read(part: Mapping[str, str], where: str, known: Mapping[str, _Value]) -> dict[str, Any]:
    """The values of a part by key."""
    for key in part:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")
    return {key: known[key](value, f"{where}: {key}") for key, value in part.items()}


def _integer(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{where}: got {text!r}, expected an integer") from None


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise ConfigError(f"{where}: got {text!r}, expected a number")
    return value


def _text(text: str, _: str) -> str:
    return text


def _one_of(*names: str) -> _Value:
    def read(text: str, where: str) -> str:
        if text not in names:
            raise ConfigError(f"{where}: unknown value {text!r}{nearest(text, names)}")
        return text

    return read


def _yes_no(text: str, where: str) -> bool:
    return bool(_one_of("yes", "no")(text, where) == "yes")


def _single(text: str, where: str) -> dict[str, str]:
    parts = parts_of(text, where)
    if len(parts) > 1:
        raise ConfigError(f"{where} {text}: got {len(parts)} parts, expected one")
    return parts[0]


# -- replicas -----------------------------------------------------------------------------------------------------------


def kinds_of(config: RunConfig) -> tuple[Kind, ...]:
    """The kinds of replicas of a run, in order. Raises `ConfigError` where texts disagree on how many there are."""
    if config.fleet is None:
        return (Kind(config, replica_count(config)),)
    found = []
    for part in parts_of(config.fleet, "--fleet"):
        count = _integer(part.get("count", "1"), "--fleet: count")
        if count < 1:
            raise ConfigError(f"--fleet: count: got {count}, expected an integer >= 1")
        found.append(Kind(replace(config, **_settings(part)), count))
    total = replica_count(config)
    if (listed := sum(kind.count for kind in found)) != total:
        raise ConfigError(f"--fleet: lists {listed} replicas, expected {total}")
    return tuple(found)


def _settings(part: Mapping[str, str]) -> dict[str, Any]:
    readers: dict[str, _Value] = {
        key: _text if name in _TEXTS else _number if name in _NUMBERS else _integer
        for key, name in OF_A_REPLICA.items()
    }
    values = _read(part, "--fleet", {**readers, "count": _integer})
    return {OF_A_REPLICA[key]: value for key, value in values.items() if key != "count"}


def replica_count(config: RunConfig) -> int:
    """Replicas of a run: the settings that say a number must say the same; `replicas` = 1 says nothing beside others."""
    said: dict[str, int] = {}
    if config.fleet is not None:
        counts = [part.get("count", "1") for part in parts_of(config.fleet, "--fleet")]
        said["--fleet"] = sum(_integer(count, "--fleet: count") for count in counts)
    if config.disaggregate is not None:
        pools = _pools(config.disaggregate)
        said["--disaggregate"] = pools.get("prefill", 1) + pools.get("decode", 1)
    if config.autoscale is not None:
        said["--autoscale"] = autoscaling_of(config.autoscale).most
    if config.replicas > 1 or not said:
        said["--replicas"] = config.replicas
    if len(set(said.values())) > 1:
        numbers = ", ".join(f"{flag} {n}" for flag, n in said.items())
        raise ConfigError(f"replicas: got {numbers}, expected the same number everywhere")
    return next(iter(said.values()))


# -- prefill and decode -------------------------------------------------------------------------------------------------


def _pools(text: str) -> dict[str, Any]:
    where = "--disaggregate"
    known: dict[str, _Value] = {
        "prefill": _integer, "decode": _integer, "link": _text, "bandwidth": _number, "latency": _number,
        "overlap": _yes_no, "first-token": _one_of("decode", "prefill"), "connector": _one_of(*CONNECTORS),
        "hop": _number,
    }  # fmt: skip
    pools = _read(_single(text, where), where, known)
    for name in ("prefill", "decode"):
        if pools.get(name, 1) < 1:
            raise ConfigError(f"{where}: {name}: got {pools[name]}, expected an integer >= 1")
    if pools.get("hop", 0.0) < 0:
        raise ConfigError(f"{where}: hop: got {pools['hop']:g}, expected seconds >= 0")
    return pools


def disaggregation_of(text: str) -> Disaggregation:
    """The rule that `prefill=1,decode=1,link=nvlink,...` states. Raises `ConfigError`."""
    pools = _pools(text)
    link = Link.named(pools.get("link", "nvlink"), pools.get("bandwidth"), pools.get("latency"))
    return Disaggregation(
        pools.get("prefill", 1),
        link,
        overlap=pools.get("overlap", False),
        first_token=pools.get("first-token", "decode"),
        connector=pools.get("connector", "nixl"),
        hop_s=pools.get("hop"),
    )


# -- fleets that change -------------------------------------------------------------------------------------------------


def autoscaling_of(text: str) -> Autoscaling:
    """The rule that `min=1,max=8,metric=queue,target=4,...` states. Raises `ConfigError`."""
    where = "--autoscale"
    names = {
        "min": "least", "max": "most", "metric": "metric", "target": "target", "interval": "interval_s",
        "startup": "startup_s", "tolerance": "tolerance", "scale-in": "scale_in_s",
    }  # fmt: skip
    known: dict[str, _Value] = dict.fromkeys(names, _number)
    known |= {"min": _integer, "max": _integer, "metric": _text}
    values = _read(_single(text, where), where, known)
    if "target" not in values:
        raise ConfigError(f"{where} {text}: got no target, expected target=NUMBER of the metric per replica")
    rule = Autoscaling(**{names[name]: value for name, value in values.items()})
    rule.check()
    return rule


def outages_of(text: str, seed: int) -> Outages:
    """When replicas fail: `mtbf=3600,mttr=120`, or `replica=0,at=60,for=30` (several joined by +).

    Raises `ConfigError`.
    """
    where = "--failures"
    known: dict[str, _Value] = {
        "replica": _integer, "at": _number, "for": _number, "mtbf": _number, "mttr": _number,
    }  # fmt: skip
    planned: list[tuple[int, float, float]] = []
    random: dict[str, float] = {}
    for part in parts_of(text, where):
        values = _read(part, where, known)
        if values.keys() == {"replica", "at", "for"}:
            planned.append((values["replica"], values["at"], values["for"]))
        elif values.keys() == {"mtbf", "mttr"} and not random:
            random = {f"{name}_s": value for name, value in values.items()}
        else:
            raise ConfigError(
                f"{where} {text}: got {','.join(values)}, expected replica=N,at=SECONDS,for=SECONDS or (once) "
                f"mtbf=SECONDS,mttr=SECONDS"
            )
    return Outages(tuple(planned), seed=seed, **random)


def slow_replicas(text: str, count: int, seed: int) -> dict[int, float]:
    """How many times as long steps last, by number of replica: `replica=3,factor=1.3`, or a random `frac=0.1,factor=1.5`
    of the replicas (several joined by +; of a replica named twice the last word counts).

    Raises `ConfigError`.
    """
    where = "--stragglers"
    known: dict[str, _Value] = {"replica": _integer, "frac": _number, "factor": _number}
    slow: dict[int, float] = {}
    for part in parts_of(text, where):
        values = _read(part, where, known)
        if values.keys() not in ({"replica", "factor"}, {"frac", "factor"}):
            raise ConfigError(
                f"{where} {text}: got {','.join(values)}, expected replica=N,factor=X or frac=SHARE,factor=X"
            )
        if not values["factor"] > 0:
            raise ConfigError(f"{where}: factor: got {values['factor']:g}, expected a number > 0")
        slow |= dict.fromkeys(_chosen(values, count, seed), values["factor"])
    return slow


def _chosen(values: Mapping[str, Any], count: int, seed: int) -> list[int]:
    """Numbers of the replicas that a part speaks of."""
    if "replica" in values:
        if not 0 <= values["replica"] < count:
            raise ConfigError(f"--stragglers: replica: got {values['replica']}, expected 0..{count - 1}")
        return [values["replica"]]
    if not 0 < values["frac"] <= 1:
        raise ConfigError(f"--stragglers: frac: got {values['frac']:g}, expected a fraction in (0, 1]")
    n = max(1, round(values["frac"] * count))
    order = stream(seed, "stragglers").permutation(count)
    return sorted(int(i) for i in order[:n])
