"""The fast lane: the common case of a replica's loop in one place, a step or leap after the other.

In it are replicas whose model has one attention window priced by lines, whose KV is paged and grows by every token, and
whose steps no transfer stretches. Two kinds of step are taken here: everybody decodes (a leap), and everybody decodes
(or nobody) beside one chunk of one prompt. They do what `Replica._start_leap` and `_end_leap`,
`start_mixed` and `_end_mixed` do, with no more than they need. Law, held by tests: with the lane closed, tables are the
same to the byte.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop
from math import sqrt
from typing import TYPE_CHECKING

from ..cost.work import StepWork
from .contracts import Plan
from .sequence import PREFILLING, WAITING, Sequence
from .step_log import pack_row

if TYPE_CHECKING:
    from .replica import Replica

ROUNDS = range(64)
"""Steps and leaps taken at a time, so that the step log is handed on and who watches a run sees it go on."""
UNDERWAY = Plan([])
"""Answer of `glide`: a step is in progress."""
DECODE_ALL = Plan([])
"""Everybody decodes: the plan of any policy while nobody waits."""
NOBODY = Sequence(-1, 0.0, 0.0, 0, 0)
"""Whose chunk it is in a leap, where nobody asks."""
new_tuple = tuple.__new__  # makes a named tuple in a third of the time


def glide(r: Replica) -> Plan | None:
    """Take steps until one outlasts the simulation's next event, or is of another kind.

    UNDERWAY: a step is in progress. A plan: the policy's, of a step of another kind. None: another kind, nobody asked.
    """
    decode, kv, seats, mixes = r.decode, r.kv, r.seats, r.mixes
    waiting, prefilling, heap, rows, lines = r.waiting, r.prefilling, decode.heap, r.rows, r.lines
    running, leaving, records, paged = seats.running, seats.leaving, seats.life_log.with_chunks, r.paged
    ask, view, step_s, index, depth = r.ask, r.view, r.cost.step_s, r.index, r.depth
    size, budget = kv.block_size, r.limits.max_num_batched_tokens
    plan, seq, joins, done = DECODE_ALL, NOBODY, False, 0
    for _ in ROUNDS:
        start, n, counter = r.now_s, decode.n, decode.counter
        if waiting or prefilling:
            # -- the policy decides; one chunk, or the step is of another kind
            if not mixes:
                return None
            if n and waiting and kv.evictable and paged:
                kv.vacate(decode.blocks_in(1))
            plan = ask(view)
            chunks = plan.chunks
            if len(chunks) != 1 or plan.preempt or plan.ask_every_step:
                return plan
            if not plan.decode:
                n = 0
            seq, tokens = chunks[0]
            opened = decode.borders[counter % size] if n else 0
            if not 0 < tokens <= budget - n or opened > kv.free + kv.evictable:
                return plan
            joins = False
            if seq.state == WAITING:
                if not paged:
                    return plan
                if seq.hash_ids is None and not seq.swapped_tokens:
                    done = tokens
                    if (
                        waiting[0] is not seq
                        or len(running) + len(leaving) >= seats.seats
                        or done > seq.prompt_tokens
                        or opened - -done // size > kv.free + kv.evictable
                    ):
                        return plan
                    joins = True
                    waiting.popleft()
                    kv.admit(seq)
                    kv.take(opened - -done // size)
                    running[seq] = None
                    if seq.scheduled_s is None:
                        seq.scheduled_s = start
                    else:
                        seats.life_log.resumed(seq, start)
                else:
                    if opened:
                        kv.take(opened)
                    tokens = seats.start_chunk(seq, tokens, start)
                    if not tokens:  # less of it is cached than was planned on
                        kv.give_back(opened)
                        plan.chunks = []
                        r.start_mixed(plan)
                        return UNDERWAY
                    done = seq.computed_tokens + tokens
            else:
                done = seq.computed_tokens + tokens
                if not seq.reserved_blocks:
                    opened += -(-done // size) + -seq.computed_tokens // size
                if seq.state != PREFILLING or done > seq.prompt_tokens or opened > kv.free + kv.evictable:
                    return plan
                if opened:
                    kv.take(opened)
                if seq.hash_ids is not None:
                    kv.commit(seq, done)
            if n:
                context = decode.offsets + n * (counter + 1)
                generated = context - decode.inputs
            else:
                context = generated = 0
            logits = n + 1 if done == seq.prompt_tokens else n
            pairs = tokens * (2 * done - tokens + 1) // 2
            work = new_tuple(StepWork, (tokens, 1, pairs, done, n, (context,), logits, generated))
            first, delta, limit = step_s(work), 0.0, 1
            end = start + first
            if not start < end < r.horizon_s:
                if joins:
                    prefilling[seq] = None
                    seq.state = PREFILLING
                r.work, plan.chunks = work, [(seq, tokens)]
                r.set_out(plan, first, delta, limit, end, mixed=True)
                return UNDERWAY
            if leaving:
                seats.release_leaving()
        elif n and not r.inbox:
            # -- everybody decodes until something changes
            soonest = heap[0]
            while soonest[3].epoch != soonest[2]:
                heappop(heap)
                soonest = heap[0]
            limit = soonest[0] - counter
            free = kv.free + kv.evictable - r.spare_blocks
            if decode.n_growing * (limit // size + 1) > free:
                limit = decode.steps_within(free, limit)
                if not limit:
                    return None
            context = decode.offsets + n * (counter + 1)
            ends, pieces = lines[n]
            piece = bisect_left(ends, context) if context > ends[0] else 0
            fixed, slope = pieces[piece]
            if context + n * (limit - 1) > ends[piece]:
                limit = int((ends[piece] - context) // n) + 1
            first, delta = fixed + slope * context - r.generated_s * decode.inputs, slope * n
            end = start + limit * first + delta * (limit * (limit - 1) // 2)
            if r.coming_s < end:
                after_s = r.coming_s - start
                heard = steps_by(first, delta, after_s) + depth if after_s > 0.0 else 1
                if heard < limit:
                    limit = heard
                    end = start + limit * first + delta * (limit * (limit - 1) // 2)
            if not start < end < r.horizon_s:
                r.context = float(context)
                r.set_out(DECODE_ALL, first, delta, limit, end, mixed=False)
                return UNDERWAY
            if leaving:
                seats.release_leaving()
            tokens = pairs = 0
            logits, generated = n, context - decode.inputs
            at = counter % size
            opened = sum(decode.borders[at : at + limit]) if limit < size else decode.blocks_in(limit)
            if opened:
                kv.take(opened)
        else:
            return None
        # -- it has ended
        live = 0
        if n:
            live = decode.n_live
            if decode.emit_s != start or decode.late:
                r.start_s, r.first_s, r.delta_s, r.n_steps = start, first, delta, limit
                live = r.log_gaps()
        r.steps += limit
        r.now_s = end
        if tokens:
            rows += pack_row(
                index, start, 1, first, 0.0, n, live, len(waiting), kv.free + kv.evictable,
                tokens, 1, pairs, done, logits, generated, context,
            )  # fmt: skip
        else:
            rows += pack_row(
                index, start, limit, first, delta, n, live, 0, kv.free + kv.evictable, 0, 0, 0, 0, n, generated, context,
            )  # fmt: skip
        if n:
            decode.counter = counter = counter + limit
            decode.emit_s = end
            if heap[0][0] <= counter:
                seats.finish(end)
        if tokens:
            if records:
                seats.life_log.chunks([(seq, tokens)], index, start, first)
            seq.computed_tokens = done
            if done == seq.prompt_tokens:
                if joins:
                    seats.first_token(seq, end, start, logits)
                else:
                    seats.emit_first(seq, end, start, logits)
            elif joins:
                prefilling[seq] = None
                seq.state = PREFILLING
        if r.coming_s <= end or r.inbox:
            # depth 1: the plan now due was made when the last step began
            r.absorb(start + (limit - 1) * first + delta * ((limit - 1) * (limit - 2) // 2) if depth else end)
    return None


def steps_by(first_s: float, delta_s: float, elapsed_s: float) -> int:
    """The least n >= 1 such that n steps of a progression last at least `elapsed_s`."""
    if delta_s > 0.0:
        b = first_s - delta_s / 2
        n = int((sqrt(b * b + 2 * delta_s * elapsed_s) - b) / delta_s) + 1
    else:
        n = int(elapsed_s / first_s) + 1
    m = n - 1
    while m and m * first_s + delta_s * (m * (m - 1) // 2) >= elapsed_s:
        n, m = m, m - 1
    while n * first_s + delta_s * (n * (n - 1) // 2) < elapsed_s:
        n += 1
    return n
