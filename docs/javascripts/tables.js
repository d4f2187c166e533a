// Tables of eight rows and more sort by a click on a heading; those of thirty and more, and long lists, have a filter.
"use strict";

const ROWS_TO_SORT = 8;
const ROWS_TO_FILTER = 30;

function numberIn(text) {
  const number = Number.parseFloat(text.replaceAll(",", ""));
  return /^[-−+~<>]?\s*\d/.test(text) && !Number.isNaN(number) ? number : null;
}

function compared(first, second) {
  const [a, b] = [numberIn(first), numberIn(second)];
  if (a !== null && b !== null) return a - b;
  if ((a === null) !== (b === null)) return a === null ? 1 : -1; // numbers come before words
  return first.localeCompare(second, "en", { numeric: true });
}

function sortRows(table, column, isDescending) {
  const body = table.tBodies[0];
  const text = (row) => row.cells[column]?.textContent.trim() ?? "";
  const rows = [...body.rows].sort((a, b) => compared(text(a), text(b)) * (isDescending ? -1 : 1));
  body.append(...rows);
}

function addSorting(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    if (heading.textContent.trim() === "") return;
    const button = document.createElement("button");
    button.className = "sort";
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const isDescending = heading.ariaSort === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.ariaSort = isDescending ? "descending" : "ascending";
      sortRows(table, column, isDescending);
    });
  });
}

function filterField(name, items, place) {
  const field = document.createElement("input");
  const count = document.createElement("output");
  const line = document.createElement("div");
  field.type = "search";
  field.placeholder = `Filter ${name}`;
  field.ariaLabel = field.placeholder;
  line.className = "filter";
  line.append(field, count);
  place.before(line);
  const texts = items.map((item) => item.textContent.toLowerCase());
  const show = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const isShown = texts.map((text) => words.every((word) => text.includes(word)));
    items.forEach((item, k) => (item.hidden = !isShown[k]));
    count.textContent = `${isShown.filter(Boolean).length} of ${items.length}`;
  };
  field.addEventListener("input", show);
  show();
}

function headingAbove(element) {
  let before = element.previousElementSibling;
  while (before && !/^H[1-6]$/.test(before.tagName)) before = before.previousElementSibling;
  return before?.firstChild?.textContent.trim() ?? document.title;
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".md-typeset table:not(.highlighttable)")) {
    const rows = [...(table.tBodies[0]?.rows ?? [])];
    const outer = table.closest(".md-typeset__scrollwrap") ?? table;
    if (rows.length >= ROWS_TO_FILTER) filterField(`the rows of ${headingAbove(outer)}`, rows, outer);
    if (rows.length >= ROWS_TO_SORT && table.tHead) addSorting(table);
  }
  for (const list of document.querySelectorAll(".md-content article > ul")) {
    const items = [...list.children];
    if (items.length >= ROWS_TO_FILTER) filterField(`the list below ${headingAbove(list)}`, items, list);
  }
});
