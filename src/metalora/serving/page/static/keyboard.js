// The keys and the taps of the lists.

/** Move, select and extend the selection in a list by keys and taps. */
export function listKeys(list, view, groupId) {
  let anchor = null; // where a range of the selection starts
  const { board } = view;

  const selectTo = (item) => {
    const items = board.itemsOf(groupId);
    const from = items.findIndex((other) => other.id === anchor);
    const ends = [from < 0 ? items.indexOf(item) : from, items.indexOf(item)].sort((a, b) => a - b);
    board.select(items.slice(ends[0], ends[1] + 1).map((other) => other.id), true);
  };
  const toggle = (item) => {
    anchor = item.id;
    board.select([item.id], !board.selected.has(item.id));
  };

  list.addEventListener("click", (event) => {
    const item = itemAt(board, event.target);
    if (item === null) return;
    view.focusItem(item);
    event.shiftKey ? selectTo(item) : toggle(item);
  });

  list.addEventListener("keydown", (event) => {
    const item = itemAt(board, event.target);
    if (item === null || event.altKey) return;
    const next = neighbour(list, board.itemsOf(groupId), item, event.key);
    if (next) {
      if (event.shiftKey) anchor ??= item.id;
      view.focusItem(next);
      if (event.shiftKey) selectTo(next);
    } else if (event.key === " ") toggle(item);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) board.select(board.itemsOf(groupId).map(({ id }) => id), true);
    else return;
    event.preventDefault();
  });
}

/** The keys of the whole page: a number puts the selection into that group, 0 takes it out. */
export function pageKeys(view) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    const group = view.board.groups[Number(event.key) - 1];
    if (/^[1-9]$/.test(event.key) && group) view.moveSelection(group.id);
    else if (event.key === "0") view.moveSelection(null);
    else if (event.key === "Delete" || event.key === "Backspace") view.removeSelection();
    else if (event.key === "Escape") view.board.clearSelection();
    else return;
    event.preventDefault();
  });
}

/** The item whose element contains a node; null if there is none. */
export function itemAt(board, node) {
  const option = node.closest("[role=option]");
  return (option && board.items.find((item) => item.id === option.itemId)) ?? null;
}

function neighbour(list, items, item, key) {
  const place = items.indexOf(item);
  if (key === "ArrowRight") return items[place + 1] ?? item;
  if (key === "ArrowLeft") return items[place - 1] ?? item;
  if (key === "Home") return items[0];
  if (key === "End") return items.at(-1);
  if (key === "ArrowDown" || key === "ArrowUp") return items[nextRow(list, place, key === "ArrowDown" ? 1 : -1)];
  return null;
}

/** The place in the next row that lies nearest below or above. */
function nextRow(list, place, step) {
  const options = [...list.children];
  const { offsetTop, offsetLeft } = options[place];
  let row = place;
  while (options[row]?.offsetTop === offsetTop) row += step;
  if (!options[row]) return place;
  let best = row;
  for (let other = row; options[other]?.offsetTop === options[row].offsetTop; other += step) {
    if (Math.abs(options[other].offsetLeft - offsetLeft) < Math.abs(options[best].offsetLeft - offsetLeft)) best = other;
  }
  return best;
}
