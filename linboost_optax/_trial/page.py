"""The report of a trial: one HTML file that needs nothing beside itself."""

from __future__ import annotations

import html
from string import Template

from linboost_optax._trial.analysis import Record
from linboost_optax._trial.pictures import pictures
from linboost_optax._trial.tables import HEADER, change, facts, rows
from linboost_optax._trial.verdict import Verdict

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #1c1c1c; background: #ffffff; }
.headline { font-size: 1.25rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8886; }
th { vertical-align: bottom; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tr.winner td { font-weight: 600; background: #d55e0022; }
figure { margin: 1.5rem 0; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; }
pre { padding: .8rem; overflow-x: auto; background: #8882; border-radius: 6px; }
.added { color: #1a7f37; } .removed { color: #b3261e; }
footer, .note { color: #666666; font-size: .9rem; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #16181c; }
  .added { color: #5fd38d; } .removed { color: #ff8a80; }
  footer, .note { color: #a0a0a0; }
}
</style>
</head>
<body>
<h1>$title</h1>
<p class="headline">$headline</p>
<ul>$reasons</ul>
<h2>What to change</h2>
<pre>$change</pre>
<h2>Figures</h2>
<div class="scroll"><table>
<thead><tr>$header</tr></thead>
<tbody>$rows</tbody>
</table></div>
<p class="note">$reading</p>
$figures
<h2>Layers</h2>
<pre>$layers</pre>
<footer><p>$facts</p></footer>
</body>
</html>
""")


def page(record: Record, judged: Verdict, reading: str) -> str:
    """The report as HTML, pictures included."""
    return _PAGE.substitute(
        title=html.escape(f"Trial: {record['task']}"),
        headline=html.escape(judged.headline),
        reasons="".join(f"<li>{html.escape(each)}</li>" for each in judged.reasons),
        change=_difference(change(record, judged)),
        header="".join(f"<th>{html.escape(each)}</th>" for each in HEADER),
        rows="".join(
            _row(cells, name == judged.winner) for name, cells in rows(record)
        ),
        reading=html.escape(reading),
        figures="".join(
            f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"
            for caption, svg in pictures(record).items()
        ),
        layers=html.escape(record["layers"]),
        facts=html.escape(facts(record)),
    )


def _row(cells: list[str], winner: bool) -> str:
    inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr class='winner'>{inner}</tr>" if winner else f"<tr>{inner}</tr>"


def _difference(text: str) -> str:
    """A difference with its lines coloured."""
    kinds = {"+": "added", "-": "removed"}
    return "\n".join(
        f'<span class="{kinds[line[0]]}">{html.escape(line)}</span>'
        if line[:1] in kinds
        else html.escape(line)
        for line in text.splitlines()
    )
