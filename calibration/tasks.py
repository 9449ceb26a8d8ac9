"""What is fitted: for each kernel its rows, its form (the simulator's own), its constants, splits and regimes."""

from __future__ import annotations

from .task import M_REGIMES, Columns, Task, columns_of, merged, rows_for, without_l2_replays
from .tasks_attention import DECODE, PREFILL, PREFILL_MHA
from .tasks_gemm import GEMM
from .tasks_moe import MOE
from .tasks_small import COLLECTIVES, ELEMENTWISE

__all__ = [
    "COLLECTIVES", "DECODE", "ELEMENTWISE", "GEMM", "MOE", "M_REGIMES", "PREFILL", "PREFILL_MHA",
    "TASKS", "Columns", "Task", "columns_of", "merged", "rows_for", "without_l2_replays",
]  # fmt: skip

TASKS: tuple[Task, ...] = (
    GEMM,
    PREFILL,
    PREFILL_MHA,
    DECODE,
    MOE,
    ELEMENTWISE,
    *COLLECTIVES,
)
"""Everything that can be fitted, in the order of reports."""
