"use strict";
(() => {
  const bar = document.querySelector(".filters");
  const cards = [...document.querySelectorAll(".problem")];
  if (!bar || !cards.length) return;
  const count = bar.querySelector("output");
  const tests = {
    all: () => true,
    right: (card) => card.dataset.top === "right",
    wrong: (card) => card.dataset.top === "wrong" || card.dataset.top === "unclear",
    disagrees: (card) => card.dataset.disagrees === "yes",
    blind: (card) => card.dataset.blind === "yes",
  };
  const shown = () => cards.filter((card) => !card.hidden);

  const apply = (name) => {
    for (const card of cards) card.hidden = !tests[name](card);
    for (const button of bar.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.filter === name));
    }
    for (const part of document.querySelectorAll(".kind")) {
      part.hidden = !part.querySelector(".problem:not([hidden])");
    }
    count.textContent = `${shown().length} of ${cards.length}`;
  };

  const move = (by) => {
    const list = shown();
    if (!list.length) return;
    const here = list.indexOf(document.activeElement.closest(".problem"));
    const first = by > 0 ? list.findIndex((card) => card.getBoundingClientRect().top > 8) : -1;
    const next = here >= 0 ? here + by : first >= 0 ? first : list.length - 1;
    const card = list[Math.max(0, Math.min(list.length - 1, next))];
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "start" });
  };

  bar.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) apply(button.dataset.filter);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
  });
  bar.hidden = false;
  apply("all");
})();
