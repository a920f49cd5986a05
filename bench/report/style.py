"""How a report's page looks, on any screen, light or dark."""

# A row's first cell gets a line of its own; the others stand in columns below it.
STACKED = """
TABLE tr { display: grid; grid-template-columns: repeat(COLUMNS, minmax(0, 1fr));
  column-gap: .5rem; border-bottom: 1px solid var(--line); }
TABLE tr th, TABLE tr td { border: 0; white-space: normal; overflow-wrap: anywhere; width: auto; min-width: 0;
  text-align: left; padding-left: 0; }
TABLE tr th:first-child { grid-column: 1 / -1; }
""".strip()

PAGE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --soft: #59636e; --line: #d1d9e0;
  --card: #f6f8fa; --mark: #e69f00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --soft: #9198a1; --line: #3d444d; --card: #151b23; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 74rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; line-height: 1.3; }
h3 { font-size: 1.05rem; margin: 2.25rem 0 .25rem; }
h1, h2, h3, p, dd, figcaption { overflow-wrap: break-word; }
p, figcaption, dd { max-width: 46rem; } p { margin: .5rem 0; }
p.soft, figcaption, small { color: var(--soft); font-size: .875rem; }
.numbers, .panels.beside { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.numbers > div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .75rem 1rem; }
.numbers b { display: block; font-size: 2.25rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers small { display: block; }
figure { margin: 1.75rem 0; } figcaption { margin-top: .5rem; }
figure svg { display: block; overflow: visible; } figure svg svg { display: inline; }
.panels.beside { gap: 1rem 1.5rem; }
.keys { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: .5rem 0 0;
  font-size: .875rem; color: var(--soft); }
.keys i { display: inline-block; width: .75rem; height: .75rem; border-radius: 2px; margin-right: .4rem; }
.keys i.empty { border: 1px solid var(--soft); }
img { display: block; max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
.label { border-left: 4px solid var(--mark); background: var(--card); padding: .5rem .75rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
.beside { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: flex-start; }
.beside > .scroll { max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .4rem; text-align: right; vertical-align: top; }
th:first-child { padding-left: 0; } td:last-child, th:last-child { padding-right: 0; }
td { white-space: nowrap; } th { font-weight: 600; } thead th { vertical-align: bottom; }
thead th:not(:first-child) { width: 1px; } th span { white-space: nowrap; }
tbody th, th:first-child, .text { text-align: left; } details th:first-child { overflow-wrap: anywhere; }
details td { white-space: normal; } tbody th small { display: block; font-weight: 400; }
td.text { white-space: normal; min-width: 8rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--card); padding: .75rem; font-size: .8rem; border-radius: 6px; }
details { margin: .75rem 0; } summary { cursor: pointer; } nav ul { padding-left: 1.2rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em; }
dl { font-size: .9375rem; } dt { font-weight: 600; } dd { margin: 0 0 .5rem; color: var(--soft); }
@media (max-width: 40rem) {
  table { font-size: .8125rem; } th, td { padding: .3rem .25rem; } .numbers b { font-size: 1.9rem; }
  NARROW
}
"""

STYLE = (
    STACKED.replace("TABLE", "table.always").replace("COLUMNS", "8")
    + PAGE.replace("  NARROW", STACKED.replace("TABLE", "table.stacked").replace("COLUMNS", "var(--columns)"))
).strip()
