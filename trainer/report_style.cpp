#include "trainer/report_page.h"

namespace levin {

const char* const report_style = R"css(
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2330; --soft: #667085; --line: #e3e6eb; --grid: #edeff3; --bad: #d92d20;
  --c0: #2f6fde; --c1: #e0662a; --c2: #15936b; --c3: #b23fb5; --c4: #a77a09; --c5: #0c8fae; --c6: #c93a5b; --c7: #6b6ecf;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11141a; --card: #1a1f28; --text: #e6e9ef; --soft: #97a1b3; --line: #2b323e; --grid: #262c37; --bad: #ff7a70;
    --c0: #6ea3ff; --c1: #ff9a5c; --c2: #4cc79a; --c3: #de84e0; --c4: #dcb54a; --c5: #4fc3de; --c6: #ff8099; --c7: #a3a5f5;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 22px; font-weight: 650; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 14px; font-weight: 600; margin: 0; }
.soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 18px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 20px; font-weight: 620; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 12px; }
.controls { display: flex; flex-wrap: wrap; gap: 10px 22px; align-items: center; margin: 18px 0 14px; color: var(--soft); font-size: 13px; }
.controls label { display: inline-flex; align-items: center; gap: 7px; }
.controls output { color: var(--text); font-variant-numeric: tabular-nums; min-width: 2.6em; }
input { accent-color: var(--c0); }
.choice { display: inline-flex; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card); }
.choice button { border: 0; background: none; color: var(--soft); font: inherit; padding: 4px 12px; cursor: pointer; }
.choice button[aria-pressed=true] { background: var(--c0); color: var(--card); }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 14px 6px; position: relative; min-width: 0; }
.card.wide { grid-column: 1 / -1; }
@media (max-width: 820px) { .charts { grid-template-columns: minmax(0, 1fr); } }
.card header { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; justify-content: space-between; margin-bottom: 6px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; color: var(--soft); }
.key { display: inline-flex; align-items: center; gap: 6px; }
.key svg { flex: none; }
svg.plot { display: block; width: 100%; touch-action: pan-y; cursor: crosshair; }
svg text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--grid); } .axis { stroke: var(--line); }
.cross { stroke: var(--soft); stroke-dasharray: 3 3; }
.zoom { fill: var(--c0); opacity: .14; }
.tip { position: absolute; pointer-events: none; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  box-shadow: 0 4px 18px rgb(0 0 0 / .16); padding: 7px 10px; font-size: 12px; z-index: 2; white-space: nowrap; font-variant-numeric: tabular-nums; }
.tip table { border-collapse: collapse; } .tip td { padding: 1px 0 1px 10px; text-align: right; } .tip td:first-child { padding-left: 0; text-align: left; }
.tip td.name { max-width: 260px; overflow: hidden; text-overflow: ellipsis; }
.runs { display: flex; flex-wrap: wrap; gap: 8px; }
.runs button { border: 1px solid var(--line); background: var(--card); color: var(--text); border-radius: 999px; padding: 3px 12px; font: inherit; font-size: 13px; cursor: pointer; }
.runs button[aria-pressed=false] { opacity: .45; text-decoration: line-through; }
.scroll { overflow-x: auto; }
table.wide { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
table.wide th { text-align: right; color: var(--soft); font-weight: 500; } table.wide td { text-align: right; }
table.wide th, table.wide td { padding: 6px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
table.wide tr > :first-child { text-align: left; }
section { margin-top: 18px; }
section.card { padding: 14px; }
pre { margin: 0; font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-x: auto; columns: 300px auto; column-gap: 32px; }
details summary { cursor: pointer; font-weight: 600; margin: 4px 0; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
.bad { color: var(--bad); }
)css";

}  // namespace levin
