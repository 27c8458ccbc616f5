"""One self-contained page: its style, and the HTML elements of a report. This module knows no models.

All text that is not `Html` is escaped. The page is well-formed XML too, so that a strict parser can check it.
"""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


# Blue, vermilion, green and purple of Okabe and Ito (Color Universal Design, 2008): distinct for every kind of eye.
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1e22;--soft:#5a626b;--rule:#dde1e5;--panel:#f5f7f8;
--blue:#0072b2;--red:#c4500a;--green:#00795a;--purple:#9a3f78;--grey:#848c95}
@media (prefers-color-scheme:dark){:root{--paper:#15181b;--ink:#e6e9ec;--soft:#a2abb4;--rule:#2e343a;--panel:#1d2125;
--blue:#56b4e9;--red:#f08a4b;--green:#3cc49a;--purple:#d990bd;--grey:#8d959e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%;overflow-wrap:break-word}
main{max-width:1080px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:20px;line-height:1.3;margin:0 0 4px}
h3{font-size:15px;line-height:1.4;margin:24px 0 4px;font-weight:600}
p{margin:0 0 12px;max-width:68ch}
section{margin-top:36px;padding-top:22px;border-top:1px solid var(--rule)}
.kicker{color:var(--soft);font-size:13px;margin:0 0 6px}
.lead{font-size:18px}
.how,figcaption,.foot{color:var(--soft);font-size:14px}
.how{margin-bottom:16px}
header dl{grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr))}
.body{min-width:0}
.body>h3:first-child{margin-top:0}.body>.scroll:first-child table{margin-top:0}.body>.scroll:first-child caption{padding-top:0}.body>.tight:first-child{margin-top:0}
@media screen and (min-width:900px){section{display:grid;grid-template-columns:236px minmax(0,1fr);gap:0 52px}}
.verdict{border-left:4px solid var(--blue);background:var(--panel);padding:12px 16px;margin:20px 0;max-width:none;font-weight:600}
.verdict.fails{border-color:var(--red)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,210px),1fr));gap:12px 24px;margin:16px 0 0}
dt{color:var(--soft);font-size:13px}
dd{margin:0;font-variant-numeric:tabular-nums}
.tight{gap:6px 24px;font-size:14px}
.full{grid-column:1/-1}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;margin:8px 0}
caption{text-align:left;font-weight:600;padding:8px 0 4px}
th{text-align:right;font-weight:500;color:var(--soft);font-size:13px}
td{text-align:right;white-space:nowrap}
th,td{vertical-align:baseline;padding:5px 0 5px 22px;border-bottom:1px solid var(--rule)}
th:first-child,td:first-child,tbody th{text-align:left;padding-left:0;color:var(--ink);font-weight:400;font-size:14px}
td small,tbody th small{color:var(--soft);font-size:12px;display:block;line-height:1.2}
td .best{font-weight:600}
td .lost{color:var(--red);font-weight:600}
figure{margin:0 0 20px}.scroll+figure{margin-top:24px}
figcaption{margin-bottom:6px}
figcaption b{color:var(--ink);font-weight:600}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:8px 28px}
.narrow{display:none}
pre{background:var(--panel);padding:12px 14px;font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
overflow-x:auto;margin:8px 0 16px;tab-size:4}
code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.parts{display:flex;height:14px;margin:12px 0;gap:2px}
.parts div{background:var(--grey);min-width:3px}.parts .validation{background:var(--purple)}.parts .held{background:var(--blue)}
.once{white-space:nowrap}.key{display:inline-block;width:10px;height:10px;margin-right:6px;background:var(--grey)}
.key.validation{background:var(--purple)}.key.held{background:var(--blue)}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--soft);
font-variant-numeric:tabular-nums}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}
svg .number,svg .cell{fill:var(--ink)}
svg .cell.strong{fill:var(--paper)}
line.grid{stroke:var(--rule);stroke-width:1}line.axis{stroke:var(--grey);stroke-width:1}
line.mark{stroke:var(--grey);stroke-dasharray:3 3}
path.line{fill:none;stroke:var(--ink);stroke-width:1.3;stroke-linejoin:round}
path.area{fill:var(--tone);fill-opacity:.18}
path.line.truth{stroke:var(--ink);stroke-width:1}path.line.ideal{stroke:var(--grey);stroke-dasharray:3 3}
.a{--tone:var(--blue)}.b{--tone:var(--red)}.c{--tone:var(--green)}.d{--tone:var(--purple)}.e{--tone:var(--grey)}
path.line.a,path.line.b,path.line.c,path.line.d,path.line.e{stroke:var(--tone)}
circle.a,circle.b,circle.c,circle.d,circle.e,rect.a,rect.b,rect.c,rect.d,rect.e{fill:var(--tone)}
svg text.a,svg text.b,svg text.c,svg text.d,svg text.e{fill:var(--tone)}svg text.truth{fill:var(--ink)}
rect.right,rect.wrong{stroke:var(--rule);fill:var(--red)}rect.right{fill:var(--blue)}rect.fault{fill:var(--red);fill-opacity:.16}
footer{margin-top:44px;border-top:1px solid var(--rule);padding-top:12px}
@media (max-width:719px){main{padding:24px 16px 40px}.wide{display:none}.narrow{display:block}h1{font-size:25px}
.lead{font-size:17px}th,td{padding-left:9px}table,th,th:first-child,td:first-child,tbody th{font-size:12.5px}td small{font-size:11px}section{margin-top:32px}}
@page{size:A4;margin:15mm 14mm}
@media print{:root{color-scheme:light;--paper:#fff;--ink:#000;--soft:#444;--rule:#ccc;--panel:#f3f3f3;--blue:#0072b2;
--red:#c4500a;--green:#00795a;--purple:#9a3f78;--grey:#777}
body{font-size:10.5pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}main{padding:0;max-width:none}
h1{font-size:20pt}h2{font-size:13pt}.lead{font-size:11.5pt}.how,figcaption,.foot{font-size:9pt}
.wide{display:block}.narrow{display:none}.grid{grid-template-columns:1fr 1fr}
section{margin-top:18pt;padding-top:10pt}h2,h3,.how,figcaption,caption{break-after:avoid}
figure,tr,pre,dl div,.side,.scroll{break-inside:avoid}.side{break-after:avoid}pre{white-space:pre-wrap}.scroll{overflow:visible}
table{font-size:9pt}th,td{padding:2.5pt 0 2.5pt 14pt}}
"""


def safe(part: str) -> Html:
    """Text as HTML; what is HTML already stays as it is."""
    return part if isinstance(part, Html) else Html(escape(part))


def tag(name: str, *parts: str, kind: str = "") -> Html:
    """An element with its content."""
    opening = f'{name} class="{escape(kind)}"' if kind else name
    return Html(f"<{opening}>{''.join(safe(part) for part in parts)}</{name}>")


def section(title: str, how: str, *parts: str) -> Html:
    """A heading, one sentence that says how to read what follows, and the parts; nothing if there are none."""
    if not any(parts):
        return Html()
    side = tag("div", tag("h2", title), tag("p", how, kind="how"), kind="side")
    return tag("section", side, tag("div", *parts, kind="body"))


def figure(title: str, chart: str, note: str = "") -> Html:
    """A chart under its title and a sentence."""
    caption = tag("figcaption", tag("b", title), f" {note}" if note else "")
    return tag("figure", caption, Html(chart))


def facts(rows: Iterable[tuple[str, str]], kind: str = "") -> Html:
    """Names and values, several abreast; a long value has a line of its own."""
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value), kind="full" * (len(value) > 60)) for name, value in rows),
        kind=kind,
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Html:
    """A table whose first column names the rows; it scrolls by itself where the page is narrow."""
    head = tag("thead", tag("tr", *(tag("th", heading) for heading in headings)))
    body = tag("tbody", *(tag("tr", tag("th", row[0]), *(tag("td", cell) for cell in row[1:])) for row in rows))
    title = tag("caption", caption) if caption else Html()
    return tag("div", tag("table", title, head, body), kind="scroll")


def grid(*parts: str) -> Html:
    """Figures beside one another as far as there is room; nothing if there are none."""
    return tag("div", *parts, kind="grid") if parts else Html()


def page(title: str, *parts: str) -> str:
    """The whole document."""
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width,initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    body = tag("body", tag("main", *parts))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>{body}</html>\n'
