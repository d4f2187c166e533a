// The inputs of a person, their groups, and which of them are selected.

const LEAST = 2; // examples that a group needs before it can be learnt

/**
 * Inputs and groups. A change calls every listener with what has changed: "inputs" (inputs or their
 * groups), "names" (of groups), "selection", or "answers".
 */
export class Board {
  #listeners = [];
  #numbers = 0;

  constructor() {
    this.items = []; // {id, name, picture, url, text, group, error, answer}
    this.groups = []; // {id, name}
    this.selected = new Set(); // ids of items
  }

  listen(listener) {
    this.#listeners.push(listener);
  }

  changed(what) {
    for (const listener of this.#listeners) listener(what);
  }

  // ---- groups ----------------------------------------------------------------------------------------------------
  addGroup(name = null) {
    const group = { id: ++this.#numbers, name: name ?? this.#freeName() };
    this.groups.push(group);
    this.changed("inputs");
    return group;
  }

  groupNamed(name) {
    return this.groups.find((group) => group.name.trim() === name.trim()) ?? this.addGroup(name);
  }

  removeGroup(id) {
    this.groups = this.groups.filter((group) => group.id !== id);
    for (const item of this.items) if (item.group === id) item.group = null;
    this.changed("inputs");
  }

  rename(id, name) {
    this.groups.find((group) => group.id === id).name = name;
    this.changed("names");
  }

  /** What is wrong with the name of a group; an empty text if nothing is. */
  nameError(group) {
    const name = group.name.trim();
    if (!name) return "Give the group a name.";
    const first = this.groups.find((other) => other.name.trim() === name);
    return first === group ? "" : "Another group has this name.";
  }

  /** Whether a group has examples, but too few. */
  needsMore(group) {
    const count = this.itemsOf(group.id).length;
    return count > 0 && count < LEAST;
  }

  #freeName() {
    let number = this.groups.length + 1;
    while (this.groups.some((group) => group.name === `group ${number}`)) number += 1;
    return `group ${number}`;
  }

  // ---- items -----------------------------------------------------------------------------------------------------
  /** Add inputs: each with a name, and a picture or a text. */
  addItems(inputs, group = null) {
    for (const input of inputs) {
      const url = input.picture ? URL.createObjectURL(input.picture) : null;
      const item = { text: null, picture: null, ...input, id: ++this.#numbers, url, error: "", answer: null };
      item.group = input.group ?? group;
      this.items.push(item);
    }
    this.changed("inputs");
  }

  itemsOf(groupId) {
    return this.items.filter((item) => item.group === groupId);
  }

  /** Put items into a group; null takes them out of theirs. */
  move(ids, groupId) {
    const moved = this.items.filter((item) => ids.has(item.id));
    for (const item of moved) Object.assign(item, { group: groupId, answer: null });
    this.items = [...this.items.filter((item) => !ids.has(item.id)), ...moved];
    this.selected.clear();
    this.changed("inputs");
  }

  remove(ids) {
    for (const item of this.items) if (ids.has(item.id) && item.url) URL.revokeObjectURL(item.url);
    this.items = this.items.filter((item) => !ids.has(item.id));
    for (const id of ids) this.selected.delete(id);
    this.changed("inputs");
  }

  select(ids, chosen) {
    for (const id of ids) chosen ? this.selected.add(id) : this.selected.delete(id);
    this.changed("selection");
  }

  clearSelection() {
    this.selected.clear();
    this.changed("selection");
  }
}
