"""Open a page in headless Chromium with the network off, run a script in it, hand back what it found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
)  # fmt: skip

_PROBE = """
<script type="module">
const until = async (test) => { while (!test()) await new Promise((r) => setTimeout(r, 20)); };
await until(() => document.documentElement.dataset.ready === "yes");
const frames = async () => { for (let i = 0; i < 6; i++) await new Promise((r) => setTimeout(r, 60)); };
let found;
try { found = await (async () => { %s })(); } catch (error) { found = { error: String(error.stack || error) }; }
const place = document.createElement("pre");
place.id = "probe"; place.textContent = JSON.stringify(found);
document.body.append(place);
</script>
"""


def probe(page: Path, script: str, *, width: int = 1440) -> tuple[Any, list[str]]:
    """What `script` (the body of an async function) returns in the page, and the lines of the console."""
    copy = page.with_name(f"probe-{page.name}")
    text = page.read_text(encoding="utf-8")
    end = text.rindex("</body>")
    copy.write_text(text[:end] + _PROBE % script + text[end:], encoding="utf-8")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},1000"]
        command += ["--virtual-time-budget=60000", "--dump-dom", copy.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page never became ready; console: {console}"
    return json.loads(unescape(found[1])), console
