"""Settings of pytest: plain `pytest --nbval` compares notebooks in this environment, and says how much it compared."""

import re
from pathlib import Path

import pytest

_EVAL_FALSE = re.compile(r"^\s*#\s*\|\s*eval:\s*false\s*$", re.M | re.I)
_FIGURE = re.compile(r"<Figure size [^>]*>")
SMALLEST_SHARE = 0.7  # of the cells that print something, the share whose output is compared with the stored one


def pytest_configure(config):
    option = config.option
    if not getattr(option, "nbval", False):
        return
    if option.nbval_kernel_name is None:
        option.nbval_current_env = True  # the kernel of this environment, whatever the notebook names
    if option.nbval_sanitize_with is None:
        option.nbval_sanitize_with = str(config.rootpath / "tests" / "nbval_sanitize.cfg")
    if option.nbval_cell_timeout == 2000:  # nbval's default; a cell that hangs shall not hold up the run for half an hour
        option.nbval_cell_timeout = 600
    config.pluginmanager.register(CellCount(config.rootpath / "nbs", config.rootpath / "book"), "cell_count")


def pytest_collection_modifyitems(items):
    """nbdev_clean takes the execution counts away, without which nbval calls a cell unrun; and nbval knows no `#| eval: false`."""
    cells = [item for item in items if type(item).__name__ == "IPyNbCell"]
    ran = {}
    for item in cells:
        ran[item.parent] = ran.get(item.parent, False) or bool(item.cell.outputs)
    for item in cells:
        if _EVAL_FALSE.search(item.cell.source):
            item.options["skip"] = True
        elif item.cell.execution_count is None and ran[item.parent]:
            item.cell.execution_count = item.cell_num + 1


def says_something(cell):
    """Whether a cell's stored output holds more than bare figures (nbval compares text, not pictures)."""
    for output in cell.outputs:
        text = output.get("text", "") or "".join(v for k, v in output.get("data", {}).items() if k.startswith("text/"))
        if _FIGURE.sub("", text).strip():
            return True
    return False


class CellCount:
    """Counts the notebook cells compared, ignored and skipped; a run over all notebooks fails when it compares too few."""

    def __init__(self, *folders: Path):
        self.notebooks = {path.resolve() for folder in folders for path in folder.glob("*.ipynb")}
        self.seen: set[Path] = set()
        self.cells: dict[str, tuple[bool, bool, bool]] = {}  # node -> prints something, is compared, is skipped
        self.deselected = False

    def pytest_deselected(self, items):
        self.deselected = self.deselected or bool(items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session):
        for item in session.items:
            if type(item).__name__ == "IPyNbCell":
                self.seen.add(Path(item.path).resolve())
                self.cells[item.nodeid] = (says_something(item.cell), bool(item.options["check"]), bool(item.options["skip"]))

    def count(self):
        skipped = sum(skip for _, _, skip in self.cells.values())
        compared = sum(says and check and not skip for says, check, skip in self.cells.values())
        ignored = sum(says and not check and not skip for says, check, skip in self.cells.values())
        share = compared / max(1, compared + ignored + sum(says and skip for says, _, skip in self.cells.values()))
        return compared, ignored, skipped, share

    def too_few(self):
        return bool(self.notebooks) and self.notebooks <= self.seen and not self.deselected and self.count()[3] < SMALLEST_SHARE

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus == 0 and not session.config.option.collectonly and self.too_few():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        compared, ignored, skipped, share = self.count()
        terminalreporter.section("notebook cells")
        terminalreporter.line(
            f"{len(self.cells)} cells in {len(self.seen)} notebooks; of those that print more than a bare figure "
            f"{compared} compared ({share:.0%}), {ignored} ignored; {skipped} skipped"
        )
        if self.too_few():
            terminalreporter.line(f"FAILED: less than {SMALLEST_SHARE:.0%} compared: print what is the same everywhere, assert the rest", red=True)
