// Dragging: items of the board into groups, and files from outside.

import { filesOf } from "./pictures.js";
import { itemAt } from "./keyboard.js";

const ITEMS = "application/x-metalora-items"; // the type of a drag that started on this page

/** Let an area take items of the board into a group, and files of the person. */
export function acceptDrops(area, board, groupId, addFiles) {
  area.addEventListener("dragover", (event) => {
    event.preventDefault();
    area.classList.add("over");
  });
  area.addEventListener("dragleave", (event) => {
    if (!area.contains(event.relatedTarget)) area.classList.remove("over");
  });
  area.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    area.classList.remove("over");
    if (event.dataTransfer.types.includes(ITEMS)) board.move(new Set(board.selected), groupId);
    else addFiles(await filesOf(event.dataTransfer), groupId);
  });
}

/** Let items be dragged, and take files that are dropped anywhere else or pasted. */
export function acceptDragsAndPastes(board, addFiles) {
  document.addEventListener("dragstart", (event) => {
    const item = itemAt(board, event.target);
    if (item === null) return;
    if (!board.selected.has(item.id)) {
      board.selected.clear();
      board.select([item.id], true);
    }
    event.dataTransfer.setData(ITEMS, "");
    event.dataTransfer.effectAllowed = "move";
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    addFiles(await filesOf(event.dataTransfer), null);
  });
  document.addEventListener("paste", async (event) => {
    if (event.clipboardData.files.length) addFiles(await filesOf(event.clipboardData), null);
  });
}
