"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const KINDS = ["shown", "absent", "incoherent"];
  const [KEY, TEXT, VERDICT, RULE, START, END, HUMAN, COHERENCE, PERPLEXITY] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const PER_PAGE = 20;
  const byId = (id) => document.getElementById(id);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // --- theme ---
  const themes = ["system", "light", "dark"];
  const store = {
    get(key) { try { return localStorage.getItem(key); } catch { return null; } },
    set(key, value) { try { localStorage.setItem(key, value); } catch { /* private mode: for this visit only */ } },
  };
  let theme = themes.includes(store.get("mlx-steer theme")) ? store.get("mlx-steer theme") : "system";
  const showTheme = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme}`;
  };
  byId("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    store.set("mlx-steer theme", theme);
    showTheme();
  });
  showTheme();

  // --- labels: what this person said in this browser; null takes a label of the run back ---
  const rowByKey = new Map(data.rows.map((row) => [row[KEY], row]));
  const own = new Map();
  try {
    const saved = JSON.parse(store.get(data.store) || "{}");
    for (const [key, verdict] of Object.entries(saved)) {
      if (rowByKey.has(key) && (verdict === null || KINDS.includes(verdict))) own.set(key, verdict);
    }
  } catch { /* damaged storage: start without */ }
  const labelOf = (row) => {
    if (own.has(row[KEY])) return own.get(row[KEY]);
    return row[HUMAN] === null ? null : KINDS[row[HUMAN]];
  };
  const verdictOf = (row) => labelOf(row) || KINDS[row[VERDICT]];
  const nextLabel = (row) => {
    const first = row[VERDICT];
    // The other two verdicts, then the judge's own to confirm it, then none.
    const cycle = [null, KINDS[(first + 1) % 3], KINDS[(first + 2) % 3], KINDS[first]];
    return cycle[(cycle.indexOf(labelOf(row)) + 1) % cycle.length];
  };
  const saveLabels = () => {
    store.set(data.store, JSON.stringify(Object.fromEntries(own)));
    showLabelCount();
  };
  const showLabelCount = () => {
    const labelled = data.rows.map((row) => [labelOf(row), KINDS[row[VERDICT]]]).filter(([label]) => label);
    const agreed = labelled.filter(([label, judge]) => label === judge).length;
    byId("label-count").textContent = labelled.length === 0 ? "no labels yet"
      : `${labelled.length} labelled by a person, the judge agrees on ${agreed}`;
    byId("export").disabled = labelled.length === 0 && own.size === 0;
    byId("clear").disabled = own.size === 0;
  };
  byId("export").addEventListener("click", () => {
    const labels = {};
    for (const row of data.rows) {
      const label = labelOf(row);
      if (label !== null || (row[HUMAN] !== null && own.has(row[KEY]))) labels[row[KEY]] = label;
    }
    const text = JSON.stringify({ format_version: 1, labels }, null, 2) + "\n";
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "labels.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  byId("clear").addEventListener("click", () => {
    if (!confirm(`Forget ${own.size} labels of this browser?`)) return;
    own.clear();
    saveLabels();
    show();
  });

  // --- filters ---
  const cells = data.conditions.map((condition) => new Map(condition.rows));
  const gates = data.conditions.map((condition) => new Map(condition.gates.map(([prompt, open, scores]) => [prompt, { open, scores }])));
  const gated = gates.some((of) => of.size > 0);
  const state = { search: "", split: "", set: "", verdict: "", gate: "", differ: false, mine: false, page: 0, picked: new Set() };
  const present = (values, all) => all.filter((value) => values.has(value));
  const fill = (id, options) => {
    for (const [value, label] of [["", "all"], ...options]) {
      const option = make("option", "", label);
      option.value = value;
      byId(id).append(option);
    }
  };
  const splits = present(new Set(data.prompts.map((prompt) => prompt.split)), ["select", "test", "gate"]);
  const sets = present(new Set(data.prompts.map((prompt) => prompt.set)), ["target", "other", "borderline"]);
  fill("split", splits.map((split) => [split, split]));
  fill("set", sets.map((set) => [set, data.sets[set]]));
  fill("verdict", KINDS.map((kind) => [kind, data.verdicts[kind]]));
  fill("gate", [["open", "open"], ["shut", "shut"]]);
  byId("gate-label").hidden = !gated;

  const hasSplit = (index, split) => data.conditions[index].rows.some(([prompt]) => data.prompts[prompt].split === split);
  const defaults = () => {
    const main = splits.includes("test") ? "test" : splits[0];
    const there = [...data.conditions.keys()].filter((index) => hasSplit(index, main));
    const named = there.filter((index) => data.conditions[index].main);
    return new Set((named.length ? named : there).slice(0, 6));
  };
  const picks = document.querySelector(".picks");
  const boxes = data.conditions.map((condition, index) => {
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.addEventListener("change", () => {
      if (box.checked) state.picked.add(index); else state.picked.delete(index);
      first();
    });
    label.append(box, make("span", "", condition.name));
    picks.append(label);
    return box;
  });
  const setControls = () => {
    for (const id of ["search", "split", "set", "verdict", "gate"]) byId(id).value = state[id];
    for (const id of ["differ", "mine"]) byId(id).checked = state[id];
    boxes.forEach((box, index) => { box.checked = state.picked.has(index); });
  };
  const reset = () => {
    Object.assign(state, { search: "", split: splits.includes("test") ? "test" : "", set: "", verdict: "", gate: "", differ: false, mine: false, page: 0 });
    state.picked = defaults();
  };
  const first = () => { state.page = 0; show(); };
  const pick = (chosen) => { state.picked = chosen; setControls(); first(); };
  byId("pick-some").addEventListener("click", () => pick(defaults()));
  byId("pick-all").addEventListener("click", () => pick(new Set(data.conditions.keys())));
  byId("pick-none").addEventListener("click", () => pick(new Set()));
  byId("reset").addEventListener("click", () => { reset(); setControls(); show(); });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["split", "set", "verdict", "gate"]) {
    byId(id).addEventListener("change", () => { state[id] = byId(id).value; first(); });
  }
  for (const id of ["differ", "mine"]) {
    byId(id).addEventListener("change", () => { state[id] = byId(id).checked; first(); });
  }
  let typing = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => { state.search = byId("search").value; first(); }, 150);
  });
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  const turn = (step) => { state.page += step; show(); document.querySelector(".browser").scrollTop = 0; };

  // A number in a table leads to the rows behind it: #rows?condition=...&split=...&set=...&verdict=...
  const follow = () => {
    const [place, query] = location.hash.split("?");
    if (place !== "#rows" || query === undefined) return;
    const wanted = new URLSearchParams(query);
    reset();
    for (const id of ["split", "set", "verdict", "gate"]) {
      const value = wanted.get(id) || "";
      state[id] = [...byId(id).options].some((option) => option.value === value) ? value : "";
    }
    const index = data.conditions.findIndex((condition) => condition.name === wanted.get("condition"));
    if (index >= 0) state.picked = new Set([index]);
    setControls();
    show();
    byId("rows").focus({ preventScroll: true });
    byId("rows").scrollIntoView();
  };
  window.addEventListener("hashchange", follow);
  // The same link twice changes no hash.
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#rows?"]');
    if (link && link.getAttribute("href") === location.hash) { event.preventDefault(); follow(); }
  });

  // --- the table ---
  // Control characters are shown as their pictures; offsets stay as they are.
  const visible = (text) => text
    .replace(/[\x00-\x08\x0b-\x1f]/g, (char) => String.fromCharCode(0x2400 + char.charCodeAt(0)))
    .replace(/\x7f/g, "\u2421")
    .replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]/g, "\ufffd");
  const rowAt = (condition, prompt) => {
    const index = cells[condition].get(prompt);
    return index === undefined ? null : data.rows[index];
  };
  const gateAt = (condition, prompt) => gates[condition].get(prompt) || null;
  const wantedRow = (row, gate, needle, promptHit) => row !== null
    && (!state.gate || (gate !== null && Boolean(gate.open) === (state.gate === "open")))
    && (!state.verdict || verdictOf(row) === state.verdict)
    && (!state.mine || labelOf(row) !== null)
    && (!needle || promptHit || row[TEXT].toLowerCase().includes(needle));
  const matching = () => {
    const needle = state.search.trim().toLowerCase();
    const picked = [...state.picked].sort((a, b) => a - b);
    const found = [];
    data.prompts.forEach((prompt, index) => {
      if ((state.split && prompt.split !== state.split) || (state.set && prompt.set !== state.set)) return;
      const promptHit = needle !== "" && `${prompt.text}\n${prompt.id}`.toLowerCase().includes(needle);
      const rows = picked.map((condition) => rowAt(condition, index));
      const doors = picked.map((condition) => gateAt(condition, index));
      const hits = rows.map((row, place) => wantedRow(row, doors[place], needle, promptHit));
      const verdicts = new Set(rows.filter((row) => row !== null).map(verdictOf));
      if (!hits.includes(true) || (state.differ && verdicts.size < 2)) return;
      found.push({ prompt, rows, doors, hits });
    });
    return { picked, found };
  };
  const responseElement = (row) => {
    const box = make("div", "response");
    const text = visible(row[TEXT]);
    const [start, end] = [row[START], row[END]];
    if (text === "") {
      box.append(make("span", "about", "(empty)"));
    } else if (end > start && !(start === 0 && end >= text.length && row[TEXT].length > 0 && KINDS[row[VERDICT]] === "incoherent")) {
      const mark = make("mark", "", text.slice(start, end));
      mark.title = data.rules[row[RULE]];
      box.append(document.createTextNode(text.slice(0, start)), mark, document.createTextNode(text.slice(end)));
    } else {
      box.textContent = text;
    }
    return box;
  };
  const showChip = (chip, row) => {
    const label = labelOf(row);
    const verdict = verdictOf(row);
    chip.className = `chip ${verdict}${label ? " mine" : ""}`;
    const judge = data.verdicts[KINDS[row[VERDICT]]];
    chip.textContent = data.verdicts[verdict] + (!label ? "" : label === KINDS[row[VERDICT]] ? " ✓ confirmed" : " ✎ overruled");
    chip.title = `Judge: ${judge} (${data.rules[row[RULE]]}). Click to ${label ? "change or undo" : "overrule or confirm"}.`;
  };
  const gateText = (gate) => {
    const scores = gate.scores.map((score) => `${score >= 0 ? "+" : "\u2212"}${Math.abs(score).toFixed(2)}`);
    return `gate ${gate.open ? "open" : "shut"}, score ${scores.join(" and ")}`;
  };
  const cellElement = (row, gate, hit) => {
    const cell = make("td", hit ? "" : "dim");
    if (row === null) {
      cell.append(make("span", "about", "not run"));
      return cell;
    }
    const chip = make("button");
    chip.type = "button";
    showChip(chip, row);
    chip.addEventListener("click", () => {
      const label = nextLabel(row);
      if (label === (row[HUMAN] === null ? null : KINDS[row[HUMAN]])) own.delete(row[KEY]);
      else own.set(row[KEY], label);
      saveLabels();
      // Conditions may share a row.
      document.querySelectorAll(`#responses button[data-key="${CSS.escape(row[KEY])}"]`).forEach((other) => showChip(other, row));
    });
    chip.dataset.key = row[KEY];
    const numbers = `coherence ${row[COHERENCE].toFixed(2)}${row[PERPLEXITY] === null ? "" : `, perplexity ${row[PERPLEXITY]}`}`;
    cell.append(chip, " ", make("span", "about", `${data.rules[row[RULE]]}, ${numbers}`), ...(gate === null ? [] : [make("div", `about gate ${gate.open ? "open" : "shut"}`, gateText(gate))]), responseElement(row));
    return cell;
  };
  const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  const show = () => {
    const { picked, found } = matching();
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    state.page = Math.min(Math.max(0, state.page), pages - 1);
    const head = make("tr");
    const corner = make("th", "", "prompt");
    corner.scope = "col";
    head.append(corner);
    for (const condition of picked) {
      const th = make("th", "", data.conditions[condition].name);
      th.scope = "col";
      head.append(th);
    }
    document.querySelector("#responses thead").replaceChildren(head);
    const body = document.createDocumentFragment();
    for (const { prompt, rows, doors, hits } of found.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE)) {
      const line = make("tr");
      const th = make("th");
      th.scope = "row";
      const about = [data.sets[prompt.set], `${prompt.split} half`, prompt.category].filter(Boolean).join(", ");
      th.append(make("div", "prompt", visible(prompt.text)), make("div", "about", `${prompt.id}: ${about}`));
      if (prompt.system) th.append(make("div", "about", `System: ${visible(prompt.system)}`));
      line.append(th, ...rows.map((row, index) => cellElement(row, doors[index], hits[index])));
      body.append(line);
    }
    document.querySelector("#responses tbody").replaceChildren(body);
    const count = found.reduce((sum, { hits }) => sum + hits.filter(Boolean).length, 0);
    byId("status").textContent = picked.length === 0 ? "Choose a condition."
      : `${counted(count, "response")} to ${counted(found.length, "prompt")}`;
    byId("page").textContent = `page ${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
  };

  reset();
  setControls();
  showLabelCount();
  show();
  follow();
})();
