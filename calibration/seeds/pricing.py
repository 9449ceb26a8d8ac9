"""Steps of a model on a GPU, priced by the calibrated cost model, in the terms of the questions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepline.sim.cost.operators import causal_pairs
from stepline.sim.cost.work import StepWork

from .arithmetic import gpu as gpu_spec
from .arithmetic import model as model_spec

if TYPE_CHECKING:
    from stepline.sim.cost.roofline import RooflineCostModel
    from stepline.sim.cost.specs import Dtype


def cost_model(name: str, gpu: str, dtype: Dtype = "bf16", **options: Any) -> RooflineCostModel:
    """Cost model of a catalogue model on a catalogue GPU, calibrated; options as `RooflineCostModel` has them."""
    from stepline.sim.cost.calibration import find_calibration
    from stepline.sim.cost.roofline import RooflineCostModel

    spec = replace(model_spec(name), weight_dtype=dtype)
    return RooflineCostModel(spec, gpu_spec(gpu), find_calibration(gpu, dtype), **options)


def decode_work(batch: int, context: int, windows: int = 1) -> StepWork:
    """A decode step of `batch` sequences of `context` tokens each."""
    return StepWork(n_decode=batch, context_tokens=(batch * context,) * windows, logits_rows=batch)


def mixed_work(batch: int, context: int, chunk: int, history: int = 0) -> StepWork:
    """The same with one prompt chunk of `chunk` tokens on `history` cached ones beside the decodes."""
    decode = decode_work(batch, context)
    return decode._replace(
        prefill_tokens=chunk,
        prefill_seqs=1,
        attention_pairs=int(causal_pairs(chunk, history)),
        prefill_kv_tokens=history + chunk,
        logits_rows=batch + 1,
    )
