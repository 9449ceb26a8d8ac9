"""What goes wrong in a user's own policy is told by their line; what it answers is checked before it is believed."""

from __future__ import annotations

import sys

import pytest
from stepline.sim import simulate
from stepline.sim.cli.main import main
from stepline.sim.engine.plugins import load_plugin, plugin_factory
from stepline.sim.study.reuse import reuse
from stepline.traces.errors import ConfigError, PolicyError

from ..sim.engine_kit import Affine, run, trace
from .conformance import EVICTION

ROWS = [(0.0, 20, 5), (0.0, 30, 5), (0.5, 10, 3)]

HEAD = """
from stepline.policies.batching.chunked import ChunkedPolicy
from stepline.sim.engine.contracts import Plan


class Mine(ChunkedPolicy):
    def plan(self, view):
        plan = super().plan(view)
"""


def own(tmp_path, body, head=HEAD):
    """A file with a class `Mine`, whose last lines are `body`."""
    path = tmp_path / "own.py"
    path.write_text(head + "".join(f"        {line}\n" for line in body.splitlines()))
    return f"{path}:Mine"


PLANS = {
    "return None": "Mine: plan: got None, expected a Plan",
    "return plan.chunks": "Mine: plan: got a list, expected a Plan",
    "return Plan(None)": "step 0: Plan.chunks: got None, expected a list of (sequence, tokens)",
    "return Plan([('a', 1)])": "step 0: Plan.chunks: got ('a', 1), expected (sequence, tokens)",
    "return Plan([(s, c / 2) for s, c in plan.chunks])": "sequence 0: a chunk of 10.0 tokens, expected an integer",
    "return Plan(plan.chunks * 2)": "sequence 0: two chunks in one step",
    "return Plan([], preempt=None)": "Plan.preempt: got None, expected a tuple of sequences",
    "return Plan([], preempt=(3,))": "Plan.preempt: got 3, expected a sequence",
    "return Plan(plan.chunks, preempt=(plan.chunks[0][0],))": "sequence 0: preempted and given a chunk in one step",
    "return Plan(plan.chunks, decode=None)": "Plan.decode: got None, expected True or False",
    "view.waiting.clear()\nreturn plan": "a view is read-only",
    "return view.nothing": "own.py:9, in plan: return view.nothing: AttributeError: ",
    "raise ValueError": "own.py:9, in plan: raise ValueError: ValueError",
}


@pytest.mark.parametrize("body", PLANS)
def test_wrong_answers_and_errors_are_policy_errors_with_the_users_line(tmp_path, body):
    policy = load_plugin("stepline.batch_policies", own(tmp_path, body))
    with pytest.raises(PolicyError) as caught:
        run(ROWS, Affine(1.0), policy, max_num_batched_tokens=100, max_num_seqs=8)
    assert PLANS[body] in str(caught.value)
    assert str(caught.value).startswith("Mine: ")


def test_a_right_policy_gives_what_it_gives_unguarded(tmp_path):
    results = [
        run(ROWS, Affine(1.0), load_plugin("stepline.batch_policies", text)).requests
        for text in (own(tmp_path, "return plan"), "chunked")
    ]
    assert results[0].equals(results[1])


def test_numbers_of_numpy_are_as_good(tmp_path):
    """The compiled core takes Python's own only; what users compute with NumPy is made plain before."""
    numpy = "import numpy as np\nplan.chunks = tuple((s, np.int64(n)) for s, n in plan.chunks)\nplan.preempt = []\nreturn plan"
    results = [
        run(ROWS, Affine(1.0), load_plugin("stepline.batch_policies", text)).requests
        for text in (own(tmp_path, numpy), "chunked")
    ]
    assert results[0].equals(results[1])


OTHERS = {
    (
        "eviction",
        "on_insert on_hit on_release on_evict",
        "def victim(self): return None",
    ): "got None, expected one of",
    (
        "preemption",
        "",
        "def victim(self, view, candidates, n): return 'x'",
    ): "got 'x', expected one of the candidates",
    ("preemption", "", "def victim(self, view, candidates, n): return {}[1]"): "own.py:3, in victim: ",
}


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case[2])
def test_other_kinds_are_watched_too(tmp_path, case):
    kind, names, method = case
    path = tmp_path / "own.py"
    empty = [f"    def {name}(self, *_): pass" for name in names.split()]
    path.write_text("\n".join(["", "class Mine:", f"    {method}", *empty]))
    found = load_plugin(f"stepline.{kind}_policies", f"{path}:Mine")
    how = {kind: (lambda: found) if kind == "eviction" else found}
    with pytest.raises(PolicyError) as caught:
        run(
            [(0.0, 20, 30), (0.0, 20, 30), (0.0, 20, 30)],
            Affine(1.0),
            kv_blocks=9,
            block_size=8,
            **how,
        )
    assert OTHERS[case] in str(caught.value)


MEMBERS = {
    "class Mine: pass": "Mine has no 'plan', expected plan, reservation, ",
    "class Mine:\n    def plan(self, view): pass": "Mine has no 'reservation'",
    HEAD.replace(
        "    def plan", "    reservation = 'pagd'\n    def plan"
    ): "reservation: got 'pagd', expected one of paged",
    HEAD.replace("    def plan", "    def __init__(self): {}['a']\n    def plan"): "own.py:7, in __init__: ",
    "def broken(:": "own.py:1: def broken(:: SyntaxError",
    "import there_is_no_such_module": "own.py:1, in <module>: import there_is_no_such_module: ModuleNotFoundError",
    "1/0": "own.py:1, in <module>: 1/0: ZeroDivisionError",
    "x = 1": "no class 'Mine' in ",
}


@pytest.mark.parametrize("source", MEMBERS)
def test_classes_that_are_no_policy_and_files_that_do_not_run_are_input_errors(tmp_path, source):
    (tmp_path / "own.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        load_plugin("stepline.batch_policies", f"{tmp_path / 'own.py'}:Mine")
    assert MEMBERS[source] in str(caught.value)


FORGETFUL = """
from stepline.policies.eviction.lru import LruPolicy
class Mine(LruPolicy):
    def on_evict(self, segment): pass
"""
HASTY = """
class Mine:
    def __init__(self): self.all, self.seen = {}, []
    def on_insert(self, segment, now_s): self.seen.append(segment)
    def on_hit(self, segment, now_s): self.all.pop(segment, None)
    def on_release(self, segment, now_s): self.all[segment] = None
    def on_evict(self, segment): del self.all[segment]
    def victim(self): return next(iter(self.all))
    def expired(self, now_s):
        EXPIRES
"""


def test_a_victim_that_is_not_cached_is_named_by_a_cache_only_replay_too(tmp_path):
    (tmp_path / "own.py").write_text(FORGETFUL)
    t = trace([(float(i), 8, 1) for i in range(5)], [[i] for i in range(5)], 8)
    with pytest.raises(PolicyError, match=r"Mine: victim: got Segment.*expected a cached segment"):
        reuse(t, [f"{tmp_path / 'own.py'}:Mine"], [2])


@pytest.mark.parametrize(
    ("expires", "says"),
    [
        ("yield from [s for s in self.seen if s.refs]", "Mine: expired: got Segment.*that nobody holds"),
        ("yield 1 / 0", "own.py:10, in expired: yield 1 / 0: ZeroDivisionError"),
    ],
)
def test_segments_that_cannot_expire_are_named(tmp_path, expires, says):
    (tmp_path / "own.py").write_text(HASTY.replace("EXPIRES", expires))
    ids = [[1, 2, 3], [1, 2, 4]]
    t = trace([(0.0, 24, 9), (3.0, 24, 9)], ids, 8)
    with pytest.raises(PolicyError, match=says):
        run(t, Affine(1.0), block_size=8, eviction=plugin_factory(EVICTION, f"{tmp_path / 'own.py'}:Mine"))


KINDS = {
    ("batch_policies", "spare_blocks = -1"): "spare_blocks: got -1, expected an integer >= 0",
    ("batch_policies", "pads = 'no'"): "pads: got 'no', expected True or False",
    ("preemption_policies", "mode = 'swp'"): "mode: got 'swp', expected one of recompute, swap",
    ("kv_compressions", "cap_tokens = -1"): "cap_tokens: got -1, expected tokens >= 1, or None",
    ("kv_compressions", "prefill_window = 2.5"): "prefill_window: got 2.5, expected tokens >= 1, or None",
}


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case[1])
def test_members_that_are_no_such_value_are_input_errors(tmp_path, case):
    kind, line = case
    base = {
        "batch_policies": "from stepline.policies.batching.chunked import ChunkedPolicy as Base",
        "preemption_policies": "class Base:\n    def victim(self, view, candidates, n): return None",
        "kv_compressions": "class Base:\n    cap_tokens = prefill_window = None\n    def kept_tokens(self, n): return n",
    }[kind]
    (tmp_path / "own.py").write_text(f"{base}\nclass Mine(Base):\n    {line}\n")
    with pytest.raises(ConfigError) as caught:
        load_plugin(f"stepline.{kind}", f"{tmp_path / 'own.py'}:Mine")
    assert KINDS[case] in str(caught.value)


@pytest.mark.parametrize("kept", ["n + 1", "0", "60"])
def test_a_compression_that_keeps_more_than_there_is_or_than_its_cap_is_named(tmp_path, kept):
    source = (
        f"class Mine:\n    cap_tokens, prefill_window = 50, None\n    def kept_tokens(self, n): return {kept}"
    )
    (tmp_path / "own.py").write_text(source)
    found = load_plugin("stepline.kv_compressions", f"{tmp_path / 'own.py'}:Mine")
    with pytest.raises(PolicyError, match=r"sequence 0: Mine: kept_tokens: got \d+, expected 1 to 50"):
        run([(0.0, 80, 5)], Affine(1.0), compression=found)


def test_a_file_takes_no_other_modules_name_and_finds_its_neighbours(tmp_path):
    (tmp_path / "neighbour.py").write_text("BUDGET = 7\n")
    (tmp_path / "queue.py").write_text(f"import neighbour\n{HEAD}        return plan\n")
    before = sys.modules.get("queue")
    load_plugin("stepline.batch_policies", f"{tmp_path / 'queue.py'}:Mine")
    assert sys.modules.get("queue") is before
    assert str(tmp_path) not in sys.path


QUEUE = """
from stepline.policies.batching.ordered import OrderedPolicy


class Order:
    def key(self, seq):
        return seq.importance


class Mine(OrderedPolicy):
    def make_order(self):
        return Order()
"""


def test_errors_in_what_a_policy_made_are_told_by_their_line_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 9, "output_length": 3}\n')
    (tmp_path / "own.py").write_text(QUEUE)
    assert main(["--trace", "t.jsonl", "--policy", "own.py:Mine", "--no-save", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("simulate: own.py:7, in key: return seq.importance: AttributeError: ")
    assert error.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    ours = "stepline.policies.batching.chunked.ChunkedPolicy.prompt_budget"
    monkeypatch.setattr(ours, int)  # raises without a frame of this file
    with pytest.raises(TypeError, match="ReplicaView"):
        simulate(trace(ROWS))


COSTS = {
    "return float('nan')": "cost model Mine: step_s: got nan, expected seconds > 0 for StepWork(",
    "return -1": "step_s: got -1, expected seconds > 0",
    "return 'x'": "step_s: got 'x', expected seconds > 0",
    "return 1/0": "own.py:4, in step_s: return 1/0: ZeroDivisionError",
}


@pytest.mark.parametrize("body", COSTS)
def test_cost_models_of_the_users_own_are_watched_too(tmp_path, monkeypatch, capsys, body):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"timestamp": 0, "input_length": 9, "output_length": 3}\n')
    own(tmp_path, body, head="\nclass Mine:\n    def step_s(self, work):\n")
    code = main(["--trace", "t.jsonl", "--cost-model", "own.py:Mine", "--no-save", "--quiet"])
    assert code == 2
    assert COSTS[body] in capsys.readouterr().err


def test_seconds_of_numpy_are_as_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own(
        tmp_path,
        "import numpy as np\nreturn np.float32(0.25)",
        head="\nclass Mine:\n    def step_s(self, work):\n",
    )
    mine = simulate(trace(ROWS), cost_model="own.py:Mine").requests
    own(tmp_path, "return 0.25", head="\nclass Mine:\n    def step_s(self, work):\n")
    assert mine.equals(simulate(trace(ROWS), cost_model="own.py:Mine").requests)


def test_text_where_a_number_is_wanted_is_refused():
    with pytest.raises(ConfigError, match=r"^--admission token-bucket: rate: got 'x', expected a number$"):
        load_plugin("stepline.admission_policies", "token-bucket:rate=x")
