// The inputs of the board as the service takes them.

import { base64 } from "./pictures.js";

/** Return {"images": [...]} or {"texts": [...]} of items. */
export async function inputsOf(items, kind) {
  if (kind === "texts") return { texts: items.map((item) => item.text) };
  return { images: await Promise.all(items.map(encoded)) };
}

/** The items of groups, each with its label. */
export function examplesOf(board, groups) {
  return groups.flatMap((group) => board.itemsOf(group.id).map((item) => ({ item, label: group.name.trim() })));
}

const cache = new WeakMap(); // the base64 text of each picture: every preview sends them all

async function encoded(item) {
  if (!cache.has(item.picture)) cache.set(item.picture, await base64(item.picture));
  return cache.get(item.picture);
}

/**
 * Put an error at the input that it is about, if there is one, and let its message begin with the input's name.
 * `lists` are the inputs as they were sent: {"inputs": items, "queries": items}.
 */
export function putAtItem(error, lists) {
  if (!error.place) return;
  const [list, index] = error.place;
  const item = lists[list]?.[index];
  if (!item) return;
  item.error = error.message.replace(`${error.field}: `, "");
  error.message = `${item.name}: ${item.error}`;
}
