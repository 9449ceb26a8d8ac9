"""The compact tables behind streamed figures against plain dicts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from stepline.traces.key_tables import KeyTable, digests
from stepline.traces.reuse import IdTable, previous


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(-99, 99), max_size=6), max_size=6))
def test_a_key_table_is_a_dict(updates):
    table, expected = KeyTable(n=np.int64), {}
    for update in updates:
        table.store(digests([*update]), n=np.array([*update.values()], dtype=np.int64))
        expected |= update
        names = [*expected, "never there"]
        known, values = table.find(digests(names))
        assert known.tolist() == [True] * len(expected) + [False]
        assert values["n"][:-1].tolist() == [*expected.values()]
    assert len(table) == len(expected)


@given(
    st.lists(st.lists(st.one_of(st.integers(0, 5), st.integers(2**40, 2**40 + 3)), min_size=1), max_size=5)
)
def test_previous_occurrences_are_found_within_and_across_chunks(chunks):
    table, seen, clock = IdTable(np.nan), {}, 0.0
    for ids in chunks:
        values = clock + np.arange(len(ids), dtype=np.float64)
        expected = []
        for key, value in zip(ids, values.tolist(), strict=True):
            expected.append(seen.get(key, np.nan))
            seen[key] = value
        clock += len(ids)
        np.testing.assert_equal(previous(np.array(ids, dtype=np.int64), values, table), expected)
