"""The page of an evaluation: one file with its style and its script, so that it needs no network."""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #2a78d6; --bad: #c0392b; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
.verdict { border-left: 4px solid var(--accent); padding: .4rem .9rem; background: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.sorts th { cursor: pointer; } table.sorts th::after { content: " \\2195"; opacity: .4; }
tr.ours { font-weight: 600; background: var(--soft); } td.best { color: var(--accent); font-weight: 600; }
.note { opacity: .75; font-size: .9rem; }
.tasks { display: flex; flex-wrap: wrap; gap: 2rem; }
.neighbours td, .neighbours th { text-align: left; vertical-align: top; white-space: normal; }
figure { display: inline-block; margin: 0 .4rem .4rem 0; text-align: center; font-size: .75rem; max-width: 11rem; }
figure img { display: block; height: 56px; margin: 0 auto; image-rendering: auto; border: 3px solid transparent; }
figure blockquote { margin: 0; padding: .3rem .5rem; text-align: left; border: 2px solid var(--line); }
figure.right img, figure.right blockquote { border-color: var(--accent); }
figure.wrong img, figure.wrong blockquote { border-color: var(--bad); }
svg text { fill: currentColor; font-size: 11px; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="verdict">$verdict</p>
<p class="note">$note</p>
<h2>Methods</h2>
<div class="scroll">$methods</div>
<h2>Tasks</h2>
<p class="note">Accuracy in per cent, with half of the 95 % interval over the episodes. Click a heading to sort.</p>
<div class="scroll">$tasks</div>
<h2>Are the probabilities right?</h2>
<p class="note">Among predictions of a probability, the share that is right. On the diagonal both are equal; the area
of a point is the number of predictions. Expected calibration error $calibration_error.</p>
$calibration
<h2>What is taken for what</h2>
<p class="note">One episode of each task: rows are true classes, columns are predictions.</p>
<div class="tasks">$confusions</div>
<h2>Nearest labelled examples, before and after</h2>
<p class="note">Before: the last layer of the frozen network. After: the embedding of the task. A blue frame has the
class of the query, a red one another class.</p>
$neighbours
<script>
for (const table of document.querySelectorAll("table.sorts")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const falling = heading.dataset.order !== "falling";
    headings.forEach(other => delete other.dataset.order);
    heading.dataset.order = falling ? "falling" : "rising";
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return falling ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
</script>
</body>
</html>
""")
