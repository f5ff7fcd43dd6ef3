// One photograph, large, with its masks.

import { $, failed, get, many, post, say } from "/static/api.js";
import { colorOf, drawMasks, isKept } from "/static/masks.js";
import { Stages } from "/static/stages.js";

const MARKS = { accepted: "✓", rejected: "✗", merged: "∪", open: "" };

export class Large {
  // changed(photograph, history): something was done; moved(place), closed(): where the person is
  constructor({ changed, moved, closed, keep }) {
    this.changed = changed;
    this.moved = moved;
    this.closed = closed;
    this.keep = keep;
    this.numbers = [];
    this.place = 0;
    this.photo = null;
    this.selected = new Set();
    this.off = new Set();
    this.allOff = false;
    this.stages = new Stages((answer) => this.take(answer), () => this.photo);
    $("back").onclick = () => this.close();
    $("previous").onclick = () => this.go(-1);
    $("next").onclick = () => this.go(1);
    for (const action of ["accept", "reject", "merge", "reopen"]) {
      $(action).onclick = () => this.decide(action);
    }
    $("finish").onclick = () => this.finish();
    $("only").onclick = () => this.only();
    $("stages-button").onclick = () => this.toggleStages();
    $("stage").onclick = (event) => this.click(event);
    $("masks").onmouseover = (event) => this.hint(event.target.closest("li")?.dataset.mask);
    $("masks").onmouseleave = () => this.hint();
    $("masks").onclick = (event) => {
      const item = event.target.closest("li");
      if (!item) return;
      const number = Number(item.dataset.mask);
      if (event.target.closest(".eye")) this.toggle(number);
      else this.select(number, event.shiftKey || event.ctrlKey || event.metaKey);
    };
    $("picture").onerror = () => say("the photograph cannot be shown: missing or broken", true);
  }

  get isOpen() { return !$("large").hidden; }

  async open(numbers, place) {
    this.numbers = numbers;
    $("large").hidden = false;
    $("browse").hidden = true;
    await this.load(place);
  }

  close() {
    if (!$("stages").hidden) { this.toggleStages(); return; }
    $("large").hidden = true;
    $("browse").hidden = false;
    this.photo = null;
    this.closed(this.place);
  }

  async load(place) {
    this.place = place;
    const number = this.numbers[place];
    const photo = await get(`/api/photographs/${number}`);
    if (this.numbers[this.place] !== number) return; // gone on meanwhile
    this.selected.clear();
    this.cursor = null;
    this.off.clear();
    this.allOff = false;
    $("picture").src = `/api/photographs/${number}/large.jpg?v=${this.version}`;
    this.show(photo);
    this.moved(place);
    if (!$("stages").hidden) this.stages.show().catch(failed);
  }

  go(by) {
    const next = this.place + by;
    if (next < 0 || next >= this.numbers.length) {
      say(by > 0 ? "this is the last photograph" : "this is the first photograph");
      return;
    }
    this.load(next).catch(failed);
  }

  // The photograph after something was done, which may be another one (undo).
  take({ photograph, history }) {
    this.changed(photograph, history);
    if (!this.isOpen) return;
    if (photograph.number === this.photo?.number) this.show(photograph);
    else if (this.numbers.includes(photograph.number)) {
      this.load(this.numbers.indexOf(photograph.number)).catch(failed);
    } else say(`that was on ${photograph.name}`);
  }

  show(photo) {
    this.photo = photo;
    const numbers = new Set(photo.masks.map((mask) => mask.number));
    for (const number of this.selected) if (!numbers.has(number)) this.selected.delete(number);
    $("name").textContent = photo.name;
    $("position").textContent =
      `${(this.place + 1).toLocaleString("en")} of ${this.numbers.length.toLocaleString("en")}`;
    this.draw();
  }

  get shown() {
    return this.photo.masks.filter((mask) => isKept(mask, this.keep()));
  }

  draw() {
    const photo = this.photo;
    const kept = this.shown;
    const drawn = photo.masks.filter(
      (mask) => kept.includes(mask) || (this.selected.has(mask.number) && mask.state !== "merged"));
    drawMasks($("overlay"), photo.view, drawn, { fill: 0.22, stroke: 2 });
    for (const path of $("overlay").children) {
      const number = Number(path.dataset.mask);
      const mask = photo.masks.find((each) => each.number === number);
      const isSelected = this.selected.has(number);
      path.classList.toggle("selected", isSelected);
      path.classList.toggle("ghost", !kept.includes(mask));
      path.classList.toggle("off", this.off.has(number) || (this.allOff && !isSelected));
      if (isSelected) path.setAttribute("fill-opacity", kept.includes(mask) ? 0.45 : 0.1);
    }
    for (const path of [...$("overlay").children]) {
      if (path.classList.contains("selected")) $("overlay").append(path); // on top
    }
    let words = `${photo.width} × ${photo.height} · ${many(kept.length, "mask")} kept`;
    if (kept.length < photo.masks.length) words += ` of ${photo.masks.length}`;
    if (photo.reviewed) words += " · reviewed ✓";
    $("facts").textContent = words;
    $("said").textContent = !photo.masks.length
      ? `No mask${photo.reason ? `: ${photo.reason}` : ""}. The stages (S) show why.`
      : "Click a mask to select it, Shift+click for more. Grey rows are left out by the sliders; accept one to keep it.";
    this.list(kept);
    const chosen = this.chosen();
    $("accept").disabled = $("reject").disabled = $("reopen").disabled = !chosen.length;
    $("merge").disabled = chosen.length < 2;
  }

  list(kept) {
    $("masks").replaceChildren(...this.photo.masks
      .filter((mask) => mask.state !== "merged")
      .map((mask, index) => {
        const item = document.createElement("li");
        item.dataset.mask = mask.number;
        item.dataset.state = mask.state;
        item.classList.toggle("selected", this.selected.has(mask.number));
        item.classList.toggle("gone", mask.state === "rejected");
        item.classList.toggle("below", mask.state === "open" && !kept.includes(mask));
        const swatch = '<span class="swatch"></span>';
        item.innerHTML = `<span class="key">${index < 9 ? index + 1 : ""}</span>${swatch}`
          + `<span class="words"></span><span class="mark ${mask.state}"></span>`
          + '<input type="checkbox" class="eye" title="Off and on" tabindex="-1">';
        item.querySelector(".swatch").style.background = colorOf(mask);
        const merged = mask.parents.length ? ` · ${mask.parents.length} in one` : "";
        const share = 100 * mask.share;
        item.querySelector(".words").textContent =
          `${mask.score.toFixed(3)} · ${share < 10 ? share.toFixed(1) : share.toFixed(0)} %${merged}`;
        item.querySelector(".mark").textContent = MARKS[mask.state];
        item.querySelector(".eye").checked = !this.off.has(mask.number)
          && (kept.includes(mask) || this.selected.has(mask.number));
        return item;
      }));
  }

  chosen() {
    return this.photo.masks
      .filter((mask) => this.selected.has(mask.number) && mask.state !== "merged")
      .map((mask) => mask.number);
  }

  select(number, more) {
    if (more && this.selected.has(number)) this.selected.delete(number);
    else {
      if (!more) this.selected.clear();
      this.selected.add(number);
    }
    this.cursor = number; // where the arrows go on from, also when nothing is selected any more
    this.draw();
    document.querySelector("#masks li.selected")?.scrollIntoView({ block: "nearest" });
  }

  click(event) {
    const under = document.elementsFromPoint(event.clientX, event.clientY)
      .filter((element) => element.dataset?.mask !== undefined && element.closest("#overlay"))
      .map((element) => Number(element.dataset.mask));
    if (!under.length) {
      this.selected.clear();
      this.draw();
      return;
    }
    // the smallest first; a click on what is selected takes the next one below
    const share = (number) => this.photo.masks.find((mask) => mask.number === number).share;
    under.sort((a, b) => share(a) - share(b));
    const more = event.shiftKey || event.ctrlKey || event.metaKey;
    const at = under.findIndex((number) => this.selected.has(number));
    const next = at >= 0 && !more ? under[(at + 1) % under.length] : under[0];
    this.select(next, more);
  }

  // Show where a mask of the list is; one that is not kept is drawn for the moment.
  hint(number) {
    const mask = this.photo?.masks.find((each) => String(each.number) === number);
    $("hint").setAttribute("d", mask?.path ?? "");
    $("hint").parentElement.setAttribute("viewBox", $("overlay").getAttribute("viewBox") ?? "0 0 1 1");
  }

  // A mask that the sliders leave out is shown by selecting it.
  toggle(number) {
    const mask = this.photo.masks.find((each) => each.number === number);
    if (!isKept(mask, this.keep())) { this.select(number, false); return; }
    if (!this.off.delete(number)) this.off.add(number);
    this.draw();
  }

  step(by) {
    const listed = this.photo.masks.filter((mask) => mask.state !== "merged");
    if (!listed.length) return;
    const at = listed.findIndex((mask) => mask.number === this.cursor);
    const next = at < 0 ? (by > 0 ? 0 : listed.length - 1)
      : Math.min(listed.length - 1, Math.max(0, at + by));
    this.select(listed[next].number, false);
  }

  decide(action) {
    const masks = this.chosen();
    if (masks.length < (action === "merge" ? 2 : 1)) {
      say(action === "merge" ? "select two masks to merge (Shift+click)" : "select a mask first");
      return;
    }
    post(`/api/photographs/${this.photo.number}/edits`, { action, masks }).then((answer) => {
      this.selected.clear();
      if (action === "merge") {
        this.selected.add(Math.max(...answer.photograph.masks.map((mask) => mask.number)));
      }
      this.take(answer);
    }).catch(failed);
  }

  finish() {
    this.review("finish", this.shown.map((mask) => mask.number));
  }

  // What is selected and what was accepted before stays, nothing else.
  only() {
    const masks = this.chosen();
    if (!masks.length && !this.photo.masks.some((mask) => mask.state === "accepted")) {
      say("select the masks that are right first (Shift+click), or accept some");
      return;
    }
    this.review("only", masks);
  }

  review(action, masks) {
    post(`/api/photographs/${this.photo.number}/edits`, { action, masks })
      .then((answer) => { this.take(answer); this.go(1); })
      .catch(failed);
  }

  toggleStages() {
    const opening = $("stages").hidden;
    $("stages").hidden = !opening;
    $("photo").hidden = opening;
    $("stages-button").textContent = opening ? "Photograph" : "Stages";
    if (opening) this.stages.show().catch(failed);
  }

  key(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "Escape") this.close();
    else if (key === "ArrowLeft") this.go(-1);
    else if (key === "ArrowRight") this.go(1);
    else if (key === "s") this.toggleStages();
    else if (!$("stages").hidden) return false;
    else if (key === "ArrowUp") this.step(-1);
    else if (key === "ArrowDown") this.step(1);
    else if (key === "a") this.decide("accept");
    else if (key === "r" || key === "x" || key === "Delete") this.decide("reject");
    else if (key === "m") this.decide("merge");
    else if (key === "o") this.decide("reopen");
    else if (key === "Enter" && event.shiftKey) this.only();
    else if (key === "Enter") this.finish();
    else if (key === " ") { this.allOff = !this.allOff; this.draw(); }
    else if (key >= "1" && key <= "9") {
      const listed = this.photo.masks.filter((mask) => mask.state !== "merged");
      if (listed[key - 1]) this.toggle(listed[key - 1].number);
    } else return false;
    return true;
  }
}
