// Adding inputs to the board: pictures from files, folders and the clipboard, or sentences.

import { announce, byId, counted, element } from "./dom.js";
import { acceptDragsAndPastes, acceptDrops } from "./dragging.js";
import { chosenFiles, groupOfPath, isPicture, shrink } from "./pictures.js";

/** Return a function that adds files to the board: [file, path] pairs, into a group or null. */
export function fileAdder(board) {
  return async (pairs, groupId) => {
    const inputs = [];
    const unreadable = [];
    for (const [file, path] of inOrder(pairs).filter(([candidate]) => isPicture(candidate))) {
      try {
        inputs.push({ name: file.name, picture: await shrink(file), folder: groupOfPath(path) });
      } catch {
        unreadable.push(`${path} is not a picture that this browser can read.`);
      }
    }
    if (!pairs.some(([file]) => isPicture(file))) unreadable.push("There is no picture among these files.");
    for (const input of inputs) if (groupId === null && input.folder) input.group = groupOfFolder(board, input.folder);
    board.addItems(inputs, groupId);
    byId("unreadable").replaceChildren(...unreadable.map((sentence) => element("li", {}, sentence)));
    announce(`${counted(inputs.length, "picture")} added.`);
  };
}

/** Files of a folder in the order of their names; a browser gives them in any. */
function inOrder(pairs) {
  const fromFolder = pairs.some(([, path]) => path.includes("/"));
  return fromFolder ? [...pairs].sort(([, a], [, b]) => a.localeCompare(b, undefined, { numeric: true })) : pairs;
}

/** Show the field for what the service takes, and add what a person puts in. */
export function showInputs(kind, board, addFiles) {
  const pictures = kind === "images";
  byId("add-title").textContent = pictures ? "1. Add pictures" : "1. Add sentences";
  byId("picture-inputs").hidden = !pictures;
  byId("text-inputs").hidden = pictures;
  if (pictures) takePictures(board, addFiles);
  else takeSentences(board);
}

function takePictures(board, addFiles) {
  for (const id of ["picture-files", "picture-folder"]) {
    byId(id).addEventListener("change", async (event) => {
      await addFiles(chosenFiles(event.target.files), null);
      event.target.value = ""; // the same files can be chosen again
    });
  }
  acceptDrops(byId("picture-inputs"), board, null, addFiles);
  acceptDragsAndPastes(board, addFiles);
}

function takeSentences(board) {
  byId("text-inputs").addEventListener("submit", (event) => {
    event.preventDefault();
    const lines = linesOf(byId("texts").value);
    board.addItems(lines.map((text) => ({ name: text, text })));
    byId("texts").value = "";
    announce(`${counted(lines.length, "sentence")} added.`);
  });
}

/** The lines of a text that are not empty. */
export const linesOf = (text) => text.split(/\r?\n/).map((line) => line.trim()).filter((line) => line !== "");

/** The group of a folder's name; the groups that a fresh page has are used first. */
function groupOfFolder(board, folder) {
  const named = board.groups.find((group) => group.name.trim() === folder);
  if (named) return named.id;
  const unused = board.groups.find((group) => /^group \d+$/.test(group.name) && board.itemsOf(group.id).length === 0 && !group.taken);
  if (!unused) return board.addGroup(folder).id;
  unused.taken = true;
  board.rename(unused.id, folder);
  return unused.id;
}
