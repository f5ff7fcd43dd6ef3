// How the masks of a photograph came about, with the thresholds as sliders.

import { $, failed, many, post, say } from "/static/api.js";

const SVG = "http://www.w3.org/2000/svg";

export class Stages {
  constructor(took, photo) {
    this.took = took;
    this.photo = photo;
    this.about = null;
    this.values = {};
    this.busy = false;
    this.again = false;
    $("stages-reset").onclick = () => { this.reset(); this.run().catch(failed); };
    $("stages-use").onclick = () => this.use();
  }

  describe(about) {
    this.about = about;
    $("stages-title").textContent = about.unavailable
      ? `No stage view: ${about.unavailable}.` : about.title;
    $("stages-reset").hidden = $("stages-use").hidden = Boolean(about.unavailable);
    $("sliders").replaceChildren(...(about.sliders ?? []).map((slider) => {
      const label = document.createElement("label");
      label.title = slider.help;
      label.innerHTML = '<span></span> <output></output><input type="range">';
      label.querySelector("span").textContent = slider.name;
      const input = label.querySelector("input");
      Object.assign(input, { min: slider.low, max: slider.high, step: slider.step });
      input.dataset.setting = slider.name;
      input.oninput = () => {
        this.values[slider.name] = Number(input.value);
        label.querySelector("output").textContent = input.value;
        this.run().catch(failed);
      };
      return label;
    }));
    this.reset();
  }

  reset() {
    this.values = {};
    for (const slider of this.about.sliders ?? []) {
      const input = document.querySelector(`[data-setting="${slider.name}"]`);
      input.value = slider.value;
      input.closest("label").querySelector("output").textContent = slider.value;
    }
  }

  async show() {
    $("panels").replaceChildren();
    if (this.about.unavailable) return;
    $("stages-said").textContent = "Computing the features of this photograph, once …";
    await this.run();
  }

  // One question at a time; of those that came meanwhile, the last.
  async run() {
    if (this.busy) { this.again = true; return; }
    this.busy = true;
    try {
      do {
        this.again = false;
        const number = this.photo().number;
        const found = await post(`/api/photographs/${number}/stages`, { settings: this.values });
        if (this.photo()?.number === number) this.draw(found);
        else this.again = this.photo() !== null;
      } while (this.again);
    } catch (error) {
      $("stages-said").textContent = error.message;
      throw error;
    } finally {
      this.busy = false;
    }
  }

  draw(found) {
    const { features, stages } = found.seconds;
    $("stages-said").textContent = `${many(found.masks, "mask")} on the ${found.rows} × ${found.columns} grid. `
      + (found.reason ? `${found.reason}. ` : "")
      + `Stages ${stages.toFixed(2)} s` + (features > 0.01 ? `, features ${features.toFixed(1)} s.` : ".");
    const photo = this.photo();
    const picture = $("picture").src.replace("/large.jpg", "/small.jpg");
    const drawn = found.panels.map((panel) => this.panel(panel, found, photo, picture));
    const outcome = drawn.pop(); // first, where one sees what a slider does
    outcome.querySelector("h3").textContent += ": what comes out";
    $("panels").replaceChildren(outcome, ...drawn);
  }

  panel(panel, { rows, columns }, photo, picture) {
    const box = document.createElement("div");
    box.className = panel.reached ? "panel" : "panel idle";
    box.innerHTML = "<h3></h3>";
    box.querySelector("h3").textContent = panel.title;
    if (!panel.reached) {
      box.append(paragraph("Not reached."));
      return box;
    }
    const frame = document.createElement("div");
    frame.className = "box";
    frame.style.aspectRatio = `${photo.width} / ${photo.height}`;
    const below = document.createElement("img");
    below.src = picture;
    below.alt = "";
    below.style.objectFit = "fill";
    below.style.filter = panel.pictures.length || panel.points.length ? "grayscale(1) brightness(1.1) opacity(.7)" : "";
    frame.append(below);
    for (const { rgb, alpha } of panel.pictures) frame.append(raster(rgb, rows, columns, alpha));
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    svg.setAttribute("preserveAspectRatio", "none");
    for (const { path, color: ink } of panel.paths) {
      svg.append(shape("path", {
        d: path, fill: ink || "none", "fill-opacity": 0.35, "fill-rule": "evenodd",
        stroke: ink || "#fff", "stroke-width": 2,
      }));
    }
    for (const { x, y, color: ink } of panel.points) {
      svg.append(shape("ellipse", {
        cx: x, cy: y, rx: 0.006 * columns, ry: (0.006 * rows * photo.width) / photo.height, fill: ink,
        stroke: "#000", "stroke-width": 0.04,
      }));
    }
    frame.append(svg);
    box.append(frame);
    if (panel.scale.length) box.append(scale(panel));
    box.append(paragraph(panel.found), paragraph(panel.shows));
    return box;
  }

  use() {
    const number = this.photo().number;
    $("stages-said").textContent = "Labelling this photograph …";
    post(`/api/photographs/${number}/labels`, { settings: this.values }).then((answer) => {
      const fresh = answer.photograph.masks.filter((mask) => mask.state === "open").length;
      say(`${many(fresh, "new mask")} in place of those you had not decided on`);
      $("stages-button").click();
      this.took(answer);
    }).catch(failed);
  }
}

function paragraph(text) {
  const node = document.createElement("p");
  node.textContent = text;
  return node;
}

function shape(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function raster(rgb, rows, columns, alpha) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  canvas.style.opacity = alpha;
  const bytes = atob(rgb);
  const picture = new ImageData(columns, rows);
  for (let pixel = 0; pixel < rows * columns; pixel += 1) {
    for (let part = 0; part < 3; part += 1) {
      picture.data[4 * pixel + part] = bytes.charCodeAt(3 * pixel + part);
    }
    picture.data[4 * pixel + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

function scale({ scale: [low, high], threshold }) {
  const bar = document.createElement("div");
  bar.className = "scale";
  for (const value of [low, high]) {
    const end = document.createElement("span");
    end.textContent = Number(value.toFixed(2));
    bar.append(end);
  }
  if (threshold !== null) {
    const mark = document.createElement("i");
    mark.style.left = `${(100 * (threshold - low)) / (high - low || 1)}%`;
    bar.append(mark);
  }
  return bar;
}
