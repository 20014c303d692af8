// Two pens with the same strokes: one draws on a canvas, one writes SVG. A picture is a function
// of a pen, so that what is saved is what is seen.

const palettes = new Map(); // emptied when the scheme changes

// Return the colours of the page as numbers [red, green, blue], in its present or a given scheme.
function coloursOf(scheme = "") {
  if (!palettes.has(scheme)) {
    const probe = element("span", { className: "gpt2-np" }),
      found = {};
    probe.style.colorScheme = scheme;
    document.body.append(probe);
    for (const name of ["paper", "ink", "muted", "line", "blue", "red", "amber", "accent"]) {
      probe.style.color = `var(--${name})`;
      found[name] = getComputedStyle(probe)
        .color.match(/[\d.]+/g)
        .slice(0, 3)
        .map(Number);
    }
    probe.remove();
    palettes.set(scheme, found);
  }
  return palettes.get(scheme);
}

const measurer = document.createElement("canvas").getContext("2d");
const SANS = "system-ui, sans-serif",
  MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
const widths = new Map();

function widthOf(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    measurer.font = font;
    widths.set(key, measurer.measureText(text).width);
  }
  return widths.get(key);
}

// Return a text, cut so that it is at most `most` pixels wide.
function cut(text, most, font) {
  if (widthOf(text, font) <= most) return text;
  const letters = [...text];
  while (letters.length && widthOf(`${letters.join("")}…`, font) > most) letters.pop();
  return `${letters.join("")}…`;
}

const SHADES = [0, 0.25, 0.5, 1]; // of a scale

// Return an ink of opacity t over the paper: red, green and blue.
const mixed = (colours, ink, t) =>
  colours[ink].map((c, i) => Math.round(colours.paper[i] + (c - colours.paper[i]) * t));

// Return black or white: the text of the higher contrast on a colour, by WCAG's luminance.
function textOn(colour) {
  const [r, g, b] = colour.map((c) =>
    c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.1791 ? "#000" : "#fff";
}

class Pen {
  constructor(colours) {
    this.colours = colours;
  }

  colour(ink, t = 1) {
    return `rgb(${mixed(this.colours, ink, t).join(",")})`;
  }

  text(x, y, text, options = {}) {
    const style = { ink: "ink", size: 12, align: "left", most: Infinity, ...options };
    const family = style.mono ? MONO : SANS,
      font = `${style.bold ? "600 " : ""}${style.size}px ${family}`;
    const fill = style.fill ?? this.colour(style.ink);
    this.write(x, y, cut(text, style.most, font), { ...style, family, font, fill });
  }

  // Write a text on an ink of opacity t.
  textOn(x, y, text, ink, t, options) {
    this.text(x, y, text, { ...options, fill: textOn(mixed(this.colours, ink, t)) });
  }
}

class CanvasPen extends Pen {
  constructor(canvas, width, height) {
    super(coloursOf());
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    this.context = canvas.getContext("2d");
    this.context.scale(ratio, ratio);
  }

  rect(x, y, width, height, ink, t = 1) {
    this.context.fillStyle = this.colour(ink, t);
    this.context.fillRect(x, y, width, height);
  }

  frame(x, y, width, height, ink, thickness = 2) {
    this.context.strokeStyle = this.colour(ink);
    this.context.lineWidth = thickness;
    this.context.strokeRect(x, y, width, height);
  }

  write(x, y, text, { font, fill, align, upright }) {
    const { context } = this;
    context.save();
    context.translate(x, y);
    if (upright) context.rotate(-Math.PI / 2);
    Object.assign(context, { font, fillStyle: fill, textAlign: align, textBaseline: "middle" });
    context.fillText(text, 0, 0);
    context.restore();
  }

  image(x, y, size, image) {
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(image, x, y, size, size);
  }
}

class SvgPen extends Pen {
  constructor(width, height) {
    super(coloursOf("light"));
    this.width = width;
    this.height = height;
    this.parts = [];
    this.rect(0, 0, width, height, "paper");
  }

  rect(x, y, width, height, ink, t = 1) {
    this.parts.push(
      `<rect x="${places(x)}" y="${places(y)}" width="${places(width)}" height="${places(height)}" fill="${this.colour(ink, t)}"/>`,
    );
  }

  frame(x, y, width, height, ink, thickness = 2) {
    this.parts.push(
      `<rect x="${places(x)}" y="${places(y)}" width="${places(width)}" height="${places(height)}" fill="none" stroke="${this.colour(ink)}" stroke-width="${thickness}"/>`,
    );
  }

  write(x, y, text, { size, family, bold, fill, align, upright }) {
    const anchor = { left: "start", center: "middle", right: "end" }[align];
    const written = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    const turned = upright ? ` transform="rotate(-90 ${places(x)} ${places(y)})"` : "";
    this.parts.push(
      `<text x="${places(x)}" y="${places(y)}" dy="0.35em" font-family="${family}" font-size="${size}"` +
        `${bold ? ' font-weight="600"' : ""} text-anchor="${anchor}" fill="${fill}" xml:space="preserve"${turned}>${written}</text>`,
    );
  }

  image(x, y, size, image) {
    this.parts.push(
      `<image x="${places(x)}" y="${places(y)}" width="${places(size)}" height="${places(size)}" ` +
        `image-rendering="pixelated" href="${image.toDataURL("image/png")}"/>`,
    );
  }

  // Return the picture below its title and its scale.
  titled(title, ink, words) {
    const whole = new SvgPen(Math.max(this.width, 400), this.height + 48);
    whole.text(8, 14, title, { bold: true });
    whole.text(8, 34, words[0], { size: 10 });
    const left = 14 + widthOf(words[0], `10px ${SANS}`);
    SHADES.forEach((t, i) => whole.rect(left + 18 * i, 28, 18, 12, ink, t));
    whole.frame(left, 28, 18 * SHADES.length, 12, "line", 1);
    whole.text(left + 18 * SHADES.length + 6, 34, words[1], { size: 10 });
    whole.parts.push(`<g transform="translate(0 48)">${this.parts.join("\n")}</g>`);
    return whole;
  }

  toString() {
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${places(this.width)}" height="${places(this.height)}" ` +
      `viewBox="0 0 ${places(this.width)} ${places(this.height)}">\n${this.parts.join("\n")}\n</svg>\n`
    );
  }
}

const places = (x) => Math.round(x * 100) / 100;

// Return a pattern as a picture of at most `most` pixels a side. A pixel shows the highest of the
// weights that it stands for, so that thin lines stay. The picture is an ink of opacity √weight.
function patternImage(pattern, colours, most = Infinity) {
  const size = Math.max(1, Math.min(n, Math.floor(most))),
    canvas = document.createElement("canvas");
  canvas.width = canvas.height = size;
  const peaks = new Uint8Array(size * size);
  const pixel = Uint32Array.from({ length: n }, (_, i) => Math.floor((i * size) / n));
  for (let query = 0, i = 0; query < n; query++) {
    const row = pixel[query] * size;
    for (let key = 0; key <= query; key++, i++) {
      const at = row + pixel[key];
      if (pattern[i] > peaks[at]) peaks[at] = pattern[i];
    }
  }
  const image = new ImageData(size, size),
    context = canvas.getContext("2d");
  const table = Array.from({ length: 256 }, (_, byte) =>
    colours.blue.map((c, i) => colours.paper[i] + (c - colours.paper[i]) * Math.sqrt(byte / 255)),
  );
  for (let i = 0; i < peaks.length; i++) {
    image.data.set(table[peaks[i]], 4 * i);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

// --- saving ------------------------------------------------------------------------------

const pictures = {}; // name: a function that returns an SvgPen

function save(name) {
  const file = new Blob([String(pictures[name]())], { type: "image/svg+xml" });
  const link = element("a", { href: URL.createObjectURL(file), download: `${name}.svg` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
