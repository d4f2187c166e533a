// What can be done with a saved task: predict, add examples, copy a command, delete.

import { announce, button, counted, element } from "./dom.js";
import { linesOf } from "./inputs.js";
import { answerAt, answerLines, describe, media } from "./item_view.js";
import { chosenFiles, isPicture, shrink } from "./pictures.js";
import { inputsOf, putAtItem } from "./requests.js";
import { ask, send } from "./service.js";

const AT_ONCE = 32; // inputs of one request

const address = (task) => `v1/tasks/${encodeURIComponent(task.task)}`;

/** Predict pictures or sentences with a saved task. */
export function predictPanel(task, kind) {
  const results = element("ul", { class: "results" });
  return inputPanel(kind, "Predict", null, results, async (items) => {
    results.replaceChildren();
    for (let start = 0; start < items.length; start += AT_ONCE) {
      const part = items.slice(start, start + AT_ONCE);
      const reply = await atItems(part, async () => ask("POST", `${address(task)}/predict`, { inputs: await inputsOf(part, kind) }));
      part.forEach((item, place) => {
        item.answer = answerAt(reply, place, task.examples);
        results.append(resultRow(item));
      });
    }
    announce(items.map(describe).join(". "));
    return "";
  });
}

function resultRow(item) {
  return element("li", { class: "result" }, media(item), element("span", { class: "details" }, ...answerLines(item.answer)));
}

/** Add examples of one group to a task whose examples are kept. */
export function addPanel(task, kind, list) {
  const label = element("input", { list: `classes-${task.task}`, required: true, autocomplete: "off" });
  const options = element("datalist", { id: `classes-${task.task}` }, ...task.classes.map((name) => element("option", { value: name })));
  const field = element("label", {}, "Group of these examples", label, options);
  return inputPanel(kind, "Add", field, null, async (items) => {
    const body = { inputs: await inputsOf(items, kind), labels: items.map(() => label.value.trim()) };
    list.replace(await atItems(items, () => ask("POST", `${address(task)}/examples`, body)));
    return `${counted(items.length, "example")} added.`;
  });
}

/** A form with a field for inputs; `onItems` does the work and returns what to say. */
function inputPanel(kind, text, field, results, onItems) {
  const pictures = kind === "images";
  const inputs = pictures
    ? element("input", { type: "file", accept: "image/*", multiple: true, required: true })
    : element("textarea", { rows: 3, required: true });
  const message = element("p", { role: "status" });
  const submit = element("button", { type: "submit" }, text);
  const submitted = async (event) => {
    event.preventDefault();
    submit.disabled = true;
    message.className = "hint";
    message.textContent = "Working …";
    try {
      message.textContent = await onItems(pictures ? await readPictures(inputs.files) : readSentences(inputs.value));
    } catch (error) {
      message.className = "error";
      message.textContent = error.message;
    }
    submit.disabled = false;
  };
  const label = element("label", {}, pictures ? "Pictures" : "Sentences, one per line", inputs);
  return element("form", { class: "panel", onsubmit: submitted }, field, label, submit, message, results);
}

async function readPictures(files) {
  const read = async ([file]) => {
    const picture = await shrink(file).catch(() => {
      throw new Error(`${file.name} is not a picture that this browser can read.`);
    });
    return { name: file.name, picture, url: URL.createObjectURL(picture), text: null, error: "" };
  };
  return Promise.all(chosenFiles(files).filter(([file]) => isPicture(file)).map(read));
}

const readSentences = (text) => linesOf(text).map((line) => ({ name: line, text: line, picture: null, error: "" }));

/** Do a request about items; the message of an error begins with the name of the input that it is about. */
async function atItems(items, request) {
  try {
    return await request();
  } catch (error) {
    putAtItem(error, { inputs: items });
    throw error;
  }
}

/** Show and copy a command that predicts with the task. */
export function commandPanel(task, kind) {
  const text = command(task, kind);
  const shown = element("pre", { tabindex: "0", "aria-label": "Command" }, text);
  const copied = element("span", { class: "hint", role: "status" });
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text); // only on https and on this computer
      copied.textContent = " Copied.";
    } catch {
      getSelection().selectAllChildren(shown);
      copied.textContent = " Selected: copy it with your keyboard.";
    }
  };
  const hint = element("p", { class: "hint" }, "Set METALORA_KEY to your key first.");
  return element("div", { class: "panel" }, shown, hint, element("p", {}, button("Copy", copy), copied));
}

function command(task, kind) {
  const start = `curl ${new URL(`${address(task)}/predict`, document.baseURI)} -H "Authorization: Bearer $METALORA_KEY"`;
  if (kind === "images") return `${start} -F images=@picture.jpg`;
  return `${start} -H "Content-Type: application/json" -d '{"inputs": {"texts": ["A sentence."]}}'`;
}

/** Ask once more, and delete the task. */
export function deletePanel(task, list) {
  const confirm = async () => {
    try {
      await send("DELETE", address(task));
      list.remove(task);
      announce("The task is deleted.");
    } catch (error) {
      list.onError(error);
    }
  };
  const question = element("p", {}, "Delete this task? This cannot be undone.");
  return element("div", { class: "panel" }, question, element("p", { class: "buttons" }, button("Delete it", confirm, { class: "danger" })));
}
