// The list of the saved tasks.

import { announce, button, byId, counted, element, percent } from "./dom.js";
import { addPanel, commandPanel, deletePanel, predictPanel } from "./task_panels.js";
import { ask, send } from "./service.js";

const PAGE = 20; // tasks of one request

/** The list of the saved tasks; `reload` fills it, and `add` puts a new one in. */
export const showTasks = (kind, onError) => new TaskList(kind, onError);

class TaskList {
  #next = null;

  constructor(kind, onError) {
    Object.assign(this, { kind, onError });
    this.tasks = [];
    this.open = new Map(); // the panel that is open below a task, by the id of the task
  }

  /** Show the tasks of the present key. */
  async reload() {
    this.#next = null;
    this.tasks = [];
    this.open.clear();
    await this.load();
  }

  async load() {
    const after = this.#next === null ? "" : `&after=${encodeURIComponent(this.#next)}`;
    try {
      const reply = await ask("GET", `v1/tasks?limit=${PAGE}${after}`);
      const known = new Set(this.tasks.map(({ task }) => task));
      this.tasks.push(...reply.tasks.filter(({ task }) => !known.has(task)));
      this.#next = reply.next;
    } catch (error) {
      this.onError(error);
    }
    this.draw();
  }

  add(task) {
    this.tasks = [task, ...this.tasks.filter((other) => other.task !== task.task)];
    this.draw();
  }

  /** Put the new version of a task in the place of the old one. */
  replace(task) {
    this.tasks = this.tasks.map((other) => (other.task === task.task ? task : other));
    this.draw();
  }

  remove(task) {
    this.tasks = this.tasks.filter((other) => other.task !== task.task);
    this.open.delete(task.task);
    this.draw();
    byId("tasks-title").focus();
  }

  draw() {
    const entries = this.tasks.map((task) => this.#entry(task));
    if (!entries.length) entries.push(element("p", { class: "hint" }, "None yet."));
    if (this.#next !== null) entries.push(button("Show more", () => this.load()));
    byId("tasks").replaceChildren(...entries);
  }

  #entry(task) {
    const title = task.name ?? task.task;
    const place = element("div", {}, ...(this.open.has(task.task) ? [this.open.get(task.task)] : []));
    const toggle = (text, makePanel) => button(text, () => this.#toggle(task, text, makePanel, place), { "aria-label": `${text}: ${title}` });
    const buttons = [
      toggle("Predict", () => predictPanel(task, this.kind)),
      task.keep_examples ? toggle("Add examples", () => addPanel(task, this.kind, this)) : null,
      button("Download", () => this.#download(task), { "aria-label": `Download: ${title}` }),
      toggle("Command", () => commandPanel(task, this.kind)),
      toggle("Delete", () => deletePanel(task, this)),
    ];
    return element("article", { class: "task" }, element("h3", {}, title), element("p", { class: "hint" }, summary(task)), element("p", { class: "buttons" }, ...buttons), place);
  }

  #toggle(task, text, makePanel, place) {
    const old = this.open.get(task.task);
    this.open.delete(task.task);
    place.replaceChildren();
    if (old?.dataset.name === text) return;
    const panel = makePanel();
    panel.dataset.name = text;
    this.open.set(task.task, panel);
    place.append(panel);
    panel.querySelector("input, textarea, button")?.focus();
  }

  async #download(task) {
    try {
      const response = await send("GET", `v1/tasks/${encodeURIComponent(task.task)}/file`);
      const url = URL.createObjectURL(await response.blob());
      element("a", { href: url, download: `${task.name ?? task.task}.safetensors` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
      announce("The task file is downloaded.");
    } catch (error) {
      this.onError(error);
    }
  }
}

function summary(task) {
  const classes = task.classes.map(String).join(", ");
  const accuracy = task.accuracy === null ? "" : `, ${percent(task.accuracy)} right`;
  const version = task.version > 1 ? `, version ${task.version}` : "";
  return `${classes}: ${counted(task.examples, "example")}${accuracy}, ${(task.bytes / 1000).toFixed(1)} kB${version}`;
}
