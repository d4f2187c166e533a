"""Tables, comparisons and plots of result rows, from the rows alone.

A metric is a dotted path into a row's "results" ("per_attribute.hue"). A field is "suite", "seed", "key" or "commit",
or a dotted path into its "config" ("method"). A metric that a row lacks, or has as None, is left out of its group.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from metalora._util.files import write_atomically, write_figure
from metalora.bench.palette import PALETTE
from metalora.cli.table_output import draws_tables, print_cells
from metalora_papers.rows import Row
from metalora_papers.statistics import (
    Summary,
    bootstrap_interval,
    holm,
    is_significant,
    margin_of_error,
    paired_t_test,
    trials,
)

LEGEND_WIDTH = 96  # characters
TOP_LEVEL = ("suite", "seed", "key", "commit")
COUNTS = ("num_params", "seconds", "milliseconds")  # metrics that are never percentages, however small


@dataclass(frozen=True)
class GroupSummary:
    """One metric of one group of runs.

    Attributes:
        group: The value of each field that defines the group.
        metric: The metric.
        summary: Mean, deviation and interval over the seeds.
        by_seed: The value of each seed.
    """

    group: dict[str, Any]
    metric: str
    summary: Summary
    by_seed: dict[int, float]


@dataclass(frozen=True)
class PairedComparison:
    """A treatment against its best baseline of at least its size, paired by seed.

    Attributes:
        metric: The metric that is compared.
        treatment: The method that is measured.
        baseline: The method that it is measured against.
        treatment_mean: Mean of the treatment over the seeds.
        baseline_mean: Mean of the baseline over the same seeds.
        difference: Mean of treatment - baseline.
        low: Lower bound of the 95 % bootstrap interval of the difference over seeds.
        high: Upper bound of that interval.
        p_value: Of the two-sided paired t-test; None if all differences are equal.
        p_holm: The same, corrected for all treatments that are compared together.
        seeds: The seeds that both methods have.
    """

    metric: str
    treatment: str
    baseline: str
    treatment_mean: float
    baseline_mean: float
    difference: float
    low: float
    high: float
    p_value: float | None
    p_holm: float | None
    seeds: tuple[int, ...]

    @property
    def is_better(self) -> bool:
        """Whether the treatment gets a star: significantly above the baseline, before the correction."""
        return self.difference > 0 and is_significant(self.p_value, len(self.seeds))


@dataclass(frozen=True)
class Difference:
    """A method against another one, paired by seed and episode.

    Attributes:
        metric: The metric that is compared.
        treatment: The method that is measured.
        reference: The method that it is measured against.
        difference: Mean over seeds of the mean over episodes of treatment - reference.
        low: Lower bound of the 95 % bootstrap interval over seeds and, within each, episodes; None for one episode.
        high: Upper bound, likewise.
        seeds: Number of seeds that both methods have.
        episodes: Number of episodes that both have, over all seeds.
    """

    metric: str
    treatment: str
    reference: str
    difference: float
    low: float | None
    high: float | None
    seeds: int
    episodes: int


@dataclass(frozen=True)
class Table:
    """A table of text: title, column names, rows of cells, each row as long as `columns`, and a note below."""

    title: str
    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass
class Report:
    """What the rows of one table say: tables of text, and the numbers of the comparisons that are in the last ones."""

    tables: list[Table] = field(default_factory=list)
    comparisons: list[PairedComparison] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return {
            "tables": [asdict(table) for table in self.tables],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "differences": [asdict(difference) for difference in self.differences],
        }


def summarise(rows: Sequence[Row], group_by: Sequence[str] = ("method",), *, metric: str) -> list[GroupSummary]:
    """Summarise a metric over the seeds of each group of rows, in the order of the groups' first rows.

    Args:
        rows: Result rows.
        group_by: The fields whose values define a group.
        metric: The metric; rows without it are left out.

    Returns:
        A summary for each group that has the metric.

    Raises:
        ValueError: No row has the metric, a row lacks a field, or a group has a seed twice. A seed that occurs twice
            means that the group mixes several settings, and a further field must distinguish them.
    """
    summaries = []
    for members in _groups(rows, group_by, metric):
        group = {name: _field(members[0], name) for name in group_by}
        # The interval with its thousands of draws is the slow part: a comparison, which needs none, does without.
        interval = bootstrap_interval(_tree(members, metric))
        summaries.append(GroupSummary(group, metric, interval, _by_seed(members, metric)))
    return summaries


def _groups(rows: Sequence[Row], group_by: Sequence[str], metric: str) -> list[list[Row]]:
    """Return the rows that have the metric, group by group and by seed in each; ValueErrors as `summarise`."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        # repr, because the value of a field may be a list, which cannot be a key.
        key = repr([_field(row, name) for name in group_by])
        members = groups.setdefault(key, [])
        if _metric(row, metric) is not None:
            members.append(row)
    with_metric = [members for members in groups.values() if members]
    if not with_metric:
        metrics = sorted({name for row in rows for name in _metric_names(row["results"])})
        raise ValueError(f"no row has the metric {metric!r}; known: {', '.join(metrics) or 'none'}")
    for members in with_metric:
        _check_seeds({name: _field(members[0], name) for name in group_by}, members)
        # The bootstrap draws seeds by position: sorted, the interval does not depend on the order of a file's rows.
        members.sort(key=lambda row: row["seed"])
    return with_metric


def _by_seed(members: Sequence[Row], metric: str) -> dict[int, float]:
    """Return the metric of rows of one group by their seeds."""
    return {row["seed"]: _number_of(row, metric) for row in members}


def _values_by_seed(rows: Sequence[Row], by: str, metric: str) -> dict[str, dict[int, float]]:
    """Return the metric by seed for each value of the field."""
    return {str(_field(members[0], by)): _by_seed(members, metric) for members in _groups(rows, (by,), metric)}


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

    The best is that of the best mean over the seeds shared with the treatment. A seed that only one of the two methods
    has is left out with a warning, and so is a pair with fewer than two shared seeds: a table that was cut off is
    printed with the comparisons that its rows allow.

    Args:
        rows: Result rows.
        metric: The metric to compare.
        treatment_methods: The methods that are measured.
        baseline_methods: The methods that they are measured against.
        by: The field that names the methods.
        size: The metric that counts parameters; None if any baseline will do.
        higher_is_better: False for a metric such as a loss.

    Returns:
        A comparison for each treatment that shares seeds with a baseline, with p-values corrected for all of them.

    Raises:
        ValueError: As `summarise`; an unknown method, no baseline of that size.
    """
    values = _values_by_seed(rows, by, metric)
    sizes = dict.fromkeys(values, 0.0)
    if size is not None:
        sizes = {name: _mean(list(by_seed.values())) for name, by_seed in _values_by_seed(rows, by, size).items()}
    for name in (*treatment_methods, *baseline_methods):
        if name not in values or name not in sizes:
            methods = ", ".join(sorted(values.keys() & sizes.keys()))
            raise ValueError(f"no row of {by} {name!r} has both {metric!r} and {size!r}; known: {methods}")
    sign = 1 if higher_is_better else -1
    pairs = [_compare(name, baseline_methods, values, sizes, metric, sign) for name in treatment_methods]
    # The family of Holm's correction is all treatments of this call: to compare them in several calls is no correction.
    return _corrected([pair for pair in pairs if pair is not None])


def _corrected(pairs: Sequence[PairedComparison]) -> list[PairedComparison]:
    """Return the comparisons with p-values corrected for all of them; one without a p-value counts in the family."""
    p_values = {pair.treatment: 1.0 if pair.p_value is None else pair.p_value for pair in pairs}
    corrected = holm(p_values)
    return [pair if pair.p_value is None else replace(pair, p_holm=corrected[pair.treatment]) for pair in pairs]


def summary_table(
    rows: Sequence[Row],
    metrics: Sequence[str] | Mapping[str, str],
    *,
    by: str = "method",
    title: str = "",
    percent: bool = False,
    note: str = "",
) -> Table:
    """Make a table with one line for each value of a field: its seeds, then each metric with its interval over seeds.

    Args:
        rows: Result rows.
        metrics: The metrics, or a mapping from each metric to the name of its column.
        by: The field whose values are the lines.
        title: Title of the table.
        percent: Write fractions as "81.4 ±0.6", with half of the width of the 95 % interval, and counts as they are.
            By default a cell is "mean [low, high]".
        note: A remark below the table.

    Returns:
        The table; a cell without the metric is a dash.

    Raises:
        ValueError: As `summarise`.
    """
    labels = _labels(metrics)
    columns = [_by_value(summarise(rows, (by,), metric=metric), by) for metric in labels]
    writers = [_writer(metric, percent) for metric in labels]
    lines = []
    for name in _names(rows, by):
        summaries = [column[name].summary if name in column else None for column in columns]
        cells = [write(summary) if summary else "–" for write, summary in zip(writers, summaries, strict=True)]
        lines.append((name, _seeds_text(summaries), *cells))
    return Table(title, (by, "seeds", *labels.values()), tuple(lines), note)


def margin_table(
    rows: Sequence[Row], metrics: Mapping[str, str], *, by: str = "method", title: str = "", note: str = ""
) -> Table:
    """Make a table of the margins of error over seeds, in per cent (MetaTT, arXiv:2506.09105, eq. 7, Table 15).

    Args:
        rows: Result rows.
        metrics: A mapping from each metric, which is a fraction, to the name of its column.
        by: The field whose values are the lines.
        title: Title of the table.
        note: A remark below the table.

    Returns:
        The table; a cell of fewer than two seeds is a dash.

    Raises:
        ValueError: As `summarise`.
    """
    columns = [_values_by_seed(rows, by, metric) for metric in metrics]
    lines = [(name, *(_margin_text(column.get(name, {})) for column in columns)) for name in _names(rows, by)]
    return Table(title, (by, *metrics.values()), tuple(lines), note)


def _margin_text(by_seed: Mapping[int, float]) -> str:
    return f"{100 * margin_of_error(list(by_seed.values())):.2f}" if len(by_seed) > 1 else "–"


def _writer(metric: str, percent: bool) -> Callable[[Summary], str]:
    """Return what writes the cells of a metric."""
    if not percent:
        return _interval_text
    return _count_text if metric in COUNTS else _percent_text


def _labels(metrics: Sequence[str] | Mapping[str, str]) -> Mapping[str, str]:
    """Return the label of each metric, which is the metric itself if it has no other one."""
    return metrics if isinstance(metrics, Mapping) else {metric: metric for metric in metrics}


def _by_value(summaries: Sequence[GroupSummary], by: str) -> dict[str, GroupSummary]:
    """Return the summaries by their value of the field that groups them."""
    return {str(summary.group[by]): summary for summary in summaries}


def _seeds_text(summaries: Sequence[Summary | None]) -> str:
    """Return the number of seeds, "2-5" if the metrics of a line have different numbers, a dash if they have none."""
    counts = [summary.n for summary in summaries if summary]
    if not counts:
        return "–"
    fewest, highest = min(counts), max(counts)
    return str(fewest) if fewest == highest else f"{fewest}-{highest}"


def comparison_table(comparisons: Sequence[PairedComparison], *, title: str = "") -> Table:
    """Make a table with one line for each comparison.

    Args:
        comparisons: What `compare_methods` returns.
        title: Title of the table.

    Returns:
        A table with both means, the difference with its 95 % interval, and p before and after Holm's correction.
    """
    columns = ("metric", "treatment", "baseline", "means", "difference", "p", "p (Holm)", "seeds")
    return Table(title, columns, tuple(_comparison_cells(comparison) for comparison in comparisons))


def _comparison_cells(comparison: PairedComparison) -> tuple[str, ...]:
    return (
        comparison.metric,
        comparison.treatment,
        comparison.baseline,
        f"{_number(comparison.treatment_mean)}, {_number(comparison.baseline_mean)}",
        f"{comparison.difference:+.3f} [{comparison.low:+.3f}, {comparison.high:+.3f}]",
        _p_text(comparison.p_value),
        _p_text(comparison.p_holm),
        str(len(comparison.seeds)),
    )


def _p_text(p_value: float | None) -> str:
    """Return a p-value with two digits, or a dash if all differences are equal."""
    return "–" if p_value is None else f"{p_value:.2g}"


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table.

    Args:
        table: The table.
        console: Where to print it; None for standard output. A pipe or a file gets a line for each record.
    """
    console = console or Console()
    if not draws_tables(console):
        return _print_plain(table, console)
    drawn = RichTable(
        title=escape(table.title) or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=escape(table.note)
    )
    for column in table.columns:
        longest_word = max(map(len, column.split() or [""]))
        drawn.add_column(escape(column), overflow="fold", min_width=longest_word)
    for cells in table.cells:
        drawn.add_row(*map(escape, cells))
    console.print(drawn)


def _print_plain(table: Table, console: Console) -> None:
    print_cells(console, table.title, table.columns, table.cells)
    if table.note:
        print(f"# {table.note}", file=console.file)


def write_markdown(tables: Sequence[Table], path: str | Path) -> None:
    """Write tables to a Markdown file, each under its title."""
    blocks = []
    for table in tables:
        lines = [table.columns, ("---",) * len(table.columns), *table.cells]
        body = "\n".join(_markdown_line(cells) for cells in lines) + (f"\n\n{table.note}" if table.note else "")
        blocks.append(f"## {table.title}\n\n{body}" if table.title else body)
    write_atomically(path, ("\n\n".join(blocks) + "\n").encode())


def _markdown_line(cells: Sequence[str]) -> str:
    """Return cells as a line of a Markdown table; a bar within a cell is escaped, because it would end the cell."""
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def plot_bars(
    rows: Sequence[Row],
    metrics: Sequence[str] | Mapping[str, str],
    path: str | Path,
    *,
    by: str = "method",
    title: str = "",
) -> None:
    """Draw the metrics of each method as a group of horizontal bars into a PNG file.

    A bar is the mean, a whisker its 95 % interval over seeds, a dot one seed. A missing metric leaves a gap.

    Args:
        rows: Result rows.
        metrics: The metrics, or a mapping from each metric to its label.
        path: The file.
        by: The field that names the methods.
        title: Title of the legend.

    Raises:
        ValueError: As `summarise`; no metrics, or more of them than the palette has colours.
    """
    from matplotlib.figure import Figure

    if not 1 <= len(metrics) <= len(PALETTE):
        raise ValueError(f"a plot takes 1 to {len(PALETTE)} metrics, not {len(metrics)}")
    labels = _labels(metrics)
    names = _names(rows, by)
    legend_columns = _legend_columns(labels.values())
    figure = Figure(figsize=(8, _plot_height(len(names), len(metrics), legend_columns)), layout="constrained")
    axes = figure.add_subplot()
    thickness = 0.8 / len(metrics)  # of a bar, if neighbouring methods are 1 apart
    for index, (metric, label) in enumerate(labels.items()):
        # The bars of one method lie symmetrically around its position.
        offset = (index - (len(metrics) - 1) / 2) * thickness
        positions = {name: position + offset for position, name in enumerate(names)}
        summaries = summarise(rows, (by,), metric=metric)
        by_position = {positions[str(summary.group[by])]: summary for summary in summaries}
        _draw_bars(axes, by_position, thickness, PALETTE[index], label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)  # the first method on top
    axes.set_xlabel("mean, 95 % interval over seeds; one dot per seed")
    axes.grid(axis="x", color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=legend_columns, frameon=False, title=title)
    write_figure(figure, path, dpi=150)


def _legend_columns(labels: Collection[str]) -> int:
    """Return how many labels fit side by side; 8 characters are for the coloured patch and the space around it."""
    label_width = 8 + max(map(len, labels))
    return min(len(labels), max(1, LEGEND_WIDTH // label_width))


def _plot_height(methods: int, metrics: int, legend_columns: int) -> float:
    """Return the height of a plot in inches: axis and title, a group of bars for each method, the lines of a legend."""
    group_height = max(0.45, 0.24 * metrics)
    legend_lines = math.ceil(metrics / legend_columns)
    return 1.3 + methods * group_height + 0.22 * legend_lines


def _draw_bars(axes: Any, by_position: dict[float, GroupSummary], thickness: float, colour: str, label: str) -> None:
    """Draw one metric: a bar at each position, its interval if there is one, its seeds as dots."""
    means = [summary.summary.mean for summary in by_position.values()]
    axes.barh(list(by_position), means, 0.92 * thickness, color=colour, label=label)
    for position, summary in by_position.items():
        low, high = summary.summary.low, summary.summary.high
        if math.isfinite(low):  # one seed has no interval
            height = [position - 0.27 * thickness] * 2  # above the dots, which would hide it
            axes.plot([low, high], height, color="0.1", linewidth=1.5, marker="|", markersize=5)
        values = list(summary.by_seed.values())
        # The dots of the seeds lie below each other, so that equal values do not hide each other.
        steps = [(index + 0.5) / len(values) - 0.5 for index in range(len(values))]
        heights = [position + (0.12 + 0.45 * step) * thickness for step in steps]
        axes.scatter(values, heights, s=10, facecolor="white", edgecolor="0.1", linewidth=0.6, zorder=4)


def _compare(
    treatment: str,
    baselines: Sequence[str],
    values: dict[str, dict[int, float]],
    sizes: dict[str, float],
    metric: str,
    sign: int,
) -> PairedComparison | None:
    """Compare one treatment with its best baseline, or none of shared seeds; `p_holm` is not corrected yet.

    Args:
        treatment: The method that is measured.
        baselines: The methods that it is measured against.
        values: The values of each method by seed.
        sizes: The number of parameters of each method.
        metric: The metric, for messages.
        sign: 1 if higher is better, otherwise -1.
    """
    large = [name for name in baselines if sizes[name] >= sizes[treatment]]
    if not large:
        counts = ", ".join(f"{name} {sizes[name]:,.0f}" for name in baselines)
        raise ValueError(f"no baseline is as large as {treatment} ({sizes[treatment]:,.0f} parameters): {counts}")
    shared = {name: _shared_seeds(treatment, name, values, metric) for name in large}
    shared = {name: seeds for name, seeds in shared.items() if len(seeds) > 1}
    if not shared:
        return None
    # A baseline is judged on the seeds of the comparison, not on all of its own: the means are of the same runs.
    means = {name: _mean(_values_of(values[name], seeds)) for name, seeds in shared.items()}
    best = max(shared, key=lambda name: sign * means[name])
    seeds = shared[best]
    treatment_values = _values_of(values[treatment], seeds)
    baseline_values = _values_of(values[best], seeds)
    test = paired_t_test(treatment_values, baseline_values)
    differences = [a - b for a, b in zip(treatment_values, baseline_values, strict=True)]
    interval = bootstrap_interval(differences)
    return PairedComparison(
        metric=metric,
        treatment=treatment,
        baseline=best,
        treatment_mean=_mean(treatment_values),
        baseline_mean=means[best],
        difference=test.difference,
        low=interval.low,
        high=interval.high,
        p_value=test.p_value,
        p_holm=test.p_value,
        seeds=seeds,
    )


def _shared_seeds(treatment: str, baseline: str, values: dict[str, dict[int, float]], metric: str) -> tuple[int, ...]:
    """Return the seeds that both methods have, with a warning for the others."""
    treatment_seeds, baseline_seeds = values[treatment].keys(), values[baseline].keys()
    shared = tuple(sorted(baseline_seeds & treatment_seeds))
    if len(shared) < 2:
        warnings.warn(
            f"{metric}: {treatment} and {baseline} share {len(shared)} of 2 seeds, not compared", stacklevel=4
        )
        return shared
    lost = sorted(baseline_seeds ^ treatment_seeds)
    if lost:
        warnings.warn(f"{metric}: seeds {lost} are in only one of {treatment} and {baseline}, left out", stacklevel=4)
    return shared


def _values_of(by_seed: dict[int, float], seeds: Sequence[int]) -> list[float]:
    return [by_seed[seed] for seed in seeds]


def _mean(values: Sequence[float]) -> float:
    return fmean(values)


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
    """Return a metric of a row, None if it has none, or raise a ValueError if it is not a number."""
    value = row["results"]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is not None and not _is_number(value):
        metrics = ", ".join(_metric_names(row["results"]))
        raise ValueError(f"metric {name!r} is a {type(value).__name__}, not a number; known: {metrics}")
    return value


def _number_of(row: Row, metric: str) -> float:
    """Return a metric that the row certainly has."""
    value = _metric(row, metric)
    assert value is not None
    return value


def _tree(members: Sequence[Row], metric: str) -> list[Any]:
    """Return values by seed, and below each seed by domain or episode and by image if every row has them."""
    nested = []
    for row in members:
        for counts in row["results"].get("nested", ()):
            if counts["metric"] == metric:
                nested.append(counts["values"] if "values" in counts else trials(counts))
    # One row without single images leaves a tree of unequal depth, which cannot be resampled: then seeds alone are.
    return nested if len(nested) == len(members) else [_metric(row, metric) for row in members]


def _metric_names(results: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of all numbers in results, those of inner dictionaries last."""
    names = [prefix + name for name, value in results.items() if _is_number(value)]
    for name, value in results.items():
        if isinstance(value, dict):
            names += _metric_names(value, f"{prefix}{name}.")
    return names


def _is_number(value: Any) -> bool:
    # bool is a subclass of int: a flag such as "condition_used" is not a metric.
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _names(rows: Sequence[Row], by: str) -> list[str]:
    """Return the values of a field, each once, in the order of the rows."""
    return list(dict.fromkeys(str(_field(row, by)) for row in rows))


def _check_seeds(group: dict[str, Any], members: Sequence[Row]) -> None:
    """Raise a ValueError if a seed occurs twice in a group, with the fields that differ in it."""
    seed, count = Counter(row["seed"] for row in members).most_common(1)[0]
    if count == 1:
        return
    twins = [row for row in members if row["seed"] == seed]
    fields = sorted({name for row in twins for name in row["config"]})
    differing = [name for name in fields if len({repr(row["config"].get(name)) for row in twins}) > 1]
    if len({row["suite"] for row in twins}) > 1:
        differing.append("suite")
    if differing:
        advice = f"filter or group by what differs: {', '.join(differing)}"
    else:
        advice = "one run, twice: see `latest`"
    raise ValueError(f"{group} has seed {seed} {count} times; {advice}")


def _number(value: float) -> str:
    """Write a count with separators and a fraction with three digits."""
    is_count = float(value).is_integer() or abs(value) >= 1000
    return f"{value:,.0f}" if is_count else f"{value:.3f}"


def _interval_text(summary: Summary) -> str:
    """Return "mean [low, high]", or the mean alone if there is no interval or it has no width."""
    if not summary.low < summary.high:  # true for the NaN of one seed, too
        return _number(summary.mean)
    return f"{_number(summary.mean)} [{_number(summary.low)}, {_number(summary.high)}]"


def _count_text(summary: Summary) -> str:
    return _number(summary.mean)


def _percent_text(summary: Summary) -> str:
    """Return "81.4 ±0.6" for a fraction, and another number as it is."""
    if abs(summary.mean) > 1:
        return _number(summary.mean)
    if not summary.low < summary.high:
        return f"{100 * summary.mean:.1f}"
    # The width of the interval is high - low: half of it in percent is 100 / 2 times that.
    return f"{100 * summary.mean:.1f} ±{50 * (summary.high - summary.low):.1f}"
