"""The 134 figures of the teaching texts: what each claims, what the operators say, and our verdict."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from stepline.traces.errors import CalibrationError

Verdict = Literal["ok", "loose", "wrong"]

OK_FRAC, LOOSE_FRAC = 0.03, 0.15
"""A claim within 3 % of the computed value holds, within 15 % it is loose, else wrong. 3 % is what rounding
to two digits costs; between 12 % (the worst careless rounding) and 17 % (the mildest real error) the texts
have nothing."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One checkable figure. `seed`: number of the text; `committed`: the value when the verdict was written down."""

    number: int
    seed: str
    quantity: str
    claimed: float
    committed: float
    unit: str
    committed_verdict: Verdict
    reason: str

    @property
    def computed(self) -> float:
        """The figure from the product's operator functions, now."""
        from .formulas import FORMULAS

        return float(FORMULAS[self.number]())

    @property
    def off_frac(self) -> float:
        """Claim over computed value, less 1."""
        return self.claimed / self.computed - 1.0

    @property
    def verdict(self) -> Verdict:
        """What the operators say of the claim, now."""
        return verdict(self.claimed, self.computed)

    @property
    def holds(self) -> bool:
        """The operators still give the committed value and verdict."""
        same = abs(self.computed - self.committed) <= 1e-6 * abs(self.committed)
        return same and self.verdict == self.committed_verdict


def verdict(claimed: float, computed: float) -> Verdict:
    """`ok`, `loose` or `wrong` by the distance of the claim from the computed value.

    >>> verdict(100.0, 98.0), verdict(100.0, 90.0), verdict(1.0, 1000.0)
    ('ok', 'loose', 'wrong')
    """
    off = abs(claimed / computed - 1.0)
    if off <= OK_FRAC:
        return "ok"
    return "loose" if off <= LOOSE_FRAC else "wrong"


def read_figures() -> tuple[Figure, ...]:
    """The committed table, in the order of the texts.

    Raises:
        CalibrationError: the table and the formulas do not name the same figures.
    """
    from .formulas import FORMULAS

    text = (resources.files("stepline.calibration") / "seed_figures.csv").read_text(encoding="utf-8")
    figures = tuple(_figure(row) for row in csv.DictReader(text.splitlines()))
    if {f.number for f in figures} != set(FORMULAS):
        raise CalibrationError("seed_figures.csv: its figures are not those that have a formula")
    return figures


def _figure(row: dict[str, str]) -> Figure:
    said = row["verdict"]
    if said not in ("ok", "loose", "wrong"):
        raise CalibrationError(f"seed_figures.csv: figure {row['figure']}: verdict: got {said!r}")
    return Figure(
        int(row["figure"]),
        row["seed"],
        row["quantity"],
        float(row["claimed"]),
        float(row["computed"]),
        row["unit"],
        said,  # type: ignore[arg-type]  # checked above
        row["reason"],
    )
