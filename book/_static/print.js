/* Paper is white and cannot be clicked: print in the light theme, with answers and other folded parts open; undo it afterwards. */
(() => {
  const page = document.documentElement;
  let theme = null;
  addEventListener("beforeprint", () => {
    theme = page.dataset.theme;
    page.dataset.theme = "light";
    for (const part of document.querySelectorAll("details:not([open])")) {
      part.dataset.folded = "";
      part.open = true;
    }
  });
  addEventListener("afterprint", () => {
    page.dataset.theme = theme;
    for (const part of document.querySelectorAll("details[data-folded]")) {
      delete part.dataset.folded;
      part.open = false;
    }
  });
})();
