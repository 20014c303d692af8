/* Life for the pictures of results in a notebook: the pointer or the arrow keys tell a cell's
value, a click or Enter chooses a head. Each copy of this script wakes the pictures that sleep. */
(() => {
  const wake = (box) => {
    const picture = box.querySelector("img"), areas = JSON.parse(box.dataset.areas);
    const said = document.createElement("div"), mark = document.createElement("div");
    box.dataset.alive = "";
    box.style.position = "relative";
    said.className = "said";
    said.setAttribute("role", "status");
    said.style.cssText = "min-height:1.5em;padding:2px 8px;font:13px/1.5 var(--sans);" +
      "background:var(--paper)";
    said.textContent = "Point at a cell, or use the arrow keys.";
    mark.style.cssText = "position:absolute;box-sizing:border-box;pointer-events:none;" +
      "outline:2px solid var(--accent);display:none";
    picture.tabIndex = 0;
    picture.after(said, mark);
    const fullWidth = Number(picture.getAttribute("width"));
    let at = null, head = 0, shades = null; // the area, row and column that are marked

    const tell = (area, row, column) => {
      const [width, height] = area.cell, scale = picture.clientWidth / fullWidth;
      at = { area, row, column };
      mark.style.display = "block";
      mark.style.left = `${picture.offsetLeft + (area.x + column * width) * scale}px`;
      mark.style.top = `${picture.offsetTop + (area.y + row * height) * scale}px`;
      mark.style.width = `${width * scale}px`;
      mark.style.height = `${height * scale}px`;
      if (area.does !== "value") {
        said.textContent = area.said[row * area.shape[1] + column];
      } else if (shades) {
        said.textContent = `${names()[head]}: ${area.said[row]} (${row}) attends ` +
          `${value(row, column).toFixed(2)} to ${area.said[column]} (${column})`;
      }
    };

    // The patterns of all heads are one picture, whose greys are the roots of the values.
    const heads = areas.find((area) => area.does === "choose");
    const names = () => heads.said;
    const value = (row, column) => {
      const n = areas.find((area) => area.does === "value").shape[0], across = heads.shape[1];
      const y = Math.floor(head / across) * n + row, x = (head % across) * n + column;
      return (shades.data[4 * (y * shades.width + x)] / 255) ** 2;
    };
    const source = () => new DOMParser().parseFromString(
      new TextDecoder().decode(Uint8Array.from(
        atob(picture.src.split(",")[1]), (letter) => letter.charCodeAt(0))), "image/svg+xml");
    const choose = (row, column) => {
      const svg = source(), n = areas.find((area) => area.does === "value").shape[0];
      head = row * heads.shape[1] + column;
      svg.getElementById("large").setAttribute("viewBox", `${column * n} ${row * n} ${n} ${n}`);
      svg.getElementById("name").textContent = names()[head];
      svg.getElementById("chosen").setAttribute("x", heads.x + column * heads.cell[0]);
      svg.getElementById("chosen").setAttribute("y", heads.y + row * heads.cell[1]);
      const bytes = new TextEncoder().encode(new XMLSerializer().serializeToString(svg));
      picture.src = "data:image/svg+xml;base64," +
        btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    };
    if (heads) {
      const mosaic = new Image();
      mosaic.onload = () => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [mosaic.width, mosaic.height];
        const pen = canvas.getContext("2d");
        pen.drawImage(mosaic, 0, 0);
        shades = pen.getImageData(0, 0, canvas.width, canvas.height);
      };
      mosaic.src = source().getElementById("mosaic").getAttribute("href");
    }

    const cellAt = (event) => {
      const scale = picture.clientWidth / fullWidth, frame = picture.getBoundingClientRect();
      const x = (event.clientX - frame.left) / scale, y = (event.clientY - frame.top) / scale;
      for (const area of areas) {
        const row = Math.floor((y - area.y) / area.cell[1]);
        const column = Math.floor((x - area.x) / area.cell[0]);
        if (row >= 0 && row < area.shape[0] && column >= 0 && column < area.shape[1]) {
          return { area, row, column };
        }
      }
      return null;
    };
    picture.addEventListener("pointermove", (event) => {
      const cell = cellAt(event);
      if (cell) tell(cell.area, cell.row, cell.column);
    });
    picture.addEventListener("click", (event) => {
      const cell = cellAt(event);
      if (cell && cell.area.does === "choose") choose(cell.row, cell.column);
    });
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const { area, row, column } = at ?? { area: areas.at(-1), row: 0, column: 0 };
      if (step[event.key]) {
        const [down, right] = at ? step[event.key] : [0, 0];
        tell(area, Math.min(Math.max(row + down, 0), area.shape[0] - 1),
          Math.min(Math.max(column + right, 0), area.shape[1] - 1));
      } else if (event.key === "Enter" && area.does === "choose") {
        choose(row, column);
      } else {
        return;
      }
      event.preventDefault(); // nor should the notebook move to another cell
      event.stopPropagation();
    });
  };
  document.querySelectorAll(".gpt2-np-picture:not([data-alive])").forEach(wake);
})();
