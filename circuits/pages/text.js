// The text, coloured by the surprise of each token, and the model's alternatives to it.

const uniform = Math.log(data.n_vocab); // the surprise of a uniform guess
const textItems = [];

// Return the surprise of a token of the text, or null for the first, which nothing predicts.
const surpriseOf = (i) => (i === 0 ? null : data.surprise[i - 1]);

function startText() {
  const box = byId("text-tokens");
  data.tokens.forEach((id, i) => {
    const nats = surpriseOf(i),
      item = element("span", { className: "token", text: reading(id) });
    item.setAttribute(
      "aria-label",
      `${label(id)}, ${nats === null ? "first token" : `${nats.toFixed(2)} nats`}`,
    );
    if (nats !== null) tint(item, "amber", nats / uniform);
    textItems.push(item);
  });
  textItems.push(
    element("span", {
      className: "token coming",
      text: label(data.next),
      "aria-label": `what comes next: ${label(data.next)}`,
    }),
  );
  box.append(...textItems);
  box.setAttribute("aria-label", "Tokens of the text");
  roving(box, textItems, {
    choose: (i) => {
      if (i > 0) choosePosition(i - 1);
    },
    show: showAlternatives,
    leave: () => showAlternatives(chosen.position + 1),
  });
  const scale = ["amber", ["0 nats", `${uniform.toFixed(1)} nats, a uniform guess`]];
  showScale(byId("text-scale"), ...scale);
  pictures.text = () => drawText().titled("Surprise of each token", ...scale);
}

// Show what the model expected at token i of the text. Token n is the one that comes next.
function showAlternatives(i) {
  const box = byId("text-details"),
    position = i - 1;
  if (i === 0) {
    box.replaceChildren(
      element("h3", { text: label(data.tokens[0]) }),
      element("p", { text: "The first token: the model reads it, but does not predict it." }),
    );
    return;
  }
  const target = targetOf(position),
    nats = data.surprise[position];
  const rank = data.ranks[position];
  let probability = Math.exp(-nats); // of rounded nats: that of an alternative is nearer
  const shown = element("ol", { className: "bars" });
  for (let k = 0; k < alternatives.shape[1]; k++) {
    const id = alternatives.at(position, k),
      p = alternativesP.at(position, k) / 1e4;
    if (id === target) probability = p;
    shown.append(bar(label(id), p, percent(p), "blue", id === target));
  }
  box.replaceChildren(
    element("h3", {}, element("code", { text: label(target) })),
    element("p", {
      className: "muted",
      text:
        i < n
          ? `token ${i} of ${n - 1}, counted from 0`
          : data.answer === null
            ? "what would come next"
            : "the answer",
    }),
    element(
      "p",
      {},
      element("b", { text: `${nats.toFixed(2)} nats` }),
      ` of surprise, probability ${percent(probability)}, the model's `,
      rank === 0 ? "first choice" : `choice ${grouped(rank + 1)} of ${grouped(data.n_vocab)}`,
    ),
    element("h4", { text: "The likeliest tokens" }),
    shown,
  );
}

// Return a bar: a label, a length from 0 to 1 and a number. `side` is −1 or 1 for bars from the middle.
function bar(name, length, number, ink, isMarked = false, side = 0) {
  const track = element(
    "span",
    { className: `track${side ? ` from-middle ${side < 0 ? "left" : "right"}` : ""}` },
    element("i"),
  );
  const filled = track.firstChild;
  filled.dataset.ink = ink;
  filled.style.setProperty("--length", `${(100 * Math.min(1, length)).toFixed(2)}%`);
  const made = element(
    "li",
    {},
    element("code", { text: name, title: name }),
    track,
    element("span", { className: "number", text: number }),
  );
  if (isMarked) made.className = "marked";
  return made;
}

function drawText() {
  const size = 14,
    line = 26,
    width = 800,
    font = `${size}px ${MONO}`,
    spots = [];
  let x = 16,
    y = 24;
  data.tokens.forEach((id, i) => {
    const text = reading(id),
      parts = text.split("\n"),
      wide = widthOf(parts[0], font) + 4;
    if (x + wide > width - 16 && x > 16) {
      x = 16;
      y += line;
    }
    spots.push([i, parts[0], x, y, wide]);
    x += wide + 1;
    if (parts.length > 1) {
      x = 16;
      y += line * (parts.length - 1);
    }
  });
  const pen = new SvgPen(width, y + line);
  for (const [i, text, left, middle, wide] of spots) {
    const t = Math.min(1, (surpriseOf(i) ?? 0) / uniform);
    pen.rect(left, middle - 11, wide, 22, "amber", t);
    pen.textOn(left + 2, middle, text, "amber", t, { size, mono: true });
  }
  return pen;
}
