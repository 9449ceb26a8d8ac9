"""`simulate models|gpus|engines|policies`."""

import json

import pytest
from stepline.sim.cli.catalogue import POLICY_GROUPS, main
from stepline.sim.cost.catalogue import known_engines, known_gpus, known_models
from stepline.traces.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "names"),
    [("models", known_models(counts_only=True)), ("gpus", known_gpus()), ("engines", known_engines())],
)
def test_the_table_has_every_name_whole_and_its_source(kind, names, capsys):
    assert main([kind]) == 0
    out = capsys.readouterr().out
    for name in names:
        assert f"\n{name} " in out
        assert f"\n{name}: " in out
    assert "…" not in out


@pytest.mark.parametrize("kind", ["models", "gpus", "engines", "policies"])
def test_json_is_a_list_of_named_objects(kind, capsys):
    assert main([kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["name"] for row in rows)


def test_one_model_shows_its_shape_and_parameters(capsys):
    assert main(["models", "Qwen/Qwen3-8B", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["parameters"]["total"] == 8190735360
    assert "Qwen/Qwen3-8B" in row["aliases"]
    assert main(["models", "qwen3-8b"]) == 0
    assert "hidden_size" in capsys.readouterr().out


def test_policies_come_from_entry_points_with_a_word_on_each(capsys):
    assert main(["policies", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in rows} == set(POLICY_GROUPS)
    assert all(row["what"] and not row["what"].startswith("(cannot") for row in rows)
    assert main(["policies", "chunked", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["chunked"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["modles"], "did you mean 'models'"),
        ([], "unknown list"),
        (["gpus", "h1000"], "did you mean"),
        (["gpus", "h10"], "did you mean 'h100-nvl', 'h100-pcie' or 'h100-sxm'?"),
        (["gpus", "MI30"], "did you mean 'mi300x'?"),
        (["policies", "chunkd"], "did you mean 'chunked'"),
    ],
)
def test_unknown_names_say_the_nearest(argv, message):
    with pytest.raises(ConfigError, match=message):
        main(argv)
