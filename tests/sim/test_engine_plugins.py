"""Finding plug-ins by name, module or file, and reading their parameters."""

from __future__ import annotations

import pytest
from stepline.sim.engine.plugins import load_plugin, parse_plugin, plugin_factory, plugin_names, split_plugins
from stepline.traces.errors import ConfigError

BATCH = "stepline.batch_policies"

SOURCE = '''
from stepline.policies.batching.chunked import ChunkedPolicy


class Mine(ChunkedPolicy):
    """A policy of the user's own."""

    def __init__(self, *, budget: int = 512, greedy: bool = False, name: str = "x") -> None:
        if budget < 1:
            raise ValueError("budget must be positive")
        self.budget, self.greedy, self.name = budget, greedy, name
'''


@pytest.fixture
def own_policy(tmp_path, monkeypatch):
    (tmp_path / "own_policy_module.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_lists_keep_parameters_with_their_plugin():
    assert split_plugins("a,b:x=1,y=2,m:C,c") == ["a", "b:x=1,y=2", "m:C", "c"]


@pytest.mark.parametrize(
    ("text", "target", "parameters"),
    [
        ("chunked", "chunked", {}),
        ("sarathi:budget=512,mode=fast", "sarathi", {"budget": 512, "mode": "fast"}),
        ("my.module:Policy", "my.module:Policy", {}),
        ("my.module:Policy:x=0.5,y=true,z=none", "my.module:Policy", {"x": 0.5, "y": True, "z": None}),
    ],
)
def test_texts_are_read(text, target, parameters):
    found = parse_plugin(text, "--policy")
    assert (found.target, dict(found.parameters)) == (target, parameters)


def test_registered_names_load():
    assert "chunked" in plugin_names(BATCH)
    assert type(load_plugin(BATCH, "chunked")).__name__ == "ChunkedPolicy"


def test_modules_of_the_current_directory_load_with_parameters(own_policy):
    made = load_plugin(BATCH, "own_policy_module:Mine:budget=7,greedy=true", name="given")
    assert (made.budget, made.greedy, made.name) == (7, True, "given")


def test_files_load_by_path(own_policy):
    assert load_plugin(BATCH, f"{own_policy}/own_policy_module.py:Mine:budget=9").budget == 9


def test_a_factory_builds_a_new_one_each_time(own_policy):
    build = plugin_factory(BATCH, "own_policy_module:Mine")
    assert build() is not build()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chunkd", r"--policy: unknown name 'chunkd'; did you mean 'chunked'\?"),
        ("own_policy_module:Nine", r"no class 'Nine' in own_policy_module; did you mean 'Mine'\?"),
        ("no_such_module_at_all:Mine", "no module 'no_such_module_at_all'"),
        ("nowhere.py:Mine", "no file 'nowhere.py'"),
        ("own_policy_module:Mine:bugdet=3", r"unknown parameter 'bugdet'; did you mean 'budget'\?"),
        ("own_policy_module:Mine:budget", "expected key=value"),
        ("own_policy_module:Mine:budget=0", "budget must be positive"),
        (":Mine", "expected name"),
        ("own_policy_module:", "expected name"),
    ],
)
def test_wrong_texts_name_the_flag_and_the_nearest(own_policy, text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        load_plugin(BATCH, text)
    assert str(caught.value).startswith("--policy")
