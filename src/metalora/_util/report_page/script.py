"""The script of a page: a click on a heading, or Enter on it, sorts the table."""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sort(table, headings, column));
  });
}

function sort(table, headings, column) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map(row => [valueOf(row.cells[column]), row]);
  const numbers = rows.every(([value]) => value === "" || !isNaN(value));
  const before = headings[column].getAttribute("aria-sort");
  const rising = before === "none" ? !numbers : before === "descending";
  rows.sort(([first], [second]) => {
    if (first === "" || second === "") return (first === "") - (second === "");
    const order = numbers ? first - second : first.localeCompare(second);
    return rising ? order : -order;
  });
  headings.forEach(heading => heading.setAttribute("aria-sort", "none"));
  headings[column].setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...rows.map(([, row]) => row));
}

function valueOf(cell) {
  return cell.dataset.value ?? cell.textContent.trim();
}
"""
