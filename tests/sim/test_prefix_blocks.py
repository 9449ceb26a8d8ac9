"""Prefix caching block by block: trace ids of any size on engine blocks of any size, prompts and what was generated.

The reference has one object a block and knows nothing of segments: vLLM V1's free queue, a request at a time.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import replace
from itertools import count

import pytest
from stepline.policies.batching.chunked import ChunkedPolicy
from stepline.policies.eviction.lru import LruPolicy
from stepline.sim.study.plan_bounds import demand_of
from stepline.sim.study.reuse import ceiling, reuse
from stepline.traces.trace import Ragged

from .engine_kit import Affine, by_index, run, trace


def conversations(draw, trace_block):
    """Random branching conversations: rows (input, output), ids of prompts, ids of blocks that decoding completes."""
    fresh = count(1)
    rows, ids, generated = [], [], []
    for _ in range(draw.choice([5, 20, 50])):
        shared = []
        if rows and draw.random() < 0.7:
            k = draw.randrange(len(rows))
            whole = ids[k][: rows[k][0] // trace_block]
            shared = (whole + generated[k] if draw.random() < 0.7 else whole)[
                : draw.randint(1, 2 + len(whole) + len(generated[k]))
            ]
        tokens = len(shared) * trace_block + draw.randint(1, 5 * trace_block)
        output = draw.choice([1, 2, draw.randint(1, 3 * trace_block)])
        n_ids = -(-tokens // trace_block)
        done = (tokens + output) // trace_block - tokens // trace_block if draw.random() < 0.8 else 0
        rows.append((tokens, output))
        ids.append(shared + [next(fresh) for _ in range(n_ids - len(shared))])
        generated.append([next(fresh) for _ in range(done)])
    return rows, ids, generated


def vllm_hits(rows, ids, generated, trace_block, size, n_blocks):
    """Cached tokens of each request when they come one at a time."""
    free = OrderedDict.fromkeys(range(n_blocks))
    block_of, content_of, hits = {}, {}, []
    asked_for = {key for row in ids for key in row}
    for (tokens, output), prompt, more in zip(rows, ids, generated, strict=True):
        goes_on = bool(more) and more[0] in asked_for
        chain = prompt[: tokens // trace_block] + more if goes_on else prompt
        kv_tokens = tokens + output - 1  # the last token is never read
        vouched = kv_tokens if goes_on else min(kv_tokens, tokens)

        def content(j, chain=chain, vouched=vouched):
            """What block j holds, if it is full and an id vouches for all of it."""
            end = (j + 1) * size
            i = (end - 1) // trace_block
            return (chain[i], j) if end <= vouched and i < len(chain) else None

        hit = 0
        while hit < (tokens - 1) // size and content(hit) in block_of:
            hit += 1
        mine = [block_of[content(j)] for j in range(hit)]
        for block in mine:
            del free[block]
        for j in range(hit, -(-kv_tokens // size)):
            block, _ = free.popitem(last=False)
            block_of.pop(content_of.pop(block, None), None)
            if content(j) is not None and content(j) not in block_of:
                block_of[content(j)], content_of[block] = block, content(j)
            mine.append(block)
        free.update(dict.fromkeys(reversed(mine)))
        hits.append(hit * size)
    return hits


def serve(rows, ids, generated, trace_block, **kw):
    """The engine's run of the same requests, far apart; the request table."""
    t = trace([(1e7 * i, *row) for i, row in enumerate(rows)], ids, trace_block)
    t = replace(t, output_hash_ids=Ragged.from_rows(generated))
    return by_index(run(t, Affine(1.0), eviction=LruPolicy, max_model_len=10**6, **kw))


@pytest.mark.parametrize("trace_block", [512, 64, 16, 10])
@pytest.mark.parametrize("size", [1, 8, 16, 24, 100, 512])
def test_hits_are_those_of_single_blocks(trace_block, size):
    draw = random.Random(1000 * trace_block + size)
    for _ in range(4):
        rows, ids, generated = conversations(draw, trace_block)
        most = max(-(-(a + b) // size) for a, b in rows)
        n_blocks = most + draw.choice([0, 1, most // 2, 2 * most, 8 * most])
        want = vllm_hits(rows, ids, generated, trace_block, size, n_blocks)
        got = serve(
            rows, ids, generated, trace_block, kv_blocks=n_blocks + 1, block_size=size, max_num_seqs=1,
            max_num_batched_tokens=draw.choice([64, 8192]), depth=draw.choice([0, 1]),
        )  # fmt: skip
        assert got["cached_tokens"].tolist() == want


FIRST, SECOND = (40, 30), (90, 5)
IDS, GENERATED = [[1, 2, 3], [1, 2, 4, 5, 6, 7]], [[4, 5], []]
"""A turn of 40 tokens that generates 30, and the next, which goes on with them: in blocks of 16 whole up to token 64."""


def test_the_next_turn_finds_what_the_last_one_generated():
    q = serve([FIRST, SECOND], IDS, GENERATED, 16)
    assert q["cached_tokens"].tolist() == [0, 64]
    assert serve([FIRST, SECOND], IDS, [[], []], 16)["cached_tokens"].tolist() == [0, 32]


def test_the_last_generated_token_has_no_kv():
    """Of 40 + 24 tokens the 64th is emitted and never read: the fourth block is full only with one more."""
    assert serve([(40, 24), SECOND], IDS, GENERATED, 16)["cached_tokens"].tolist() == [0, 48]
    assert serve([(40, 25), SECOND], IDS, GENERATED, 16)["cached_tokens"].tolist() == [0, 64]


def test_a_prompt_repeated_finds_its_head_beside_what_it_generated():
    """The prompt's last block, begun by the prompt and completed by decoding, serves whoever has its id."""
    again = [*IDS, [1, 2, 3]]
    q = serve([FIRST, SECOND, (40, 30)], again, [[4, 5], [], [4, 5]], 16, block_size=8)
    assert q["cached_tokens"].tolist() == [0, 64, 32]


def test_policies_see_no_id_of_what_is_still_to_be_generated():
    seen = []

    class Watches(ChunkedPolicy):
        def plan(self, view):
            seen.extend(len(seq.hash_ids) for seq in [*view.waiting, *view.running] if seq.index == 0)
            return super().plan(view)

    serve([FIRST, SECOND], IDS, GENERATED, 16, policy=Watches())
    assert set(seen) == {3}


def test_a_preempted_turn_keeps_its_generated_blocks_findable():
    """Two sequences that outgrow the cache: the second is preempted while it decodes, comes back to what it had generated,
    and at its end the next turn finds all of it."""
    ids = [[1, 2], [10, 11], [10, 11, 12, 13, 14]]
    t = trace([(0.0, 32, 40), (0.0, 32, 40), (500.0, 75, 1)], ids, 16)
    t = replace(t, output_hash_ids=Ragged.from_rows([[], [12, 13], []]))
    q = by_index(run(t, Affine(1.0), eviction=LruPolicy, block_size=16, kv_blocks=9, max_model_len=1000))
    assert q["preemptions"].sum() == 1
    assert q["cached_tokens"].tolist() == [0, 0, 64]


def test_a_cache_only_replay_and_the_plan_know_of_generated_blocks_too():
    t = trace([(float(i), *row) for i, row in enumerate([FIRST, SECOND])], IDS, 16)
    plain, told = t, replace(t, output_hash_ids=Ragged.from_rows(GENERATED))
    assert ceiling(plain) == pytest.approx(32 / 130)
    assert ceiling(told) == pytest.approx(64 / 130)
    assert reuse(told, ["lru"], [100])[0].hit_token_frac == ceiling(told)
    assert demand_of(plain, caching=True).uncached.tolist() == [40, 58]
    assert demand_of(told, caching=True).uncached.tolist() == [40, 26]
