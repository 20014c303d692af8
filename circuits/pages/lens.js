// The logit lens as a grid: positions from left to right, layers upwards.

const CELL = { width: 68, height: 22, left: 92, top: 44, bottom: 24 };
const followed = { position: 0, candidate: 0, point: nLayer };
const gridHeight = CELL.top + nPoints * CELL.height + CELL.bottom;

function startLens() {
  const box = byId("lens-grid"),
    canvas = element("canvas"),
    whole = element("div", {}, canvas);
  whole.style.width = `${CELL.left + n * CELL.width + 2}px`;
  box.append(whole);
  box.addEventListener("scroll", () => requestAnimationFrame(drawLens));
  new ResizeObserver(() => drawLens()).observe(box);
  byId("lens-colour").addEventListener("change", colourLens);
  colourLens();
  const cellAt = (event) => {
    const frame = canvas.getBoundingClientRect();
    const position = Math.floor(
      (event.clientX - frame.left - CELL.left + box.scrollLeft) / CELL.width,
    );
    const row = Math.floor((event.clientY - frame.top - CELL.top) / CELL.height);
    const isInside =
      event.clientX - frame.left >= CELL.left && position < n && row >= -2 && row <= nPoints;
    return isInside ? { position, point: nLayer - row } : null;
  };
  canvas.addEventListener("mousemove", (event) => {
    const cell = cellAt(event);
    canvas.title = cell ? cellWords(cell.position, cell.point) : "";
  });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) follow(cell.position, cell.point);
  });
  box.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key in steps) {
      const [across, up] = steps[event.key];
      follow(
        Math.max(0, Math.min(n - 1, followed.position + across)),
        Math.max(0, Math.min(nPoints, followed.point + up)),
      );
    } else if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
  });
  pictures.lens = () => {
    const colour = byId("lens-colour").selectedOptions[0].text;
    return drawnLens(0, n).titled(`Logit lens: ${colour}`, ...lensScale());
  };
}

// Follow the best token of a cell; the row above the last layer is the token that follows.
function follow(position, point) {
  const isTarget = point > nLayer;
  followed.candidate = isTarget || point < 0 ? 0 : lens.best.at(point, position);
  followed.point = Math.max(0, Math.min(nPoints, point));
  followed.position = position;
  choosePosition(position, false);
}

function cellWords(position, point) {
  if (point > nLayer) return `the token that follows: ${nextName(position)}`;
  if (point < 0) return `token ${position}, read: ${label(data.tokens[position])}`;
  return (
    `position ${position}, ${pointName(point)}: ${label(candidatesOf(position)[lens.best.at(point, position)])} ` +
    `${percent(lens.p.at(point, position) / 1e4)}, entropy ${(lens.entropy.at(point, position) / 10).toFixed(1)} nats`
  );
}

// Return the opacity and ink of a cell, by the choice of colour.
function cellInk(position, point) {
  const by = byId("lens-colour").value;
  if (by === "entropy")
    return ["amber", Math.min(1, lens.entropy.at(point, position) / 10 / uniform)];
  if (by === "target") return ["blue", Math.exp(-natsOf(position, 0, point))];
  return ["blue", lens.p.at(point, position) / 1e4];
}

// Draw the columns from first to end, from x on.
function drawColumns(pen, first, end, x, width) {
  pen.rect(0, 0, width, gridHeight, "paper");
  const followedId = candidatesOf(followed.position)[followed.candidate];
  for (let position = first; position < end; position++, x += CELL.width) {
    const ids = candidatesOf(position),
      isChosen = position === chosen.position;
    pen.text(x + CELL.width / 2, 12, String(position), { size: 10, align: "center", ink: "muted" });
    pen.text(x + CELL.width / 2, 30, label(targetOf(position)), {
      size: 11,
      mono: true,
      align: "center",
      most: CELL.width - 4,
      bold: true,
    });
    for (let point = 0; point < nPoints; point++) {
      const y = CELL.top + (nLayer - point) * CELL.height,
        [ink, t] = cellInk(position, point);
      const best = lens.best.at(point, position);
      pen.rect(x, y, CELL.width - 1, CELL.height - 1, ink, t);
      pen.textOn(
        x + CELL.width / 2,
        y + CELL.height / 2,
        label(ids[best]),
        ink,
        t,
        { size: 11, mono: true, align: "center", most: CELL.width - 6, bold: best === 0 },
      );
      if (ids[best] === followedId && position === followed.position) {
        pen.rect(x + 1, y, 4, CELL.height - 1, "accent");
      }
    }
    pen.text(
      x + CELL.width / 2,
      CELL.top + nPoints * CELL.height + 12,
      label(data.tokens[position]),
      { size: 11, mono: true, align: "center", most: CELL.width - 4 },
    );
    if (isChosen) pen.frame(x - 0.5, 1.5, CELL.width, gridHeight - 3, "accent", 1.5);
  }
}

function drawRowNames(pen) {
  pen.rect(0, 0, CELL.left - 4, gridHeight, "paper");
  const names = [
    "follows",
    ...Array.from({ length: nPoints }, (_, i) => pointName(nLayer - i)),
    "read",
  ];
  names.forEach((name, i) => {
    const y =
      i === 0
        ? 30
        : i > nPoints
          ? CELL.top + nPoints * CELL.height + 12
          : CELL.top + (i - 0.5) * CELL.height;
    pen.text(CELL.left - 10, y, name, { size: 11, align: "right", ink: "muted" });
  });
}

function drawLens() {
  const box = byId("lens-grid"),
    width = box.clientWidth;
  if (!width) return;
  const pen = new CanvasPen(
    box.querySelector("canvas"),
    Math.min(width, CELL.left + n * CELL.width + 2),
    gridHeight,
  );
  const first = Math.max(0, Math.floor(box.scrollLeft / CELL.width));
  const end = Math.min(n, Math.ceil((box.scrollLeft + width - CELL.left) / CELL.width));
  drawColumns(pen, first, end, CELL.left + first * CELL.width - box.scrollLeft, width);
  drawRowNames(pen);
}

const lensScale = () =>
  byId("lens-colour").value === "entropy"
    ? ["amber", ["0 nats", `${uniform.toFixed(1)} nats`]]
    : ["blue", ["0 %", "100 %"]];

function colourLens() {
  showScale(byId("lens-scale"), ...lensScale());
  drawLens();
}

// Return the columns from first to end as SVG, with room for `columns` of them.
function drawnLens(first, end, columns = end - first) {
  const width = CELL.left + columns * CELL.width + 2,
    pen = new SvgPen(width, gridHeight);
  drawColumns(pen, first, end, CELL.left, width);
  drawRowNames(pen);
  return pen;
}

// Show the followed token's way through the layers, and the other tokens that can be followed.
function showFollowed() {
  const { position, candidate } = followed,
    ids = candidatesOf(position);
  const list = element("ol", { className: "bars" });
  for (let point = nLayer; point >= 0; point--) {
    if (!hasTrack(position, candidate)) {
      const p = lens.best.at(point, position) === candidate ? lens.p.at(point, position) / 1e4 : 0;
      list.append(
        bar(pointName(point), p, p ? percent(p) : "not the best", "blue", point === followed.point),
      );
      continue;
    }
    const nats = natsOf(position, candidate, point),
      p = Math.exp(-nats);
    const words = nats >= 25.5 ? "> 25.4" : nats.toFixed(1);
    list.append(bar(pointName(point), p, `${words} nats`, "blue", point === followed.point));
  }
  const others = element("p", { className: "choices" });
  ids.forEach((id, i) => {
    const button = element("button", { text: label(id), "aria-pressed": i === candidate });
    button.addEventListener("click", () => {
      followed.candidate = i;
      showFollowed();
      drawLens();
    });
    others.append(button);
  });
  byId("lens-details").replaceChildren(
    element("h3", {}, element("code", { text: label(ids[candidate]) }), " through the layers"),
    element("p", {
      className: "muted",
      text:
        `${cellWords(position, followed.point)}. ` +
        `Bars are its probability, numbers its surprise.`,
    }),
    list,
    element("h4", { className: "choices-title", text: "Follow another" }),
    others,
  );
}

// Scroll a position that cannot be seen into the middle.
function revealColumn(position) {
  const box = byId("lens-grid"),
    left = position * CELL.width,
    room = box.clientWidth - CELL.left;
  if (left < box.scrollLeft || left + CELL.width > box.scrollLeft + room) {
    box.scrollLeft = left - (room - CELL.width) / 2;
  }
}

// On paper nothing scrolls: print the grid in bands.
function printLens() {
  const bands = [];
  for (let first = 0; first < n; first += 12) {
    const end = Math.min(n, first + 12),
      pen = drawnLens(first, end, 12);
    bands.push(
      element("img", {
        alt: `The logit lens, positions ${first} to ${end - 1}`,
        src: `data:image/svg+xml,${encodeURIComponent(String(pen))}`,
        width: pen.width, // the pages are counted before pictures are read
        height: pen.height,
      }),
    );
  }
  byId("lens-print").replaceChildren(...bands);
}
