"""Generated tokens go first: they are cached only while there is room that nobody else wants."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from stepline.sim.engine.plugins import load_plugin

if TYPE_CHECKING:
    from stepline.sim.engine.contracts import EvictionPolicy
    from stepline.sim.engine.segment import Segment


class OutputsFirstPolicy:
    """Evicts content without a key first, oldest first, then as `inner` says (`outputs-first:inner=arc`).

    What generation filled, and what the trace gives no id, cannot be hit in the replay. An engine can choose not to
    cache outputs too; it pays where the next turn of a conversation would have continued them.
    """

    def __init__(self, *, inner: str = "lru") -> None:
        self.inner: EvictionPolicy = load_plugin("stepline.eviction_policies", inner)
        if getattr(self.inner, "oracle", False):
            raise ValueError(f"inner: got {inner!r}, expected a policy that is no oracle")
        self._outputs: deque[Segment] = deque()
        self.leaves_only = getattr(self.inner, "leaves_only", False)
        self.head_first = getattr(self.inner, "head_first", False)
        for name in ("on_admit", "expired"):
            if hasattr(self.inner, name):
                setattr(self, name, getattr(self.inner, name))

    def on_insert(self, segment: Segment, now_s: float) -> None:
        """To the inner policy, if it has a key."""
        if segment.key is not None:
            self.inner.on_insert(segment, now_s)

    def on_hit(self, segment: Segment, now_s: float) -> None:
        """To the inner policy: only keyed segments are hit."""
        self.inner.on_hit(segment, now_s)

    def on_release(self, segment: Segment, now_s: float) -> None:
        """Next in line without a key, else as the inner policy says."""
        if segment.key is None:
            self._outputs.append(segment)
        else:
            self.inner.on_release(segment, now_s)

    def victim(self) -> Segment:
        """Outputs, then the inner policy's choice."""
        return self._outputs[0] if self._outputs else self.inner.victim()

    def on_evict(self, segment: Segment) -> None:
        """Gone."""
        if segment.key is None:
            self._outputs.popleft()
        else:
            self.inner.on_evict(segment)
