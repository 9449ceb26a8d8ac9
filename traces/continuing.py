"""Which requests' generated tokens a later prompt goes on with, by their block ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .trace import Trace


def carried_on(trace: Trace) -> NDArray[np.bool_] | None:
    """Rows whose first `output_hash_ids` is in some prompt of the trace; None if no row's is.

    Of other rows nothing can hit what they generated, and their ids need not be looked after.

    >>> from stepline.traces.request import Request
    >>> from stepline.traces.trace import Trace
    >>> first = Request("a", 0.0, 40, 30, hash_ids=(1, 2, 3), output_hash_ids=(4, 5), block_size=16)
    >>> carried_on(Trace.from_requests([first])) is None
    True
    >>> second = Request("b", 1.0, 90, 1, hash_ids=(1, 2, 4, 5, 6, 7), block_size=16)
    >>> carried_on(Trace.from_requests([first, second])).tolist()
    [True, False]
    """
    prompts, outputs = trace.hash_ids, trace.output_hash_ids
    if prompts is None or outputs is None or trace.block_size is None:
        return None
    has_both = (np.diff(prompts.offsets) > 0) & (np.diff(outputs.offsets) > 0)
    found = np.zeros(len(trace), dtype=np.bool_)
    found[has_both] = np.isin(outputs.values[outputs.offsets[:-1][has_both]], prompts.values)
    return found if found.any() else None
