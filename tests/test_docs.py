"""Every command and listing of the docs runs, every link leads somewhere, the generated pages are whole."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from stepline.calibration import cli as calibrate
from stepline.sim.cli.completion import commands
from stepline.sim.cli.main import main as simulate

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md"))
TESTED_ELSEWHERE = {"write-a-policy.md"}
SLOW = {"calibrate-a-gpu.md", "compare-settings.md", "plan-capacity.md", "scale-out.md"}
NAMES = [
    pytest.param(str(p.relative_to(DOCS)), marks=[pytest.mark.slow] if p.name in SLOW else [])
    for p in PAGES
    if p.name not in TESTED_ELSEWHERE
]

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_HEREDOC = re.compile(r"(?P<head>.*) <<'EOF'\n(?P<body>.*?)\nEOF\n", re.DOTALL)


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    return [(kind, body) for kind, body in _FENCE.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def run_shell(text: str) -> None:
    """The commands of a block, in this process; here-documents feed `cat >` and `python3 -`."""
    rest = text
    while rest.strip():
        line, _, after = rest.partition("\n")
        found = _HEREDOC.match(rest) if line.endswith("<<'EOF'") else None
        if found:
            _heredoc(found["head"], found["body"] + "\n")
            rest = rest[found.end() :]
        else:
            run_command(line)
            rest = after


def _heredoc(head: str, body: str) -> None:
    if head.startswith("cat > "):
        Path(head.removeprefix("cat > ")).write_text(body, encoding="utf-8")
    else:
        assert head == "python3 -", head
        exec(compile(body, "here-document", "exec"), {})


def run_command(line: str) -> None:
    words = shlex.split(line)
    if not words:
        return
    programs = {"simulate": simulate, "calibrate": calibrate.main}
    assert words[0] in programs, f"{line}: not a command of ours; use a console block"
    assert programs[words[0]](words[1:]) == 0, line


@pytest.mark.parametrize("name", NAMES)
def test_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "docs"}
    for kind, body in blocks(DOCS / name, "sh", "python"):
        if kind == "sh":
            run_shell(body)
        else:
            exec(compile(body, name, "exec"), scope)
    capsys.readouterr()


def shown() -> list[str]:
    """Command lines that pages show but tests cannot run."""
    lines = [line for page in PAGES for _, body in blocks(page, "console") for line in body.splitlines()]
    return [line for line in lines if line.startswith(("simulate ", "calibrate "))]


@pytest.mark.parametrize("line", shown())
def test_commands_that_are_only_shown_have_flags_that_exist(line):
    words = shlex.split(re.sub(r"\$\(.*?\)", "x", line).removesuffix(" &"))
    flags = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    if words[0] == "simulate":
        path = " ".join(words[1 : 3 if words[1] == "trace" else 2]) if not words[1].startswith("-") else ""
        known = {flag.name for flag in commands()[path]}
    else:
        known = set(re.findall(r"--[a-z-]+", calibrate_help(words[1])))
    assert set(flags) <= known


def calibrate_help(verb: str) -> str:
    return generated()._help("", lambda: calibrate.main([verb, "--help"]))[1]


def generated():
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_leads_somewhere():
    made = {f"reference/{name}.md" for name in generated().PAGES}
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            place = (page.parent / target).resolve()
            assert place.exists() or str(place.relative_to(DOCS.resolve())) in made, f"{page.name}: {target}"


def test_every_page_is_in_the_navigation():
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    made = [f"reference/{name}.md" for name in generated().PAGES]
    for name in [*[str(p.relative_to(DOCS)) for p in PAGES], *made]:
        assert f": {name}\n" in text, name


def test_generated_pages_say_what_the_code_says():
    pages = {name: make() for name, make in generated().PAGES.items()}
    assert "--max-num-batched-tokens" in pages["cli"]
    assert "## simulate trace describe" in pages["cli"]
    assert "## calibrate measure" in pages["cli"]
    assert "| `chunked` |" in pages["policies"]
    assert "| `lru` |" in pages["policies"]
    assert "| llama-3.1-8b |" in pages["catalogue"]
    assert "| vllm-v1 |" in pages["catalogue"]
    assert "compute_eff = " in pages["constants"]
    assert "Source: aiconfigurator-core" in pages["constants"]


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((DOCS / "notebooks" / "tutorial.ipynb").read_text(encoding="utf-8"))
    scope: dict[str, object] = {"__name__": "notebook"}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 7
    for cell in cells:
        exec(compile(cell, "tutorial.ipynb", "exec"), scope)
    assert "<html" in (tmp_path / "comparison.html").read_text()
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "outputs are not committed"
    capsys.readouterr()


def test_the_site_builds(tmp_path):
    mkdocs = pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra: docs)")
    pytest.importorskip("material", reason="mkdocs-material is not installed (extra: docs)")
    del mkdocs
    import subprocess

    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "chunked" in (tmp_path / "site" / "reference" / "policies.html").read_text(encoding="utf-8")
