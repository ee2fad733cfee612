"""The built book as a reader sees it: every page opened from its folder in a browser, with no network."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (1400, 800, 400)
LOWEST_CONTRAST = 4.5  # of text, WCAG 2.2 level AA

READ_PAGE = r"""async () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  if (window.MathJax?.startup) await MathJax.startup.promise;
  const article = document.querySelector(".bd-article");
  const images = [...article.querySelectorAll("img")];
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  const prose = article.cloneNode(true);
  for (const part of prose.querySelectorAll("pre, code, script, style, mjx-container")) part.remove();
  return {
    images: images.map((image) => ({
      source: image.getAttribute("src").slice(0, 80), alt: image.alt, complete: image.complete && image.naturalWidth > 0,
      width: image.getBoundingClientRect().width, height: image.getBoundingClientRect().height,
    })),
    formulas: article.querySelectorAll("mjx-container").length,
    unrendered: [...article.querySelectorAll(".math")].filter((part) => !part.querySelector("mjx-container")).map((part) => part.textContent),
    wrong: [...article.querySelectorAll("mjx-merror, [data-mjx-error]")].map((part) => part.textContent),
    commands: [...article.querySelectorAll("mjx-assistive-mml :is(mtext, mi)")].map((part) => part.textContent).filter((text) => text.includes("\\")),
    raw: prose.textContent.match(/\\[([][^\n]{0,60}|\$\$/g) ?? [],
    links: [...document.querySelectorAll("a[href]")].map((link) => link.href),
    names: [...document.querySelectorAll("[id]")].map((part) => part.id),
    citations: article.querySelectorAll(".bibtex-citation a").length,
    figures: article.querySelectorAll('a.reference.internal[href^="#fig-"]').length,
    terms: article.querySelectorAll("a > .std-term").length,
    slider: document.querySelector(".blend-explorer input[type=range].blend-slider") !== null,
    folds: article.querySelectorAll("details").length,
  };
}"""

# What sticks out of the page, or out of a box that cannot be scrolled sideways. A .blend-window shows one part of a larger picture.
FIND_OVERFLOW = r"""() => {
  const found = [];
  const page = document.documentElement;
  if (page.scrollWidth > window.innerWidth) found.push(`the page is ${page.scrollWidth} wide`);
  const column = document.querySelector(".bd-article-container").getBoundingClientRect();
  const scrolls = (part) => ["auto", "scroll"].includes(getComputedStyle(part).overflowX);
  const look = (part) => {
    const box = part.getBoundingClientRect();
    const outside = box.width && box.height && (box.right > column.right + 1 || box.left < column.left - 1);
    if (outside) found.push(`${part.tagName} ${part.className} "${part.textContent.trim().slice(0, 40)}" to ${box.right} of ${column.right}`);
    if (part.matches("mjx-math, svg, .blend-window") || (part.scrollWidth > part.clientWidth && scrolls(part))) return;
    for (const child of part.children) if (found.length < 4 && !child.matches("mjx-assistive-mml, .visually-hidden")) look(child);
  };
  look(document.querySelector(".bd-article"));
  return found;
}"""

# The contrast of text with the ground under it, for each kind of text, the lowest found: [[kind, contrast, text], ...]
MEASURE_CONTRAST = r"""() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (part) => {
    for (; part; part = part.parentElement) {
      const colour = rgba(getComputedStyle(part).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255];
  };
  const lowest = {};
  for (const kind of ["p", "li", "td", "figcaption", "summary", "h2", "p a:not(.headerlink)", "pre span", "div.output pre", "code span"]) {
    const seen = new Set();
    for (const part of document.querySelectorAll(`.bd-article ${kind}`)) {
      const like = part.className + " in " + part.parentElement.className;
      const text = [...part.childNodes].find((node) => node.nodeType === 3 && node.textContent.trim());
      if (seen.has(like) || !text || !part.getClientRects().length) continue;
      seen.add(like);
      const [a, b] = [luminance(rgba(getComputedStyle(part).color)), luminance(ground(part))];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (!(kind in lowest) || contrast < lowest[kind][0]) lowest[kind] = [contrast, text.textContent.trim().slice(0, 40)];
    }
  }
  return Object.entries(lowest).map(([kind, [contrast, text]]) => [kind, contrast, text]);
}"""

# Words of a drawing that run out of the smallest rectangle behind their middle, or come nearer than two units to its edge.
FIND_ESCAPED_WORDS = r"""() => {
  const boxes = [...document.querySelectorAll("svg rect")].map((part) => part.getBBox());
  const found = [];
  for (const part of document.querySelectorAll("svg text")) {
    const words = part.getBBox();
    const [x, y] = [words.x + words.width / 2, words.y + words.height / 2];
    const around = boxes.filter((box) => box.x <= x && x <= box.x + box.width && box.y <= y && y <= box.y + box.height);
    const box = around.sort((a, b) => a.width * a.height - b.width * b.height)[0];
    const beyond = Math.max(box.x - words.x, words.x + words.width - box.x - box.width);
    if (!part.closest("[transform]") && beyond > -2) found.push(part.textContent);
  }
  return found;
}"""


class Watch:
    """A page of the browser that writes down what goes wrong on it."""

    def __init__(self, browser):
        self.context = browser.new_context(viewport={"width": WIDTHS[0], "height": 900}, offline=True)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def visit(self, path):
        self.problems, self.requests = [], []
        self.page.goto(path.as_uri())
        facts = self.page.evaluate(READ_PAGE)
        overflow = {}
        for width in WIDTHS:
            self.page.set_viewport_size({"width": width, "height": 900})
            overflow[width] = self.page.evaluate(FIND_OVERFLOW)
        self.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
        return facts | {"overflow": overflow, "problems": self.problems, "requests": self.requests}


@pytest.fixture(scope="module")
def html(built, browser):  # the browser first: without one nothing need be built
    return built / "html"


@pytest.fixture(scope="module")
def watch(browser):
    watch = Watch(browser)
    yield watch
    watch.context.close()


@pytest.fixture(scope="module")
def visits(html, watch):
    """Every page with an article, by its path: what stands on it, and what went wrong."""
    pages = [path for path in sorted(html.rglob("*.html")) if 'class="bd-article"' in path.read_text(encoding="utf-8")]
    return {path.relative_to(html).as_posix(): watch.visit(path) for path in pages}


def every(visits, *keys):
    """(page, item) for each item of a list that each page has."""
    for name, facts in visits.items():
        for key in keys:
            facts = facts[key]
        yield from ((name, item) for item in facts)


def having(visits, key, html):
    """The first page that has what `key` counts."""
    return html / next(name for name, facts in visits.items() if facts[key])


def sources():
    return [*ROOT.glob("nbs/*.ipynb"), *ROOT.glob("book/*.ipynb"), *ROOT.glob("book/*.md")]


def test_every_source_has_its_page(visits):
    pages = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in sources()}
    assert pages - visits.keys() == set()


def test_the_first_page_opens(html, watch):
    watch.page.goto((html / "index.html").as_uri())
    watch.page.wait_for_url("**/book/intro.html")
    assert watch.page.title().startswith("Facial expressions")


def test_no_page_has_an_error(visits):
    assert list(every(visits, "problems")) == []


def test_no_request_leaves_the_page(visits):
    far = [(name, url) for name, url in every(visits, "requests") if urlsplit(url).scheme not in ("file", "data", "blob")]
    assert far == []
    assert sum(len(facts["requests"]) for facts in visits.values()) > len(visits)


def test_every_figure_has_a_size_and_an_alternative_text(visits):
    wrong = [
        (name, image)
        for name, image in every(visits, "images")
        if not image["complete"]
        or min(image["width"], image["height"]) < 20
        or len(image["alt"].strip()) < 10
        or re.search(r"\.(png|jpe?g|svg)$", image["alt"])
    ]
    assert wrong == []
    assert len(list(every(visits, "images"))) >= 30


def has_formula(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells if cell.cell_type == "markdown")
    text = re.sub(r"^(```+|~~~+)(?!\{math\}).*?^\1|`[^`\n]+`", "", text, flags=re.M | re.S)
    return re.search(r"(?<!\\)\$[^$\s][^$]*\$", text) is not None


def test_formulas_are_rendered(visits):
    assert [found for kind in ("unrendered", "wrong", "commands", "raw") for found in every(visits, kind)] == []
    expected = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in sources() if has_formula(path)}
    assert len(expected) >= 10
    assert {name for name in expected if not visits[name]["formulas"]} == set()


def test_links_within_the_book_resolve(html, visits):
    broken, followed = [], 0
    for name, link in every(visits, "links"):
        parts = urlsplit(link)
        if parts.scheme != "file":
            continue
        target = Path(unquote(parts.path))
        inside = target.relative_to(html).as_posix() if target.is_relative_to(html) else None
        anchor = unquote(parts.fragment)
        followed += 1
        if inside is None or not target.is_file():
            broken.append((name, link))
        elif anchor and inside in visits and anchor not in visits[inside]["names"]:
            broken.append((name, link))
        elif target.suffix in (".ipynb", ".md") and "_sources" not in target.parts:
            broken.append((name, link))
    assert broken == []
    assert followed > 20 * len(visits)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows(visits, width):
    assert list(every(visits, "overflow", width)) == []


def test_words_stay_in_the_boxes_of_a_drawing(watch):
    def escaped(svg):
        watch.page.set_content(svg)
        return watch.page.evaluate(FIND_ESCAPED_WORDS)

    line = '<svg width="300" height="40"><rect width="300" height="40"/><rect x="9" y="9" width="90" height="22"/><text x="12" y="25">%s</text></svg>'
    assert escaped(line % "it fits") == [] and escaped(line % "far too long for it") == ["far too long for it"]
    drawings = sorted((ROOT / "book" / "images").glob("*.svg"))
    assert len(drawings) > 20
    assert {drawing.name: words for drawing in drawings if (words := escaped(drawing.read_text(encoding="utf-8")))} == {}


def test_search_finds_cbam(html, watch):
    watch.problems = []
    watch.page.goto((html / "book" / "intro.html").as_uri())
    watch.page.keyboard.press("Control+k")
    watch.page.keyboard.type("CBAM")
    watch.page.keyboard.press("Enter")
    watch.page.wait_for_url("**/search.html?q=CBAM*")
    found = watch.page.locator("#search-results li a")
    found.first.wait_for()
    addresses = [found.nth(number).get_attribute("href") for number in range(found.count())]
    assert any(address.startswith("nbs/11_cbam.html") for address in addresses), addresses
    assert watch.problems == []


def hint_of(watch, link):
    link.scroll_into_view_if_needed()
    link.hover()
    box = watch.page.locator(".hint")
    box.wait_for(state="visible")
    frame = box.bounding_box()
    assert 0 <= frame["x"] and frame["x"] + frame["width"] <= watch.page.viewport_size["width"]
    return box


@pytest.mark.parametrize("width", [WIDTHS[0], WIDTHS[-1]])
def test_citation_shows_its_reference(html, watch, width):
    watch.page.set_viewport_size({"width": width, "height": 900})
    watch.page.goto((html / "book" / "intro.html").as_uri())
    link = watch.page.locator(".bd-article .bibtex-citation a").first
    assert "Combating uncertainty and class imbalance in facial expression recognition" in hint_of(watch, link).inner_text()
    watch.page.mouse.move(5, 5)
    watch.page.locator(".hint").wait_for(state="hidden")
    link.focus()  # as with the tabulator
    watch.page.locator(".hint").wait_for(state="visible")
    watch.page.keyboard.press("Escape")
    watch.page.locator(".hint").wait_for(state="hidden")
    watch.page.set_viewport_size({"width": WIDTHS[0], "height": 900})


def test_number_of_a_figure_shows_the_figure(html, visits, watch):
    watch.page.goto(having(visits, "figures", html).as_uri())
    box = hint_of(watch, watch.page.locator('.bd-article a.reference.internal[href^="#fig-"]').first)
    assert box.locator("img").evaluate("image => image.complete && image.getBoundingClientRect().width > 20")


def test_term_shows_its_definition(html, visits, watch):
    watch.page.goto(having(visits, "terms", html).as_uri())
    link = watch.page.locator(".bd-article a:has(> .std-term)").first
    text = hint_of(watch, link).inner_text()
    watch.page.goto(link.evaluate("link => link.href"))
    definition = watch.page.locator("dt:target ~ dd").first.text_content()
    assert len(text) > 20 and text.split()[:4] == definition.split()[:4]


def test_copy_button_copies_the_cell(html, watch):
    watch.page.goto((html / "nbs" / "11_cbam.html").as_uri())
    cell = watch.page.locator(".bd-article div.cell_input div.highlight").first
    cell.hover()
    cell.locator("button.copybtn").click()
    watch.page.keyboard.press("Control+k")
    watch.page.keyboard.press("Control+v")
    pasted = watch.page.locator("#pst-search-dialog input[type=search]").input_value()
    assert pasted.split() == cell.locator("pre").inner_text().split() and pasted


def test_notebook_can_be_downloaded(html, watch):
    watch.page.goto((html / "nbs" / "11_cbam.html").as_uri())
    address = watch.page.locator("a.btn-download-source-button").first.evaluate("link => link.href")
    downloaded = nbformat.read(unquote(urlsplit(address).path), as_version=4)
    assert downloaded == nbformat.read(ROOT / "nbs" / "11_cbam.ipynb", as_version=4)


def test_dark_mode_can_be_chosen_and_stays(html, watch):
    watch.page.goto((html / "book" / "intro.html").as_uri())
    seen = {}
    for _ in range(3):
        watch.page.locator("button.theme-switch-button").first.click()
        mode, theme = watch.page.evaluate("[document.documentElement.dataset.mode, document.documentElement.dataset.theme]")
        seen[mode] = theme
        if mode == "dark":
            for _ in range(20):  # the browser passes what a page has stored to the next page's process in its own time
                watch.page.goto((html / "book" / "references.html").as_uri())
                theme = watch.page.evaluate("document.documentElement.dataset.theme")
                if theme == "dark":
                    break
                watch.page.wait_for_timeout(250)
            assert theme == "dark"
    assert seen == {"auto": "light", "light": "light", "dark": "dark"}
    watch.page.emulate_media(color_scheme="dark")
    assert watch.page.evaluate("document.documentElement.dataset.mode = localStorage.mode") in seen
    watch.page.evaluate("localStorage.clear()")
    watch.page.reload()
    assert watch.page.evaluate("document.documentElement.dataset.theme") == "dark"  # as the system asks for
    watch.page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(html, visits, watch, scheme):
    watch.page.emulate_media(color_scheme=scheme)
    faint = []
    for name in ("book/intro.html", "nbs/11_cbam.html", "nbs/33_metrics.html", having(visits, "folds", html).relative_to(html).as_posix()):
        watch.page.goto((html / name).as_uri())
        assert watch.page.evaluate("document.documentElement.dataset.theme") == scheme
        watch.page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        measured = watch.page.evaluate(MEASURE_CONTRAST)
        assert len(measured) >= 4
        faint += [(name, kind, round(contrast, 2), text) for kind, contrast, text in measured if contrast < LOWEST_CONTRAST]
    watch.page.emulate_media(color_scheme="light")
    assert faint == []


LOOK_AT_PRINT = """() => {
  const seen = (selector) => [...document.querySelectorAll(selector)].filter((part) => part.getClientRects().length);
  return {
    theme: document.documentElement.dataset.theme,
    folded: seen("details:not([open])").length,
    navigation: seen(".bd-sidebar-primary, .bd-header-article, .prev-next-footer, .copybtn").length,
    titles: seen("h1").filter((title) => title.getBoundingClientRect().height > 10).length,
    cut: seen(".bd-article :is(pre, div.math)").filter((part) => part.scrollWidth > part.clientWidth + 1).map((part) => part.textContent),
  };
}"""


def test_print_is_light_and_whole(html, visits, watch):
    watch.page.emulate_media(color_scheme="dark")
    watch.page.goto(having(visits, "folds", html).as_uri())
    watch.page.emulate_media(media="print", color_scheme="dark")
    watch.page.set_viewport_size({"width": 720, "height": 1000})  # A4 without its margins
    watch.page.evaluate("MathJax.startup.promise")
    watch.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    printed, overflow = watch.page.evaluate(LOOK_AT_PRINT), watch.page.evaluate(FIND_OVERFLOW)
    watch.page.evaluate("dispatchEvent(new Event('afterprint'))")
    after = watch.page.evaluate("[document.documentElement.dataset.theme, document.querySelectorAll('.bd-article details[open]').length]")
    watch.page.emulate_media(media="screen", color_scheme="light")
    watch.page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    assert printed == {"theme": "light", "folded": 0, "navigation": 0, "titles": 1, "cut": []}
    assert overflow == [] and after == ["dark", 0]


def test_slider_reacts(html, visits, watch):
    watch.problems, watch.requests = [], []
    watch.page.goto(having(visits, "slider", html).as_uri())
    box = watch.page.locator(".blend-explorer").first
    slider = box.locator("input[type=range].blend-slider").first
    slider.scroll_into_view_if_needed()
    slider.focus()
    watch.page.keyboard.press("Home")
    states = []
    for _ in range(4):
        picture = box.locator("img, canvas").first.locator("..").screenshot()  # what is seen of it: all steps may be one large picture
        states.append((box.get_attribute("data-step"), box.inner_text(), picture))
        watch.page.keyboard.press("ArrowRight")
        watch.page.wait_for_timeout(100)
    steps, texts, pictures = zip(*states, strict=True)
    assert len(set(steps)) == len(set(texts)) == len(set(pictures)) == len(states), (steps, texts)
    watch.page.keyboard.press("End")
    watch.page.wait_for_timeout(100)
    assert box.get_attribute("data-step") not in steps
    loaded = box.locator("img").evaluate_all("images => images.every((image) => image.complete && image.naturalWidth > 0)")
    assert loaded and watch.problems == []
    assert [url for url in watch.requests if urlsplit(url).scheme not in ("file", "data", "blob")] == []
