// The groups, the inputs without a group, and the bar of the selection, drawn from the board.

import { announce, button, byId, counted, element, setChildren } from "./dom.js";
import { answerLines, describe, media } from "./item_view.js";
import { acceptDrops } from "./dragging.js";
import { listKeys } from "./keyboard.js";

const KEYS = 9; // groups that a key selects

/** Draw the board, and draw it again whenever it changes. */
export function showBoard(board, addFiles) {
  const view = new BoardView(board, addFiles);
  board.listen(() => view.draw());
  view.draw();
  return view;
}

class BoardView {
  #sections = new Map(); // by the id of the group
  #options = new Map(); // by the id of the item
  #active = new Map(); // the item that the tab key reaches, by the id of the group (null: the inputs without one)

  constructor(board, addFiles) {
    Object.assign(this, { board, addFiles });
    this.openList = this.#list(null);
    byId("open-list").append(this.openList);
    acceptDrops(byId("open-area"), board, null, addFiles);
    this.#moveOnTap(byId("open-area"), null);
    byId("add-group").addEventListener("click", () => this.#addGroup());
  }

  draw() {
    const { groups } = this.board;
    for (const group of groups) if (!this.#sections.has(group.id)) this.#sections.set(group.id, this.#section(group));
    setChildren(byId("groups"), groups.map((group) => this.#sections.get(group.id).section));
    groups.forEach((group, index) => this.#drawGroup(group, index));
    this.#drawList(this.openList, null, "Inputs without a group");
    this.#drawBar();
    this.#forgetRemoved();
  }

  // ---- groups ----------------------------------------------------------------------------------------------------
  #addGroup() {
    const group = this.board.addGroup();
    this.#sections.get(group.id).name.focus();
  }

  #section(group) {
    const key = element("kbd");
    const error = element("p", { class: "error", id: `name-error-${group.id}` });
    const name = element("input", {
      maxlength: 100, autocomplete: "off", "aria-describedby": error.id,
      oninput: () => this.board.rename(group.id, name.value), onfocus: () => name.select(),
    });
    const count = element("span", { class: "count" });
    const remove = button("×", () => this.#removeGroup(group), { class: "quiet" });
    const need = element("p", { class: "hint" }, "One more example is needed.");
    const list = this.#list(group.id);
    const section = element("section", { class: "group" }, element("div", { class: "title-row" }, key, name, count, remove), error, need, list);
    acceptDrops(section, this.board, group.id, this.addFiles);
    this.#moveOnTap(section, group.id);
    return { section, key, name, count, error, need, remove, list };
  }

  #drawGroup(group, index) {
    const { section, key, name, count, error, need, remove, list } = this.#sections.get(group.id);
    const items = this.board.itemsOf(group.id);
    if (name.value !== group.name) name.value = group.name;
    name.setAttribute("aria-label", `Name of group ${index + 1}`);
    section.setAttribute("aria-label", `Group ${index + 1}: ${group.name}`);
    remove.setAttribute("aria-label", `Remove group ${group.name}`);
    key.textContent = index < KEYS ? index + 1 : "";
    count.textContent = items.length;
    need.hidden = !this.board.needsMore(group);
    error.textContent = this.board.nameError(group);
    name.setAttribute("aria-invalid", String(error.textContent !== ""));
    this.#drawList(list, group.id, `Group ${group.name}, ${counted(items.length, "input")}`);
  }

  #removeGroup(group) {
    this.board.removeGroup(group.id);
    announce(`Group ${group.name} removed.`);
    byId("add-group").focus();
  }

  #moveOnTap(area, groupId) {
    area.addEventListener("click", (event) => {
      if (this.board.selected.size && !event.target.closest("[role=option], button, input")) this.moveSelection(groupId);
    });
  }

  // ---- lists of items --------------------------------------------------------------------------------------------
  #list(groupId) {
    const list = element("div", { role: "listbox", "aria-multiselectable": "true", class: groupId === null ? "open items" : "items" });
    list.setAttribute("aria-describedby", "board-help");
    listKeys(list, this, groupId);
    return list;
  }

  #drawList(list, groupId, label) {
    const items = this.board.itemsOf(groupId);
    list.setAttribute("aria-label", label);
    list.hidden = items.length === 0;
    setChildren(list, items.map((item) => this.#option(item)));
    const active = this.activeOf(groupId);
    for (const item of items) this.#drawOption(item, item === active);
  }

  #option(item) {
    if (!this.#options.has(item.id)) {
      const details = element("span", { class: "details" });
      const option = element("div", { role: "option", class: "item", draggable: "true", title: item.picture ? item.name : false }, media(item), details);
      option.itemId = item.id;
      this.#options.set(item.id, option);
    }
    return this.#options.get(item.id);
  }

  #drawOption(item, active) {
    const option = this.#options.get(item.id);
    option.tabIndex = active ? 0 : -1;
    option.setAttribute("aria-selected", String(this.board.selected.has(item.id)));
    option.setAttribute("aria-label", describe(item));
    option.classList.toggle("wrong", item.error !== "");
    const error = item.error ? [element("span", { class: "error" }, item.error)] : [];
    option.lastChild.replaceChildren(...(item.answer && item.group === null ? answerLines(item.answer) : []), ...error);
  }

  #forgetRemoved() {
    const ids = new Set(this.board.items.map((item) => item.id));
    for (const id of this.#options.keys()) if (!ids.has(id)) this.#options.delete(id);
  }

  /** The item of a list that the tab key reaches. */
  activeOf(groupId) {
    const items = this.board.itemsOf(groupId);
    return items.find((item) => item.id === this.#active.get(groupId)) ?? items[0] ?? null;
  }

  /** Let the tab key reach an item, and give it the focus. */
  focusItem(item) {
    this.#active.set(item.group, item.id);
    this.draw();
    this.#options.get(item.id).focus();
  }

  // ---- the selection ---------------------------------------------------------------------------------------------
  /** The selected items; without any, the one that has the focus. */
  chosen() {
    if (this.board.selected.size) return new Set(this.board.selected);
    const id = document.activeElement?.itemId;
    return new Set(id === undefined ? [] : [id]);
  }

  /** Put the chosen items into a group, and the focus on the next item of the list that had it. */
  moveSelection(groupId) {
    const ids = this.chosen();
    if (!ids.size) return;
    this.#keepFocus(ids, () => this.board.move(ids, groupId));
    const name = this.board.groups.find((group) => group.id === groupId)?.name;
    announce(name === undefined ? `${counted(ids.size, "input")} out of the groups.` : `${counted(ids.size, "input")} put into ${name}.`);
  }

  /** Remove the chosen items from the page. */
  removeSelection() {
    const ids = this.chosen();
    if (!ids.size) return;
    this.#keepFocus(ids, () => this.board.remove(ids));
    announce(`${counted(ids.size, "input")} removed.`);
  }

  #keepFocus(ids, change) {
    const focused = this.board.items.find((item) => item.id === document.activeElement?.itemId);
    const list = focused ? this.board.itemsOf(focused.group) : [];
    const place = list.indexOf(focused);
    const stays = (item) => !ids.has(item.id);
    const next = list.slice(place).find(stays) ?? list.slice(0, Math.max(place, 0)).findLast(stays);
    change();
    if (next) this.focusItem(next);
  }

  #drawBar() {
    const bar = byId("selection-bar");
    const { selected, groups } = this.board;
    bar.hidden = selected.size === 0;
    document.body.classList.toggle("with-bar", !bar.hidden);
    const moves = groups.map((group, index) => {
      const key = index < KEYS ? element("kbd", {}, String(index + 1)) : null;
      return element("button", { type: "button", onclick: () => this.moveSelection(group.id) }, key, ` ${group.name}`);
    });
    const others = [
      button("No group", () => this.moveSelection(null)),
      button("Remove", () => this.removeSelection()),
      button("Clear selection", () => this.board.clearSelection()),
    ];
    bar.replaceChildren(element("span", {}, `${selected.size} selected`), ...moves, ...others);
  }
}
