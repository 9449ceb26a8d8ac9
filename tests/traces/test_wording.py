"""Numbers in sentences."""

from __future__ import annotations

import pytest
from stepline.traces.errors import closest
from stepline.traces.wording import counted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (counted(0, "request"), "0 requests"),
        (counted(1, "request"), "1 request"),
        (counted(1200, "request"), "1,200 requests"),
        (counted(0, "request", of=1), "0 of 1 request"),
        (counted(1, "request", of=2), "1 of 2 requests"),
    ],
)
def test_one_is_singular_and_a_share_follows_the_whole(text, expected):
    assert text == expected


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [
        ("h10", ["a10", "h100-pcie", "h100-sxm"], ["h100-pcie", "h100-sxm"]),
        ("H10", ["a10", "H100-sxm"], ["H100-sxm"]),
        ("ch", ["chunked", "chunked-fixed", "chunked-slo", "chess"], ["chess"]),
        ("chunkd", ["chunked", "static"], ["chunked"]),
        ("foo", ["a10", "l4"], []),
        ("", ["a10", "l4"], []),
    ],
)
def test_names_that_begin_so_are_meant_before_names_spelt_alike(typed, known, meant):
    assert closest(typed, known) == meant
