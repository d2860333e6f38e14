"""A printed page shows what is folded on the screen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from saelens_adaptive_ortho.report.page.run import render_page
from tests.report.runs import every_result

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = """
<script>
(() => {
  const open = () => document.querySelectorAll("details[open]").length;
  const found = [document.querySelectorAll("details").length, open()];
  for (const type of ["beforeprint", "afterprint"]) {
    dispatchEvent(new Event(type));
    found.push(open());
  }
  document.body.dataset.result = JSON.stringify(found);
})();
</script>
"""


def test_the_script_is_in_the_page() -> None:
    page = render_page(every_result(seeds=1))
    script = page[page.index("<script>") :]
    assert '"beforeprint"' in script
    assert '"afterprint"' in script
    assert "details::details-content" in page  # where scripts are off


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_everything_is_open_while_the_page_is_printed(tmp_path: Path) -> None:
    # The first one is open on the screen, too, and stays so.
    page = render_page(every_result(seeds=1)).replace("<details>", "<details open>", 1)
    (tmp_path / "driven.html").write_text(page.replace("</body>", f"{DRIVER}</body>"))
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    command += [(tmp_path / "driven.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    match = re.search(r'data-result="([^"]*)"', done.stdout)
    assert match is not None, done.stderr[-500:]
    every, before, printing, after = json.loads(match[1])
    assert (before, after) == (1, 1)
    assert printing == every > 1
