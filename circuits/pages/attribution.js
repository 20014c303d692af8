// Direct logit attribution: a map of heads and MLPs, and bars of the largest terms.

const MOST_BARS = 14;
const partItems = []; // {name, layer, head, item}; a head of nHead is the MLP
const shownEffect = { column: n - 1, layer: nLayer - 1 };

function startAttribution() {
  const columns = byId("effect-column");
  for (let column = 0; column < effects.shape[1]; column++)
    columns.append(element("option", { value: column, text: columnName(column) }));
  columns.addEventListener("change", () => {
    const column = Number(columns.value);
    if (column < n) choosePosition(column);
    showEffects(column);
  });
  const layers = byId("neuron-layer");
  for (let layer = 0; layer < nLayer; layer++)
    layers.append(element("option", { value: layer, text: `layer ${layer}` }));
  layers.value = nLayer - 1;
  layers.addEventListener("change", () => showNeurons(Number(layers.value)));
  const map = byId("effects"),
    header = (text) => element("span", { className: "muted", text, "aria-hidden": true });
  map.style.setProperty("--columns", nHead + 1);
  map.setAttribute("aria-label", "Terms of heads and MLPs, in logits");
  map.append(
    header(""),
    ...Array.from({ length: nHead }, (_, head) => header(`H${head}`)),
    header("MLP"),
  );
  for (let layer = nLayer - 1; layer >= 0; layer--) {
    map.append(header(`L${layer}`));
    for (let head = 0; head <= nHead; head++) {
      const name = head < nHead ? headName(layer, head) : `MLP${layer}`;
      const item = element("div", { className: "part", text: "0", "data-part": name });
      partItems.push({ name, layer, head, item });
      map.append(item);
    }
  }
  roving(
    map,
    partItems.map(({ item }) => item),
    {
      columns: () => nHead + 1,
      choose: (i) => {
        const { layer, head } = partItems[i];
        if (head === nHead) {
          layers.value = layer;
          showNeurons(layer);
          return;
        }
        chooseHead(layer, head);
        byId("head-title").scrollIntoView({ block: "start" });
      },
    },
  );
  pictures.effects = drawEffects;
}

function columnName(column) {
  if (column >= n)
    return `${label(data.answer)}${data.wrong === null ? "" : ` minus ${label(data.wrong)}`}, at the end`;
  return `${column + 1 < n ? `${column + 1} ` : "next "}${label(targetOf(column))}`;
}

const PART_NAMES = {
  embed: "embedding",
  pos_embed: "position",
  b_O: "attention biases",
  "ln_final.b": "final bias",
};
const partsOf = (column) =>
  new Map(data.parts.map((name, i) => [PART_NAMES[name] ?? name, effects.at(i, column)]));

function showEffects(column) {
  shownEffect.column = column;
  byId("effect-column").value = column;
  const parts = partsOf(column),
    total = data.totals[column];
  const isDifference = column >= n && data.wrong !== null;
  const most = Math.max(...[...parts.values()].map(Math.abs)) || 1;
  byId("attribution-lead").textContent =
    `After ${label(data.tokens[Math.min(column, n - 1)])} (position ${Math.min(column, n - 1)}) the logit of ` +
    `${label(column >= n ? data.answer : targetOf(column))} is ${Math.abs(total).toFixed(2)} ${total < 0 ? "below" : "above"} ${isDifference ? `that of ${label(data.wrong)}` : "the mean of all logits"}. ` +
    "With the scale of the final layer norm held fixed, this is the sum of one term a part. Choose a head to see its attention, an MLP to see its neurons.";
  for (const { name, item } of partItems) {
    const value = parts.get(name) ?? 0;
    item.firstChild.data = signed(value);
    item.setAttribute("aria-label", `${name}: ${signed(value)} logits`);
    tint(item, value < 0 ? "red" : "blue", Math.abs(value) / most);
  }
  const order = [...parts].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const rest = order.slice(MOST_BARS).reduce((sum, [, value]) => sum + value, 0);
  const bars = order.slice(0, MOST_BARS).map(([name, value]) => signedBar(name, value, most));
  if (order.length > MOST_BARS)
    bars.push(signedBar(`${order.length - MOST_BARS} others`, rest, most));
  byId("effect-bars").replaceChildren(
    ...bars,
    element(
      "li",
      { className: "sum" },
      element("code", { text: "sum" }),
      element("span"),
      element("span", { className: "number", text: signed(total) }),
    ),
  );
  showNeurons(shownEffect.layer);
}

const signedBar = (name, value, most) =>
  bar(
    name,
    Math.abs(value) / most,
    signed(value),
    value < 0 ? "red" : "blue",
    false,
    value < 0 ? -1 : 1,
  );

function showNeurons(layer) {
  shownEffect.layer = layer;
  const found = Array.from({ length: neurons.shape[2] }, (_, k) => [
    `L${layer}N${neurons.at(layer, shownEffect.column, k)}`,
    neuronEffects.at(layer, shownEffect.column, k),
  ]);
  const most = Math.max(...found.map(([, value]) => Math.abs(value))) || 1;
  byId("neuron-bars").replaceChildren(
    ...found.map(([name, value]) => signedBar(name, value, most)),
  );
}

function drawEffects() {
  const cell = { width: 44, height: 22, left: 40, top: 22 },
    parts = partsOf(shownEffect.column);
  const pen = new SvgPen(
    cell.left + (nHead + 1) * cell.width + 16,
    cell.top + nLayer * cell.height + 16,
  );
  const most = Math.max(...[...parts.values()].map(Math.abs)) || 1;
  for (let i = 0; i <= nHead; i++) {
    pen.text(cell.left + (i + 0.5) * cell.width, 12, i < nHead ? `H${i}` : "MLP", {
      size: 10,
      align: "center",
      ink: "muted",
    });
    for (let layer = 0; layer < nLayer; layer++) {
      const x = cell.left + i * cell.width,
        y = cell.top + (nLayer - 1 - layer) * cell.height;
      const value = parts.get(i < nHead ? headName(layer, i) : `MLP${layer}`) ?? 0,
        t = Math.abs(value) / most;
      const ink = value < 0 ? "red" : "blue";
      pen.rect(x, y, cell.width - 1, cell.height - 1, ink, t);
      pen.textOn(x + cell.width / 2, y + cell.height / 2, signed(value), ink, t, {
        size: 10,
        align: "center",
      });
      if (i === 0)
        pen.text(cell.left - 8, y + cell.height / 2, `L${layer}`, {
          size: 10,
          align: "right",
          ink: "muted",
        });
    }
  }
  const title = `logit of ${columnName(shownEffect.column)}: ${signed(data.totals[shownEffect.column])}`;
  return pen.titled(title, "blue", ["0", `${signed(most)} (red: ${signed(-most)})`]);
}
