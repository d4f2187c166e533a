"""The style of a page: light and dark, from the width of a phone on, and on paper."""

SHADES = 10  # steps of the colour of a confusion matrix
SERIES = 8  # colours of the lines of a chart; of Okabe and Ito, darker or lighter for the contrast
LIGHT = ("#0063a0", "#a35c00", "#00754f", "#a8437f", "#1d7fb5", "#b34700", "#6b6300", "#000000")
DARK = ("#5cb8f0", "#f0b040", "#3fcf9f", "#e79cc4", "#9ad4f5", "#ff8a4a", "#f0e442", "#ffffff")


def _colours(values: tuple[str, ...]) -> str:
    return " ".join(f"--series-{number}: {value};" for number, value in enumerate(values))


_SERIES_RULES = "\n".join(
    f".series-{number} {{ stroke: var(--series-{number}); fill: var(--series-{number}); }}" for number in range(SERIES)
)
_SHADE_RULES = "\n".join(
    f"td.shade-{step} {{ background: rgb(var(--shade) / {0.5 * step / SHADES:.2f}); }}" for step in range(1, SHADES + 1)
)
_LIGHT_COLOURS = f"""--page: #ffffff; --ink: #1b1f24; --quiet: #555d66; --line: #d5dae0; --soft: #f2f5f8;
  --accent: #0b5cad; --bad: #b3261e; --shade: 11 92 173; {_colours(LIGHT)}"""
_DARK_COLOURS = f"""--page: #15191e; --ink: #e8ebee; --quiet: #a9b2bb; --line: #39424c; --soft: #1f262d;
  --accent: #7cbcff; --bad: #ff9d94; --shade: 124 188 255; {_colours(DARK)}"""

STYLE = f"""
:root {{ color-scheme: light; {_LIGHT_COLOURS} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {_DARK_COLOURS} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 66rem;
  margin: 2rem auto 4rem; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 .8rem; }}
h2 {{ font-size: 1.2rem; margin: 2.6rem 0 .2rem; padding-top: .8rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .3rem; }}
a {{ color: var(--accent); }}
:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px; }}
.verdict {{ border-left: 4px solid var(--accent); padding: .5rem .9rem; margin: 0 0 .8rem; background: var(--soft);
  font-size: 1.05rem; }}
.note {{ color: var(--quiet); font-size: .9rem; margin: .2rem 0 .7rem; max-width: 48rem; }}
.result {{ font-weight: 600; margin: .4rem 0; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: 0; list-style: none; }}
.hidden {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }}
.scroll {{ overflow-x: auto; max-width: 100%; margin: 0 0 .6rem; position: relative; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: middle; }}
td {{ white-space: nowrap; }}
th {{ font-weight: 600; }} tbody th {{ font-weight: 400; }}
th:first-child {{ text-align: left; position: sticky; left: 0; background: var(--page); z-index: 1; min-width: 7rem;
  max-width: 45vw; }}
th.words {{ text-align: left; }} td.words {{ text-align: left; white-space: normal; min-width: 6rem; }}
th button {{ font: inherit; color: inherit; background: none; border: 0; padding: 0; margin: 0; cursor: pointer;
  text-align: inherit; }}
th button::after {{ content: "\\a0\\2195"; color: var(--quiet); }}
th[aria-sort=ascending] button::after {{ content: "\\a0\\2191"; color: var(--accent); }}
th[aria-sort=descending] button::after {{ content: "\\a0\\2193"; color: var(--accent); }}
tr.ours > * {{ background: var(--soft); }} tr.ours th {{ font-weight: 600; }}
td.best {{ color: var(--accent); font-weight: 600; }}
table.facts td {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}
table.facts th {{ vertical-align: top; }}
.mark {{ display: block; margin: .1rem 0 0 auto; }}
.mark .track {{ stroke: var(--line); }} .mark .range {{ stroke: var(--quiet); stroke-width: 2.5; }}
.mark .zero {{ stroke: var(--ink); }} .mark circle {{ fill: var(--accent); }}
.side {{ display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; align-items: flex-start; }}
.side > * {{ max-width: 100%; min-width: 0; }}
table.confusion td {{ text-align: center; min-width: 2.6rem; }}
table.confusion thead th {{ text-align: center; font-weight: 400; max-width: 9rem; }}
table.confusion thead th:first-child {{ color: var(--quiet); font-size: .85rem; text-align: left; }}
{_SHADE_RULES}
table.neighbours th, table.neighbours td {{ text-align: left; vertical-align: top; white-space: normal;
  position: static; min-width: 0; max-width: none; }}
table.neighbours td {{ min-width: 15rem; }} table.neighbours td:first-child {{ min-width: 6rem; }}
figure {{ display: inline-block; margin: 0 .3rem .4rem 0; font-size: .78rem; max-width: 11rem; text-align: center;
  vertical-align: top; line-height: 1.3; }}
figure img {{ display: block; width: 56px; height: 56px; object-fit: contain; margin: 0 auto .1rem;
  border: 3px solid var(--line); }}
figure figcaption {{ max-width: 5.5rem; margin: 0 auto; }}
figure blockquote {{ margin: 0 0 .1rem; padding: .3rem .5rem; text-align: left; border: 2px solid var(--line); }}
figure.right img, figure.right blockquote {{ border-color: var(--accent); }}
figure.wrong img, figure.wrong blockquote {{ border-color: var(--bad); border-style: dashed; }}
.plot {{ max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); }}
svg.chart {{ max-width: 100%; height: auto; }}
svg text {{ fill: var(--ink); font-size: 12px; }}
svg .grid {{ stroke: var(--line); }} svg .axis {{ stroke: var(--quiet); fill: none; }}
{_SERIES_RULES}
svg .quiet {{ stroke: var(--quiet); fill: var(--quiet); }}
svg .line {{ fill: none; stroke-width: 2; stroke-linejoin: round; }} svg .dashed {{ stroke-dasharray: 6 4; }}
svg .hollow {{ fill: none; stroke-width: 1.5; }} svg .count {{ fill: var(--line); }} svg .solid {{ opacity: .8; }}
.legend {{ list-style: none; padding: 0; margin: .2rem 0 .6rem; display: flex; flex-wrap: wrap; gap: .1rem 1.2rem;
  font-size: .85rem; }}
.legend svg {{ vertical-align: middle; margin-right: .35rem; }}
summary {{ cursor: pointer; color: var(--accent); }}
@media print {{
  body {{ max-width: none; margin: 0; font-size: 10pt; }}
  nav {{ display: none; }} th button::after {{ content: "" !important; }}
  .scroll {{ overflow: visible; }} th:first-child {{ position: static; }}
  tr, figure, svg, .chart {{ break-inside: avoid; }} h2, h3 {{ break-after: avoid; }}
  * {{ print-color-adjust: exact; }}
}}
"""
