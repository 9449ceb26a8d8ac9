"""Prefill on some replicas, decode on others: KV moves in between.

A request goes to a prefill replica, which computes its prompt and one token and keeps the KV until it has moved. As soon as
a decode replica has room (a seat, and KV blocks for the prompt) its KV is sent there; then it queues at that replica,
computes one token's worth of prompt and decodes. Where no replica has room it waits, its KV still on the prefill side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stepline.traces.errors import ConfigError, InvariantError

from ..engine.clock import Environment, Event, wake_at
from ..engine.request_log import FINISHED, REJECTED, TIMED_OUT
from ..engine.sequence import DONE, WAITING
from .links import Link, Ports

if TYPE_CHECKING:
    from ..engine.replica import Replica
    from ..engine.sequence import Sequence
    from .router import Router
    from .spec import ReplicaSpec

FirstToken = Literal["decode", "prefill"]
Connector = Literal["nixl", "p2p-nccl"]
CONNECTORS = ("nixl", "p2p-nccl")


@dataclass(frozen=True, slots=True)
class Disaggregation:
    """The first `prefill` replicas of the cluster compute prompts, the others decode.

    link         what KV moves over
    overlap      True: layers are sent while later layers and chunks are computed, so that the transfer hides behind
                 the prompt's computation except for its last layer; False: sent when the prompt is done
    first_token  who gives the client its first token: "decode" (vLLM's proxies: the prefill server's token is dropped
                 and computed again from the KV that has arrived) or "prefill" (Splitwise, DistServe)
    connector    "nixl": KV moves beside the steps; "p2p-nccl": layer by layer within the forward pass, as vLLM's
                 P2pNcclConnector does, which adds the engine's `kv_layer_copy_s` for each layer of each request (a gather
                 or scatter, a message, the wait for the copy) to the prefill step that completes it and to the decode
                 step that takes it in
    hop_s        between the end of the prompt and the request's arrival at the decode server (None: of "decode" the
                 prefill server's way out and the decode server's way in, as the engine profile has them; else 0)
    """

    prefill: int
    link: Link = Link()  # noqa: RUF009 - a frozen value
    overlap: bool = False
    first_token: FirstToken = "decode"
    connector: Connector = "nixl"
    hop_s: float | None = None

    def copy_s(self, replica: ReplicaSpec) -> float:
        """Seconds that one request's KV adds to a step of this replica."""
        within = self.connector == "p2p-nccl"
        return replica.engine.kv_layer_copy_s * replica.model.n_layers if within else 0.0

    def check(self, replicas: tuple[ReplicaSpec, ...]) -> None:
        """Raise ConfigError for replicas that cannot work so."""
        if not 0 < self.prefill < len(replicas):
            raise ConfigError(
                f"--disaggregate: prefill: got {self.prefill} of {len(replicas)} replicas, expected at least one for each"
            )
        for spec in replicas:
            if spec.policy.pads or spec.policy.reservation == "contiguous":
                raise ConfigError(
                    f"--disaggregate: {type(spec.policy).__name__} pads or reserves for whole outputs, expected another policy"
                )
            if spec.compression is not None:
                raise ConfigError("--disaggregate: cannot be combined with --kv-compression")
            if getattr(spec.preemption, "mode", "recompute") == "swap":
                raise ConfigError("--disaggregate: cannot be combined with --preemption ...:mode=swap")


class Ones:
    """Output lengths on a prefill replica: one token each."""

    def __getitem__(self, _: int) -> int:
        return 1


class Outlet:
    """In the place of a prefill replica's host link: a step lasts longer for each prompt that it completes."""

    def __init__(self, replica: Replica, copy_s: float) -> None:
        self.replica = replica
        self.copy_s = copy_s
        self.stalled_s = 0.0

    @property
    def pending(self) -> bool:
        """Whether the step completes a prompt."""
        return self.copy_s > 0 and self.replica.work.logits_rows > 0

    def stretch(self, step_s: float) -> float:
        """How long that step lasts."""
        stall_s = self.copy_s * self.replica.work.logits_rows
        self.stalled_s += stall_s
        return step_s + stall_s


class Inlet:
    """In the place of a decode replica's swap space and host link: a step lasts longer for each request that it takes in."""

    def __init__(self, copy_s: float) -> None:
        self.copy_s = copy_s
        self.waiting_requests = 0
        self.stalled_s = 0.0

    @property
    def link(self) -> Inlet:
        """What the replica's next step asks."""
        return self

    @property
    def pending(self) -> bool:
        """Whether the next step takes in somebody's KV."""
        return self.waiting_requests > 0 and self.copy_s > 0

    def stretch(self, step_s: float) -> float:
        """How long that step lasts."""
        stall_s = self.copy_s * self.waiting_requests
        self.waiting_requests = 0
        self.stalled_s += stall_s
        return step_s + stall_s

    def put(self, _: int) -> bool:
        """A preempted sequence does not go back: it is computed anew."""
        return False

    def take(self, _: int) -> None:
        """A request is admitted with its KV."""
        self.waiting_requests += 1

    def drop(self, _: int) -> None:
        """One whose client has gone is not."""


@dataclass(slots=True, eq=False)
class _Move:
    """A sequence between the pools: from where, since when, to where (None: not decided)."""

    source: Replica
    done_s: float
    target: Replica | None = None


class Handoff:
    """The way of each request through both pools. `front` and `back` route within them."""

    def __init__(
        self,
        env: Environment,
        rule: Disaggregation,
        specs: tuple[ReplicaSpec, ...],
        front: Router,
        back: Router,
        on_dropped: Callable[[Sequence, int, float], None],
    ) -> None:
        self.env = env
        self.rule = rule
        self.specs = specs
        self.front, self.back = front, back
        self.on_dropped = on_dropped
        self.ports = Ports(len(specs))
        self.moves: dict[Sequence, _Move] = {}
        self.waiting: deque[Sequence] = deque()
        self.coming = dict.fromkeys(back.signals, 0)
        self.longest = max(replica.max_tokens for replica in back.signals)
        self.n_moved = 0
        self.waited_s = self.moving_s = 0.0
        self.asked = False
        back.on_scrape = lambda: self.room_made(env.now)  # what the policy is shown is new

    # -- the clients' door ------------------------------------------------------------------------------------------

    def submit(self, seq: Sequence) -> bool:
        """A request arrives (now)."""
        if seq.input_tokens + self.back.output_tokens(seq) > self.longest:
            seq.state = DONE
            self.on_dropped(seq, REJECTED, self.env.now)
            return False
        return self.front.submit(seq)

    def abort(self, seq: Sequence) -> bool:
        """The client has given up on a request (now), wherever it is."""
        move = self.moves.pop(seq, None)
        if move is None:
            return (self.back if seq in self.back.where else self.front).abort(seq)
        if move.target is None:
            self.waiting.remove(seq)
        else:
            self._unclaim(seq, move.target)
        seq.aborted = True
        seq.state = DONE
        self.on_dropped(seq, TIMED_OUT, seq.patient_until_s)
        return self._let_go(seq, move.source)

    def settle(self) -> None:
        """Let replicas take up what has just reached them."""
        self.front.settle()
        self.back.settle()

    # -- between the pools ------------------------------------------------------------------------------------------

    def takes(self, replica: Replica, seq: Sequence, status: int) -> bool:
        """A request ends on a replica (at the replica's own time). True: it goes on elsewhere."""
        if status != FINISHED or replica.seats.parked is None:
            return False
        if seq.aborted:  # its client has gone while the last chunk was computed
            self._at(replica.now_s, lambda: self._let_go(seq, replica))
            return False
        if self.rule.first_token == "prefill" and self.back.output_tokens(seq) == 1:
            self._at(replica.now_s, lambda: self._let_go(seq, replica))
            return False
        self.front.ended(replica, seq)
        self._prefilled(replica, seq)
        return True

    def ended(self, replica: Replica, seq: Sequence) -> None:
        """A request has ended for good on a replica (at the replica's own time)."""
        if replica.seats.parked is not None:
            self.front.ended(replica, seq)
        else:
            self.back.ended(replica, seq)
            self.room_made(replica.now_s)

    def _prefilled(self, replica: Replica, seq: Sequence) -> None:
        """A prompt is done; its KV stays there for now."""
        seq.state = WAITING
        self.moves[seq] = _Move(replica, replica.now_s)
        self._at(replica.now_s, lambda: self._offer(seq))

    def _at(self, time_s: float, action: Callable[[], bool]) -> None:
        def act(_: Event) -> None:
            if action():
                self.settle()

        wake_at(self.env, time_s, act)

    def _offer(self, seq: Sequence) -> bool:
        if seq in self.moves:  # else its client has gone, or its replica
            self.waiting.append(seq)
            self._start_moves()
        return False

    def room_made(self, time_s: float) -> None:
        """A request has left a decode replica, or it is seen that one has: perhaps one that waits can move."""
        if self.waiting and not self.asked:
            self.asked = True
            self._at(time_s, self._again)

    def _again(self) -> bool:
        self.asked = False
        self._start_moves()
        return False

    def _start_moves(self) -> None:
        """Move those who wait, first come first served, while the one in front has somewhere to go."""
        while self.waiting:
            seq = self.waiting[0]
            need = self._blocks(seq)
            target = self.back.claim(seq, lambda replica, need=need: self._fits(replica, need))  # type: ignore[misc]  # a default binds the loop's value
            if target is None:
                return
            self.waiting.popleft()
            self.coming[target] += need
            self._move(seq, self.moves[seq], target)

    def _blocks(self, seq: Sequence) -> int:
        size = self.front.block_size
        return -(-(seq.input_tokens + 1) // size)

    def _fits(self, replica: Replica, need: int) -> bool:
        """A seat, and blocks beyond those of everybody who is on the way or waits there; an empty replica always fits."""
        signals = self.back.signals[replica]
        if not signals.n_outstanding:
            return True
        if signals.n_outstanding >= signals.max_num_seqs:
            return False
        queued = sum([replica.kv.blocks_for(s.prompt_tokens) for s in replica.waiting])
        queued += sum([replica.kv.blocks_for(s.prompt_tokens) for _, s in replica.inbox if not s.aborted])
        return need <= signals.free_blocks - self.coming[replica] - queued

    def _move(self, seq: Sequence, move: _Move, target: Replica) -> None:
        """Send the KV now; the request follows when both it and the KV are there."""
        move.target = target
        now, rule = self.env.now, self.rule
        source_spec, target_spec = self.specs[move.source.index], self.specs[target.index]
        # a GPU sends what it holds: of two groups the one with fewer GPUs has more to carry each
        n_bytes = max(source_spec.kv_block_bytes, target_spec.kv_block_bytes) * self._blocks(seq)
        rate = rule.link.rate(source_spec, target_spec)
        begun_s = (
            seq.scheduled_s if rule.overlap and seq.scheduled_s is not None and now == move.done_s else now
        )
        there_s = self.ports.send(move.source.index, target.index, n_bytes, rate, begun_s)
        if rule.overlap:
            there_s = max(there_s, now + n_bytes / source_spec.model.n_layers / rate)  # the last layer
        there_s += rule.link.latency_s
        self.n_moved += 1
        self.waited_s += now - move.done_s
        self.moving_s += there_s - now
        self._at(
            max(there_s, move.done_s + self._hop_s(seq, target_spec, source_spec)),
            lambda: self._landed(seq, move),
        )

    def _hop_s(self, seq: Sequence, target: ReplicaSpec, source: ReplicaSpec) -> float:
        if self.rule.hop_s is not None:
            return self.rule.hop_s
        if self.rule.first_token == "prefill":
            return 0.0
        way_out = source.engine.for_tp(source.tp).output_delay_s
        return (
            way_out
            + target.engine.request_ingest_s
            + target.engine.request_ingest_per_token_s * seq.input_tokens
        )

    def _landed(self, seq: Sequence, move: _Move) -> bool:
        """Everything is there: the prefill side frees its copy, the decode side queues the request."""
        if self.moves.pop(seq, None) is not move or move.target is None:
            return False  # given up meanwhile
        heard = self._let_go(seq, move.source)
        self.coming[move.target] -= self._blocks(seq)
        seq.hash_ids = ()  # found by nobody: but policies look up what it brings along
        seq.hash_ends = ()
        seq.match = None
        seq.computed_tokens = 0
        if self.rule.first_token == "decode":
            seq.first_token_s = None
            seq.generated_tokens = 0
            seq.prompt_tokens = seq.input_tokens
        else:
            seq.prompt_tokens = seq.input_tokens + seq.generated_tokens
        seq.swapped_tokens = seq.prompt_tokens - 1
        return self.back.deliver(seq, move.target) or heard

    def _let_go(self, seq: Sequence, source: Replica) -> bool:
        if source.let_go(seq):
            self.front.touched[source] = None
            return True
        return False

    def _unclaim(self, seq: Sequence, target: Replica) -> None:
        self.coming[target] -= self._blocks(seq)
        self.back.ended(target, seq)
        self.room_made(self.env.now)

    # -- the end ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise PolicyError if the decode pool's routing left somebody waiting, InvariantError if somebody is on the way."""
        self.back.check()
        if self.waiting:
            self.back.refuse(self.waiting)
        if self.moves or self.waiting or any(self.coming.values()):
            raise InvariantError(f"{len(self.moves)} requests between prefill and decode after the run")

    def figures(self) -> dict[str, Any]:
        """What the transfers cost: means a request of the wait for a decode replica and of the transfer itself."""
        n = max(1, self.n_moved)
        return {
            "prefill_replicas": self.rule.prefill,
            "decode_replicas": len(self.specs) - self.rule.prefill,
            "transfers": self.n_moved,
            "transferred_bytes_per_gpu": self.ports.moved_bytes,
            "mean_wait_s": self.waited_s / n,
            "mean_transfer_s": self.moving_s / n,
            "copy_s": sum(
                [r.link.stalled_s for pool in (self.front, self.back) for r in pool.signals if r.link]
            ),
        }
