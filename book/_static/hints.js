/* Shows what a link refers to beside the link, for the pointer and for the keyboard: the reference of a citation and the definition of a term
   (both stand in the link's title), and the figure, table or equation that a number on the same page names. Escape hides it. */
(() => {
  const box = document.createElement("div");
  box.className = "hint";
  box.id = "hint";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  let shown = null;
  let waiting = 0;

  function content(link) {
    const text = link.dataset.hint || (link.matches(".bibtex-citation a, a:has(> .std-term)") && link.title);
    if (text) {
      link.dataset.hint = text;
      link.removeAttribute("title"); // or the browser would show it once more
      return document.createTextNode(text);
    }
    const here = link.hash && link.matches("a.reference.internal") && link.pathname === location.pathname;
    const part = here && document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (!part || !part.matches("figure, table, div.math") || part.contains(link)) return null;
    const copy = part.cloneNode(true);
    for (const named of [copy, ...copy.querySelectorAll("[id]")]) named.removeAttribute("id");
    for (const anchor of copy.querySelectorAll("a.headerlink")) anchor.remove();
    return copy;
  }

  function show(link) {
    clearTimeout(waiting);
    if (shown === link) return;
    hide();
    const inside = content(link);
    if (!inside) return;
    box.replaceChildren(inside);
    box.hidden = false;
    link.setAttribute("aria-describedby", box.id);
    shown = link;
    const edge = 8;
    const at = link.getClientRects()[0];
    const left = Math.min(at.left, document.documentElement.clientWidth - box.offsetWidth - edge);
    const below = at.bottom + edge + box.offsetHeight < innerHeight || at.top < box.offsetHeight + edge;
    box.style.left = `${scrollX + Math.max(edge, left)}px`;
    box.style.top = `${scrollY + (below ? at.bottom + edge / 2 : at.top - box.offsetHeight - edge / 2)}px`;
  }

  function hide() {
    clearTimeout(waiting);
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    box.hidden = true;
  }

  const link = (event) => event.target instanceof Element && event.target.closest(".bd-article a[href]");
  document.addEventListener("DOMContentLoaded", () => {
    document.body.append(box);
    document.addEventListener("mouseover", (event) => {
      if (link(event)) show(link(event));
      else if (box.contains(event.target)) clearTimeout(waiting);
      else if (shown) {
        clearTimeout(waiting);
        waiting = setTimeout(hide, 200); // time enough to move into the box
      }
    });
    document.addEventListener("focusin", (event) => (link(event) ? show(link(event)) : hide()));
    document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  });
})();
