"use strict";
// Shows the pairs of the JSON block. All that it shows goes in as text, never as markup. A pair's row is built once, its detail when it
// is opened; what is off the screen is left to the style's content-visibility.

const data = JSON.parse(byId("data").textContent);
const pairs = data.pairs.map((pair, index) => ({
  ...pair,
  index,
  verdict: pair.margin === null ? "" : pair.margin > 0 ? "right" : pair.margin < 0 ? "wrong" : "tied",
  score: pair.margin ?? pair.responses[0].reward,
  marked: pair.responses.some((response) => response.sentences.some(([, , parts]) => parts.some(([, kinds]) => kinds))),
}));
const hasPairs = pairs.some((pair) => pair.verdict);
const noun = hasPairs || !pairs.length ? "pair" : "response";
const largest = Math.max(...pairs.map((pair) => Math.abs(pair.score)), Number.MIN_VALUE);
const collator = new Intl.Collator("en", { numeric: true });
const score = hasPairs ? ["Margin", "most wrong", "most right"] : ["Reward", "lowest", "highest"];
const orders = {
  "as in the file": (a, b) => a.index - b.index,
  "Subset": (a, b) => collator.compare(a.section, b.section) || collator.compare(a.subset, b.subset),
  [`${score[0]}, ${score[1]} first`]: (a, b) => a.score - b.score,
  [`${score[0]}, ${score[2]} first`]: (a, b) => b.score - a.score,
  [`${score[0]}, closest to zero first`]: (a, b) => Math.abs(a.score) - Math.abs(b.score),
  "Length, longest first": (a, b) => b.length - a.length,
  "Length, shortest first": (a, b) => a.length - b.length,
};
let shown = [];
let current = null;

function byId(id) {
  return document.getElementById(id);
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const signed = (number) => (number < 0 ? "\u2212" : "+") + Math.abs(number).toFixed(2);
const percent = (share, digits = 0) => (100 * share).toFixed(digits) + "%";
const counted = (count, one) => `${count.toLocaleString("en")} ${one}${count === 1 ? "" : "s"}`;
const capital = (word) => word[0].toUpperCase() + word.slice(1);
const plainText = (response) => response.sentences.map(([, , parts]) => parts.map(([text]) => text).join("")).join(" ");

// The summary, the tables and the plots.

function showResults() {
  const right = pairs.filter((pair) => pair.verdict === "right").length;
  const tied = pairs.filter((pair) => pair.verdict === "tied").length;
  const ranked = pairs.filter((pair) => pair.verdict).length;
  byId("summary").textContent = [
    counted(pairs.length, noun),
    ...(ranked ? [`${right.toLocaleString("en")} ranked rightly (${percent(right / ranked, 1)})`] : []),
    ...(tied ? [`${tied.toLocaleString("en")} tied`] : []),
  ].join(", ");
  byId("tables-and-plots").append(...data.tables.map(tableElement), ...data.plots.map(plotElement));
  byId("results").hidden = !data.tables.length && !data.plots.length;
}

function tableElement({ title, columns, rows }) {
  // Numbers stand right; a dash or nothing is no reason to the contrary.
  const isNumber = columns.map((_, j) => rows.every((row) => /^([+\-\u2212]?[\d.]|[\-\u2013\u2014]?$)/.test(row[j])));
  const kind = (j) => (isNumber[j] ? { class: "number" } : {});
  const head = element("tr", {}, ...columns.map((name, j) => element("th", { scope: "col", ...kind(j) }, name)));
  const body = rows.map((row) =>
    element("tr", {}, ...row.map((cell, j) => (j ? element("td", kind(j), cell) : element("th", { scope: "row", ...kind(j) }, cell)))),
  );
  const table = element("table", {}, element("caption", {}, element("span", {}, title)), element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", role: "region", "aria-label": title, tabindex: "0" }, table);
}

function plotElement({ title, alt, source }) {
  return element("figure", {}, element("figcaption", {}, title), element("img", { src: source, alt }));
}

// The list.

function rowElement(pair) {
  if (pair.row) return pair.row;
  const [, prompt] = pair.prompt.at(-1) ?? ["", ""];
  pair.row = element(
    "li",
    { id: `row-${pair.index}`, role: "option", "aria-selected": "false", tabindex: "-1" },
    element(
      "span",
      { class: "row-head" },
      element("span", { class: "subset" }, pair.subset || pair.section || pair.id),
      " ",
      ...(pair.verdict ? [element("span", { class: `verdict ${pair.verdict}` }, pair.verdict), " "] : []),
      element("span", { class: "score" }, signed(pair.score)),
    ),
    element("span", { class: `lean ${pair.score < 0 ? "low" : "high"}`, "--share": Math.abs(pair.score) / largest, "aria-hidden": "true" }),
    element("span", { class: "snippet" }, prompt.slice(0, 400)),
  );
  return pair.row;
}

function haystack(pair) {
  pair.haystack ??= [pair.id, pair.section, pair.subset, ...pair.prompt.map(([, text]) => text), ...pair.responses.map(plainText)]
    .join(" ")
    .replace(/\s+/g, " ")
    .toLowerCase();
  return pair.haystack;
}

const words = () => byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);

function update() {
  const [section, subset] = JSON.parse(byId("subset").value || "[null, null]");
  const verdict = byId("verdict").value;
  const wanted = words();
  shown = pairs
    .filter(
      (pair) =>
        (section === null || pair.section === section) &&
        (subset === null || pair.subset === subset) &&
        (!verdict || pair.verdict === verdict) &&
        (!byId("marked").checked || pair.marked) &&
        wanted.every((word) => haystack(pair).includes(word)),
    )
    .sort(orders[byId("order").value]);
  const rows = document.createDocumentFragment();
  for (const pair of shown) rows.append(rowElement(pair));
  byId("list").replaceChildren(rows);
  byId("list").scrollTop = 0;
  byId("count").textContent =
    shown.length === pairs.length ? counted(pairs.length, noun) : `${shown.length.toLocaleString("en")} of ${counted(pairs.length, noun)}`;
  openPair(shown[0] ?? null);
}

function fillSelects() {
  byId("order").append(...Object.keys(orders).map((name) => element("option", {}, name)));
  const sections = new Map();
  for (const { section, subset } of pairs) {
    if (!sections.has(section)) sections.set(section, new Set());
    sections.get(section).add(subset);
  }
  const option = (name, section, subset) => element("option", { value: JSON.stringify([section, subset]) }, name);
  for (const section of [...sections.keys()].sort(collator.compare)) {
    const subsets = [...sections.get(section)].sort(collator.compare).map((subset) => option(subset || "(none)", section, subset));
    if (!section) byId("subset").append(...subsets);
    else byId("subset").append(element("optgroup", { label: section }, option(`all of ${section}`, section, null), ...subsets));
  }
  byId("verdict-label").hidden = !hasPairs;
  byId("marked-label").hidden = !pairs.some((pair) => pair.marked);
  byId("list-title").textContent = hasPairs ? "Pairs" : "Responses";
}

// The pair that is open.

function openPair(pair, { focus = false } = {}) {
  if (current?.row) {
    current.row.setAttribute("aria-selected", "false");
    current.row.tabIndex = -1;
  }
  current = pair;
  byId("detail").replaceChildren(...(pair ? detail(pair) : [nothing()]));
  highlight();
  if (!pair) return;
  pair.row.setAttribute("aria-selected", "true");
  pair.row.tabIndex = 0;
  if (focus) {
    pair.row.focus({ preventScroll: true });
    pair.row.scrollIntoView({ block: "nearest" });
    const { top } = byId("detail").getBoundingClientRect();
    if (top < 0 || top > 0.8 * window.innerHeight) byId("detail").scrollIntoView();
  }
}

function nothing() {
  return element("h2", { id: "detail-title", class: "empty", tabindex: "-1" }, `No ${noun} matches. Change the search or the filters.`);
}

function detail(pair) {
  const scale = Math.max(...pair.responses.flatMap((response) => response.sentences.map(([reward]) => Math.abs(reward - response.level))), Number.MIN_VALUE);
  const where = [pair.section, pair.subset].filter(Boolean).join(" / ");
  const prompt = element("div", { class: "box", role: "group", "aria-label": "Prompt", tabindex: "0" }, ...pair.prompt.map(message));
  return [
    element(
      "header",
      {},
      element("h2", { id: "detail-title", tabindex: "-1" }, pair.id || `${noun} ${pair.index + 1}`),
      element("p", {}, where ? `${where}. ` : "", outcome(pair)),
    ),
    element("section", {}, element("h3", {}, "Prompt"), prompt),
    legend(scale),
    element("div", { class: "responses" }, ...pair.responses.map((response) => responseElement(response, scale))),
  ];
}

function outcome(pair) {
  if (pair.verdict === "tied") return element("strong", { class: "verdict tied" }, "tied");
  if (!pair.verdict) return "";
  const text = pair.verdict === "right" ? "right: chosen ranked higher" : "wrong: rejected ranked higher";
  return element("span", {}, element("strong", { class: `verdict ${pair.verdict}` }, text), `, margin ${signed(pair.margin)}`);
}

function message([role, text]) {
  return element("p", {}, ...(role ? [element("b", { class: "role" }, role), " "] : []), text);
}

function responseElement(response, scale) {
  const most = Math.max(...response.sentences.map(([, weight]) => weight), Number.MIN_VALUE);
  const total = element("span", { class: "total" }, "reward ", element("b", {}, signed(response.reward)));
  const head = element("tr", {}, ...["reward", "weight", "sentence"].map((name) => element("th", { scope: "col" }, name)));
  return element(
    "section",
    { class: "response" },
    element("h3", {}, capital(response.name), " ", total),
    element(
      "table",
      {},
      element("caption", { class: "unseen" }, `Sentences of the ${response.name === "response" ? "" : response.name} response`),
      element("thead", {}, head),
      element("tbody", {}, ...response.sentences.map((sentence) => sentenceRow(sentence, response.level, scale, most))),
    ),
    element("p", { class: "note" }, `${counted(response.sentences.length, "sentence")}; the prompt: ${signed(response.prompt_reward)}, weight ${percent(response.prompt_weight)}`),
  );
}

function sentenceRow([reward, weight, parts], level, scale, most) {
  const kinds = [...new Set(parts.flatMap(([, kinds]) => (kinds ? kinds.split(", ") : [])))];
  const text = parts.map(([text, kinds]) => (kinds ? element("span", { class: "bad", title: kinds }, text) : text));
  const bar = element("span", { class: "bar", "--share": weight / most, "aria-hidden": "true" });
  return element(
    "tr",
    {},
    element("td", { class: "number" }, signed(reward)),
    element("td", { class: "number" }, bar, element("span", { class: "share" }, percent(weight))),
    element(
      "td",
      { class: `sentence ${reward < level ? "low" : "high"}`, "--strength": Math.abs(reward - level) / scale },
      ...text,
      ...(kinds.length ? [" ", element("span", { class: "kinds" }, `marked: ${kinds.join(", ")}`)] : []),
    ),
  );
}

function legend(scale) {
  const steps = [-1, -0.5, 0, 0.5, 1].map((share) =>
    element("span", { class: `sentence ${share < 0 ? "low" : "high"}`, "--strength": Math.abs(share) }, signed(share * scale)),
  );
  return element("p", { class: "legend" }, "A sentence's reward is what it changed; reward times weight, summed, is the response's. Colour: reward from the response's median ", ...steps, " bar: weight, longest for the largest");
}

// Marks the words searched for without touching the text, where the browser can.
function highlight() {
  if (!window.CSS?.highlights) return;
  const ranges = [];
  const wanted = words();
  for (const place of wanted.length ? byId("detail").querySelectorAll(".box, td.sentence") : []) {
    const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) ranges.push(...wanted.flatMap((word) => found(walker.currentNode, word)));
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

function found(node, word) {
  const text = node.data.toLowerCase();
  const ranges = [];
  // A few capitals change length in lower case; there the places would be off.
  for (let at = text.length === node.data.length ? text.indexOf(word) : -1; at >= 0; at = text.indexOf(word, at + word.length)) {
    ranges.push(new StaticRange({ startContainer: node, startOffset: at, endContainer: node, endOffset: at + word.length }));
  }
  return ranges;
}

// Keyboard and mouse.

function move(step) {
  if (!shown.length) return;
  const at = Math.min(Math.max(shown.indexOf(current) + step, 0), shown.length - 1);
  openPair(shown[at], { focus: true });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.matches("input:not([type=checkbox]), select, textarea");
  const inList = byId("list").contains(event.target);
  const everywhere = { j: () => move(1), k: () => move(-1), "/": () => byId("search").focus() };
  const list = {
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    PageDown: () => move(10),
    PageUp: () => move(-10),
    Home: () => move(-shown.length),
    End: () => move(shown.length),
    Enter: () => byId("detail-title").focus(),
  };
  const leaveSearch = { Escape: () => move(0), Enter: () => move(0) };
  const action =
    (event.target === byId("search") && leaveSearch[event.key]) ||
    (!inField && byId("keys").checked && everywhere[event.key]) ||
    (inList && list[event.key]);
  if (!action) return;
  event.preventDefault();
  action();
}

fillSelects();
showResults();
update();
byId("tools").addEventListener("input", update);
byId("tools").addEventListener("submit", (event) => event.preventDefault());
// The fields are empty only after the event.
byId("tools").addEventListener("reset", () => setTimeout(update));
byId("list").addEventListener("click", (event) => {
  const row = event.target.closest("li");
  if (row) openPair(pairs[Number(row.id.slice(4))], { focus: true });
});
document.addEventListener("keydown", onKey);
