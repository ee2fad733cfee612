"""The wheel that the checkout gives: what is in it, and that it works where nothing but its requirements is installed."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command, cwd):
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=clean_environment())
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def clean_environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a source distribution, so that what MANIFEST.in forgets is missing here too."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():  # what earlier builds left in the checkout must not help
        if path.is_file():
            shutil.copy(path, source)
    shutil.copytree(ROOT / "cucn_nb", source / "cucn_nb", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source, cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment into which the wheel alone is installed; its requirements are lent by this one."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    lent = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "requirements.pth").write_text("\n".join(lent) + "\n")  # a path named in a .pth file does not run the .pth files in it
    return scripts


@pytest.fixture
def empty(tmp_path):
    return tmp_path


def test_wheel_holds_the_package_whole_and_nothing_else(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "cucn_nb").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert package <= inside
    assert {name for name in inside - package if ".dist-info/" not in name} == set()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)


def test_wheel_carries_the_faces_with_their_licence(wheel):
    assets = [Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("cucn_nb/assets/")]
    assert any(name.endswith(".npz") for name in assets)
    assert any("LICENSE" in name.upper() for name in assets)
    assert wheel.stat().st_size < 15e6


def test_wheel_says_what_settings_ini_says(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    assert f"\nVersion: {settings()['version']}\n" in metadata
    lines = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    required = {Requirement(line) for line in lines}
    assert required == {Requirement(word) for word in settings()["requirements"].split()}
    assert not {"nbdev", "fastcore"} & {requirement.name for requirement in required}


def test_citation_and_changelog_name_this_version():
    version = settings()["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_installed_package_is_the_wheels(installed, empty):
    where = run(installed / "python", "-c", "import cucn_nb; print(cucn_nb.__version__, cucn_nb.__file__)", cwd=empty)
    version, path = where.split(maxsplit=1)
    assert version == settings()["version"]
    assert Path(path.strip()).is_relative_to(installed.parent)


@pytest.mark.skipif(importlib.util.find_spec("cucn_nb.cli") is None, reason="there is no command yet")
def test_installed_command_runs(installed, empty):
    assert settings()["version"] in run(installed / "cucn", "info", cwd=empty)


def test_first_python_lines_of_the_readme_run(installed, empty):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    if not blocks:
        pytest.skip("the README has no Python yet")
    assert "worst" in run(installed / "python", "-c", blocks[0], cwd=empty)
