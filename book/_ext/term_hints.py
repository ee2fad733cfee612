"""Gives every link to a glossary term the term's definition as its title, which _static/hints.js shows; citations bring theirs already."""

from docutils import nodes

_hints = {}  # id of the term -> its definition


def collect(app, environment):
    objects = list(environment.get_domain("std").get_objects())
    for page in {page for _, _, kind, page, _, _ in objects if kind == "term"}:
        for item in environment.get_doctree(page).findall(nodes.definition_list_item):
            text = " ".join(paragraph.astext() for paragraph in item.findall(nodes.paragraph)).replace("\n", " ").replace("\\", "")
            _hints.update({name: text for term in item.findall(nodes.term) for name in term["ids"]})


def add(app, doctree, docname):
    for reference in doctree.findall(nodes.reference):
        if any("std-term" in word["classes"] for word in reference.findall(nodes.inline)):
            anchor = reference.get("refid") or reference["refuri"].partition("#")[2]
            reference["reftitle"] = _hints.get(anchor, "")


def setup(app):
    app.connect("env-check-consistency", collect)
    app.connect("doctree-resolved", add)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
