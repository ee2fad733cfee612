"""An exported module imports only from notebooks with lower numbers; `methods` alone gathers its methods; nothing imports the command line."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cucn_nb"


def numbered_modules():
    """The number of the notebook that each module is exported from, as text: 01 comes before 01a, this before 01b, this before 02."""
    numbers = {}
    for path in sorted((ROOT / "nbs").glob("[0-9][0-9]*_*.ipynb")):
        number = path.name.partition("_")[0]
        assert re.fullmatch(r"\d\d[a-z]?", number), f"{path.name}: two digits and perhaps a letter are expected before the first _"
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and (match := re.search(r"^\s*#\s*\|\s*default_exp\s+(\S+)", cell.source, re.M)):
                numbers["cucn_nb." + match[1].removesuffix(".__init__")] = number
                break
    return numbers


def imported(tree, package):
    """Every module of cucn_nb that the code imports, at the top or within a function, as (line, module, names)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])]), [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                yield node.lineno, argument.value if isinstance(argument, ast.Constant) else "cucn_nb.<looked up>", []


def faults(name, source, numbers, is_package=False):
    """What the module `name` imports against the rule, in words."""
    package = name if is_package else name.rpartition(".")[0]
    found = []
    for line, module, names in imported(ast.parse(source), package):
        if "*" in names:
            found.append(f"{name}:{line} star import of {module}")
        if module.split(".")[0] != "cucn_nb":
            continue
        targets = {f"{module}.{n}" for n in names if f"{module}.{n}" in numbers} or {module}
        for target in sorted(targets):
            if target == "cucn_nb.cli":
                found.append(f"{name}:{line} imports the command line")
            elif name == "cucn_nb.methods" and target.startswith("cucn_nb.methods."):
                continue
            elif target not in numbers:
                found.append(f"{name}:{line} imports {target}, which no notebook exports")
            elif numbers[target] >= numbers[name]:
                found.append(f"{name}:{line} (notebook {numbers[name]}) imports {target} (notebook {numbers[target]})")
    return found


NUMBERS = numbered_modules()
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "_modidx.py" and p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_from_lower_numbers(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert name in NUMBERS, f"no notebook exports {name}"
    assert faults(name, path.read_text(encoding="utf-8"), NUMBERS, path.name == "__init__.py") == []


def test_package_itself_imports_nothing():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert list(imported(tree, "cucn_nb")) == []


def test_every_numbered_module_was_exported():
    assert NUMBERS, "no notebook exports a module"
    exported = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES}
    assert NUMBERS.keys() <= exported


KNOWN = {"cucn_nb.faces": "01", "cucn_nb.images": "01a", "cucn_nb.layouts": "01b", "cucn_nb.datasets": "02",
         "cucn_nb.cbam": "11", "cucn_nb.losses": "14",
         "cucn_nb.methods.base": "20", "cucn_nb.methods.rul": "22", "cucn_nb.methods": "29", "cucn_nb.cli": "53"}


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("cucn_nb.losses", "from cucn_nb.cbam import CBAM", None),
        ("cucn_nb.losses", "import torch\nfrom torch import nn", None),
        ("cucn_nb.methods.rul", "from ..losses import add_up_loss\nfrom .base import Method", None),
        ("cucn_nb.methods", "from .base import Method\nfrom .rul import RUL", None),
        ("cucn_nb.layouts", "from cucn_nb.images import DataError\nfrom cucn_nb import faces", None),
        ("cucn_nb.datasets", "from cucn_nb.layouts import listings", None),
        ("cucn_nb.images", "from cucn_nb.layouts import listings", "(notebook 01a) imports cucn_nb.layouts (notebook 01b)"),
        ("cucn_nb.faces", "from cucn_nb.images import decode", "(notebook 01) imports cucn_nb.images (notebook 01a)"),
        ("cucn_nb.layouts", "from cucn_nb import datasets", "(notebook 01b) imports cucn_nb.datasets (notebook 02)"),
        ("cucn_nb.cbam", "from cucn_nb.losses import add_up_loss", "(notebook 11) imports cucn_nb.losses (notebook 14)"),
        ("cucn_nb.cbam", "from .losses import add_up_loss", "(notebook 11) imports cucn_nb.losses (notebook 14)"),
        ("cucn_nb.cbam", "from . import losses", "imports cucn_nb.losses"),
        ("cucn_nb.cbam", "def f():\n    import cucn_nb.losses", "cucn_nb.cbam:2"),
        ("cucn_nb.cbam", "import importlib\nimportlib.import_module('cucn_nb.losses')", "imports cucn_nb.losses"),
        ("cucn_nb.cbam", "from cucn_nb.utils import f", "no notebook exports"),
        ("cucn_nb.methods.rul", "from cucn_nb.methods import create", "imports cucn_nb.methods (notebook 29)"),
        ("cucn_nb.methods", "from ..cli import main", "imports the command line"),
        ("cucn_nb.losses", "from math import *", "star import of math"),
    ],
)
def test_the_rule_sees_what_breaks_it(name, source, fault):
    found = faults(name, source, KNOWN, is_package=name == "cucn_nb.methods")
    assert (found == []) if fault is None else (len(found) == 1 and fault in found[0])
