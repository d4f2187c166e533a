// The start of the page: the key, then the board of what the service takes.

import { Board } from "./board.js";
import { showBoard } from "./board_view.js";
import { byId, showBanner } from "./dom.js";
import { fileAdder, showInputs } from "./inputs.js";
import { currentKey, removeKey, setKey, takeKeyFromAddress } from "./key.js";
import { pageKeys } from "./keyboard.js";
import { showPreviews } from "./preview.js";
import { saveOnSubmit } from "./saving.js";
import { ask } from "./service.js";
import { showTasks } from "./tasks.js";

let refresh = null; // the work area is set up once; another key goes on with its inputs and its own tasks

async function open() {
  if (!currentKey()) return askForKey("");
  let service;
  try {
    service = await ask("GET", "v1/service");
  } catch (error) {
    return showError(error);
  }
  showBanner("");
  byId("service").textContent = `${service.backbone}, ${service.method}`;
  byId("key-area").hidden = true;
  byId("work-area").hidden = false;
  byId("forget-key").hidden = false;
  await (refresh ? refresh() : start(service.inputs));
}

async function start(kind) {
  const board = new Board();
  board.addGroup();
  board.addGroup();
  const addFiles = fileAdder(board);
  const view = showBoard(board, addFiles);
  pageKeys(view);
  showInputs(kind, board, addFiles);
  showPreviews(board, kind, showError);
  const tasks = showTasks(kind, showError);
  refresh = () => {
    board.changed("inputs");
    return tasks.reload();
  };
  saveOnSubmit(board, kind, (task) => tasks.add(task), showError);
  await tasks.reload();
}

function askForKey(message) {
  byId("work-area").hidden = true;
  byId("forget-key").hidden = true;
  byId("key-area").hidden = false;
  byId("key-error").textContent = message;
  byId("key").focus();
}

function showError(error) {
  if (error.status === 401) {
    removeKey();
    return askForKey("The service does not know this key.");
  }
  const again = error.retryAfter ? ` Trying again in ${error.retryAfter} s.` : "";
  showBanner(error.message + again);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key").value = "";
  open();
});

byId("forget-key").addEventListener("click", () => {
  removeKey();
  location.reload(); // nothing of this key's tasks stays on the page
});

addEventListener("hashchange", () => {
  takeKeyFromAddress();
  open();
});
takeKeyFromAddress();
open();
