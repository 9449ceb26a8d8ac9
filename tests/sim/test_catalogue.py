"""The catalogue: names, aliases, user files, and errors that name the nearest."""

import json

import pytest
from stepline.sim.cost.catalogue import (
    aliases,
    known_engines,
    known_gpus,
    known_models,
    load_engine,
    load_gpu,
    load_model,
)
from stepline.traces.errors import ConfigError

ISSUE_MODELS = [
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "codellama-34b",
    "llama-3-8b",
    "llama-3-70b",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.3-70b",
    "llama-3.1-405b",
    "mistral-7b",
    "mistral-nemo-12b",
    "mistral-small-24b",
    "qwen2.5-7b",
    "qwen2.5-72b",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-14b",
    "qwen3-32b",
    "yi-34b",
    "phi-3",
    "gemma-2-9b",
    "gemma-3-27b",
    "gpt2",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "qwen1.5-moe-a2.7b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "deepseek-v2",
    "deepseek-v2-lite",
    "deepseek-v3",
    "llama-4-scout",
    "llama-4-maverick",
    "gpt-oss-120b",
]
ISSUE_GPUS = [
    "h100-sxm",
    "h100-pcie",
    "h100-nvl",
    "h200",
    "b200",
    "gb200",
    "a100-40",
    "a100-80",
    "l40s",
    "l4",
    "a10",
    "rtx-4090",
    "rtx-pro-6000",
    "mi300x",
    "cpu-i5-8250u",
]


@pytest.mark.parametrize("name", ISSUE_MODELS)
def test_every_model_asked_for_loads(name):
    assert load_model(name).n_layers > 0


@pytest.mark.parametrize("name", ISSUE_GPUS)
def test_every_gpu_asked_for_loads(name):
    assert load_gpu(name).hbm_bytes_per_s > 0


@pytest.mark.parametrize("name", ["vllm-v1", "vllm-0.15.1", "vllm-v0", "sglang", "trtllm", "ideal"])
def test_every_engine_asked_for_loads(name):
    assert load_engine(name).name == name


def test_every_row_has_a_source_and_unique_names():
    for kind, names, load in (
        ("model", known_models(), load_model),
        ("gpu", known_gpus(), load_gpu),
        ("engine", known_engines(), load_engine),
    ):
        spoken = [alias.lower() for name in names for alias in (name, *aliases(kind, name))]
        assert len(set(spoken)) == len(spoken)
        assert all(load(name).source for name in names)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("LLAMA-3.1-8B", "llama-3.1-8b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("codellama/CodeLlama-34b-Instruct-hf", "codellama-34b"),
        ("deepseek-r1", "deepseek-v3"),
    ],
)
def test_hugging_face_ids_and_any_case_find_the_model(given, name):
    assert load_model(given).name == name


@pytest.mark.parametrize(
    ("given", "base", "dtype"),
    [
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", "int8"),
        ("RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic", "llama-3.3-70b", "fp8"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "llama-3.1-70b", "fp8"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b", "int4"),
    ],
)
def test_a_quantisers_suffix_changes_only_the_weights(given, base, dtype):
    model = load_model(given)
    assert (model.name, model.weight_dtype) == (base, dtype)
    assert load_model(base).weight_dtype == "bf16"


def test_scout_fp8_keeps_its_attention_in_bf16():
    model = load_model("RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic")
    assert (model.weight_dtype, model.attention_dtype) == ("fp8", "bf16")


@pytest.mark.parametrize(
    ("load", "wrong", "meant"),
    [(load_model, "llama3.1-8b", "llama-3.1-8b"), (load_gpu, "h10", "h100"), (load_engine, "vlm", "vllm")],
)
def test_unknown_names_say_the_nearest(load, wrong, meant):
    with pytest.raises(ConfigError, match=rf"unknown .*did you mean .*{meant}"):
        load(wrong)


def test_models_that_no_operator_prices_are_refused_unless_counts_are_asked_for():
    with pytest.raises(ConfigError, match="encoder-decoder"):
        load_model("switch-c-2048")
    assert load_model("switch-c-2048", counts_only=True).encoder_layers == 15
    assert "switch-c-2048" not in known_models()
    assert "switch-c-2048" in known_models(counts_only=True)


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("mistral-7b-v0.1", ((4096, 32),)),
        ("mistral-7b", ((None, 32),)),
        ("gemma-2-9b", ((None, 21), (4096, 21))),
        ("gemma-3-27b", ((None, 10), (1024, 52))),
        ("gpt-oss-120b", ((None, 18), (128, 18))),
        ("llama-4-scout", ((None, 12), (8192, 36))),
        ("phi-3-mini", ((2047, 32),)),
        ("phi-3-mini-128k", ((None, 32),)),  # its window is longer than any context
        ("qwen2.5-7b", ((None, 28),)),  # the config has a window that use_sliding_window switches off
    ],
)
def test_attention_windows(name, windows):
    assert load_model(name).windows == windows


def test_windows_sum_to_the_layers():
    for name in known_models():
        model = load_model(name)
        assert sum(n for _, n in model.windows) == model.n_layers


def test_h100_ridge_and_links_are_the_datasheets():
    gpu = load_gpu("h100-sxm")
    assert gpu.peak_flops["bf16"] / gpu.hbm_bytes_per_s == pytest.approx(295, rel=2e-3)
    assert gpu.memory_bytes / 2**30 == pytest.approx(79.19, abs=1e-3)
    assert load_gpu("h200").peak_flops["bf16"] / load_gpu("h200").hbm_bytes_per_s == pytest.approx(
        206, rel=2e-3
    )
    assert load_gpu("b200").peak_flops["bf16"] / load_gpu("b200").hbm_bytes_per_s == pytest.approx(
        281, rel=2e-3
    )
    cpu = load_gpu("i5-8250u")
    assert cpu.peak_flops["fp32"] / cpu.hbm_bytes_per_s == pytest.approx(10, rel=0.03)


def test_a_gpu_from_toml_and_from_json(tmp_path):
    fields = {
        "name": "my-card",
        "peak_flops": {"bf16": 1e14},
        "hbm_bytes_per_s": 1e12,
        "memory_bytes": 2**34,
        "n_sm": 60,
        "nvlink_bytes_per_s": 0,
        "pcie_bytes_per_s": 32e9,
        "tdp_w": 200,
    }
    (tmp_path / "card.json").write_text(json.dumps(fields))
    lines = [f"{k} = {json.dumps(v)}" for k, v in fields.items() if k != "peak_flops"]
    (tmp_path / "card.toml").write_text("[gpu]\npeak_flops = { bf16 = 1e14 }\n" + "\n".join(lines))
    one, two = load_gpu(tmp_path / "card.json"), load_gpu(str(tmp_path / "card.toml"))
    assert one.peak_flops == two.peak_flops == {"bf16": 1e14}
    assert (one.memory_bytes, one.n_sm, two.tdp_w) == (2**34, 60, 200.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_bytes": -1}, "memory_bytes: got -1, expected a number > 0"),
        ({"hbm_bytes_per_s": "fast"}, "hbm_bytes_per_s: got 'fast'"),
        ({"tdp_w": True}, "tdp_w: got True"),
        ({"hbm_bytes_per_s": float("nan")}, "hbm_bytes_per_s: got nan"),
        ({"memroy_bytes": 1}, "unknown field; did you mean 'memory_bytes'"),
        ({"peak_flops": {"bf61": 1e14}}, "did you mean 'bf16'"),
        ({"peak_flops": {}}, "peak_flops: got {}"),
        ({"n_sm": None}, "n_sm: got None"),
    ],
)
def test_a_wrong_gpu_file_names_the_field(tmp_path, change, message):
    fields = {
        "name": "x",
        "peak_flops": {"bf16": 1e14},
        "hbm_bytes_per_s": 1e12,
        "memory_bytes": 1,
        "n_sm": 1,
        "nvlink_bytes_per_s": 1,
        "pcie_bytes_per_s": 1,
        "tdp_w": 1,
    }
    path = tmp_path / "card.json"
    path.write_text(json.dumps(fields | change))
    with pytest.raises(ConfigError, match=r"card\.json") as caught:
        load_gpu(path)
    assert message in str(caught.value)


def test_a_missing_field_and_a_missing_file_are_errors(tmp_path):
    (tmp_path / "card.toml").write_text('name = "x"\n')
    with pytest.raises(ConfigError, match="peak_flops: missing"):
        load_gpu(tmp_path / "card.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_gpu(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(ConfigError, match="not toml"):
        load_gpu(tmp_path / "bad.toml")


def test_an_engine_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\npipeline_depth = 1\nstep_host_s = 1e-3\ncuda_graphs = [[1, 2, 1], [8, 24, 8]]\n'
    )
    engine = load_engine(path)
    assert engine.cuda_graph_sizes == (1, 2, 8, 16, 24)
    assert engine.max_graph_tokens == 24
    path.write_text('name = "mine"\npipeline_depth = 2\n')
    with pytest.raises(ConfigError, match="pipeline_depth: got 2"):
        load_engine(path)
    path.write_text('name = "mine"\nstep_hots_s = 1\n')
    with pytest.raises(ConfigError, match="did you mean 'step_host_s'"):
        load_engine(path)


def test_vllm_captures_the_graph_sizes_of_its_config():
    sizes = load_engine("vllm-v1").cuda_graph_sizes
    assert sizes[:6] == (1, 2, 4, 8, 16, 24)
    assert sizes[-2:] == (496, 512)
    assert len(sizes) == 51


def test_the_ideal_engine_has_no_host():
    ideal = load_engine("ideal")
    costs = (ideal.step_host_s, ideal.step_host_per_seq_s, ideal.tp_step_host_s, ideal.request_ingest_s)
    assert costs == (0, 0, 0, 0)
    assert (ideal.output_delay_s, ideal.pipeline_depth, ideal.cuda_graph_sizes) == (0, 0, ())
