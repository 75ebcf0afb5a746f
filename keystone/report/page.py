"""An executed notebook as one HTML file that opens without a network.

Everything is inside: styles, Vega's scripts (from a Python package) and the figures. A content security policy in the file forbids every
request, so that nothing can be fetched even if a later change tried to. Charts are drawn in the theme of whoever looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from html import escape
from pathlib import Path
from typing import Any, Final

from keystone import __version__
from keystone.errors import UsageError
from keystone.report.theme import DARK, LIGHT, VEGALITE, config

#: Vega compiles its expressions (``unsafe-eval``); nothing may be loaded from anywhere.
POLICY: Final = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
SIDE_BY_SIDE: Final = "side-by-side"  # a cell's tag: its outputs stand in columns where the page is wide enough
_HERE: Final = Path(__file__).parent


def to_html(notebook: Any) -> str:
    """The page. The first heading is its title; headings of the second level make its contents."""
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    parts: list[str] = []
    heads: list[tuple[str, str]] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text, found = _with_anchors(markdown.render(cell.source))
            heads += found
            parts.append(f'<div class="text">{text}</div>')
        elif cell.cell_type == "code":
            parts.append(_code(cell))
    first = re.search(r"^# +(.+)$", "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown"), re.MULTILINE)
    contents = "".join(f'<a href="#{name}">{words}</a>' for name, words in heads)
    return _document(first[1] if first else "Report", contents, "\n".join(parts))


def _with_anchors(html: str) -> tuple[str, list[tuple[str, str]]]:
    """Headings that can be led to, named as Jupyter names them, so that a link between parts works there, too."""
    found: list[tuple[str, str]] = []

    def anchored(match: re.Match[str]) -> str:
        found.append((match[1].replace(" ", "-"), match[1]))
        return f'<h2 id="{found[-1][0]}">{match[1]}</h2>'

    return re.sub(r"<h2>(.*?)</h2>", anchored, html), found


def _code(cell: Any) -> str:
    """Outputs, and under them the code that made them, folded."""
    shown = [html for output in cell.outputs if (html := _output(output))]
    tags = cell.metadata.get("tags", ())
    code = f'<details class="code"><summary>code</summary><pre>{escape(cell.source)}</pre></details>'
    if not shown:
        return f'<div class="cell quiet">{code}</div>'
    kind = " columns" if SIDE_BY_SIDE in tags and len(shown) > 1 else ""
    return f'<div class="cell"><div class="outputs{kind}">{"".join(shown)}</div>{code}</div>'


def _output(output: Any) -> str:
    if output.output_type == "stream":
        return f"<pre>{escape(output.text)}</pre>"
    bundle = output.get("data", {})
    if VEGALITE in bundle:
        spec = {name: part for name, part in bundle[VEGALITE].items() if name != "config"}  # the page has themes of its own
        return f'<figure class="chart"><div class="plot"></div><script type="application/json">{_inert(spec)}</script></figure>'
    if "text/html" in bundle:
        return f'<div class="block">{bundle["text/html"]}</div>'
    return f"<pre>{escape(bundle['text/plain'])}</pre>" if "text/plain" in bundle else ""


def _inert(value: Any) -> str:
    """JSON that no value in it can end the script element of."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _document(title: str, contents: str, body: str) -> str:
    import vl_convert

    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    style, script = ((_HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · Keystone</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header><nav>{contents}</nav><button id="theme" type="button" aria-label="light or dark"></button></header>
<main>
{body}
<noscript><p>Charts need JavaScript; tables and text do not.</p></noscript>
</main>
<footer>Made by Keystone {escape(__version__)}. This file needs no network.</footer>
<script type="application/json" id="theme-light">{_inert(config(LIGHT))}</script>
<script type="application/json" id="theme-dark">{_inert(config(DARK))}</script>
<script type="module">{vega}</script>
<script type="module">
{script}</script>
</body>
</html>
"""


def write(html: str, target: Path) -> None:
    """Whole or not at all: an earlier file stays until this one is complete. ``UsageError`` where it cannot be written."""
    try:
        handle, name = tempfile.mkstemp(prefix=".report-", suffix=".html", dir=target.parent)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}: name another file") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(html)
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise UsageError(f"{target} cannot be written: {error.strerror}: name another file") from error
