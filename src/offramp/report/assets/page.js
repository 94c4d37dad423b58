"use strict";
(function () {
  document.documentElement.classList.add("js");

  // Workloads: links become tabs; arrow keys, Home and End move between them.
  const tabs = [...document.querySelectorAll(".tabs a")];
  const sections = [...document.querySelectorAll(".workload")];
  function select(index, focus) {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
      sections[i].classList.toggle("active", i === index);
    });
    if (focus) tabs[index].focus();
  }
  function moved(key, index, count) {
    if (key === "ArrowRight" || key === "ArrowDown") return Math.min(index + 1, count - 1);
    if (key === "ArrowLeft" || key === "ArrowUp") return Math.max(index - 1, 0);
    if (key === "Home") return 0;
    return key === "End" ? count - 1 : -1;
  }
  if (tabs.length) {
    tabs[0].parentElement.setAttribute("role", "tablist");
    tabs.forEach((tab, i) => {
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", sections[i].id);
      sections[i].setAttribute("role", "tabpanel");
      tab.addEventListener("click", (event) => { event.preventDefault(); select(i, true); });
      tab.addEventListener("keydown", (event) => {
        const next = moved(event.key, i, tabs.length);
        if (event.key === " ") { event.preventDefault(); select(i, true); }
        if (next >= 0) { event.preventDefault(); select(next, true); }
      });
    });
    const wanted = sections.findIndex((section) => "#" + section.id === location.hash);
    select(Math.max(wanted, 0), false);
  }

  // Passages: pointing, tapping or moving to a token shows what each layer said.
  function make(name, content, style) {
    const node = document.createElement(name);
    node.textContent = content;
    if (style) node.className = style;
    return node;
  }
  function show(panel, data, index) {
    const [piece, full, first, stays, said, sure, agrees] = data.tokens[index];
    const last = data.exits[data.exits.length - 1];
    const list = document.createElement("ol");
    data.exits.forEach((layer, row) => {
      const item = make("li", "", (agrees[row] === "1" ? "yes" : "no") + (layer === stays ? " stay" : ""));
      const bar = make("i", "");
      bar.style.setProperty("--p", (sure[row] || 0) / 10 + "%");
      const share = sure[row] === null ? "–" : Math.round(sure[row] / 10) + " %";
      item.append(make("b", layer), make("span", (agrees[row] === "1" ? "✓ " : "") + data.pieces[said[row]]), bar, make("em", share));
      list.append(item);
    });
    const title = make("p", "“" + data.pieces[piece] + "”", "head");
    const own = full === piece ? "The full model says the same." : "The full model says “" + data.pieces[full] + "”.";
    const oracle = " It first appears at layer " + first + " and stays from layer " + stays + " of " + last + ". A policy cannot know this.";
    panel.replaceChildren(title, make("p", own + oracle, "sub"), list);
  }
  document.querySelectorAll(".passage[id]").forEach((passage) => {
    const identity = passage.id.slice("passage-".length);
    const panel = document.getElementById("panel-" + identity);
    const data = JSON.parse(document.getElementById("data-" + identity).textContent);
    const tokens = [...passage.querySelectorAll(".t")];
    let current = -1;
    function choose(index, focus) {
      if (index === current && !focus) return;
      if (current >= 0) { tokens[current].tabIndex = -1; tokens[current].setAttribute("aria-pressed", "false"); }
      current = index;
      tokens[index].tabIndex = 0;
      tokens[index].setAttribute("aria-pressed", "true");
      if (focus) tokens[index].focus();
      show(panel, data, index);
    }
    tokens.forEach((token, index) => {
      token.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") choose(index, false); });
      token.addEventListener("click", () => choose(index, false));
      token.addEventListener("focus", () => choose(index, false));
      token.addEventListener("keydown", (event) => {
        const next = moved(event.key, index, tokens.length);
        if (next >= 0) { event.preventDefault(); choose(next, true); }
      });
    });
    // On a phone the panel covers part of the passage, so it waits for a tap.
    if (tokens.length && matchMedia("(min-width:900px)").matches) choose(Math.min(4, tokens.length - 1), false);
  });

  document.querySelectorAll("[data-copy]").forEach((button) => {
    button.addEventListener("click", () => {
      const source = document.getElementById(button.dataset.copy);
      navigator.clipboard.writeText(source.textContent).then(
        () => { button.textContent = "Copied"; },
        () => { getSelection().selectAllChildren(source); button.textContent = "Selected"; });
    });
  });
  addEventListener("beforeprint", () => document.querySelectorAll(".why").forEach((node) => { node.open = true; }));
})();
