"""The style sheet of the report: written by hand, small, for light and dark, for phones and for paper."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --ink: #20242b; --muted: #626a76; --grid: #e3e6eb; --paper: #ffffff; --page: #f4f5f7; --line: #dde1e7;
  --blue: #1a66b8; --orange: #c4570a; --green: #0b7d62; --purple: #8a45a8;
  --red: #b8243f; --olive: #767204; --cyan: #0e86a5; --brown: #80583a;
  --good: #0b7d62; --warn: #a85b00; --bad: #b42332; --heat: 62%;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e8eaee; --muted: #9da5b1; --grid: #31363f; --paper: #1b1e24; --page: #121419; --line: #30353e;
    --blue: #6cb0f5; --orange: #f39a54; --green: #45c7a3; --purple: #c792e0;
    --red: #ff7d90; --olive: #cfc94e; --cyan: #62d0ec; --brown: #d0a584;
    --good: #45c7a3; --warn: #f0b35a; --bad: #ff8a8f; --heat: 46%;
  }
  svg image { filter: brightness(1.4); }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 2.2rem 1.4rem 3rem; }
h1 { font-size: clamp(1.5rem, 4.2vw, 2.15rem); line-height: 1.18; margin: .35rem 0 .7rem;
  letter-spacing: -.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.12rem; margin: 2.3rem 0 .8rem; letter-spacing: -.005em; }
p { margin: .4rem 0; max-width: 75ch; }
a { color: var(--blue); }
.eyebrow { color: var(--muted); font-size: .86rem; display: flex; flex-wrap: wrap; gap: .5rem .8rem;
  align-items: center; }
.badge { border: 1px solid currentColor; border-radius: 99px; padding: .05rem .62rem; font-weight: 600;
  font-size: .78rem; }
.done { color: var(--good); } .running, .interrupted { color: var(--warn); } .failed { color: var(--bad); }
.lead { font-size: 1.04rem; }
.muted { color: var(--muted); font-size: .92rem; }
.note { border-left: 3px solid var(--warn); padding: .1rem 0 .1rem .8rem; margin: .8rem 0; max-width: 75ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .8rem;
  margin: 1.4rem 0 0; }
.tile, figure, .card {
  background: var(--paper); border: 1px solid var(--line); border-radius: 10px; margin: 0;
}
.tile { padding: .85rem 1rem .8rem; }
.tile span { display: block; color: var(--muted); font-size: .86rem; }
.tile strong { display: block; font-size: 1.62rem; line-height: 1.3; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile.main strong { color: var(--green); }
.gap { margin-top: .9rem; }
.figures { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
figure { padding: .9rem 1rem .6rem; min-width: 0; }
figcaption { font-weight: 600; font-size: .94rem; margin-bottom: .45rem; }
figure svg { display: block; width: 100%; height: auto; }
figure.wide > div { overflow-x: auto; }
figure.wide svg { min-width: 720px; }
svg * { stroke-linejoin: round; }
.bar { display: flex; height: 1rem; border-radius: 5px; overflow: hidden; gap: 2px; margin-bottom: .6rem; }
.bar i { display: block; min-width: 2px; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.3rem; font-size: .9rem; }
.key i { display: inline-block; width: .75rem; height: .75rem; border-radius: 3px; margin-right: .45rem; }
.card { padding: .95rem 1rem; }
details.card { padding: 0; margin-top: .8rem; }
summary { cursor: pointer; padding: .7rem 1rem; font-weight: 600; overflow-wrap: anywhere; }
details > :not(summary) { margin: 0 1rem 1rem; }
pre { overflow-x: auto;
  font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.scroll { overflow: auto; max-height: 30rem; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { position: sticky; top: 0; background: var(--paper); color: var(--muted); font-weight: 600; }
table.facts { width: auto; }
table.facts th { position: static; vertical-align: top; }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.words th { white-space: nowrap; }
.verdicts { list-style: none; margin: 0; padding: 0; }
.verdicts li { display: flex; gap: .8rem; align-items: baseline; padding: .55rem 0;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
.verdicts li:first-child { border-top: 0; }
.verdicts .badge { flex: none; width: 7.6rem; text-align: center; }
.better { color: var(--good); } .open { color: var(--muted); } .few { color: var(--warn); }
.key svg { width: 2.2rem; height: .7rem; margin-right: .5rem; vertical-align: middle; }
.key span { overflow-wrap: anywhere; }
.named th, .named td { padding: .3rem .5rem; }
.named td:first-child, .named th:first-child { text-align: left; white-space: normal; min-width: 11rem;
  overflow-wrap: anywhere; }
.two td:nth-child(2), .two th:nth-child(2) { text-align: left; white-space: normal; min-width: 11rem;
  overflow-wrap: anywhere; }
.best td { font-weight: 600; }
.sideways { overflow-x: auto; }
table.heat { width: auto; min-width: 60%; border-collapse: separate; border-spacing: 2px; }
.heat th, .heat td { text-align: center; border: 0; padding: .35rem .5rem; position: static; }
.heat thead th { padding: .15rem .5rem; white-space: normal; }
.heat tbody th, .heat th.axis:first-child { text-align: right; }
.heat td[style] { border-radius: 4px; min-width: 4.4rem;
  box-shadow: inset 0 0 0 1px var(--line);
  background: color-mix(in srgb, var(--blue) calc(var(--level) * var(--heat)), var(--paper)); }
.heat td.best { outline: 2px solid var(--ink); outline-offset: -2px; font-weight: 650; }
.heat td.lost { color: var(--warn); }
.heat small { display: block; font-weight: 400; font-size: .74rem; }
.heat-key { margin-top: .8rem; align-items: center; flex-wrap: nowrap; font-variant-numeric: tabular-nums; }
.heat-key span { white-space: nowrap; }
.key.heat-key i { flex: 0 1 9rem; height: .8rem; margin: 0; border: 1px solid var(--line); background:
  linear-gradient(to right, var(--paper), color-mix(in srgb, var(--blue) var(--heat), var(--paper))); }
.download { display: inline-block; font-weight: 600; font-size: .92rem; margin-bottom: .7rem; }
.card + .download, .download + .download { margin-top: .6rem; }
.download + .download { margin-left: 1.2rem; }
figure + .muted, .figures + .muted { margin-top: 1rem; }
.key + figure { margin-top: .9rem; }
figure + .download, .figures + .download { margin-top: .8rem; }
footer { margin-top: 2.5rem; color: var(--muted); font-size: .86rem; }
@media (max-width: 560px) {
  .verdicts li { flex-direction: column; gap: .3rem; }
  main { padding: 1.2rem .9rem 2rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .55rem; }
  .tile { padding: .6rem .75rem; }
  .tile strong { font-size: 1.25rem; }
  figure { padding: .75rem .7rem .4rem; }
  .heat th { white-space: normal; }
  .heat th, .heat td { padding: .3rem .2rem; font-size: .8rem; }
  .heat td[style] { min-width: 3.7rem; }
}
@media print {
  :root {
    color-scheme: light;
    --ink: #111; --muted: #555; --grid: #ddd; --paper: #fff; --page: #fff; --line: #ccc;
    --blue: #1a66b8; --orange: #c4570a; --green: #0b7d62; --purple: #8a45a8;
    --red: #b8243f; --olive: #767204; --cyan: #0e86a5; --brown: #80583a;
    --good: #0b7d62; --warn: #a85b00; --bad: #b42332;
  }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  figure, .tile, .card { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; }
  h2 { break-after: avoid; }
  details.card { break-inside: auto; }
  details::details-content { content-visibility: visible; block-size: auto; }
  summary { list-style: none; break-after: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  .scroll, .sideways { max-height: none; overflow: visible; }
  .download { display: none; }
  .bar, .key i, .heat td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
