"""A chapter opened in JupyterLab, in a browser, and run whole: `make soak`."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTER = "book/02_rare_classes.ipynb"
LONGEST = 900  # seconds for the whole chapter
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},  # every cell stays on the page
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"checkForUpdates": False, "fetchNews": "false"},
}

pytestmark = [pytest.mark.soak, pytest.mark.skipif("SOAK" not in os.environ, reason="takes minutes: make soak")]

READ_CELLS = """() => [...document.querySelectorAll(".jp-Notebook .jp-CodeCell")].map((cell) => ({
  prompt: cell.querySelector(".jp-InputPrompt").textContent.trim(),
  source: cell.querySelector(".cm-content")?.textContent.trim() ?? "",
  error: cell.querySelector('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')?.textContent.slice(-300) ?? "",
}))"""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of this environment over a copy of the project."""
    project = tmp_path / "project"
    for name in ("nbs", "book", "results"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("_build", ".ipynb_checkpoints"))
    for name, values in SETTINGS.items():
        path = tmp_path / "settings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces")}
    environment |= {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--port-retries=0"]
    command += [f"--ServerApp.root_dir={project}", "--IdentityProvider.token=soak", "--LabApp.extension_manager=readonly"]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=soak", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()[-3000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def test_chapter_runs_whole_in_jupyterlab(lab, browser):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    far = []
    page.on("request", lambda request: None if request.url.startswith((lab, "data:", "blob:")) else far.append(request.url))
    page.goto(f"{lab}/lab/tree/{CHAPTER}?token=soak&reset", timeout=120_000)
    count = sum(cell.cell_type == "code" for cell in nbformat.read(ROOT / CHAPTER, as_version=4).cells)
    page.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-CodeCell').length === {count}", timeout=120_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(timeout=120_000)  # the kernel has started
    cells = page.evaluate(READ_CELLS)
    assert count > 5 and {cell["prompt"] for cell in cells} <= {"[ ]:", ""}
    start = time.monotonic()
    for _ in range(3):  # a kernel that has just started may miss the first call
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(5000)
        if any(cell["prompt"] != "[ ]:" for cell in page.evaluate(READ_CELLS)):
            break
    while True:
        cells = page.evaluate(READ_CELLS)
        errors = [cell for cell in cells if cell["error"]]
        waiting = [cell for cell in cells if not cell["prompt"].strip("[]:").isdecimal() and cell["source"]]
        if errors or not waiting:
            break
        if time.monotonic() - start > LONGEST:
            page.screenshot(path=ROOT / "runs" / "soak.png")
            pytest.fail(f"after {LONGEST} s {len(waiting)} cells are still without a number; runs/soak.png shows the page; the first: {waiting[0]}")
        page.wait_for_timeout(1000)
    numbers = [int(cell["prompt"].strip("[]:")) for cell in cells if cell["source"]]
    page.close()
    print(f"{CHAPTER}: {len(numbers)} cells in {time.monotonic() - start:.0f} s")
    assert errors == []
    assert numbers == list(range(1, len(numbers) + 1))
    assert far == []
