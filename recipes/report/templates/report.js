"use strict";
(() => {
  const bar = document.querySelector(".filters");
  const cards = [...document.querySelectorAll(".problem")];
  if (!bar || !cards.length) return;
  const count = bar.querySelector("output");
  const buttons = [...bar.querySelectorAll("button")];
  const all = buttons.find((button) => !button.dataset.key);
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "Search question, response, id";
  search.setAttribute("aria-label", "Search problems");
  bar.prepend(search);

  const shown = () => cards.filter((card) => !card.hidden);
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));

  // Of one key any value that is pressed will do; several keys and the words of the search must all hold.
  const apply = () => {
    const wanted = new Map();
    for (const button of buttons.filter((one) => one !== all && pressed(one))) {
      const values = button.dataset.key === "top" ? button.dataset.value.split(" ") : [button.dataset.value];
      wanted.set(button.dataset.key, [...(wanted.get(button.dataset.key) || []), ...values]);
    }
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const card of cards) {
      const fits = [...wanted].every(([key, values]) => values.includes(card.dataset[key]));
      card.hidden = !fits || !words.every((word) => texts.get(card).includes(word));
    }
    press(all, !wanted.size);
    for (const part of document.querySelectorAll(".kind")) {
      part.hidden = !part.querySelector(".problem:not([hidden])");
    }
    count.textContent = `${shown().length} of ${cards.length}`;
  };

  const reset = () => {
    for (const button of buttons) press(button, false);
    search.value = "";
    apply();
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

  const toAddress = () => {
    const card = cards.find((one) => `#${one.id}` === decodeURIComponent(location.hash));
    if (!card) return;
    if (card.hidden) reset();
    card.scrollIntoView({ block: "start" });
  };

  const own = (node) => [...node.childNodes].filter((n) => !["SMALL", "EM"].includes(n.nodeName)).map((n) => n.textContent).join("");
  const number = (node) => (node ? Number(node.textContent) : null);
  const asData = (card) => ({
    id: card.querySelector(".id span").textContent,
    list: card.dataset.list,
    change: card.dataset.change || null,
    question: card.querySelector("h4").textContent,
    reference: card.querySelector(".reference strong")?.textContent ?? null,
    responses: [...card.querySelectorAll(".response")].map((response) => ({
      verdict: response.querySelector(".mark").textContent,
      reward: number(response.querySelector(".reward")),
      picked_for: [...response.querySelectorAll(".badge")].map((badge) => badge.textContent),
      steps: [...response.querySelectorAll(".steps > li")].map((step) => ({
        text: own(step),
        notes: [...step.querySelectorAll("small")].map((note) => note.textContent),
      })),
    })),
  });

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {  // no permission, or an old browser
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };

  for (const card of cards) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy as JSON";
    button.addEventListener("click", async () => {
      await copy(JSON.stringify(asData(card), null, 2));
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy as JSON"; }, 1500);
    });
    card.firstElementChild.append(button);
  }

  bar.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button === all) reset();
    else {
      press(button, !pressed(button));
      apply();
    }
  });
  search.addEventListener("input", apply);
  addEventListener("hashchange", toAddress);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === search) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
  });
  bar.hidden = false;
  apply();
  toAddress();
})();
