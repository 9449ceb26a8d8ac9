"""Prices and power of GPUs, from an editable, dated table."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError, nearest

from ..cost.catalogue import known_gpus, load_gpu

if TYPE_CHECKING:
    from ..cost.specs import GpuSpec

DEFAULT = Path(__file__).with_name("prices.toml")

GPU_KEYS = ("usd_per_gpu_hour", "tdp_w", "idle_w")
SITE_KEYS = ("usd_per_kwh", "pue")
NOTES = ("date", "source")

IDLE_SHARE = 0.17
"""Idle power as a share of TDP where a table has no `idle_w`: the ratio of an H100 SXM (120 W of 700 W, estimate)."""


@dataclass(frozen=True, slots=True)
class GpuCost:
    """What one GPU costs: dollars an hour, watts at full load and idle. `usd_per_gpu_hour` None: no price is known."""

    usd_per_gpu_hour: float | None
    tdp_w: float
    idle_w: float
    date: str
    source: str

    def watts(self, busy_frac: float) -> float:
        """Mean power of a GPU that computes this share of the time: linear from idle to TDP.

        An upper bound while it computes: memory-bound steps draw less than TDP.
        """
        return self.idle_w + (self.tdp_w - self.idle_w) * busy_frac


@dataclass(frozen=True, slots=True)
class Prices:
    """A table of `GpuCost` by GPU name, and the site's energy price and power overhead."""

    gpus: Mapping[str, Mapping[str, Any]]
    usd_per_kwh: float = 0.0
    pue: float = 1.0

    def of(self, gpu: GpuSpec) -> GpuCost:
        """The costs of a GPU; what the table does not say is the GPU table's."""
        row = self.gpus.get(gpu.name, {})
        tdp = float(row.get("tdp_w", gpu.tdp_w))
        idle = float(row.get("idle_w", IDLE_SHARE * tdp))
        if idle > tdp:
            raise ConfigError(
                f"--prices: gpu.{gpu.name}: idle_w: got {idle:g}, expected at most tdp_w ({tdp:g})"
            )
        notes = [str(row[k]) for k in NOTES if k in row]
        price = row.get("usd_per_gpu_hour", gpu.usd_per_hour)
        return GpuCost(price, tdp, idle, *(notes if len(notes) == 2 else ("", gpu.source)))

    def usd_per_hour(self, cost: GpuCost, gpus: int, busy_frac: float) -> float | None:
        """Dollars an hour of so many GPUs: their price, and their energy where the site pays it apart."""
        if cost.usd_per_gpu_hour is None:
            return None
        return gpus * (cost.usd_per_gpu_hour + self.kw(cost, 1, busy_frac) * self.usd_per_kwh)

    def kw(self, cost: GpuCost, gpus: int, busy_frac: float) -> float:
        """Kilowatts of so many GPUs, facility overhead included."""
        return gpus * cost.watts(busy_frac) * self.pue / 1000


def read_prices(path: str | Path | None = None) -> Prices:
    """The default table, with the rows of `path` over it.

    Raises:
        ConfigError: `file: key: got, expected`, for anything that is wrong.
    """
    prices = _parsed(DEFAULT)
    if path is None:
        return prices
    own = _parsed(Path(path), {"usd_per_kwh": prices.usd_per_kwh, "pue": prices.pue})
    rows = {name: {**prices.gpus.get(name, {}), **row} for name, row in own.gpus.items()}
    return Prices({**prices.gpus, **rows}, own.usd_per_kwh, own.pue)


def table_text() -> str:
    """The default table in full, as a file to edit: of each GPU the price, power, date and sources.

    Prices and full power are the GPU table's, idle power and what a site pays are `prices.toml`'s.
    """
    prices, site = _parsed(DEFAULT), tomllib.loads(DEFAULT.read_text(encoding="utf-8"))["site"]
    lines = [
        "# What GPUs cost to run: edit it and give it to `simulate plan --prices FILE`. Rows and keys left out keep these values.",
        "[site]",
        f"usd_per_kwh = {site['usd_per_kwh']} # energy on top of the GPU price; rented GPUs include it",
        f"pue = {site['pue']} # facility power over GPU power; host and cooling are not in it",
        f"date = {_quoted(site['date'])}",
        f"source = {_quoted(site['source'])}",
    ]
    for name in known_gpus():
        gpu = load_gpu(name)
        cost = prices.of(gpu)
        lines += ["", f"[gpu.{name}]"]
        lines += [] if gpu.usd_per_hour is None else [f"usd_per_gpu_hour = {gpu.usd_per_hour:g}"]
        lines += [f"tdp_w = {cost.tdp_w:g}", f"idle_w = {cost.idle_w:g}", f"date = {_quoted(site['date'])}"]
        idle = (
            f"; idle power: {cost.source}"
            if cost.source != gpu.source
            else f"; idle power: {IDLE_SHARE:.0%} of TDP"
        )
        lines += [f"source = {_quoted(gpu.source + idle)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parsed(path: Path, site: Mapping[str, float] | None = None) -> Prices:
    if not path.is_file():
        raise ConfigError(f"--prices: no file {str(path)!r}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    _check_keys(path, "", table, ("site", "gpu"))
    found = table.get("site", {})
    _check_keys(path, "site.", found, SITE_KEYS + NOTES)
    rows = table.get("gpu", {})
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: gpu.{name}: got {row!r}, expected a table [gpu.{name}]")
        _check_keys(path, f"gpu.{name}.", row, GPU_KEYS + NOTES)
    return Prices(rows, **{k: float(found[k]) for k in SITE_KEYS if k in found} | {
        k: v for k, v in (site or {}).items() if k not in found
    })  # fmt: skip


def _check_keys(path: Path, where: str, section: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key, value in section.items():
        if key not in known:
            raise ConfigError(f"{path}: {where}{key}: unknown key{nearest(key, known)}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in GPU_KEYS + SITE_KEYS and not (is_number and 0 <= value < float("inf")):
            raise ConfigError(f"{path}: {where}{key}: got {value!r}, expected a number >= 0")
