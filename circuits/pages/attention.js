// Attention: small pictures of all heads, one head large, and its tokens.

const THUMBNAIL = nHead > 6 ? 36 : 108;
const heads = []; // {layer, head, item}, in the present order
const headItems = []; // the items in the same order, which `roving` reads
const attentionItems = [];
const PATTERN = { size: 0, left: 0, top: 0, cell: 0 };
const ATTENTION = ["blue", ["0", "1 (its square root is the strength)"]];
const headWatcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting) drawThumbnail(entry.target);
  },
  { rootMargin: "200px" },
);

function startAttention() {
  const order = byId("heads-order");
  order.append(element("option", { value: "layer", text: "by layer" }));
  const isMissing = (kind) => data.scores[kind].every((row) => row.every((x) => x === null));
  for (const [kind, name] of Object.entries(KINDS)) {
    const option = element("option", { value: kind, text: `${name} score` });
    option.disabled = isMissing(kind);
    order.append(option);
  }
  if (isMissing("induction")) {
    byId("heads-note").textContent =
      "This text repeats no token, so no head can show duplicates or induction.";
  }
  order.addEventListener("change", orderHeads);
  for (let layer = 0; layer < nLayer; layer++) {
    for (let head = 0; head < nHead; head++) {
      const kind = kindOf(layer, head),
        name = headName(layer, head);
      const words = `${name}${kind ? `, ${kind.name} ${kind.score.toFixed(2)}` : ""}`;
      const item = element(
        "div",
        { className: "head", "aria-label": words, title: words },
        element("canvas"),
        element("b", { text: name }),
        element("span", { className: "muted" }),
      );
      heads.push({ layer, head, item, kind });
    }
  }
  const box = byId("heads");
  box.classList.toggle("small", nHead > 6);
  box.style.setProperty("--columns", nHead);
  box.style.setProperty("--side", `${THUMBNAIL}px`);
  orderHeads();
  roving(box, headItems, {
    columns: () => getComputedStyle(box).gridTemplateColumns.split(" ").length,
    choose: (i) => chooseHead(heads[i].layer, heads[i].head),
  });
  headItems.forEach((item) => headWatcher.observe(item));

  data.tokens.forEach((id) =>
    attentionItems.push(
      element("span", { className: "token", text: reading(id), "aria-label": label(id) }),
    ),
  );
  const tokens = byId("attention-tokens");
  tokens.append(...attentionItems);
  tokens.setAttribute("aria-label", "Tokens that look and are looked at");
  roving(tokens, attentionItems, {
    choose: (i) => {
      Object.assign(chosen, { query: i, key: null });
      showQuery(i);
    },
    show: showQuery,
    leave: showHeld,
  });
  startPattern();
  showScale(byId("pattern-scale"), ...ATTENTION);
  pictures.heads = () => drawHeads().titled("Attention of every head", ...ATTENTION);
  pictures.pattern = () => {
    const size = patternSize(900),
      pen = new SvgPen(size.left + size.size + 8, size.top + size.size + 8);
    drawPattern(pen, size, chosen.query, chosen.key);
    return pen.titled(byId("head-title").textContent, ...ATTENTION);
  };
}

function orderHeads() {
  const kind = byId("heads-order").value,
    byLayer = kind === "layer";
  const score = ({ layer, head }) => (byLayer ? 0 : -(data.scores[kind][layer][head] ?? -1));
  heads.sort((a, b) => score(a) - score(b) || a.layer - b.layer || a.head - b.head);
  heads.forEach((one, i) => {
    headItems[i] = one.item;
    one.item.lastChild.textContent = byLayer
      ? one.kind
        ? `${one.kind.name} ${one.kind.score.toFixed(2)}`
        : ""
      : (data.scores[kind][one.layer][one.head] ?? 0).toFixed(2);
  });
  byId("heads").replaceChildren(...headItems);
}

function drawThumbnail(item) {
  const { layer, head } = heads.find((one) => one.item === item);
  const pen = new CanvasPen(item.firstChild, THUMBNAIL, THUMBNAIL);
  pen.image(
    0,
    0,
    THUMBNAIL,
    patternImage(patternOf(layer, head), pen.colours, THUMBNAIL * window.devicePixelRatio),
  );
  headWatcher.unobserve(item);
}

function chooseHead(layer, head) {
  chosen.layer = layer;
  chosen.head = head;
  markChosen(
    headItems,
    heads.findIndex((one) => one.layer === layer && one.head === head),
  );
  const kind = kindOf(layer, head);
  byId("head-title").textContent = headName(layer, head) + (kind ? `: ${kind.name}` : "");
  const score = (key, digits) => data.scores[key][layer][head]?.toFixed(digits) ?? "–";
  const words = Object.entries(KINDS).map(([key, name]) => `${name} ${score(key, 2)}`);
  if (n > 1)
    byId("head-scores").textContent =
      `Mean attention: ${words.join(" · ")}. ` +
      `Entropy ${score("entropy", 2)} nats, ${score("distance", 1)} positions back.`;
  showHeld();
}

// --- one head ----------------------------------------------------------------------------

// Return the sizes of a large pattern: tokens beside it if there is room for them, else positions.
function patternSize(most) {
  const isLabelled = n <= 72,
    margin = isLabelled ? 84 : 34;
  const cell = Math.max(0.1, Math.min(22, (most - margin - 8) / n));
  return { isLabelled, cell, size: cell * n, left: margin, top: margin };
}

function startPattern() {
  const canvas = byId("pattern");
  const cellAt = (event) => {
    const frame = canvas.getBoundingClientRect();
    const key = Math.floor((event.clientX - frame.left - PATTERN.left) / PATTERN.cell);
    const query = Math.floor((event.clientY - frame.top - PATTERN.top) / PATTERN.cell);
    return query >= 0 && query < n && key >= 0 && key <= query ? { query, key } : null;
  };
  canvas.addEventListener("mousemove", (event) => {
    const cell = cellAt(event);
    if (cell) showQuery(cell.query, cell.key);
  });
  canvas.addEventListener("mouseleave", showHeld);
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) Object.assign(chosen, cell);
    showHeld();
  });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (!(event.key in steps)) return;
    const [down, across] = steps[event.key];
    chosen.query = Math.max(0, Math.min(n - 1, chosen.query + down));
    chosen.key = Math.max(0, Math.min(chosen.query, (chosen.key ?? 0) + across));
    showHeld();
    event.preventDefault();
  });
  new ResizeObserver(showHeld).observe(canvas.parentElement);
}

// Show the token or the cell that was clicked.
const showHeld = () => showQuery(chosen.query, chosen.key);

function drawPattern(pen, size, query, key = null) {
  const { left, top, cell } = size,
    pattern = patternOf(chosen.layer, chosen.head);
  pen.rect(0, 0, left + size.size + 8, top + size.size + 8, "paper");
  if (size.isLabelled) {
    const font = Math.max(8, Math.min(12, cell - 1));
    for (let i = 0; i < n; i++) {
      const isHere = i === query,
        isKey = i === key;
      pen.text(left - 6, top + (i + 0.5) * cell, label(data.tokens[i]), {
        size: font,
        mono: true,
        align: "right",
        most: left - 12,
        bold: isHere,
        ink: isHere ? "accent" : "ink",
      });
      pen.text(left + (i + 0.5) * cell, top - 6, label(data.tokens[i]), {
        size: font,
        mono: true,
        most: top - 12,
        upright: true,
        bold: isKey,
        ink: isKey ? "accent" : "ink",
      });
    }
  }
  const step = size.isLabelled ? n : n > 400 ? 100 : n > 160 ? 50 : 20;
  for (let i = 0; !size.isLabelled && i < n; i += step) {
    const at = (i + 0.5) * cell;
    pen.text(left - 6, top + at, `${i}`, { size: 10, align: "right", ink: "muted" });
    pen.text(left + at, top - 10, `${i}`, { size: 10, align: "center", ink: "muted" });
  }
  if (pen instanceof SvgPen && size.isLabelled) {
    // as shapes
    for (let q = 0; q < n; q++) {
      for (let k = 0; k <= q; k++)
        pen.rect(
          left + k * cell,
          top + q * cell,
          cell,
          cell,
          "blue",
          Math.sqrt(weightOf(pattern, q, k)),
        );
    }
  } else
    pen.image(
      left,
      top,
      size.size,
      imageOf(chosen.layer, chosen.head, pen.colours, n * cell * window.devicePixelRatio),
    );
  pen.frame(left, top, size.size, size.size, "line", 1);
  pen.frame(left, top + query * cell, (query + 1) * cell, Math.max(2, cell), "accent", 1.5);
  if (key !== null)
    pen.frame(
      left + key * cell,
      top + query * cell,
      Math.max(2, cell),
      Math.max(2, cell),
      "accent",
      2.5,
    );
}

let drawn = { key: "", image: null };

// Return the picture of the pattern, drawn once for all tokens that are pointed at.
function imageOf(layer, head, colours, most) {
  const key = [layer, head, colours.paper, Math.round(most)].join();
  if (drawn.key !== key) drawn = { key, image: patternImage(patternOf(layer, head), colours, most) };
  return drawn.image;
}

// Show where a token looks (tokens up to it) and from where it is looked at (tokens after it).
function showQuery(query, key = null) {
  const pattern = patternOf(chosen.layer, chosen.head),
    to = [],
    from = [],
    canvas = byId("pattern");
  Object.assign(PATTERN, patternSize(Math.min(620, canvas.parentElement.clientWidth)));
  attentionItems.forEach((item, i) => {
    const weight = i <= query ? weightOf(pattern, query, i) : weightOf(pattern, i, query);
    tint(item, i <= query ? "blue" : "amber", Math.sqrt(weight));
    item.classList.toggle("pointed", i === query);
    (i <= query ? to : from).push([weight, i]);
  });
  markChosen(attentionItems, chosen.query);
  drawPattern(
    new CanvasPen(canvas, PATTERN.left + PATTERN.size + 8, PATTERN.top + PATTERN.size + 8),
    PATTERN,
    query,
    key,
  );
  const listed = (found, ink) => {
    const list = element("ol", { className: "bars" });
    for (const [weight, i] of found.sort((a, b) => b[0] - a[0]).slice(0, 5)) {
      if (weight > 0)
        list.append(
          bar(`${i} ${label(data.tokens[i])}`, weight, weight.toFixed(3), ink, i === key),
        );
    }
    return list.children.length ? list : element("p", { className: "muted", text: "nothing" });
  };
  const name = `${query} ${label(data.tokens[query])}`;
  byId("attention-details").replaceChildren(
    ...(key === null
      ? []
      : [
          element("p", {
            className: "cell",
            text: `from ${name} to ${key} ${label(data.tokens[key])}: ${weightOf(pattern, query, key).toFixed(3)}`,
          }),
        ]),
    element("h4", {}, element("code", { text: name }), " looks at (blue, to its left)"),
    listed(to, "blue"),
    element("h4", {}, element("code", { text: name }), " is looked at from (amber, to its right)"),
    listed(from, "amber"),
  );
}

function drawHeads() {
  const side = Math.max(64, THUMBNAIL),
    cell = side + 16,
    columns = nHead,
    rows = Math.ceil(heads.length / columns);
  const pen = new SvgPen(columns * cell + 16, rows * (cell + 12) + 16);
  heads.forEach(({ layer, head, item }, i) => {
    const x = 16 + (i % columns) * cell,
      y = 8 + Math.floor(i / columns) * (cell + 12);
    pen.image(x, y, side, patternImage(patternOf(layer, head), pen.colours, 2 * side));
    pen.frame(x, y, side, side, "line", 1);
    pen.text(x, y + side + 9, headName(layer, head), { size: 10, bold: true });
    pen.text(x, y + side + 20, item.lastChild.textContent, {
      size: 8,
      ink: "muted",
      most: cell - 4,
    });
  });
  return pen;
}
