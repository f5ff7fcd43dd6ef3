// The grid of photographs: only the rows that are seen are there.

import { $, failed, get, many } from "/static/api.js";
import { drawMasks, isKept } from "/static/masks.js";

const HEIGHT = 222; // of a card, in pixels
const WIDTH = 228; // at least
const GAP = 10;
const AHEAD = 1; // rows above and below what is seen
const BATCH = 40; // photographs asked for at once
const CARDS = 2000; // descriptions that are held
const DRAWN = 12; // masks on a card, the best of those kept

export class Grid {
  constructor(open) {
    this.open = open;
    this.numbers = [];
    this.keep = { score: 0, best: null };
    this.version = "";
    this.current = 0; // place in numbers
    this.known = new Map(); // number -> description
    this.nodes = new Map(); // number -> figure
    this.columns = 1;
    this.box = $("grid");
    this.cards = $("cards");
    this.box.addEventListener("scroll", () => this.later());
    new ResizeObserver(() => this.layOut()).observe(this.box);
    this.cards.addEventListener("click", (event) => {
      const figure = event.target.closest("figure");
      if (!figure) return;
      this.current = this.numbers.indexOf(Number(figure.dataset.number));
      this.open(this.current);
    });
  }

  show(numbers, keep, toTop) {
    this.numbers = numbers;
    this.keep = keep;
    this.current = Math.min(this.current, Math.max(0, numbers.length - 1));
    $("nothing").hidden = numbers.length > 0;
    if (toTop) { this.box.scrollTop = 0; this.current = 0; }
    this.layOut();
    for (const [number, node] of this.nodes) this.fill(node, number);
  }

  layOut() {
    const width = this.cards.clientWidth;
    if (!width) return;
    this.columns = Math.max(1, Math.floor((width + GAP) / (WIDTH + GAP)));
    this.width = (width - GAP * (this.columns - 1)) / this.columns;
    const rows = Math.ceil(this.numbers.length / this.columns);
    this.cards.style.height = `${rows * (HEIGHT + GAP)}px`;
    this.draw();
  }

  later() {
    this.frame ??= requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }

  draw() {
    const top = this.box.scrollTop - this.cards.offsetTop;
    const step = HEIGHT + GAP;
    const first = Math.max(0, Math.floor(top / step) - AHEAD) * this.columns;
    const last = (Math.ceil((top + this.box.clientHeight) / step) + AHEAD) * this.columns;
    const seen = this.numbers.slice(first, last);
    const wanted = new Set(seen);
    for (const [number, node] of this.nodes) {
      if (wanted.has(number)) continue;
      node.querySelector("img").removeAttribute("src"); // stop loading
      node.remove();
      this.nodes.delete(number);
    }
    seen.forEach((number, index) => {
      let node = this.nodes.get(number);
      if (!node) {
        node = this.make(number);
        this.nodes.set(number, node);
        this.cards.append(node);
      }
      const row = Math.floor((first + index) / this.columns);
      const column = (first + index) % this.columns;
      node.style.width = `${this.width}px`;
      node.style.height = `${HEIGHT}px`;
      node.style.transform = `translate(${column * (this.width + GAP)}px, ${row * step}px)`;
      node.classList.toggle("current", first + index === this.current);
    });
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.load().catch(failed), 70); // not while flying past
  }

  make(number) {
    const figure = document.createElement("figure");
    figure.dataset.number = number;
    figure.innerHTML = '<div class="box"><img alt="" decoding="async"><svg></svg></div>'
      + '<figcaption><b></b><span class="done" hidden title="reviewed">✓</span><span class="words"></span></figcaption>';
    this.fill(figure, number);
    return figure;
  }

  fill(figure, number) {
    const card = this.known.get(number);
    if (!card) return;
    const kept = card.masks.filter((mask) => isKept(mask, this.keep));
    drawMasks(figure.querySelector("svg"), card.view, kept.slice(0, DRAWN));
    const name = figure.querySelector("b");
    name.textContent = `\u200e${card.name}`; // cut off at its beginning
    name.title = card.name;
    let words = kept.length
      ? `${many(kept.length, "mask")}, best ${kept[0].score.toFixed(2)}`
      : card.reason && !card.masks.length ? `none: ${card.reason}` : "no mask kept";
    if (card.masks.some((mask) => mask.state !== "open")) words += " · edited";
    figure.querySelector(".words").textContent = words;
    figure.querySelector(".done").hidden = !card.reviewed;
    figure.dataset.kept = kept.length;
  }

  async load() {
    for (const [number, node] of this.nodes) {
      const picture = node.querySelector("img");
      if (picture.getAttribute("src")) continue;
      picture.onerror = () => this.missing(node, picture);
      picture.src = `/api/photographs/${number}/small.jpg?v=${this.version}`;
    }
    const missing = [...this.nodes.keys()].filter((number) => !this.known.has(number));
    this.asking?.abort();
    const asking = this.asking = new AbortController();
    for (let start = 0; start < missing.length; start += BATCH) {
      const query = new URLSearchParams(missing.slice(start, start + BATCH).map((n) => ["n", n]));
      const cards = await get(`/api/cards?${query}`, {}, asking.signal);
      for (const card of cards) this.know(card);
    }
  }

  know(card) {
    this.known.delete(card.number);
    this.known.set(card.number, card);
    if (this.known.size > CARDS) this.known.delete(this.known.keys().next().value);
    const node = this.nodes.get(card.number);
    if (node) this.fill(node, card.number);
  }

  missing(node, picture) {
    if (!picture.getAttribute("src")) return;
    picture.hidden = true;
    if (!node.querySelector(".missing")) {
      node.querySelector(".box").insertAdjacentHTML(
        "beforeend", '<span class="missing">the photograph cannot be shown: missing or broken</span>');
    }
  }

  move(by) {
    const next = this.current + by;
    if (next < 0 || next >= this.numbers.length) return;
    this.current = next;
    this.reveal();
    this.draw();
  }

  reveal() {
    const row = Math.floor(this.current / this.columns) * (HEIGHT + GAP) + this.cards.offsetTop;
    if (row < this.box.scrollTop) this.box.scrollTop = row - GAP;
    const below = row + HEIGHT + GAP - this.box.clientHeight;
    if (below > this.box.scrollTop) this.box.scrollTop = below;
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    if (event.key in by) this.move(by[event.key]);
    else if (event.key === "Enter" && this.numbers.length) this.open(this.current);
    else return false;
    return true;
  }
}
