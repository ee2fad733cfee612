"""Adds links to the repository, and buttons that open a notebook in Colab or on Binder, where settings.ini names a repository."""

from configparser import ConfigParser
from pathlib import Path


def options(settings: Path) -> dict:
    """What the theme needs for the repository that the file names under `git_url`; nothing where it names none."""
    config = ConfigParser(delimiters=["="])
    config.read(settings, encoding="utf-8")
    url = config["DEFAULT"].get("git_url", "").rstrip("/").removesuffix(".git")
    if not url:
        return {}
    launch = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
    if url.startswith("https://github.com/"):
        launch["colab_url"] = "https://colab.research.google.com"
    return {
        "repository_url": url,
        "repository_branch": config["DEFAULT"].get("branch") or "main",
        "use_repository_button": True,
        "launch_buttons": launch,
    }


def add(app, config):
    config.html_theme_options = config.html_theme_options | options(Path(app.srcdir) / "settings.ini")


def setup(app):
    app.connect("config-inited", add, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
