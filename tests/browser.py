"""A real browser for the tests: pages are opened headless in Chromium, at a phone's width too, and measured."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    # The page lies in a frame of the width wanted (a window has a least width), and the frame is looked into.
    *("--allow-file-access-from-files", "--force-prefers-reduced-motion", "--virtual-time-budget=20000"),
)
PROBE = """<!doctype html><body><iframe id="frame" src="{page}" style="width:{width}px;height:900px;border:0"></iframe>
<script>
document.getElementById("frame").onload = event => {{
  const win = event.target.contentWindow, doc = win.document, out = document.createElement("pre");
  const style = (selector, name) => win.getComputedStyle(doc.querySelector(selector))[name];
  out.id = "measured";
  try {{ out.textContent = JSON.stringify((() => {{ {script} }})()); }}
  catch (error) {{ out.textContent = JSON.stringify({{ failed: String(error) }}); }}
  document.body.append(out);
}};
</script></body>"""


def measure(page: Path, folder: Path, script: str, width: int = 1280, dark: bool = False) -> Any:
    """What the script returns when it looks at the page (``win``, ``doc``, ``style(selector, property)``)."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser to look at the page with: install one of {', '.join(NAMES)}")
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(page=page.as_uri(), width=width, script=script))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [program, *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000"]
    command += ["--dump-dom", probe.as_uri()]
    shown = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="measured">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert found, f"the browser told nothing: {shown.stdout[-400:]} {shown.stderr[-800:]}"
    result = json.loads(unescape(found[1]))
    assert not (isinstance(result, dict) and "failed" in result), result
    return result
