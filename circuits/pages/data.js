"use strict";
// The numbers of the page and the words for them. Everything else in the page reads them from here.

const data = JSON.parse(document.getElementById("data").textContent);
const n = data.tokens.length,
  nLayer = data.config.n_layer,
  nHead = data.config.n_head;

function bytesOf(base64) {
  const text = atob(base64),
    bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// Return a packed array with a function `at(i, j, ...)`, which undoes its decimals.
function unpacked(packed) {
  const types = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array };
  const values = new types[packed.type](bytesOf(packed.data).buffer);
  const factor = 10 ** (packed.decimals ?? 0);
  const at = (...indices) =>
    values[indices.reduce((index, i, axis) => index * packed.shape[axis] + i, 0)] / factor;
  return { at, shape: packed.shape, decimals: packed.decimals ?? 0 };
}

const alternatives = unpacked(data.alternatives),
  alternativesP = unpacked(data.alternatives_p);
const lens = Object.fromEntries(
  ["best", "p", "entropy", "counts", "candidates", "nats"].map((name) => [
    name,
    unpacked(data.lens[name]),
  ]),
);
const ids = unpacked(data.ids),
  labels = new Map(data.labels.map((label, i) => [ids.at(i), label]));
const effects = unpacked(data.effects);
const neurons = unpacked(data.neurons),
  neuronEffects = unpacked(data.neuron_effects);

// Return the token that follows a position: at the end the answer, or the model's best guess.
const targetOf = (position) => data.tokens[position + 1] ?? data.next;

// --- attention ---------------------------------------------------------------------------

const decoded = new Map(); // the patterns that were looked at

// Return a head's pattern: bytes of 1/255, the lower triangle row by row.
function patternOf(layer, head) {
  const key = layer * nHead + head;
  if (!decoded.has(key)) decoded.set(key, bytesOf(data.patterns[layer][head]));
  return decoded.get(key);
}

const weightOf = (pattern, query, key) =>
  key > query ? 0 : pattern[(query * (query + 1)) / 2 + key] / 255;

// --- the lens ----------------------------------------------------------------------------

const nPoints = nLayer + 1;
const pointName = (point) => (point === 0 ? "embedding" : `after layer ${point - 1}`);
// A position's candidates lie one after another, and so do the tracks of the first of them.
const starts = [0],
  tracks = [0];
for (let i = 0; i < n; i++) {
  starts.push(starts[i] + lens.counts.at(i));
  tracks.push(tracks[i] + Math.min(data.followed, lens.counts.at(i)));
}
const candidatesOf = (position) =>
  Array.from({ length: lens.counts.at(position) }, (_, i) =>
    lens.candidates.at(starts[position] + i),
  );
const hasTrack = (position, candidate) => candidate < tracks[position + 1] - tracks[position];
// Return the surprise of a position's candidate at a point, in nats of one decimal.
const natsOf = (position, candidate, point) =>
  lens.nats.at(tracks[position] + candidate, point) / 10;

// --- words -------------------------------------------------------------------------------

const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cn}\p{Cs}]/gu;
const escaped = (character) =>
  `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
const hex = (bytes) =>
  `⟨${bytes.map((b) => b.toString(16).toUpperCase().padStart(2, "0")).join(" ")}⟩`;

// Return a token as a label on one line: spaces at its ends as dots, line ends as arrows.
function label(id) {
  const text = labels.get(id);
  if (Array.isArray(text)) return hex(text);
  if (text === "") return "⟨empty⟩";
  return text
    .replace(/^ +| +$/g, (spaces) => "·".repeat(spaces.length))
    .replaceAll("\n", "⏎")
    .replaceAll("\t", "⇥")
    .replace(UNSEEN, escaped);
}

// Return a token as a part of the text, in which a line ends after its arrow.
function reading(id) {
  const text = labels.get(id);
  if (Array.isArray(text) || text === "") return label(id);
  return text.replace(/[^\n\t]/gu, (c) => c.replace(UNSEEN, escaped)).replaceAll("\n", "⏎\n");
}

const percent = (p) =>
  // with a space at which no line breaks
  p >= 0.9995 ? "100\u00a0%" : p < 0.0005 ? "<\u00a00.1\u00a0%" : `${(100 * p).toFixed(1)}\u00a0%`;
const signed = (x, decimals = 2) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(decimals);
const grouped = (x) => x.toLocaleString("en");
const headName = (layer, head) => `L${layer}H${head}`;
const nextName = (position) =>
  position + 1 < n
    ? label(data.tokens[position + 1])
    : data.answer === null
      ? `${label(targetOf(position))} (its best guess)`
      : `${label(targetOf(position))} (the answer)`;

const KINDS = {
  previous_token: "previous token",
  current_token: "current token",
  duplicate_token: "duplicate",
  induction: "induction",
  beginning: "beginning",
};

// Return the kind of attention that a head does most, and its score, if it does one.
function kindOf(layer, head) {
  const found = Object.keys(KINDS).map((kind) => [data.scores[kind][layer][head] ?? 0, kind]);
  const [score, kind] = found.sort((a, b) => b[0] - a[0])[0];
  return score >= 0.4 ? { name: KINDS[kind], score } : null;
}

// --- elements ----------------------------------------------------------------------------

const byId = (id) => document.getElementById(id);

// Return a new element. Text goes in as text, so that none is ever read as markup.
function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const tints = new WeakMap(); // the ink of each element
const readable = new Map(); // the text on each ink

// Give an element an ink of opacity t. Most of a long text does not change: leave it alone.
function tint(target, ink, t) {
  const share = Math.round(100 * Math.min(1, t)),
    state = ink + share;
  if (tints.get(target) === state) return;
  tints.set(target, state);
  if (!readable.has(state)) {
    const [light, dark] = ["light", "dark"].map((scheme) =>
      textOn(mixed(coloursOf(scheme), ink, share / 100)),
    );
    readable.set(state, `light-dark(${light}, ${dark})`);
  }
  target.style.background = `color-mix(in srgb, var(--${ink}) ${share}%, transparent)`;
  target.style.color = readable.get(state);
}

// Show a scale: its ink from 0 to 1, between two words.
function showScale(box, ink, words) {
  const [from, to] = words.map((text) => element("span", { text }));
  const swatches = SHADES.map(() => element("i"));
  swatches.forEach((swatch, i) => tint(swatch, ink, SHADES[i]));
  box.className = "scale";
  box.replaceChildren(from, ...swatches, to);
}

// Make items of a container one stop of the Tab key, with arrows between them.
function roving(
  container,
  items,
  { columns = () => 1, choose, show = () => {}, leave = () => {} },
) {
  let stop = items[0];
  const indexOf = (event) => items.indexOf(event.target.closest("[role=option]"));
  container.setAttribute("role", "listbox");
  items.forEach((item, i) => {
    item.setAttribute("role", "option");
    item.tabIndex = i ? -1 : 0;
  });
  container.addEventListener("click", (event) => {
    const i = indexOf(event);
    if (i >= 0) {
      items[i].focus({ preventScroll: true });
      choose(i);
    }
  });
  container.addEventListener("mouseover", (event) => {
    const i = indexOf(event);
    if (i >= 0) show(i);
  });
  container.addEventListener("mouseleave", leave);
  container.addEventListener("focusout", leave);
  container.addEventListener("focusin", (event) => {
    const i = indexOf(event);
    if (i < 0) return;
    stop.tabIndex = -1;
    stop = items[i];
    stop.tabIndex = 0;
    show(i);
  });
  container.addEventListener("keydown", (event) => {
    const i = indexOf(event),
      row = columns();
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -row,
      ArrowDown: row,
      Home: -i,
      End: items.length - 1 - i,
    };
    if (event.key === "Enter" || event.key === " ") choose(i);
    else if (event.key in steps)
      items[Math.max(0, Math.min(items.length - 1, i + steps[event.key]))].focus();
    else return;
    event.preventDefault();
  });
}

function markChosen(items, i) {
  items.forEach((item, j) => {
    const isNew = (item.getAttribute("aria-selected") === "true") !== (i === j);
    if (isNew) item.setAttribute("aria-selected", i === j);
  });
}
