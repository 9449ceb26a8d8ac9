"""LoRA adapters of a replica: which are on the GPU, which are in use, who has to wait for a slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, SupportsIndex

from .decode_set import DecodeSet

if TYPE_CHECKING:
    from .contracts import WaitingQueue
    from .sequence import Sequence


class AdapterSlots:
    """The `n_slots` adapters that fit on the GPU (vLLM `--max-loras`), and the transfers that a step waits for.

    A running sequence holds its adapter's slot. An adapter without a slot takes a free one or that of the adapter unused
    for longest, and is copied from host memory before the step that admits its sequence (vLLM activates the adapters of
    a batch before it runs: `LRUCacheWorkerLoRAManager`). Every adapter is in host memory.

    load_s  seconds of copying one adapter over the host link
    """

    def __init__(self, n_slots: int, load_s: float) -> None:
        self.n_slots = n_slots
        self.load_s = load_s
        self.users: dict[str, int] = {}
        self.holders: dict[Sequence, str] = {}
        self.resident: dict[str, None] = {}  # least recently taken first
        self.due = 0
        self.loads = 0

    @property
    def active(self) -> int:
        """Adapters that running sequences use."""
        return len(self.users)

    def take(self, seq: Sequence) -> None:
        """A sequence is admitted (its adapter, if any, has or finds a slot)."""
        adapter = seq.adapter
        if adapter is None:
            return
        self.holders[seq] = adapter
        self.users[adapter] = self.users.get(adapter, 0) + 1
        if adapter in self.resident:
            del self.resident[adapter]
        else:
            self.due += 1
            if len(self.resident) == self.n_slots:
                del self.resident[next(a for a in self.resident if a not in self.users)]
        self.resident[adapter] = None

    def leave(self, seq: Sequence) -> None:
        """A sequence has ended or gives way; its adapter stays until the slot is needed."""
        adapter = self.holders.pop(seq, None)
        if adapter is None:
            return
        if self.users[adapter] == 1:
            del self.users[adapter]
        else:
            self.users[adapter] -= 1

    def wipe(self) -> None:
        """The replica has failed."""
        self.users.clear()
        self.holders.clear()
        self.resident.clear()
        self.due = 0

    def stretch(self, step_s: float) -> float:
        """How long the next step lasts: the copies first."""
        loaded, self.due = self.due, 0
        self.loads += loaded
        return step_s + loaded * self.load_s


class AdapterQueue:
    """A waiting queue that shows only whom a slot can be found for, those before them counted (vLLM V1 skips others)."""

    def __init__(self, inner: WaitingQueue, slots: AdapterSlots) -> None:
        self.inner, self.slots = inner, slots

    def __iter__(self) -> Iterator[Sequence]:
        taken = set(self.slots.users)
        for seq in self.inner:
            adapter = seq.adapter
            if adapter is not None and adapter not in taken:
                if len(taken) >= self.slots.n_slots:
                    continue
                taken.add(adapter)
            yield seq

    def append(self, seq: Sequence) -> None:
        """A request arrives."""
        self.inner.append(seq)

    def appendleft(self, seq: Sequence) -> None:
        """A preempted sequence returns."""
        self.inner.appendleft(seq)

    def popleft(self) -> Sequence:
        """The first one is admitted."""
        return self.inner.popleft()

    def remove(self, seq: Sequence) -> None:
        """One is admitted out of turn, or has been aborted."""
        self.inner.remove(seq)

    def __getitem__(self, index: SupportsIndex) -> Sequence:
        return self.inner[index]

    def __contains__(self, seq: object) -> bool:
        return seq in self.inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        """What else an ordered queue has (`attach`, `ended`)."""
        return getattr(self.inner, name)


class AdapterDecodeSet(DecodeSet):
    """As `DecodeSet`; one more entry behind the contexts says how many adapters are in use (`cost.lora`)."""

    __slots__ = ("adapters",)

    def __init__(self, block_size: int, windows: tuple[int | None, ...], adapters: AdapterSlots) -> None:
        self.adapters = adapters
        super().__init__(block_size, windows)
        self.grows_evenly = False

    def context_tokens(self) -> tuple[float, ...]:
        """See `DecodeSet.context_tokens`."""
        return (*super().context_tokens(), self.adapters.active)

    def no_context(self) -> tuple[int, ...]:
        """Of a step in which nobody decodes."""
        return (*super().no_context(), self.adapters.active)

    def growth(self) -> tuple[float, ...]:
        """See `DecodeSet.growth`; adapters come and go with sequences only."""
        return (*super().growth(), 0)
