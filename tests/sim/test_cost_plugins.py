"""Cost models by name, with parameters, and plug-ins that have only step_s."""

import re

import numpy as np
import pytest
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.datasheet import DatasheetCostModel
from stepline.sim.cost.plugins import completed, known_cost_models, load_cost_model
from stepline.sim.cost.roofline import RooflineCostModel
from stepline.sim.cost.work import StepWork
from stepline.traces.errors import CalibrationError, ConfigError

MODEL, GPU = load_model("llama-3.1-8b"), load_gpu("h100-sxm")
WORK = StepWork(0, 0, 0, 0, 4, (400,), 4)


class Linear:
    """A closed form of three lines."""

    def __init__(self, base_ms: float = 5.0) -> None:
        self.base_ms = base_ms

    def step_s(self, work: StepWork) -> float:
        return 1e-3 * self.base_ms + 1e-6 * sum(work.context_tokens)


class NoStep:
    pass


NOT_A_CLASS = 3


def test_built_in_names_build_their_models():
    assert {"roofline", "datasheet"} <= set(known_cost_models())
    assert type(load_cost_model("roofline", MODEL, GPU)) is RooflineCostModel
    assert type(load_cost_model("datasheet", MODEL, GPU, tp=2)) is DatasheetCostModel


def test_parameters_in_the_text_reach_the_model():
    plain = load_cost_model("roofline", MODEL, GPU)
    formula = load_cost_model("roofline:residual=false", MODEL, GPU)
    assert formula.calibration.kernels["gemm"].residual is None
    assert plain.calibration.kernels["gemm"].residual is not None
    assert load_cost_model("roofline:chunk_history=split-kv", MODEL, GPU).history_rule == "split-kv"


def test_the_run_context_reaches_the_model():
    engine = load_engine("vllm-v1")
    model = load_cost_model(
        "roofline", MODEL, GPU, tp=2, engine=engine, kv_dtype="fp8", calibration="vllm-0.24.0"
    )
    assert (model.tp, model.engine, model.kv_dtype) == (2, engine, "fp8")


def test_a_plug_in_takes_its_parameters_and_ignores_the_run():
    model = load_cost_model(f"{__name__}:Linear:base_ms=7", MODEL, GPU, tp=2)
    assert model.step_s(WORK) == pytest.approx(7.4e-3)


def test_a_plug_in_with_step_s_alone_is_completed():
    model = completed(Linear(), MODEL)
    leap = model.leap(WORK, (4,), 100)
    assert (leap.first_s, leap.delta_s, leap.n) == (model.step_s(WORK), 0.0, 1)
    assert model.explain(WORK).total_s == model.step_s(WORK)
    columns = {
        name: np.array([getattr(WORK, name)] * 2) for name in StepWork._fields if name != "context_tokens"
    }
    seconds, flops, _ = model.explain_many({**columns, "context_tokens": np.array([400.0, 402.5])})
    total = sum(s for split in seconds.values() for s in split.values())
    np.testing.assert_allclose(total, [5.4e-3, 5.4025e-3])
    assert flops.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rooflin", "did you mean 'roofline'"),
        ("no_such_module:Thing", "cannot import no_such_module"),
        (f"{__name__}:Nothing", "has no 'Nothing'"),
        (f"{__name__}:NOT_A_CLASS", "got int, expected a class"),
        (f"{__name__}:NoStep", "got no method step_s"),
        (f"{__name__}:Linear:base=7", "unknown parameter 'base'; did you mean 'base_ms'"),
        ("roofline:residual", "'roofline:residual'"),
        ("datasheet:calibration=x", "unknown parameter 'calibration'"),
    ],
)
def test_wrong_cost_models_are_one_line_errors(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_cost_model(text, MODEL, GPU)


def test_a_calibration_for_a_model_that_uses_none_is_refused():
    with pytest.raises(ConfigError, match=r"--calibration: got .c\.json."):
        load_cost_model("datasheet", MODEL, GPU, calibration="c.json")
    with pytest.raises(ConfigError, match="--calibration"):
        load_cost_model(f"{__name__}:Linear", MODEL, GPU, calibration="c.json")


def test_a_calibration_is_a_file_or_a_library():
    with pytest.raises(CalibrationError, match=r"nowhere\.json"):
        load_cost_model("roofline", MODEL, GPU, calibration="nowhere.json")
    with pytest.raises(CalibrationError, match="did you mean"):
        load_cost_model("roofline", MODEL, GPU, calibration="vllm-0.25.0")
