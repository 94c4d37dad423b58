"use strict";
(function () {
  document.documentElement.classList.add("js");
  const plain = (value) => value.replace(/\u00a0/g, " ");
  const form = document.getElementById("filters");

  // What is shown is kept in the address after "#", so that a view can be linked: filter=, a facet=, sort=.
  const state = { filter: "", facets: {}, sort: {}, curve: "", chart: "", off: [] };
  function read() {
    const fragment = location.hash.slice(1);
    if (!fragment.includes("=")) return false;
    const values = new URLSearchParams(fragment);
    state.filter = values.get("filter") || "";
    state.facets = {};
    form.querySelectorAll("select").forEach((choice) => {
      if (values.get(choice.name)) state.facets[choice.name] = values.get(choice.name);
    });
    state.sort = {};
    values.getAll("sort").forEach((one) => {
      const [table, key, order] = one.split("|");
      state.sort[table] = [key, order === "descending" ? "descending" : "ascending"];
    });
    state.curve = values.get("curve") || "";
    state.chart = values.get("chart") || "";
    state.off = values.getAll("off");
    return true;
  }
  function write() {
    const values = new URLSearchParams();
    if (state.filter) values.set("filter", state.filter);
    Object.entries(state.facets).forEach(([name, value]) => { if (value) values.set(name, value); });
    Object.entries(state.sort).forEach(([table, [key, order]]) => values.append("sort", [table, key, order].join("|")));
    if (state.curve) values.set("curve", state.curve);
    if (state.chart) values.set("chart", state.chart);
    state.off.forEach((name) => values.append("off", name));
    const fragment = values.toString();
    history.replaceState(null, "", fragment ? "#" + fragment : location.pathname + location.search);
  }

  // Tables. Their rows are read when first sorted or narrowed down, so that opening the page stays fast.
  const tables = [...document.querySelectorAll("table[data-table]")].map((table) => {
    const heads = [...table.tHead.rows[0].cells];
    let rows = null;
    function read() {
      return [...table.tBodies[0].rows].map((row) => {
        const cells = [...row.cells];
        const facets = {};
        heads.forEach((head, i) => {
          const name = head.dataset.facet;
          if (name) facets[name] = (facets[name] || []).concat(plain(cells[i].dataset.f || cells[i].textContent).split("\n"));
        });
        return { row, cells, facets, words: plain(row.textContent).toLowerCase() };
      });
    }
    return { table, heads, name: table.dataset.table, count: document.querySelector('[data-count="' + table.dataset.table + '"]'), rows: () => (rows = rows || read()) };
  });
  function keyOf(cell, numeric) {
    if (!numeric) return plain(cell.textContent).trim().toLowerCase();
    return cell.dataset.v ? Number(cell.dataset.v) : null;
  }
  // Stable: rows of equal value stay as they were written; what has no value comes last either way.
  function sorted(one) {
    const [key, order] = state.sort[one.name] || ["", ""];
    const column = one.heads.findIndex((head) => head.dataset.key === key);
    one.heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", order);
      else head.removeAttribute("aria-sort");
    });
    if (column < 0) return one.rows();
    const numeric = "numeric" in one.heads[column].dataset;
    const sign = order === "descending" ? -1 : 1;
    const keyed = one.rows().map((row) => [keyOf(row.cells[column], numeric), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
    });
    return keyed.map(([, row]) => row);
  }
  function sort(one) {
    one.order = sorted(one);
    const body = one.table.tBodies[0];
    // Out of the page while its rows move: a browser would otherwise look at every one of them.
    body.remove();
    body.append(...one.order.map((row) => row.row));
    draw(one);
    one.table.append(body);
  }
  // Only the first rows of a long table are laid out, until all are asked for.
  const FIRST = 200;
  const rowsOf = (one) => one.order || one.rows();
  function draw(one) {
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = Object.entries(state.facets).filter(([, value]) => value);
    const limit = one.whole ? Infinity : FIRST;
    let fitting = 0;
    rowsOf(one).forEach((row) => {
      const fits = words.every((word) => row.words.includes(word)) &&
        chosen.every(([name, value]) => !(name in row.facets) || row.facets[name].includes(value));
      fitting += fits;
      row.row.hidden = !fits || fitting > limit;
    });
    const all = one.rows().length;
    const number = (value) => value.toLocaleString("en");
    const noun = one.count.dataset.noun + (all === 1 ? "" : "s");
    const cut = fitting > limit;
    one.count.textContent = (fitting < all ? number(fitting) + " of " : "") + number(all) + " " + noun +
      (cut ? ", the first " + FIRST + " shown " : "");
    one.count.parentElement.classList.toggle("partial", fitting < all);
    one.more.hidden = !cut;
  }
  function narrow() {
    tables.forEach(draw);
    const any = Boolean(state.filter.trim()) || Object.values(state.facets).some(Boolean);
    form.classList.toggle("active", any);
    document.getElementById("clear").hidden = !any;
  }
  tables.forEach((one) => {
    one.more = document.createElement("button");
    one.more.type = "button";
    one.more.className = "more";
    one.more.textContent = "Show all";
    one.more.hidden = true;
    one.more.addEventListener("click", () => { one.whole = true; draw(one); });
    one.count.after(one.more);
  });
  tables.forEach((one) => {
    one.heads.forEach((head) => {
      const name = head.querySelector(".by");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "by";
      button.title = "Sort by this column";
      button.textContent = name.textContent;
      name.replaceWith(button);
      button.addEventListener("click", () => {
        const first = "numeric" in head.dataset ? "descending" : "ascending";
        const second = first === "ascending" ? "descending" : "ascending";
        const [key, order] = state.sort[one.name] || ["", ""];
        if (key !== head.dataset.key) state.sort[one.name] = [head.dataset.key, first];
        else if (order === first) state.sort[one.name] = [key, second];
        else delete state.sort[one.name];
        sort(one);
        write();
      });
    });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    state.filter = form.elements.filter.value;
    form.querySelectorAll("select").forEach((choice) => { state.facets[choice.name] = choice.value; });
    narrow();
    write();
  });
  document.getElementById("clear").addEventListener("click", () => {
    state.filter = "";
    state.facets = {};
    fill();
    narrow();
    write();
    form.elements.filter.focus();
  });
  function fill() {
    form.elements.filter.value = state.filter;
    form.querySelectorAll("select").forEach((choice) => { choice.value = state.facets[choice.name] || ""; });
  }

  // Profiles: a curve and a chart are chosen, one figure is shown, and its legend dims lines.
  const figures = [...document.querySelectorAll(".profile-figure")];
  const place = document.getElementById("profile-choice");
  const MANY = 10;
  function choose(name, label, values) {
    const select = document.createElement("select");
    values.forEach((value) => select.add(new Option(value, value)));
    select.addEventListener("change", () => { state[name] = select.value; state.off = []; show(); write(); });
    const whole = document.createElement("label");
    const words = document.createElement("span");
    words.textContent = label;
    whole.append(words, select);
    whole.hidden = values.length < 2;
    place.append(whole);
    return select;
  }
  let curves = null, charts = null;
  if (figures.length) {
    place.className = "filters choice";
    document.querySelectorAll(".profiles > details").forEach((node) => { node.open = true; });
    curves = choose("curve", "Curve", [...new Set(figures.map((one) => one.dataset.curve))]);
    charts = choose("chart", "Lines of", [...new Set(figures.map((one) => one.dataset.chart))]);
    figures.forEach((one) => {
      const lines = [...one.querySelectorAll("g.profile")];
      const items = [...one.querySelectorAll(".lines li")];
      if (items.length < 2) return;
      items.forEach((item, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.append(...item.childNodes);
        item.append(button);
        button.addEventListener("click", () => {
          const name = item.dataset.line;
          state.off = state.off.includes(name) ? state.off.filter((other) => other !== name) : [...state.off, name];
          dim(one);
          write();
        });
        button.addEventListener("pointerenter", () => lines[i].classList.add("near"));
        button.addEventListener("pointerleave", () => lines[i].classList.remove("near"));
      });
    });
  }
  function dim(one) {
    one.querySelectorAll("[data-line]").forEach((node) => {
      const off = state.off.includes(node.dataset.line);
      node.classList.toggle("off", off);
      const button = node.querySelector("button");
      if (button) button.setAttribute("aria-pressed", String(!off));
    });
  }
  function show() {
    if (!figures.length) return;
    const has = (select, value) => [...select.options].some((option) => option.value === value);
    curves.value = has(curves, state.curve) ? state.curve : curves.options[0].value;
    charts.value = has(charts, state.chart) ? state.chart : charts.options[0].value;
    figures.forEach((one) => {
      const shown = one.dataset.curve === curves.value && one.dataset.chart === charts.value;
      one.hidden = !shown;
      if (!shown) return;
      const names = [...one.querySelectorAll(".lines li")].map((item) => item.dataset.line);
      if (!state.off.length && names.length > MANY) state.off = names.slice(MANY);
      dim(one);
    });
  }

  document.querySelectorAll("[data-copy]").forEach((button) => {
    button.addEventListener("click", () => {
      const source = document.getElementById(button.dataset.copy);
      const select = () => { getSelection().selectAllChildren(source); button.textContent = "Selected"; };
      if (!navigator.clipboard) { select(); return; }
      navigator.clipboard.writeText(source.textContent).then(() => { button.textContent = "Copied"; }, select);
    });
  });

  function restore() {
    const had = read();
    fill();
    tables.forEach((one) => {
      if (had && (state.sort[one.name] || one.order)) sort(one);
      else if (!had && one.table.tBodies[0].rows.length > FIRST) draw(one);
    });
    if (had) narrow();
    show();
  }
  document.getElementById("clear").hidden = true;
  addEventListener("hashchange", () => { if (location.hash.includes("=")) restore(); });
  restore();
})();
