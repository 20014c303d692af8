// The page as a whole: what was run, and one chosen position for all sections.

const chosen = { position: n - 1, layer: 0, head: 0, query: n - 1, key: null };

function startHeader() {
  const { n_layer: layers, n_head: perLayer, n_embd: width } = data.config;
  const losses = data.surprise.slice(0, n - 1),
    mean = losses.reduce((sum, x) => sum + x, 0) / losses.length;
  byId("title").textContent = data.title;
  const facts = [
    `${layers} layers of ${perLayer} heads, width ${width}, vocabulary of ${grouped(data.n_vocab)}`,
    `${grouped(n)} ${n > 1 ? "tokens" : "token"} read, ${data.bos ? "with" : "without"} <|endoftext|> before the text`,
    ...(losses.length
      ? [`mean surprise ${mean.toFixed(2)} nats, perplexity ${Math.exp(mean).toFixed(1)}`]
      : []),
    `${grouped(data.n_parameters)} parameters, ${(data.n_bytes / 1e6).toFixed(1)} MB as ${data.dtype}`,
    `computed in ${data.seconds.toFixed(2)} s`,
    `gpt2_np ${data.version}`,
    ...(data.edited ? ["activations were edited"] : []),
  ];
  byId("facts").replaceChildren(...facts.map((text) => element("span", { text })));
  byId("command").replaceChildren(element("code", { text: data.command }));
}

// Choose the position whose next token all sections explain.
function choosePosition(position, andFollow = true) {
  Object.assign(chosen, { position, query: position, key: null });
  if (andFollow) Object.assign(followed, { position, candidate: 0, point: nPoints });
  revealColumn(position); // what asks for widths comes first, so that the page is laid out once
  drawLens();
  showQuery(position);
  byId("chosen").textContent =
    `after ${position} ${label(data.tokens[position])} → ${nextName(position)}`;
  markChosen(textItems, position + 1);
  showAlternatives(position + 1);
  showFollowed();
  showEffects(position);
}

// Draw all canvases anew, in another scheme. Small pictures wait until they are seen, or printed.
function redraw({ media, matches }) {
  palettes.clear();
  drawLens();
  showHeld();
  const isPrint = media === "print" && matches;
  headItems.forEach((item) => (isPrint ? drawThumbnail(item) : headWatcher.observe(item)));
}

startHeader();
startText();
startLens();
startAttention();
startAttribution();
const strongest = heads.reduce(
  (best, one) => {
    const score =
      data.scores.induction[one.layer][one.head] ??
      data.scores.previous_token[one.layer][one.head] ??
      0;
    return score > best.score ? { ...one, score } : best;
  },
  { layer: 0, head: 0, score: 0 },
);
chooseHead(strongest.layer, strongest.head);
choosePosition(n - 1);
if (data.answer !== null) showEffects(n);
for (const button of document.querySelectorAll(".save"))
  button.addEventListener("click", () => save(button.dataset.picture));
for (const query of ["(prefers-color-scheme: dark)", "print"])
  matchMedia(query).addEventListener("change", redraw);
addEventListener("beforeprint", printLens); // pages are counted before the media change
