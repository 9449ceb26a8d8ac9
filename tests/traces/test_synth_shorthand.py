"""`kind:key=value` is read as people type it."""

import pytest
from stepline.traces.errors import ConfigError
from stepline.traces.synth.shorthand import part


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("512", {"kind": "constant", "value": 512}),
        (".5", {"kind": "constant", "value": 0.5}),
        ("poisson", {"kind": "poisson"}),
        ("gamma:shape=.5", {"kind": "gamma", "shape": 0.5}),
        ("spike:at_s=1e2, duration_s=5,factor=3", {"kind": "spike", "at_s": 100.0, "duration_s": 5, "factor": 3}),
        ("markov:levels=1/4,mean_s=60/2.5", {"kind": "markov", "levels": [1, 4], "mean_s": [60, 2.5]}),
        ("ramp:start=1,end=2,duration_s=9,exponential=true",
         {"kind": "ramp", "start": 1, "end": 2, "duration_s": 9, "exponential": True}),
        ('{"kind": "quantiles", "p": [0, 1], "q": [1, 2]}', {"kind": "quantiles", "p": [0, 1], "q": [1, 2]}),
    ],
)  # fmt: skip
def test_shorthand_is_read(text, spec):
    assert part(text, "--x") == spec


@pytest.mark.parametrize(("text", "message"), [("gamma:shape", "--x: got 'shape', expected key=value"),
                                               ("{oops", "--x: got '{oops', which is not JSON")])  # fmt: skip
def test_wrong_shorthand_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        part(text, "--x")
    assert message in str(caught.value)
