"""Pages of the reference that are made from the code when the site is built (a MkDocs hook), so that they cannot be old."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout, suppress
from typing import Any


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def cli() -> str:
    """Help of every command."""
    from stepline.calibration import cli as calibrate
    from stepline.sim.cli import trace
    from stepline.sim.cli.completion import commands
    from stepline.sim.cli.main import main

    parts = ["# Command line\n", "What `--help` prints, at this version.\n"]
    parts += _help("simulate", lambda: main(["--help-all"]))
    for path in commands():
        if path and path != "trace":
            parts += _help(f"simulate {path}", lambda path=path: main([*path.split(), "--help"]))
    parts += _help("simulate trace", lambda: trace.main([]))
    parts += _help("calibrate", lambda: calibrate.main(["--help"]))
    for verb in ("measure", "fit", "validate", "report", "seeds"):
        parts += _help(f"calibrate {verb}", lambda verb=verb: calibrate.main([verb, "--help"]))
    return "\n".join(parts)


def _help(title: str, run: Callable[[], Any]) -> list[str]:
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        run()
    return [f"## {title}\n", f"```text\n{out.getvalue().rstrip()}\n```\n"]


def policies() -> str:
    """Every installed policy with its docstring's first line."""
    from stepline.sim.cli.catalogue import POLICY_GROUPS, policy_rows

    rows = policy_rows(())
    parts = [
        "# Policies\n",
        "Named on the command line, with parameters after a colon: `--policy sarathi:chunk_tokens=512`.",
    ]
    for kind in POLICY_GROUPS:
        parts.append(f"\n## {kind[0].upper()}{kind[1:]}\n")
        parts.append(
            _table(
                ("name", "what it does"), ((f"`{r['name']}`", r["what"]) for r in rows if r["kind"] == kind)
            )
        )
    parts.append("\nHow to write one: [Write a policy](../guides/write-a-policy.md).")
    return "\n".join(parts)


def catalogue() -> str:
    """Built-in models, GPUs and engine profiles with their sources."""
    from stepline.sim.cli.catalogue import engine_rows, gpu_rows, model_rows

    models = [
        (r["name"], r["params"], r["layers"], r["attention"], r["kv"], r["source"]) for r in model_rows(())
    ]
    gpus = [
        (r["name"], r["bf16"], r["bandwidth"], r["memory"], r["usd_per_hour"], r["source"])
        for r in gpu_rows(())
    ]
    engines = [
        (r["name"], r["pipeline_depth"], r["step_host_ms"], r["flags"], r["source"]) for r in engine_rows(())
    ]
    return "\n".join([
        "# Models, GPUs, engines\n",
        "A Hugging Face `config.json` is a model, too, and a TOML file a GPU or engine.\n",
        "## Models\n",
        _table(("model", "parameters", "layers", "attention", "KV KiB/token", "source"), models),
        "\n## GPUs\n",
        _table(("GPU", "bf16 TFLOP/s", "TB/s", "GiB", "$/h", "source"), gpus),
        "\n## Engine profiles\n",
        _table(("engine", "pipeline depth", "host ms/step", "tokens / sequences / memory / block", "source"), engines),
    ])  # fmt: skip


def constants() -> str:
    """Constants of every registered calibration, with where they come from."""
    from stepline.sim.cost.calibration import registered_calibrations

    parts = [
        "# Constants\n",
        "Fitted by `calibrate fit`. Errors are of the formula and, in brackets, with the residual grid: `train` on the "
        "rows of the fit, the other splits on shapes that the fit never saw. Names and units of the constants: "
        "`stepline.sim.cost.forms`. `calibrate validate` recomputes the errors from the tables.",
    ]
    for calibration in sorted(registered_calibrations(), key=lambda c: c.id):
        facts = calibration.provenance
        parts.append(f"\n## {calibration.id}\n")
        parts.append(
            f"Source: {facts.get('source', 'unknown')}. Made by `{facts.get('command', 'unknown')}`.\n"
        )
        rows = [
            (
                name,
                fit.form,
                ", ".join(f"{k} = {v:.4g}" for k, v in fit.constants.items()),
                fit.rows,
                _errors(fit),
            )
            for name, fit in sorted(calibration.kernels.items())
        ]
        parts.append(_table(("kernel", "form", "constants", "rows", "errors"), rows))
        parts += [f"\n- {note}" for note in calibration.notes]
    return "\n".join(parts)


def _errors(fit: Any) -> str:
    texts = []
    for split, regimes in (fit.errors or {}).items():
        found = regimes.get("all", regimes)
        if split == "family_sd" or "formula" not in found:
            continue
        residual = f" ({found['residual']:.1%})" if found.get("residual") is not None else ""
        texts.append(f"{split} {found['formula']:.1%}{residual}")
    return ", ".join(texts) or "–"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = list(head)
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(c) for c in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("<", "&lt;")


PAGES = {"cli": cli, "policies": policies, "catalogue": catalogue, "constants": constants}
"""Page: what writes it."""
