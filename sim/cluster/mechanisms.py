"""What drafts and adapters did in a run, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engine.replica import Replica
    from ..engine.step_log import Columns


class VerificationLog:
    """A sink of the step log of replicas that verify drafted tokens."""

    def __init__(self) -> None:
        self.verifications = 0
        self.tokens = 0.0

    def __call__(self, columns: Columns) -> None:
        """Take in a block of rows."""
        steps = columns["n_steps"]
        self.verifications += int((columns["n_decode"] * steps).sum())
        self.tokens += float((columns["context_growth_0"] * steps).sum())


def mechanisms(log: VerificationLog, replicas: Sequence[Replica]) -> dict[str, dict[str, Any]]:
    """By part, JSON-able, only those that ran.

    speculation {verifications (of one sequence each), tokens_per_verification}; lora {loads, load_s}: adapters copied to
    a GPU, and seconds that steps waited for them.
    """
    found: dict[str, dict[str, Any]] = {}
    if log.verifications:
        found["speculation"] = {
            "verifications": log.verifications,
            "tokens_per_verification": log.tokens / log.verifications,
        }
    slots = [replica.adapters for replica in replicas if replica.adapters is not None]
    if slots:
        loads = sum(slot.loads for slot in slots)
        found["lora"] = {"loads": loads, "load_s": sum(slot.loads * slot.load_s for slot in slots)}
    return found
