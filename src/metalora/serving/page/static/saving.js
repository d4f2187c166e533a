// Saving the groups of the board as a task.

import { announce, byId } from "./dom.js";
import { examplesOf, inputsOf, putAtItem } from "./requests.js";
import { ask } from "./service.js";

/** Save the board as a task when the form is sent, and call `onSaved` with it. */
export function saveOnSubmit(board, kind, onSaved, onError) {
  const form = byId("save-form");
  let requestKey = null; // the same until something changes, so that a second try makes no second task
  const forget = () => {
    requestKey = null;
  };
  board.listen((what) => ["inputs", "names"].includes(what) && forget());
  form.addEventListener("input", forget);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    requestKey ??= randomKey();
    setBusy(form, true);
    byId("save-error").textContent = "";
    try {
      onSaved(await save(board, kind, requestKey));
      form.reset();
      forget();
    } catch (error) {
      if (error.status === 401) onError(error);
      else byId("save-error").textContent = error.message;
    } finally {
      setBusy(form, false);
    }
  });
}

/** Save all groups: one that is too small is refused by the service, not left out. */
async function save(board, kind, requestKey) {
  const groups = board.groups.filter((group) => board.itemsOf(group.id).length > 0);
  if (groups.some((group) => board.nameError(group) !== "")) throw new Error("Give each group a name of its own.");
  const examples = examplesOf(board, groups);
  const items = examples.map(({ item }) => item);
  const body = {
    inputs: await inputsOf(items, kind),
    labels: examples.map(({ label }) => label),
    kind: "classes",
    name: byId("task-name").value.trim() || null,
    keep_examples: byId("keep-examples").checked,
  };
  try {
    const task = await ask("POST", "v1/tasks", body, { headers: { "Idempotency-Key": requestKey } });
    announce("The task is saved.");
    return task;
  } catch (error) {
    putAtItem(error, { inputs: items });
    board.changed("answers");
    throw error;
  }
}

function setBusy(form, busy) {
  const submit = form.querySelector("button[type=submit]");
  submit.disabled = busy;
  submit.textContent = busy ? "Saving …" : "Save the task";
}

function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
