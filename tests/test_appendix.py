"""What the appendix says about the package, the chapters and the paper's arithmetic: everything in it that a machine can check."""

import importlib
import inspect
import json
import pkgutil
import re
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path

import pytest

import cucn_nb
from cucn_nb import cli
from cucn_nb.class_weights import class_weights
from cucn_nb.training import PRESETS, TrainConfig

BOOK = Path(__file__).resolve().parent.parent / "book"
PAGES = {name: (BOOK / f"{name}.md").read_text(encoding="utf-8") for name in ("paper_and_code", "questions", "notation", "glossary")}
MODULES = {name.removeprefix("cucn_nb.") for _, name, _ in pkgutil.walk_packages(cucn_nb.__path__, "cucn_nb.")}
RAF_DB = [1290, 281, 717, 4772, 1982, 705, 2524]  # surprise, fear, disgust, happiness, sadness, anger, neutral
RAF_DB_TEST = 3068
each_page = pytest.mark.parametrize("page", PAGES)


def code_spans(text):
    """What stands in code font, without blocks of code."""
    return re.findall(r"(?<![`}])`([^`\n]+)`(?!`)", re.sub(r"^```(?!\{).*?^```", "", text, flags=re.M | re.S))


def resolve(name):
    """The object that a dotted name within the package means, and raises where there is none."""
    parts = name.removeprefix("cucn_nb.").split(".")
    length = max((n for n in range(1, len(parts) + 1) if ".".join(parts[:n]) in MODULES), default=0)
    if not length:
        raise LookupError(f"{name}: cucn_nb has no module {parts[0]}")
    found = importlib.import_module("cucn_nb." + ".".join(parts[:length]))
    for part in parts[length:]:
        if not hasattr(found, part):
            raise LookupError(f"{name}: {found.__name__} has no {part}")
        found = getattr(found, part)
    return found


def wrong_name(span):
    """What is wrong with a name in code font, or None; a keyword in brackets must be an argument of the function."""
    match = re.fullmatch(r"([A-Za-z_]\w*(?:\.\w+)+)(?:\((.*)\))?", span)
    if not match or match[1].split(".")[0] == "torch":
        return None
    try:
        found = resolve(match[1])
    except LookupError as error:
        return str(error)
    keywords = re.findall(r"(\w+)=", match[2] or "")
    return next((f"{match[1]} takes no {word}" for word in keywords if word not in inspect.signature(found).parameters), None)


def missing_chapter(target):
    """The page that a link from book/ leads to, if it does not exist."""
    path = (BOOK / target).resolve()
    name = str(path.relative_to(BOOK.parent).with_suffix("")) if path.is_relative_to(BOOK.parent) else target
    return None if path.is_file() else name


def rows(text, head):
    """The rows of the tables whose head begins so, as cells."""
    for table in re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-| ]+\n((?:\|.*\n?)+)", text, re.M):
        yield from ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines())


@cache
def written(chapter):
    """The text cells of a chapter."""
    cells = json.loads(chapter.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


# names, links, commands

@each_page
def test_names_in_code_font_exist(page):
    assert [wrong for span in code_spans(PAGES[page]) if (wrong := wrong_name(span))] == []


def test_a_wrong_name_would_be_found():
    assert wrong_name("losses.add_up_loss") is None and wrong_name("losses.add_up_loss(scale=1)") is None and wrong_name("torch.randperm") is None
    for wrong in ("losses.add_down_loss", "loses.add_up_loss", "cucn_nb.cbam.SpatialGate", "losses.add_up_loss(factor=1)", "metrics.Report.median"):
        assert wrong_name(wrong)
    assert code_spans("a `b.c`, {term}`no.code`, ```no\n``` and `d`") == ["b.c", "d"]


@each_page
def test_chapter_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page])
    assert [missing for link in links if (missing := missing_chapter(link))] == []
    assert links or page == "glossary"


def test_a_dead_link_would_be_found():
    assert missing_chapter("../nbs/13_uncertainty.ipynb") is None and missing_chapter("21_tables.ipynb") is None
    assert missing_chapter("../nbs/13_certainty.ipynb") and missing_chapter("23_tables.ipynb") and missing_chapter("21_tables.md")


@each_page
def test_commands_exist(page):
    spans = [span.split() for span in code_spans(PAGES[page]) if span.startswith("cucn ")]
    for _, command, *arguments in spans:
        kind = getattr(cli, command.capitalize())
        for flag in (a for a in arguments if a.startswith("--")):
            assert flag[2:].replace("-", "_") in kind.__dataclass_fields__, f"cucn {command} {flag}"
    flags = {span for span in code_spans(PAGES[page]) if span.startswith("--")}
    assert all(flag[2:].replace("-", "_") in cli.Train.__dataclass_fields__ for flag in flags)


def bibliography():
    return re.findall(r"^@\w+\{(\w+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M)


@each_page
def test_citations_are_in_the_bibliography(page):
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", PAGES[page]) for key in keys.split(",")}
    assert cited - set(bibliography()) == set()


def test_the_bibliography_has_each_entry_once():
    keys = bibliography()
    titles = re.findall(r"^\s*title = \{(.+)\},$", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M)
    assert len(set(keys)) == len(keys) == len({title.lower() for title in titles}) >= 20


# notation and glossary

def notation():
    return list(rows(PAGES["notation"], "symbol"))


def test_every_symbol_has_a_meaning_and_a_chapter():
    assert len(notation()) >= 40
    for symbol, meaning, _, _, chapter in notation():
        assert meaning and re.fullmatch(r"\[[^\]]+\]\([^)]+\)", chapter), symbol


def test_the_code_names_of_symbols_exist():
    claims = 0
    for symbol, _, _, code, _ in notation():
        if code == "-":
            continue
        names, place = re.fullmatch(r"(?:(`\w+`(?:, `\w+`)*) in )?`([\w.]+)`(?:, as a logarithm)?", code).groups()
        found = resolve(place)
        for name in re.findall(r"\w+", names or ""):
            assert re.search(rf"\b{name}\b", inspect.getsource(found)), f"{symbol}: {place} does not mention {name}"
        claims += 1
    assert claims >= 35


def test_symbols_occur_in_the_chapter_where_they_are_said_to_be_first_used():
    for symbol, _, _, _, chapter in notation():
        path = (BOOK / re.search(r"\]\(([^)]+)\)", chapter)[1]).resolve()
        if path.is_file() and (formula := re.match(r"\$([^$]+)\$", symbol)):
            assert re.sub(r"_(?:[ic]|\{kc\})$", "", formula[1]) in written(path), f"{symbol} is not in {path.name}"


def test_glossary_terms_are_explained_once():
    body = re.search(r"^```\{glossary\}\n:sorted:\n(.*?)^```", PAGES["glossary"], re.M | re.S)[1]
    terms = re.findall(r"^\S.*$", body, re.M)
    entries = [block for block in body.strip().split("\n\n") if block]
    assert len(entries) >= 40 and len({term.lower() for term in terms}) == len(terms)
    assert [block for block in entries if not re.fullmatch(r"(?:\S.*\n)+(?:  \S.*\n?)+", block)] == []
    asked = {re.sub(r".*<(.+)>", r"\1", term) for page in PAGES.values() for term in re.findall(r"\{term\}`([^`]+)`", page)}
    assert asked - set(terms) == set()


# numbers that the pages state

def test_there_are_as_many_questions_as_announced():
    questions = re.findall(r"^## (.+)$", PAGES["questions"], re.M)
    assert len(questions) == 12 and "> Twelve questions" in PAGES["questions"] and all(question.endswith("?") for question in questions)


def ways(printed, images):
    """How a number of right answers among so many images can give a printed percentage: {right: way}."""
    value, found = Decimal(printed), {}
    for right in range(int(value * images / 100) - 1, int(value * images / 100) + 3):
        share, cent = Decimal(100 * right) / images, Decimal("0.01")
        if value in (share.quantize(cent, ROUND_HALF_UP), share.quantize(cent, ROUND_HALF_EVEN)):
            found[right] = "rounded"
        elif value == share.quantize(cent, ROUND_DOWN):
            found[right] = "cut"
    return found


def test_the_table_of_affectnet_accuracies():
    table = list(rows(PAGES["paper_and_code"], "printed"))
    assert [row[0] for row in table] == ["61.57", "63.34", "63.77", "60.14", "62.71", "60.28", "63.29"]  # CUCN's Table II
    fits = {3500: 0, 4000: 0, 3999: 0}
    for printed, *cells in table:
        for images, cell in zip(fits, cells, strict=True):
            possible = ways(printed, images)
            fits[images] += bool(possible)
            if cell == "none":
                assert not possible, (printed, images, possible)
                continue
            right, percent, cut = re.fullmatch(r"([\d,]+) \((\d+\.\d{4})\)(, if cut)?", cell).groups()
            right = int(right.replace(",", ""))
            assert possible == {right: "cut" if cut else "rounded"}, (printed, images, possible)
            assert percent == f"{100 * right / images:.4f}"
    assert fits == {3500: 7, 4000: 3, 3999: 6}
    assert sum("cut" in row[1] for row in table) == 1


def test_what_the_page_concludes_from_the_table():
    text = PAGES["paper_and_code"]
    every = [f"{cents / 100:.2f}" for cents in range(6000, 6400)]
    share = {images: sum(bool(ways(value, images)) for value in every) / len(every) for images in (3500, 3999)}
    assert share == {3500: 0.5, 3999: 0.6} and "50 % fit 3,500 images one way or the other and 60 % fit 3,999" in text
    assert 1 / share[3500] ** 7 == 128 and "one case of 128" in text
    six_or_more = 7 * share[3999] ** 6 * (1 - share[3999]) + share[3999] ** 7
    assert round(1 / six_or_more) == 6 and "about one case of six" in text
    assert not any(ways(value, images) for value in ("62.84", "60.04", "63.36") for images in (3500, 4000))


def test_accuracies_on_raf_db_as_faces():
    assert [list(ways(value, RAF_DB_TEST)) for value in ("88.79", "88.66", "88.98")] == [[2724], [2720], [2730]]
    assert "2,724 and 2,720: four faces" in PAGES["paper_and_code"] and "is four images of 3,068" in PAGES["questions"]
    error = 100 * (0.8866 * (1 - 0.8866) / RAF_DB_TEST) ** 0.5
    assert all(f"{error:.2f} points" in PAGES[page] for page in ("paper_and_code", "questions"))
    assert f"add {100 * 74 / RAF_DB_TEST:.1f} points" in PAGES["questions"] and "1,185\nhappy faces and 74 fearful ones" in PAGES["questions"]
    assert f"{1185 / 74:.0f} happy faces for each fearful one" in PAGES["paper_and_code"]


def test_weights_as_stated():
    weights = class_weights(RAF_DB)
    assert f"counts {weights[1] / weights[3]:.0f} times as much" in PAGES["questions"] and "12,271" in PAGES["questions"] and sum(RAF_DB) == 12271
    surprise, fear = (sum(RAF_DB) / (10 * RAF_DB[c]) for c in (0, 1))
    assert f"{surprise:.3f} for surprise to {fear:.3f} for fear" in PAGES["paper_and_code"]
    assert abs(fear / float(weights[1]) - 0.7) < 1e-12
    assert "times 0.7 is ours" in PAGES["paper_and_code"] and "$\\lambda = 2$ becomes 1.4" in PAGES["paper_and_code"]
    assert [n for n in (10, 15, 30, 64) if sum(RAF_DB) % n == 1] == [10, 15, 30]


def test_the_schedule_as_stated():
    rates = [TrainConfig.preset("paper").lr * 0.9**epoch for epoch in range(60)]
    assert f"{rates[-1]:.0e}" == "2e-07" and "the last epoch trains at $2 \\cdot 10^{-7}$" in PAGES["paper_and_code"]
    assert f"{100 * sum(rates[:30]) / sum(rates):.0f} % of the sum of all learning rates falls into the first 30 epochs" in PAGES["paper_and_code"]


def numbers(text):
    return [float(word) for word in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)]


def test_the_presets_as_stated():
    table = {row[0]: row[1:] for row in rows(PAGES["paper_and_code"], "setting")}
    paper, raf_db = TrainConfig.preset("paper"), TrainConfig.preset("raf-db")
    stated = {
        "epochs, batch": lambda c: f"{c.epochs}, {c.batch_size}",
        "Adam: trunk and heads, classifier": lambda c: f"{c.lr:g}, {c.classifier_lr:g}",
        "weight decay": lambda c: f"{c.weight_decay:g}",
        "image side": lambda c: str(c.image_size),
    }
    for name, show in stated.items():
        for cell, config in zip(table[name], (paper, paper, raf_db), strict=True):
            assert numbers(cell) == numbers(show(config)) or cell == "the same", name
    assert paper.schedule == raf_db.schedule == "exponential" and set(PRESETS) >= {"scratch", "paper", "raf-db"}
    assert (paper.augmentation.flip, paper.augmentation.erase, paper.augmentation.noise) == (0.5, 0.5, 0)
    assert (raf_db.augmentation.flip, raf_db.augmentation.noise, raf_db.augmentation.erase) == (0.25, 0.25, 0.5)
