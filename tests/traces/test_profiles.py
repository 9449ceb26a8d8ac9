"""Shipped profiles load, generate, say where they come from, and survive a round trip through their file."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.traces.errors import ConfigError
from stepline.traces.synth import load_profile, profile_names, synth
from stepline.traces.synth.profile import PROFILE_DIR, parse_profile, profile_spec, profile_text

NAMES = profile_names()


def test_the_profiles_people_ask_for_are_there():
    wanted = {"azure_conv", "azure_code", "mooncake_conv", "claude_code", "guidellm-chat", "guidellm-rag"}
    assert wanted <= set(NAMES)
    assert sum(name.startswith("mlperf-") for name in NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_generates_and_names_its_source(name):
    profile = load_profile(name)
    assert profile.name == name
    assert len(profile.source) > 20
    trace = synth(name, seed=1, n_requests=50)
    assert len(trace) == 50
    assert trace.input_tokens.min() >= 1
    assert trace.output_tokens.min() >= 1
    assert trace.meta["seed"] == 1
    assert name in trace.meta["source"]


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_file_is_what_its_content_is_written_as(name):
    text = (PROFILE_DIR / f"{name}.json").read_text()
    assert profile_text(json.loads(text)) == text
    again = parse_profile(profile_text(profile_spec(load_profile(name))).encode(), name)
    assert profile_spec(again) == profile_spec(load_profile(name))


def test_a_profile_of_ones_own_is_read_from_its_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes((PROFILE_DIR / "guidellm-chat.json").read_bytes())
    assert len(synth(path, seed=1, n_requests=5)) == 5


def test_an_unknown_profile_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'azure_conv'"):
        load_profile("azure_con")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "p.json: not JSON"),
        (b"\xff\xfe", "p.json: not JSON"),
        (b"[]", "p.json: got list, expected an object"),
        (b"{}", "p.json: name: missing"),
        (b'{"name": "x", "duration_s": 1, "source": "", "workload": 3}', "workload: got 3"),
        (b'{"name": "x", "duration_s": 1, "source": "", "workload": {"kind": "open"}}', "arrivals: missing"),
        (
            b'{"name": "x", "duration_s": 1, "source": "", "workload": {}, "versoin": 1}',
            "did you mean 'version'",
        ),
        (
            b'{"name": "x", "duration_s": 1, "source": "", "workload": {}, "version": 2}',
            "version: got 2, expected 1",
        ),
        (b'{"name": "x", "duration_s": -1, "source": "", "workload": {}}', "duration_s: got -1"),
    ],
)
def test_a_wrong_profile_file_is_refused_with_its_name(content, message):
    with pytest.raises(ConfigError) as caught:
        parse_profile(content, "p.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("p.json: ")


def leaves(value, path=()):
    """Paths of everything inside a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


SMALL = {
    name: json.loads((PROFILE_DIR / f"{name}.json").read_text()) for name in NAMES if name != "azure_conv"
}
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=3),
    st.lists(st.integers(-2, 2), max_size=2),
    st.dictionaries(st.sampled_from(["kind", "p", "x"]), st.integers(), max_size=2),
)  # fmt: skip


@given(data=st.data(), name=st.sampled_from(sorted(SMALL)), junk=JUNK)
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_a_profile_is_taken_or_refused_in_one_line(data, name, junk):
    path = data.draw(st.sampled_from(list(leaves(SMALL[name]))))
    content = json.dumps(replaced(SMALL[name], path, junk)).encode()
    refused = None
    try:
        parse_profile(content, "p.json")
    except ConfigError as error:
        refused = str(error)
    assert refused is None or (refused.startswith("p.json: ") and "\n" not in refused)
