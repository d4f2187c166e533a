// The preview: each time the labels change, the service adapts to the examples and predicts the others.

import { announce, byId, counted, element, percent, showBanner } from "./dom.js";
import { answerAt, EXAMPLES_FOR_MARKS } from "./item_view.js";
import { examplesOf, inputsOf, putAtItem } from "./requests.js";
import { ask } from "./service.js";

const WAIT = { inputs: 120, names: 400 }; // milliseconds after the last change; a name is typed letter by letter
const MOST_QUERIES = 60; // inputs that are predicted at once
const NEIGHBOURS = 3;

/** Ask for a preview whenever the inputs or their labels change. */
export function showPreviews(board, kind, onError) {
  let timer = null;
  let running = new AbortController();
  const start = (wait) => {
    clearTimeout(timer);
    running.abort();
    running = new AbortController();
    const { signal } = running;
    timer = setTimeout(() => preview(board, kind, signal).catch((error) => failed(error, signal)), wait);
  };
  const failed = (error, signal) => {
    if (signal.aborted) return;
    clearAnswers(board);
    byId("open-hint").textContent = "";
    byId("accuracy").replaceChildren(element("p", { class: "hint" }, "Not known: see the message at the top."));
    board.changed("answers");
    onError(error);
    if (error.retryAfter) start(1000 * error.retryAfter);
  };
  board.listen((what) => what in WAIT && start(WAIT[what]));
  start(0);
}

async function preview(board, kind, signal) {
  const usable = board.groups.filter((group) => board.nameError(group) === "" && !board.needsMore(group));
  const examples = examplesOf(board, usable);
  const queries = board.itemsOf(null).slice(0, MOST_QUERIES);
  clearErrors(board);
  if (new Set(examples.map(({ label }) => label)).size < 2) return showNothing(board);
  byId("open-list").setAttribute("aria-busy", "true");
  const items = examples.map(({ item }) => item);
  const reply = await askPreview(items, examples, queries, kind, signal).catch((error) => {
    putAtItem(error, { inputs: items, queries });
    throw error;
  });
  if (signal.aborted) return;
  showBanner("");
  showAnswers(board, reply, examples, queries);
}

async function askPreview(items, examples, queries, kind, signal) {
  const body = {
    inputs: await inputsOf(items, kind),
    labels: examples.map(({ label }) => label),
    queries: await inputsOf(queries.length ? queries : items.slice(0, 1), kind), // the service wants one at least
    kind: "classes",
    neighbours: Math.min(NEIGHBOURS, items.length),
  };
  return ask("POST", "v1/preview", body, { signal });
}

function clearErrors(board) {
  for (const item of board.items) item.error = "";
  board.changed("answers");
}

/** Take all predictions away: those of other labels would be wrong. */
function clearAnswers(board) {
  for (const item of board.items) item.answer = null;
  byId("open-list").removeAttribute("aria-busy");
}

function showNothing(board) {
  clearAnswers(board);
  showBanner("");
  byId("open-hint").textContent = "Put two inputs or more into each of two groups. The others are then predicted at once.";
  byId("accuracy").replaceChildren(element("p", { class: "hint" }, "Shown as soon as two groups have examples."));
  board.changed("answers");
}

function showAnswers(board, reply, examples, queries) {
  clearAnswers(board);
  queries.forEach((item, place) => {
    const neighbours = reply.neighbours[place].map(({ example }) => ({ ...examples[example].item, groupName: examples[example].label }));
    const frozen = answerAt(reply.frozen, place, examples.length).label;
    item.answer = { ...answerAt(reply.adapted, place, examples.length), frozen, neighbours };
  });
  showAccuracy(reply);
  const left = board.itemsOf(null).length - queries.length;
  byId("open-hint").textContent = openHint(queries.length, left, examples.length);
  board.changed("answers");
}

function openHint(shown, left, examples) {
  if (shown === 0) return "Inputs that you leave out of the groups are predicted here.";
  const more = left > 0 ? ` ${counted(left, "further input")} will be predicted when you label or remove some.` : "";
  const marks = examples < EXAMPLES_FOR_MARKS ? ` From ${EXAMPLES_FOR_MARKS} examples on, inputs unlike them are marked.` : "";
  return `A wrong prediction? Put the input into its group.${marks}${more}`;
}

function showAccuracy(reply) {
  const adapted = reply.adapted.accuracy;
  const frozen = reply.frozen.accuracy;
  if (adapted === null) {
    byId("accuracy").replaceChildren(element("p", { class: "hint" }, "More examples are needed for an estimate."));
    return;
  }
  byId("accuracy").replaceChildren(
    element("p", { class: "hint" }, "Your examples, each predicted from the others:"),
    ...bar("Adapted network", adapted),
    ...(frozen === null ? [] : bar("Frozen network", frozen)),
  );
  announce(`Accuracy ${percent(adapted)}${frozen === null ? "" : `; frozen network ${percent(frozen)}`}.`);
}

function bar(name, share) {
  const value = element("span", {}, percent(share));
  return [element("div", { class: "bar" }, element("span", {}, name), value, element("meter", { min: 0, max: 1, value: share, "aria-label": name }))];
}
