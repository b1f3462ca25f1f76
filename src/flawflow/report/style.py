"""The look of the page: one style sheet, light and dark, phone and desktop, no script and no font from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --ink: #23272f; --soft: #5c6675;
  --line: #e1e4ea; --accent: #1f7a70; --good: #1a7a6f; --bad: #c4421c; --warn: #fff4e5; --warn-line: #e8a33d;
  --field: #eef0f3; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171c; --card: #1d2229; --ink: #e6e9ee; --soft: #a3adbd; --line: #323a45;
    --accent: #4fc3b5; --good: #4fc3b5; --bad: #ff8a65; --warn: #33280f; --warn-line: #b9822f; --field: #272d36; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; padding: clamp(.75rem, 3vw, 2.5rem); background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 74rem; margin: 0 auto; }
h1 { font-size: clamp(1.4rem, 4.5vw, 2.1rem); line-height: 1.2; margin: .5rem 0 1.25rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; line-height: 1.3; margin: 0 0 .6rem; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
  padding: clamp(.9rem, 2.5vw, 1.5rem); margin: 0 0 1rem; }
section.warning { background: var(--warn); border-color: var(--warn-line); }
p { margin: 0 0 .75rem; max-width: 72ch; overflow-wrap: anywhere; white-space: pre-line; }
dl { margin: 0 0 .75rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
dt { color: var(--soft); font-size: .85rem; line-height: 1.35; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .9rem; }
.facts div { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem .75rem; display: flex;
  flex-direction: column; justify-content: space-between; }
.facts dd { font-size: 1.3rem; font-weight: 600; line-height: 1.35; }
.pairs div { display: grid; grid-template-columns: minmax(6.5rem, min(14rem, 30%)) 1fr; gap: .2rem 1rem;
  padding: .3rem 0; border-bottom: 1px solid var(--line); align-items: baseline; }
.wide { overflow-x: auto; margin: 0 0 .75rem; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
@media (max-width: 30rem) { table { font-size: .88rem; }
  th, td { padding: .4rem .35rem; white-space: normal; vertical-align: bottom; } }
pre { margin: 0 0 .75rem; padding: .7rem .9rem; background: var(--field); border-radius: .5rem; overflow-x: auto;
  font: .88rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
figure { margin: 0 0 .75rem; }
figure > img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: .4rem;
  background: #fff; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .5rem; overflow-wrap: anywhere; }
section > :last-child { margin-bottom: 0; }
"""

CHARTS = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1rem 2rem; margin: 0 0 .75rem; }
.charts .wide { align-self: end; }
.chart { margin: 0; max-width: 34rem; }
.chart figcaption { margin: 0 0 .35rem; color: var(--ink); font-size: .95rem; font-weight: 600; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart .middle { text-anchor: middle; } .chart .end { text-anchor: end; }
.chart path { fill: none; } .chart .axis { stroke: var(--soft); } .chart .grid { stroke: var(--line); }
.chart .line { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .dashed { stroke-dasharray: 3 5; }
.chart .mark { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 6 4; }
.line.good { stroke: var(--good); } .line.bad { stroke: var(--bad); } .line.ink { stroke: var(--accent); }
.line.soft { stroke: var(--soft); }
circle.good, .bar.good { fill: var(--good); } circle.bad, .bar.bad { fill: var(--bad); }
circle.ink { fill: var(--accent); } .bar { opacity: .72; }
@media (max-width: 30rem) { .chart text { font-size: 14.5px; } }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; list-style: none; margin: .3rem 0 0; padding: 0;
  font-size: .85rem; color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin-right: .4rem; vertical-align: -.08em; background: var(--accent); }
.legend .good::before { background: var(--good); } .legend .bad::before { background: var(--bad); }
.legend .soft::before, .legend .mark::before { background: none; border-radius: 0; height: 0; vertical-align: .25em;
  border-top: 2px dashed var(--soft); }
.legend .mark::before { border-color: var(--ink); }
"""

GALLERY = """
.gallery > input { position: absolute; opacity: 0; pointer-events: none; }
.gallery > label { display: inline-block; padding: .3rem .8rem; margin: 0 .35rem .5rem 0; font-size: .9rem;
  border: 1px solid var(--line); border-radius: 2rem; cursor: pointer; user-select: none; }
.gallery > input:checked + label { background: var(--accent); border-color: var(--accent); color: var(--card);
  font-weight: 600; }
.gallery > input:focus-visible + label, .shot input:focus-visible ~ .frame { outline: 3px solid var(--accent);
  outline-offset: 2px; }
.gallery > .part { display: inline-block; color: var(--soft); font-size: .85rem; margin: 0 .5rem 0 0; }
.gallery > .break { display: block; }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, clamp(9rem, 19vw, 15rem)), 1fr));
  gap: 1rem; list-style: none; margin: .5rem 0 0; padding: 0; align-items: start; }
.shot { border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; font-size: .85rem; }
.shot.is-wrong { border-color: var(--bad); box-shadow: 0 0 0 1px var(--bad); }
.shot label { display: block; position: relative; cursor: pointer; }
.shot input { position: absolute; opacity: 0; top: 0; left: 0; }
.frame { display: block; position: relative; background: var(--field); }
.frame > * { position: absolute; inset: 0; width: 100%; height: 100%; }
.heat, .truth { transition: none; }
.truth path { fill: none; stroke: #fff; stroke-width: 2px; vector-effect: non-scaling-stroke;
  stroke-linecap: round; stroke-linejoin: round; }
.truth path:first-child { stroke: #111; stroke-width: 4.5px; }
.shot p { margin: 0; padding: .45rem .6rem .55rem; line-height: 1.4; white-space: normal; }
.shot b { display: block; font-weight: 600; overflow-wrap: anywhere; }
.shot .says { display: block; color: var(--good); font-weight: 600; }
.shot .says.bad { color: var(--bad); }
.shot .soft > span { display: inline-block; margin-right: .5rem; }
.shot .soft { color: var(--soft); font-variant-numeric: tabular-nums; }
.show-heat:not(:checked) ~ .shots .heat, .show-truth:not(:checked) ~ .shots .truth,
.shot input:checked ~ .frame .heat, .shot input:checked ~ .frame .truth { opacity: 0; }
.only-wrong:checked ~ .shots .is-right, .only-bad:checked ~ .shots .is-good,
.only-good:checked ~ .shots .is-bad { display: none; }
.ramp { display: inline-block; width: 5rem; height: .6rem; border-radius: .3rem; vertical-align: -.02em;
  border: 1px solid var(--line); }
@media (hover: hover) { .shot label:hover .heat, .shot label:hover .truth { opacity: 0; } }
@media (prefers-reduced-motion: no-preference) { .heat, .truth { transition: opacity .15s; } }
@media (max-width: 30rem) { .shots { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem; } }
@media print { body { background: #fff; padding: 0; } section { break-inside: avoid-page; }
  .gallery > label, .gallery > .part { display: none; } }
"""
