"""What pages are made of: nothing lost in the bins, exact gaps, small files, Markdown, clear errors."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from stepline.sim import simulate, summary
from stepline.sim.cli.main import main
from stepline.sim.engine.step_bins import TIME_BINS, StepBins, bin_borders, log_bin
from stepline.sim.report.gap_bins import gap_bins
from stepline.sim.report.page import fill, packed
from stepline.sim.report.page_data import page_data
from stepline.sim.report.run_tables import read_run, tables_of
from stepline.sim.report.time_bar import time_bar
from stepline.traces.request import Request
from stepline.traces.trace import Trace

from .run_results import expanded, gaps, run_result


def trace(n: int = 200, every_s: float = 0.05) -> Trace:
    return Trace.from_requests(
        Request(f"r{i}", every_s * i, 50 + 131 * i % 1700, 3 + i % 57) for i in range(n)
    )


@pytest.fixture(scope="module")
def result():
    return simulate(trace(), num_gpu_blocks_override=300, record_steps=True)


@pytest.fixture(scope="module")
def data(result):
    return page_data([tables_of(result)])


# -- step bins


@pytest.mark.parametrize("what", ["batch", "duration", "tokens", "roofline"])
def test_every_step_is_in_one_bin(result, what):
    bins = result.totals.step_bins
    rows = bins[bins["what"] == what]
    assert rows["steps"].sum() == result.totals.steps
    assert rows["seconds"].sum() == pytest.approx(result.totals.busy_s)


def test_batch_sizes_are_binned_by_their_number(result):
    bins, steps = result.totals.step_bins, result.steps
    found = bins[bins["what"] == "batch"].groupby("x")["steps"].sum()
    n = np.repeat(steps["n_running"], steps["n_steps"])
    for size in (1, 2, 3):
        assert found.get(float(size), 0) == (n == size).sum()


def test_time_bins_double_and_keep_their_sums():
    bins = StepBins()
    rows = 4 * TIME_BINS
    start = np.arange(rows) * 0.25
    one = np.ones(rows)
    columns = dict.fromkeys(("n_steps", "n_running", "n_decode", "prefill_tokens"), one)
    bins.add({**columns, "start_s": start, "duration_s": 0.2 * one}, 1e12 * one, 1e9 * one)
    frame = bins.frame()
    assert bins.width_s == 1.0
    for _, part in frame.groupby("what"):
        assert part["steps"].sum() == rows
        assert set(part.groupby("t_s")["steps"].sum()) == {4.0}


def test_values_lie_within_the_borders_of_their_bin():
    values = np.array([1.0, 2, 3, 7, 12, 100, 255, 256])
    low, high = bin_borders(log_bin(values, "batch"), "batch")
    assert ((low < values) & (values < high)).all()
    seconds = np.array([1.1e-6, 0.00712, 0.5, 300])
    low, high = bin_borders(log_bin(seconds, "duration"), "duration")
    assert ((low <= seconds) & (seconds < high)).all()


# -- gaps


def test_gaps_are_counted_exactly_without_being_expanded():
    population = gaps((0.006, 1e-5, 400, 3), (0.02, 0.0, 7, 5), (0.5, -0.001, 300, 2), (1e-9, 0, 1, 1))
    frame = gap_bins(population)
    every = expanded(population)
    assert frame["steps"].sum() == len(every)
    middle = log_bin(frame["x"].to_numpy(), "duration")
    counted = np.bincount(middle, frame["steps"], 400)
    direct = np.bincount(log_bin(np.maximum(every, 1e-12), "duration"), minlength=400)
    # a gap that lies on a border to the last bit may fall on either side
    assert np.abs(counted - direct).sum() <= 4


def test_no_gaps_no_rows():
    assert len(gap_bins(gaps())) == 0


# -- page data


def test_nothing_is_lost_between_run_and_page(result, data):
    latency = data.tables["latency"].groupby("metric")["n"].sum()
    finished = summary(result)["requests"]["completed"]
    assert latency["TTFT"] == latency["E2E"] == finished
    assert latency["ITL"] == (result.gaps.n * result.gaps.weight).sum()
    series = data.tables["series"]
    seconds = (series["t2"] - series["t"]).to_numpy()
    width = np.full(len(seconds), data.step)
    covered = np.minimum(width, np.append(width[:-1], data.end - series["t"].iloc[-1]))
    tokens = (series["emitted_tokens"] * covered).sum()
    assert tokens == pytest.approx(result.requests["output_tokens"].sum(), rel=0.01)


def test_quantiles_read_off_the_page_are_within_a_bin(result, data):
    cells = data.tables["latency"]
    exact = summary(result)
    for metric, key in (("TTFT", "ttft_s"), ("ITL", "itl_s"), ("E2E", "e2e_s")):
        rows = cells[cells["metric"] == metric].groupby(["x", "x2"], as_index=False)["n"].sum()
        below = rows["n"].cumsum() / rows["n"].sum()
        at = rows[below >= 0.5].iloc[0]
        assert at["x"] * 0.999 <= exact[key]["p50"] * 1000 <= at["x2"] * 1.06


def test_attainment_on_the_page_is_that_of_the_summary():
    limits = "ttft_p99<0.3,tpot_p99<9ms"
    run = simulate(trace(), num_gpu_blocks_override=300, slo=limits, max_model_len=1600)
    figures = summary(run)
    assert figures["requests"]["rejected"] > 0
    cells = page_data([tables_of(run)]).tables["latency"]
    cells = cells[cells["metric"] == "SLO"]
    assert cells["n"].sum() == figures["requests"]["submitted"]
    good = cells["n"][cells["x"] < 1 - 1e-9].sum()
    assert 0 < good < cells["n"].sum()
    assert good / cells["n"].sum() == pytest.approx(figures["slo"]["attainment_frac"], abs=1e-9)


def test_the_bar_of_gpu_time_is_as_long_as_its_shares(result):
    figures = summary(result)
    lengths = dict(re.findall(r'class="t-(\w+)" style="flex:([\d.]+)"', time_bar(figures)))
    assert sum(map(float, lengths.values())) == pytest.approx(1, abs=3e-3)
    top = max(figures["time_frac"], key=figures["time_frac"].get)
    assert float(lengths[top]) == pytest.approx(figures["time_frac"][top], abs=1e-4)


def test_the_slowest_of_any_window_are_on_the_page(result, data):
    done = result.requests
    e2e = (done["finish_s"] - done["arrival_s"]).to_numpy()
    slow = data.tables["slow"]
    for begin, end in ((0, 100), (2, 5), (7, 7.5)):
        inside = (done["arrival_s"] >= begin) & (done["arrival_s"] < end)
        worst = np.sort(e2e[inside])[::-1][:12]
        shown = slow[(slow["t"] >= begin) & (slow["t"] < end)]["e2e"].nlargest(12)
        assert shown.tolist() == pytest.approx(worst.tolist())


def test_preemptions_and_chunks_lie_inside_their_requests(data, result):
    slow = data.tables["slow"]
    assert result.requests["preemptions"].sum() == len(result.preemptions) > 0
    assert (slow["away"].map(len) > 0).any()
    for row in slow.itertuples():
        for begin, end in [*row.away, *row.chunks]:
            assert -1e-9 <= begin < end <= row.e2e + 1e-9


def test_a_long_run_makes_no_longer_page(tmp_path):
    few, many = (
        page_data([tables_of(simulate(trace(n), num_gpu_blocks_override=2000))]) for n in (1_000, 20_000)
    )
    for name, table in many.tables.items():
        assert len(table) <= 8 * max(len(few.tables[name]), 200), name
    assert len(json.dumps(packed(many.tables["latency"]))) < 700_000  # bytes, however long the run


def test_columns_are_packed_without_loss(data):
    table = data.tables["steps"]
    columns = packed(table)["columns"]
    for name in table.columns:
        column = columns[name]
        values = column if isinstance(column, list) else [column["values"][c] for c in column["codes"]]
        if table[name].dtype == object or table[name].dtype.kind not in "fi":
            assert values == table[name].tolist()
        else:
            assert np.allclose(values, table[name], rtol=1e-4)


# -- pages, Markdown, directories


@pytest.fixture
def here(tmp_path, monkeypatch, result):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"timestamp": 60 * i, "input_length": 100 + 37 * i % 900, "output_length": 5 + i % 23}
        for i in range(80)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_page_from_the_directory_is_the_page_of_the_run(here):
    assert main(["--trace", "t.jsonl", "--quiet", "--out", "r", "--report"]) == 0
    made = (here / "r" / "report.html").read_bytes()
    assert main(["report", "r", "--quiet"]) == 0
    assert (here / "r" / "report.html").read_bytes() == made
    text = made.decode()
    assert text.count("<script") == 3
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text), "the page must not fetch anything"
    assert "Weight bandwidth bounds" in text


def test_a_comparison_page_from_the_directory_is_the_same(here):
    assert main(["--trace", "t.jsonl", "--quiet", "--policy", "continuous,chunked", "--out", "c"]) == 0
    made = (here / "c" / "comparison.html").read_text()
    assert main(["report", "c", "--quiet"]) == 0
    assert (here / "c" / "comparison.html").read_text() == made
    assert "Paired differences" in made


def test_what_users_write_cannot_break_out_of_a_page(here):
    (here / "evil.py").write_text(
        "from stepline.policies.batching.chunked import ChunkedPolicy\n"
        "class P(ChunkedPolicy):\n    def __init__(self, *, x=''): super().__init__()\n"
    )
    policy = "evil.py:P:x=</script><b>"
    assert main(["--trace", "t.jsonl", "--quiet", "--policy", policy, "--out", "r", "--report"]) == 0
    text = (here / "r" / "report.html").read_text()
    assert text.count("</script") == 3
    assert "<b>:" not in text


def test_runs_of_one_trace_share_a_page_and_others_do_not(here, capsys):
    assert main(["--trace", "t.jsonl", "--quiet", "--out", "a"]) == 0
    assert main(["--trace", "t.jsonl", "--quiet", "--tp", "2", "--out", "b"]) == 0
    assert main(["report", "a", "b", "--out", "both.html", "--quiet"]) == 0
    assert "chunked (2)" in (here / "both.html").read_text()
    (here / "u.jsonl").write_text('{"timestamp": 0, "input_length": 10, "output_length": 5}\n')
    assert main(["--trace", "u.jsonl", "--quiet", "--out", "c"]) == 0
    assert main(["report", "a", "c", "--out", "x.html"]) == 2
    assert "different traces" in capsys.readouterr().err


def test_markdown_of_a_run_and_of_a_comparison(here, capsys):
    assert main(["--trace", "t.jsonl", "--quiet", "--policy", "continuous,chunked", "--out", "c"]) == 0
    assert main(["report", "c/chunked", "--format", "md"]) == 0
    run = capsys.readouterr().out
    assert "| TTFT |" in run
    assert "**Weight bandwidth bounds" in run
    assert main(["report", "c", "--format", "md", "--out", "c.md", "--quiet"]) == 0
    both = (here / "c.md").read_text()
    assert "1. **" in both
    assert capsys.readouterr().out == ""
    assert main(["report", "c", "--format", "md", "--out", "c.md"]) == 0
    assert capsys.readouterr().out == "report    c.md\n"
    assert re.search(r"\| chunked \| TTFT mean \| .* \[.*\]", both)


def test_pictures(here):
    assert main(["--trace", "t.jsonl", "--quiet", "--out", "r"]) == 0
    assert (
        main(["report", "r", "--format", "png", "--charts", "roofline,ttft_tail", "--out", "p", "--quiet"])
        == 0
    )
    assert sorted(p.name for p in (here / "p").iterdir()) == ["roofline.png", "ttft_tail.png"]
    assert (here / "p" / "roofline.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["report", "r", "--format", "svg", "--charts", "kernels", "--theme", "dark", "--quiet"]) == 0
    assert "<svg" in (here / "r" / "charts" / "kernels.svg").read_text()


def test_pictures_of_a_comparison_name_its_runs(here):
    assert main(["--trace", "t.jsonl", "--quiet", "--policy", "continuous,chunked", "--out", "c"]) == 0
    charts = ["--charts", "itl_tail,ttft_tpot,waiting", "--out", "p", "--quiet"]
    assert main(["report", "c", "--format", "svg", *charts]) == 0
    for name in ("itl_tail", "ttft_tpot", "waiting"):
        text = (here / "p" / f"{name}.svg").read_text()
        assert ">continuous<" in text, name
        assert ">chunked<" in text, name


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "no such directory"),
        (["."], "no manifest.json"),
        (["r", "--format", "pdf"], "--format: got 'pdf'"),
        (["r", "--format", "png", "--charts", "roofine"], "did you mean 'roofline'?"),
        (["r", "--format", "perfetto"], "holds no steps"),
        (["r", "--out", "no/x.html"], "--out: no directory 'no'"),
        (["r", "r"], "--out: expected a file"),
        (["old"], "series.parquet: missing"),
    ],
)
def test_wrong_calls_are_one_line(here, capsys, argv, says):
    assert main(["--trace", "t.jsonl", "--quiet", "--out", "r"]) == 0
    assert main(["--trace", "t.jsonl", "--quiet", "--out", "old"]) == 0
    (here / "old" / "series.parquet").unlink()
    assert main(["report", *argv]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_measured_values_stand_beside_the_simulated_ones(here, capsys):
    rows = [
        {
            "timestamp": 90 * i,
            "input_length": 200,
            "output_length": 20,
            "observed": {"ttft_ms": 50 + i, "e2e_ms": 300},
        }
        for i in range(30)
    ]
    rows[3].pop("observed")
    (here / "o.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--trace", "o.jsonl", "--out", "o", "--report"]) == 0
    out = capsys.readouterr().out
    assert "as measured" in out
    found = json.loads((here / "o" / "summary.json").read_text())["observed"]
    assert found["ttft_s"]["n"] == 29
    assert found["ttft_s"]["measured"]["max"] == pytest.approx(0.079)
    assert found["e2e_s"]["measured"]["p50"] == pytest.approx(0.3)
    requests = read_run(here / "o").requests
    assert requests["observed_ttft_s"].isna().tolist() == [i == 3 for i in range(30)]
    simulated = (requests["first_token_s"] - requests["arrival_s"])[requests["observed_ttft_s"].notna()]
    assert found["ttft_s"]["simulated"]["mean"] == pytest.approx(simulated.mean())
    table = page_data([read_run(here / "o")]).tables["observed"]
    assert table.groupby(["metric", "source"])["n"].sum().tolist() == [29, 29, 29, 29]
    assert "TTFT: measured and simulated" in (here / "o" / "report.html").read_text()


def test_templates_are_filled_once_and_in_order():
    assert fill("<@A@|@B@>", {"@A@": "@B@", "@B@": "x"}) == "<@B@|x>"
    with pytest.raises(ValueError, match="@C@"):
        fill("@A@", {"@A@": "1", "@C@": "2"})


def test_a_run_that_rejects_everything_has_a_page():
    from stepline.sim.report.page import run_page

    result = simulate(trace(3), max_model_len=20)
    assert summary(result)["requests"]["rejected"] == 3
    assert "<html" in run_page(tables_of(result))


def test_reading_gives_what_was_written(here, result):
    from stepline.sim.report.run_dir import atomic_dir, write_run

    with atomic_dir(here / "x") as work:
        write_run(result, work, command="c")
    read, made = read_run(here / "x"), tables_of(result, command="c")
    for name in ("series", "histograms", "preemptions", "chunks"):
        a, b = getattr(read, name), getattr(made, name)
        assert a.shape == b.shape
        assert a.fillna(-1).astype(str).equals(b.fillna(-1).astype(str)), name


def test_hand_made_results_have_tables():
    assert len(tables_of(run_result()).requests) == 3
