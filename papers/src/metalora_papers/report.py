"""Tables, comparisons and plots of result rows, from the rows alone.

A metric is a dotted path into a row's "results" ("per_attribute.hue"). A field is "suite", "seed", "key" or "commit",
or a dotted path into its "config" ("method"). A metric that a row lacks, or has as None, is left out of its group.
"""

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from metalora.bench.palette import PALETTE
from metalora_papers.rows import Row
from metalora_papers.statistics import Summary, bootstrap_interval, holm, paired_t_test, trials

LEGEND_WIDTH = 96  # characters
TOP_LEVEL = ("suite", "seed", "key", "commit")


@dataclass(frozen=True)
class GroupSummary:
    """One metric of one group of runs: the group's field values, the summary over seeds, the value of each seed."""

    group: dict[str, Any]
    metric: str
    summary: Summary
    by_seed: dict[int, float]


@dataclass(frozen=True)
class PairedComparison:
    """A treatment against its best baseline of at least its size, paired by seed.

    `difference` is treatment - baseline with its 95 % bootstrap interval over seeds, `p_value` is that of the
    two-sided paired t-test, `p_holm` the same corrected for all treatments compared together.
    """

    metric: str
    treatment: str
    baseline: str
    treatment_mean: float
    baseline_mean: float
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """A table of text: title, column names, rows of cells."""

    title: str
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


@dataclass
class Report:
    """What the rows of one table say: tables of text, and the comparisons that are in the last of them."""

    tables: list[Table] = field(default_factory=list)
    comparisons: list[PairedComparison] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return {
            "tables": [asdict(table) for table in self.tables],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
        }


def summarise(rows: Sequence[Row], group_by: Sequence[str] = ("method",), *, metric: str) -> list[GroupSummary]:
    """Summarise a metric over the seeds of each group of rows, in the order of the groups' first rows.

    ValueError: no row has the metric, a row lacks a field, a group holds one seed twice (then it mixes several
    settings, and a further field must tell them apart).
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([_field(row, name) for name in group_by]), []).append(row)
    found = []
    for members in groups.values():
        members = [row for row in members if _metric(row, metric) is not None]
        if members:
            group = {name: _field(members[0], name) for name in group_by}
            _check_seeds(group, members)
            members = sorted(members, key=lambda row: row["seed"])
            by_seed = {row["seed"]: _number_of(row, metric) for row in members}
            found.append(GroupSummary(group, metric, bootstrap_interval(_tree(members, metric)), by_seed))
    if not found:
        known = sorted({name for row in rows for name in _metric_names(row["results"])})
        raise ValueError(f"no row has the metric {metric!r}; known: {', '.join(known) or 'none'}")
    return found


def compare_methods(
    rows: Sequence[Row],
    *,
    metric: str,
    treatment_methods: Sequence[str],
    baseline_methods: Sequence[str],
    by: str = "method",
    size: str | None = "num_params",
    higher_is_better: bool = True,
) -> list[PairedComparison]:
    """Compare each treatment with the best of the baselines that have at least as many parameters, paired by seed.

    Best is by the mean over the seeds shared with the treatment; a seed of only one of the two is left out with a
    warning. `by` is the field that names the methods, `size` the metric that counts parameters (None: any baseline
    will do). ValueError: as
    `summarise`, an unknown method, no baseline of that size, fewer than two shared seeds.
    """
    values = {str(found.group[by]): found.by_seed for found in summarise(rows, (by,), metric=metric)}
    sizes = dict.fromkeys(values, 0.0)
    if size is not None:
        sizes = {str(found.group[by]): found.summary.mean for found in summarise(rows, (by,), metric=size)}
    for name in (*treatment_methods, *baseline_methods):
        if name not in values or name not in sizes:
            known = sorted(values.keys() & sizes.keys())
            raise ValueError(f"no row of {by} {name!r} has both {metric!r} and {size!r}; known: {', '.join(known)}")
    sign = 1 if higher_is_better else -1
    pairs = [_compare(name, baseline_methods, values, sizes, metric, sign) for name in treatment_methods]
    corrected = holm({pair.treatment: pair.p_value for pair in pairs})
    return [replace(pair, p_holm=corrected[pair.treatment]) for pair in pairs]


def summary_table(
    rows: Sequence[Row],
    metrics: Sequence[str] | Mapping[str, str],
    *,
    by: str = "method",
    title: str = "",
    percent: bool = False,
) -> Table:
    """Return one line for each value of the field `by`: seeds, then each metric as mean [95 % interval over seeds].

    metrics may map each to a column's name; percent writes fractions as "81.4 ±0.6", half of the interval's width, and
    counts as they are. ValueError: as `summarise`.
    """
    labels = metrics if isinstance(metrics, Mapping) else {name: name for name in metrics}
    columns = [{str(found.group[by]): found for found in summarise(rows, (by,), metric=name)} for name in labels]
    text = _percent_text if percent else _interval_text
    cells = []
    for name in _names(rows, by):
        found = [column.get(name) for column in columns]
        counts = sorted({one.summary.n for one in found if one})
        seeds = "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) if counts else "–"
        cells.append((name, seeds, *(text(one.summary) if one else "–" for one in found)))
    return Table(title, (by, "seeds", *labels.values()), tuple(cells))


def comparison_table(comparisons: Sequence[PairedComparison], *, title: str = "") -> Table:
    """Return a line for each comparison: both means, the difference with its 95 % interval, p before and after Holm."""
    columns = ("metric", "treatment", "baseline", "means", "difference", "p", "p (Holm)", "seeds")
    cells = []
    for one in comparisons:
        means = f"{_number(one.treatment_mean)}, {_number(one.baseline_mean)}"
        difference = f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
        tests = (f"{one.p_value:.2g}", f"{one.p_holm:.2g}", str(len(one.seeds)))
        cells.append((one.metric, one.treatment, one.baseline, means, difference, *tests))
    return Table(title, columns, tuple(cells))


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table to the terminal, or to the console that is given; a pipe or a file gets lines as long as needed."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 30 * len(table.columns))
    drawn = RichTable(title=escape(table.title) or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns:
        drawn.add_column(escape(column), overflow="fold", min_width=max(map(len, column.split() or [""])))
    for cells in table.cells:
        drawn.add_row(*map(escape, cells))
    console.print(drawn)


def write_markdown(tables: Sequence[Table], path: str | Path) -> None:
    """Write tables to a Markdown file, each under its title."""
    blocks = []
    for table in tables:
        lines = [table.columns, ("---",) * len(table.columns), *table.cells]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        blocks.append(f"## {table.title}\n\n{body}" if table.title else body)
    Path(path).write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def plot_bars(
    rows: Sequence[Row],
    metrics: Sequence[str] | Mapping[str, str],
    path: str | Path,
    *,
    by: str = "method",
    title: str = "",
) -> None:
    """Draw the metrics of each method as a group of horizontal bars into a PNG file; metrics may map each to a label.

    A bar is the mean, a whisker its 95 % interval over seeds, a dot one seed; a missing metric leaves a gap.
    ValueError: as `summarise`, no metrics or more of them than the palette has colours.
    """
    from matplotlib.figure import Figure

    if not 1 <= len(metrics) <= len(PALETTE):
        raise ValueError(f"a plot takes 1 to {len(PALETTE)} metrics, not {len(metrics)}")
    labels = metrics if isinstance(metrics, Mapping) else {name: name for name in metrics}
    names = _names(rows, by)
    thickness = 0.8 / len(metrics)
    columns = min(len(metrics), max(1, LEGEND_WIDTH // (8 + max(map(len, labels.values())))))
    height = 1.3 + len(names) * max(0.45, 0.24 * len(metrics)) + 0.22 * math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.add_subplot()
    for index, (metric, label) in enumerate(labels.items()):
        offset = (index - (len(metrics) - 1) / 2) * thickness
        places = {name: place + offset for place, name in enumerate(names)}
        found = {places[str(one.group[by])]: one for one in summarise(rows, (by,), metric=metric)}
        _draw_bars(axes, found, thickness, PALETTE[index], label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlabel("mean, 95 % interval over seeds; one dot per seed")
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, title=title)
    figure.savefig(path, dpi=150, format="png")


def _draw_bars(axes: Any, found: dict[float, GroupSummary], thickness: float, colour: str, label: str) -> None:
    """Draw one metric: a bar at each place, its interval where there is one, its seeds as dots."""
    axes.barh(list(found), [one.summary.mean for one in found.values()], 0.92 * thickness, color=colour, label=label)
    for place, one in found.items():
        if math.isfinite(one.summary.low):
            height = [place - 0.27 * thickness] * 2  # above the dots, which would hide it
            axes.plot([one.summary.low, one.summary.high], height, color="0.1", linewidth=1.5, marker="|", markersize=5)
        seeds = list(one.by_seed.values())
        steps = [(rank + 0.5) / len(seeds) - 0.5 for rank in range(len(seeds))]
        spread = [place + (0.12 + 0.45 * step) * thickness for step in steps]
        axes.scatter(seeds, spread, s=10, facecolor="white", edgecolor="0.1", linewidth=0.6, zorder=4)


def _compare(
    treatment: str,
    baselines: Sequence[str],
    values: dict[str, dict[int, float]],
    sizes: dict[str, float],
    metric: str,
    sign: int,
) -> PairedComparison:
    """Return the comparison of one treatment with its best baseline, not yet Holm-corrected."""
    large = [name for name in baselines if sizes[name] >= sizes[treatment]]
    if not large:
        counts = ", ".join(f"{name} {sizes[name]:,.0f}" for name in baselines)
        raise ValueError(f"no baseline is as large as {treatment} ({sizes[treatment]:,.0f} parameters): {counts}")
    shared = {name: tuple(sorted(values[name].keys() & values[treatment].keys())) for name in large}
    means = {name: sum(values[name][seed] for seed in shared[name]) / max(1, len(shared[name])) for name in large}
    for name in large:
        if len(shared[name]) < 2:
            raise ValueError(f"{treatment} and {name} share {len(shared[name])} seeds of {metric!r}; 2 are needed")
        if lost := sorted(values[name].keys() ^ values[treatment].keys()):
            warnings.warn(f"{metric}: seeds {lost} are in only one of {treatment} and {name}, left out", stacklevel=3)
    best = max(large, key=lambda name: sign * means[name])
    seeds = shared[best]
    ours, theirs = ([values[name][seed] for seed in seeds] for name in (treatment, best))
    test = paired_t_test(ours, theirs)
    interval = bootstrap_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    bounds, p = (test.difference, interval.low, interval.high), test.p_value
    return PairedComparison(metric, treatment, best, sum(ours) / len(ours), means[best], *bounds, p, p, seeds)


def _field(row: Row, name: str) -> Any:
    """Return a field of a row, or raise a ValueError that lists the fields it has."""
    if name in TOP_LEVEL:
        return row[name]
    value = row["config"]
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"a row has no field {name!r}; known: {', '.join([*TOP_LEVEL, *row['config']])}")
        value = value[part]
    return value


def _metric(row: Row, name: str) -> float | None:
    """Return a metric of a row, None if it has none, or raise a ValueError if it is no number."""
    value = row["results"]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is not None and (not _is_number(value)):
        known = ", ".join(_metric_names(row["results"]))
        raise ValueError(f"metric {name!r} is a {type(value).__name__}, not a number; known: {known}")
    return value


def _number_of(row: Row, metric: str) -> float:
    """Return a metric that the row is known to have."""
    value = _metric(row, metric)
    assert value is not None
    return value


def _tree(members: Sequence[Row], metric: str) -> list[Any]:
    """Values by seed, and below each seed by domain or episode and by image, where every row holds them."""
    inner = [
        trials(counts) for row in members for counts in row["results"].get("nested", ()) if counts["metric"] == metric
    ]
    return inner if len(inner) == len(members) else [_metric(row, metric) for row in members]


def _metric_names(results: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all numbers in results."""
    inner = [_metric_names(value, f"{prefix}{name}.") for name, value in results.items() if isinstance(value, dict)]
    return [prefix + name for name, value in results.items() if _is_number(value)] + sum(inner, [])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _names(rows: Sequence[Row], by: str) -> list[str]:
    return list(dict.fromkeys(str(_field(row, by)) for row in rows))


def _check_seeds(group: dict[str, Any], members: Sequence[Row]) -> None:
    """Raise a ValueError if a seed occurs twice in a group, with the fields that differ in it."""
    seed, count = Counter(row["seed"] for row in members).most_common(1)[0]
    if count > 1:
        twins = [row for row in members if row["seed"] == seed]
        fields = {name for row in twins for name in row["config"]}
        differ = [name for name in sorted(fields) if len({repr(row["config"].get(name)) for row in twins}) > 1]
        differ += ["suite"] if len({row["suite"] for row in twins}) > 1 else []
        advice = f"filter or group by what differs: {', '.join(differ)}" if differ else "one run, twice: see `latest`"
        raise ValueError(f"{group} has seed {seed} {count} times; {advice}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3f}"


def _interval_text(summary: Summary) -> str:
    """Return "mean [low, high]", or the mean alone where there is no interval or it has no width."""
    if not summary.low < summary.high:
        return _number(summary.mean)
    return f"{_number(summary.mean)} [{_number(summary.low)}, {_number(summary.high)}]"


def _percent_text(summary: Summary) -> str:
    if abs(summary.mean) > 1 or summary.mean == 0:
        return _number(summary.mean)
    if not summary.low < summary.high:
        return f"{100 * summary.mean:.1f}"
    return f"{100 * summary.mean:.1f} ±{50 * (summary.high - summary.low):.1f}"
