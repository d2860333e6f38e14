"use strict";
// Says what a point of a figure is, for the pointer and for the keyboard. Without this script the
// browser shows the same words, as the title of the point.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);
  const isPoint = (node) => node instanceof Element && node.matches(".points circle");
  const place = (point) => Number(point.getAttribute("cx"));

  function show(point) {
    const words = point.getAttribute("aria-label").split("\n");
    const name = document.createElement("b");
    name.textContent = words[0];
    tip.replaceChildren(name, ...words.slice(1).map((line) => `\n${line}`));
    tip.hidden = false;
    const at = point.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = tip;
    const wide = document.documentElement.clientWidth;
    // Beside the point, else above it, else below it.
    let left = at.left + at.width / 2 - width / 2;
    let top = at.top > height + 12 ? at.top - height - 6 : at.bottom + 6;
    const beside = [at.right + 8, at.left - width - 8].find((x) => x >= 8 && x + width <= wide - 8);
    if (beside !== undefined) {
      left = beside;
      top = Math.max(8, Math.min((at.top + at.bottom - height) / 2, innerHeight - height - 8));
    }
    tip.style.left = `${Math.max(8, Math.min(left, wide - width - 8))}px`;
    tip.style.top = `${top}px`;
  }

  function hide() {
    if (isPoint(document.activeElement)) show(document.activeElement);
    else tip.hidden = true;
  }

  function move(from, key) {
    const points = [...from.parentNode.children];
    const now = points.indexOf(from);
    const to = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1,
      Home: 0, End: points.length - 1 }[key];
    if (to === undefined) return false;
    const next = points[(to + points.length) % points.length];
    from.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
    return true;
  }

  for (const group of document.querySelectorAll(".points")) {
    // Only one point of a panel is in the tab order; the arrows go from left to right.
    const points = [...group.children].sort((a, b) => place(a) - place(b));
    group.append(...points);
    points.forEach((point, number) => {
      const title = point.querySelector("title");
      point.setAttribute("aria-label", title.textContent);
      point.setAttribute("role", "img");
      point.setAttribute("tabindex", number ? "-1" : "0");
      title.remove();
    });
  }
  document.addEventListener("pointerover", (event) => isPoint(event.target) && show(event.target));
  document.addEventListener("pointerout", (event) => isPoint(event.target) && hide());
  document.addEventListener("click", (event) => isPoint(event.target) && event.target.focus());
  document.addEventListener("focusin", (event) => isPoint(event.target) && show(event.target));
  document.addEventListener("focusout", (event) => { if (isPoint(event.target)) tip.hidden = true; });
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
    else if (isPoint(event.target) && move(event.target, event.key)) event.preventDefault();
  });
})();
