// Questions to the server, and a line for the person where one fails.

export const $ = (id) => document.getElementById(id);

let hiding;
export function say(text, bad = false) {
  const toast = $("toast");
  toast.textContent = text;
  toast.className = bad ? "on bad" : "on";
  clearTimeout(hiding);
  hiding = setTimeout(() => { toast.className = bad ? "bad" : ""; }, bad ? 9000 : 5000);
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the studio does not answer: is it still running?");
  }
  const body = await answer.json();
  if (answer.ok) return body;
  const detail = typeof body.detail === "string" ? body.detail : "the studio refused the request";
  throw new Error(detail);
}

export function get(path, params = {}, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== "" && value !== null) query.append(name, value);
  }
  const text = query.toString();
  return ask(text ? `${path}?${text}` : path, { signal });
}

// Edits go one after another, however fast the keys are.
let last = Promise.resolve();
export function post(path, body = {}) {
  const send = () => ask(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  last = last.then(send, send);
  return last;
}

export function failed(error) {
  if (error.name !== "AbortError") say(error.message, true);
}

export const many = (count, word) =>
  `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
