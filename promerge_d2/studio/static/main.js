// The page: sliders and filters, and what is shown of one photograph or of all.

import { $, failed, get, many, post, say } from "/static/api.js";
import { Grid } from "/static/grid.js";
import { Large } from "/static/large.js";

const FILTERS = ["text", "reason", "least", "most", "size", "low", "high", "status", "order"];
const CROWDED = 20; // masks that can be told from each other on one photograph
const BEST = 10; // shown at first where there are more
const MOVES = /^(Arrow|Page|Home|End)/; // keys that a slider takes
let file;
let found = { numbers: [], kept: 0, with_masks: 0 };
const keep = { score: 0, best: null };

const grid = new Grid((place) => large.open(grid.numbers, place).catch(failed));
const large = new Large({
  keep: () => keep,
  changed: (photograph, history) => {
    grid.know(photograph);
    tell(history);
  },
  moved: (place) => { location.replace(`#${grid.numbers[place]}`); },
  closed: (place) => {
    history.replaceState(null, "", location.pathname);
    grid.current = place;
    grid.layOut();
    grid.reveal();
    find(false).catch(failed);
    $("grid").focus({ preventScroll: true });
  },
});

function tell(history) {
  $("undo").disabled = !history.can_undo;
  $("redo").disabled = !history.can_redo;
  $("saved-state").textContent = history.edits
    ? `· ${many(history.edits, "edit")} kept in ${file.log}` : "";
}

let asking;
async function find(toTop) {
  asking?.abort();
  asking = new AbortController();
  const query = { score: keep.score, best: keep.best };
  for (const name of FILTERS) query[name] = $(name).value;
  found = await get("/api/photographs", query, asking.signal);
  tell(found);
  $("found").textContent = `${many(found.numbers.length, "photograph")} shown`
    + (found.numbers.length < file.photographs ? ` of ${file.photographs.toLocaleString("en")}` : "")
    + `, with ${many(found.masks, "mask")} kept · ${found.reviewed.toLocaleString("en")} reviewed`;
  $("kept").textContent = `Kept: ${found.kept.toLocaleString("en")} of ${many(file.masks, "mask")}, on `
    + `${many(found.with_masks, "photograph")}.`;
  grid.show(found.numbers, { ...keep }, toTop);
}

let waiting;
function soon(toTop) {
  clearTimeout(waiting);
  waiting = setTimeout(() => find(toTop).catch(failed), 60);
}

function readSliders() {
  keep.score = Number($("score").value);
  if (keep.score <= Number($("score").min)) keep.score = Math.min(keep.score, file.lowest);
  const best = Number($("best").value);
  keep.best = best >= Number($("best").max) ? null : best;
  $("score-out").textContent = Number($("score").value).toFixed(2);
  $("best-out").textContent = keep.best ?? "all";
  drawHistogram();
}

function drawHistogram() {
  const canvas = $("histogram");
  const ink = canvas.getContext("2d");
  const highest = Math.sqrt(Math.max(1, ...file.histogram)); // roots: the few high ones show
  const [low, high] = [Number($("score").min), Number($("score").max)];
  ink.clearRect(0, 0, canvas.width, canvas.height);
  const width = canvas.width / file.histogram.length;
  file.histogram.forEach((count, bin) => {
    const middle = low + ((bin + 0.5) / file.histogram.length) * (high - low);
    const height = (Math.sqrt(count) / highest) * canvas.height;
    ink.fillStyle = middle >= keep.score ? "#4a86e8" : "#8888";
    ink.fillRect(bin * width, canvas.height - height, Math.max(1, width - 1), height);
  });
}

function clearFilters() {
  for (const name of FILTERS) $(name).value = $(name).tagName === "SELECT" ? $(name).options[0].value : "";
  find(true).catch(failed);
}

function undo() {
  post("/api/undo").then((answer) => after(answer, "undone")).catch(failed);
}

function redo() {
  post("/api/redo").then((answer) => after(answer, "done again")).catch(failed);
}

function after(answer, words) {
  large.take(answer);
  if (!large.isOpen) {
    say(`${words}: ${answer.photograph.name}`);
    find(false).catch(failed);
  }
}

function openSave() {
  const count = () => {
    $("save-count").textContent = `${found.kept.toLocaleString("en")} of ${many(file.masks, "mask")}.`;
  };
  count();
  find(false).then(count).catch(failed);
  $("save-dialog").showModal();
}

function save() {
  $("save-yes").disabled = true;
  $("save-yes").textContent = "Saving …";
  const bar = $("save-bar");
  const poll = setInterval(() => {
    get("/api/save").then(({ written, photographs }) => {
      bar.hidden = false;
      bar.max = photographs;
      bar.value = written;
    }).catch(failed);
  }, 500);
  post("/api/save", { ...keep, accepted_only: $("save-accepted").checked })
    .then(({ file: path, photographs, masks }) => {
      $("save-dialog").close();
      say(`saved ${many(masks, "mask")} on ${many(photographs, "photograph")}: ${path}`);
    })
    .catch(failed)
    .finally(() => {
      clearInterval(poll);
      bar.hidden = true;
      $("save-yes").disabled = false;
      $("save-yes").textContent = "Save";
    });
}

function onKey(event) {
  if (document.querySelector("dialog[open]")) return;
  const kind = event.target.type; // of a field; sliders and boxes leave letters to the page
  const typing = /^(INPUT|SELECT)$/.test(event.target.tagName)
    && !(kind === "range" && !MOVES.test(event.key)) && kind !== "checkbox" && kind !== "radio";
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && !event.altKey) {
    if (typing) return;
    if (key === "z" && !event.shiftKey) undo();
    else if (key === "y" || (key === "z" && event.shiftKey)) redo();
    else return;
    event.preventDefault();
    return;
  }
  if (event.altKey) return;
  if (typing) {
    if (key === "escape") event.target.blur();
    return;
  }
  if (event.target.tagName === "BUTTON" && (key === "enter" || key === " ")) return;
  let used = true;
  if (event.key === "?") $("keys").showModal();
  else if (key === "u") undo();
  else if (large.isOpen) used = large.photo !== null && large.key(event);
  else if (event.key === "/") $("text").focus();
  else used = grid.key(event);
  if (used) event.preventDefault();
}

async function start() {
  file = await get("/api/file");
  document.title = `${file.name} · promerge studio`;
  $("file").textContent = `${file.name} · ${many(file.photographs, "photograph")}, ${many(file.masks, "mask")}`;
  $("file").title = file.made_by;
  grid.version = large.version = file.version;
  Object.assign($("score"), {
    min: Math.floor(100 * Math.min(0, file.lowest)) / 100,
    max: Math.ceil(100 * Math.max(file.highest, 0.01)) / 100,
  });
  $("score").value = $("score").min;
  const most = Math.max(file.most, 1);
  Object.assign($("best"), { max: most, value: most > CROWDED ? BEST : most });
  for (const [reason, count] of file.reasons) {
    $("reason").append(new Option(`${reason} (${count.toLocaleString("en")})`, reason));
  }
  large.stages.describe(file.stages);
  readSliders();
  for (const name of ["score", "best"]) {
    $(name).oninput = () => { readSliders(); grid.keep = { ...keep }; soon(false); };
  }
  for (const name of FILTERS) $(name).oninput = () => soon(true);
  $("clear").onclick = $("clear-too").onclick = clearFilters;
  $("undo").onclick = undo;
  $("redo").onclick = redo;
  $("help").onclick = () => $("keys").showModal();
  $("keys-close").onclick = () => $("keys").close();
  $("save").onclick = openSave;
  $("save-no").onclick = () => $("save-dialog").close();
  $("save-yes").onclick = save;
  document.addEventListener("keydown", onKey);
  await find(true);
  const place = location.hash ? grid.numbers.indexOf(Number(location.hash.slice(1))) : -1;
  if (place >= 0) await large.open(grid.numbers, place);
  else $("grid").focus({ preventScroll: true });
  document.body.dataset.ready = "yes";
}

start().catch(failed);
