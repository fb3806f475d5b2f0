"""HTML that needs nothing beside itself: a document, and the parts it is made of."""

from __future__ import annotations

import html
from collections.abc import Sequence
from string import Template

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
$body
<footer><p>$facts</p></footer>
</body>
</html>
""")


def document(
    title: str, headline: str, reasons: Sequence[str], body: Sequence[str], facts: str
) -> str:
    """A page: a title, a verdict, parts that are HTML already, and a last line."""
    return _PAGE.substitute(
        title=html.escape(title),
        headline=html.escape(headline),
        reasons="".join(f"<li>{html.escape(each)}</li>" for each in reasons),
        body="\n".join(body),
        facts=html.escape(facts),
    )


def code(heading: str, text: str) -> str:
    """Code or text as it is; of a difference, lines are coloured."""
    kinds = {"+": "added", "-": "removed"}
    lines = [
        f'<span class="{kinds[line[0]]}">{html.escape(line)}</span>'
        if line[:1] in kinds
        else html.escape(line)
        for line in text.splitlines()
    ]
    return f"<h2>{html.escape(heading)}</h2>\n<pre>{chr(10).join(lines)}</pre>"


def table(
    heading: str,
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    winner: str | None,
    reading: str,
) -> str:
    """A table whose rows have names, of which one won, and how to read it."""
    top = "".join(f"<th>{html.escape(each)}</th>" for each in header)
    body = "\n".join(_row(cells, name == winner) for name, cells in rows)
    return (
        f'<h2>{html.escape(heading)}</h2>\n<div class="scroll"><table>\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody>\n</table></div>\n"
        f'<p class="note">{html.escape(reading)}</p>'
    )


def figure(caption: str, svg: str) -> str:
    """A picture below its caption."""
    caption = html.escape(caption)
    return f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"


def _row(cells: Sequence[str], winner: bool) -> str:
    inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr class='winner'>{inner}</tr>" if winner else f"<tr>{inner}</tr>"
