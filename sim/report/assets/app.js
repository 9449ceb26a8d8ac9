// The page: draws every chart, and redraws all of them for the window that is brushed in the overview.
const page = JSON.parse(document.getElementById("data").textContent);
const state = { ...page.params };
const views = new Map();
const tables = {};

// Tables travel as columns; a column with few distinct values as a dictionary.
for (const [name, table] of Object.entries(page.tables)) {
  const names = Object.keys(table.columns);
  const columns = names.map((n) => {
    const c = table.columns[n];
    return Array.isArray(c) ? c : c.codes.map((code) => c.values[code]);
  });
  tables[name] = Array.from({ length: table.rows }, (_, i) =>
    Object.fromEntries(names.map((n, j) => [n, columns[j][i]])));
}

const wantsDark = matchMedia("(prefers-color-scheme: dark)");
let theme = document.documentElement.dataset.theme || (wantsDark.matches ? "dark" : "light");

function specification(chart, place) {
  if (place.clientWidth < 500) fold(chart.spec.encoding?.color?.legend);
  const own = (chart.spec.params || []).filter((p) => p.select);
  const names = ["t0", "t1", "shown", "focus", "slow_by"];
  return {
    $schema: page.schema, ...chart.spec, width: "container", autosize: { type: "fit-x", contains: "padding" },
    params: [...own, ...names.map((name) => ({ name, value: state[name] })), { name: "bin", value: page.bin }],
    data: { values: rowsOf(chart) }, config: page.themes[theme],
  };
}

// The rows that a chart draws: its table, or the part of it that it asks for.
const parts = new Map();
function rowsOf(chart) {
  const rows = tables[chart.table];
  if (!chart.only) return rows;
  const [column, value] = chart.only, key = `${chart.table} ${column} ${value}`;
  if (!parts.has(key)) parts.set(key, rows.filter((r) => r[column] === value));
  return parts.get(key);
}

// A legend of many columns would run out of a narrow card.
function fold(legend) {
  if (legend?.columns) legend.columns = 2;
}

async function draw(chart) {
  const place = document.getElementById(`chart-${chart.name}`);
  const found = await window.vegaEmbed(place, specification(chart, place), {
    renderer: "canvas", logLevel: 1, // errors only: a window without requests is empty, not a warning
    tooltip: { theme }, downloadFileName: `${page.file_name}-${chart.name}`,
    actions: chart.name === "overview" ? false : { export: { png: true, svg: true }, source: false, compiled: false, editor: false },
  });
  views.get(chart.name)?.finalize();
  views.set(chart.name, found.view);
  if (chart.name === "overview") found.view.addSignalListener("brush", (_, value) => brushed(value.t));
}

// One redraw a frame however fast the brush moves; a page without frames (hidden, printing) redraws by the clock.
let pending = false;
function update() {
  if (pending) return;
  pending = true;
  const redraw = () => { if (pending) { pending = false; apply(); } };
  requestAnimationFrame(redraw);
  setTimeout(redraw, 100);
}

function apply() {
  for (const [name, view] of views) {
    for (const key of ["t0", "t1", "shown", "focus", "slow_by"]) {
      if (name !== "overview" || key === "shown") view.signal(key, state[key]);
    }
    view.runAsync();
  }
  tiles();
  const whole = state.t0 === page.params.t0 && state.t1 === page.params.t1;
  document.getElementById("reset").hidden = whole;
  document.documentElement.classList.toggle("brushed", !whole);
  document.getElementById("window").textContent = whole
    ? `whole run, ${number(page.params.t0)}–${number(page.params.t1)} ${page.unit}: drag to look closer`
    : `${number(state.t0)}–${number(state.t1)} ${page.unit}`;
}

function brushed(interval) {
  const { t0, t1 } = page.params;
  // snap to the bins that everything is counted in
  const snap = (t, round) => Math.min(t1, Math.max(t0, round(t / page.bin) * page.bin));
  const a = interval ? snap(Math.min(...interval), Math.floor) : t0;
  const b = interval ? snap(Math.max(...interval), Math.ceil) : t1;
  [state.t0, state.t1] = b > a ? [a, b] : [t0, t1];
  update();
}

// -- headline numbers

const number = (v) => v == null || !isFinite(v) ? "–"
  : v === 0 ? "0" : Math.abs(v) >= 99.95 ? Math.round(v).toLocaleString("en")
  : String(+v.toPrecision(3));
const duration = (ms) => ms == null || !isFinite(ms) ? "–"
  : ms >= 1000 ? `${number(ms / 1000)} s` : ms >= 1 ? `${number(ms)} ms` : `${number(ms * 1000)} µs`;

function inWindow(name, run) {
  return tables[name].filter((r) => r.run === run && r.t >= state.t0 - 1e-9 && r.t < state.t1 - 1e-9);
}

function quantile(cells, metric, q) {
  const counts = new Map();
  let total = 0;
  for (const c of cells) {
    if (c.metric !== metric) continue;
    const cell = counts.get(c.x) || { x: c.x, x2: c.x2, n: 0 };
    cell.n += c.n; total += c.n;
    counts.set(c.x, cell);
  }
  let below = 0;
  for (const c of [...counts.values()].sort((a, b) => a.x - b.x)) {
    if (below + c.n >= q * total) return c.x * (c.x2 / c.x) ** ((q * total - below) / c.n);
    below += c.n;
  }
  return null;
}

function tiles() {
  const run = state.focus;
  const whole = state.t0 === page.params.t0 && state.t1 === page.params.t1;
  const found = whole ? page.headline[run] : windowHeadline(run);
  const place = document.getElementById("tiles");
  place.replaceChildren(...found.map(([label, value, note]) => {
    const tile = Object.assign(document.createElement("div"), { className: "tile" });
    tile.append(Object.assign(document.createElement("span"), { textContent: label }),
                Object.assign(document.createElement("b"), { textContent: value }),
                Object.assign(document.createElement("span"), { textContent: note || " " }));
    return tile;
  }));
}

function windowHeadline(run) {
  const rows = inWindow("series", run), cells = inWindow("latency", run);
  const mean = (f) => rows.length ? rows.reduce((sum, r) => sum + (f(r) || 0), 0) / rows.length : null;
  const arrived = cells.filter((c) => c.metric === "E2E").reduce((sum, c) => sum + c.n, 0);
  const note = "in the window";
  return [
    ["finished", number(arrived), "arrived in here"],
    ["output tokens/s", number(mean((r) => r.emitted_tokens)), note],
    ["TTFT p50", `≈ ${duration(quantile(cells, "TTFT", 0.5))}`, note],
    ["TTFT p99", `≈ ${duration(quantile(cells, "TTFT", 0.99))}`, note],
    ["ITL p50", `≈ ${duration(quantile(cells, "ITL", 0.5))}`, note],
    ["ITL p99", `≈ ${duration(quantile(cells, "ITL", 0.99))}`, note],
    ["E2E p99", `≈ ${duration(quantile(cells, "E2E", 0.99))}`, note],
    ["running / waiting", `${number(mean((r) => r.running))} / ${number(mean((r) => r.waiting))}`, "mean"],
    ["KV in use", `${number(100 * mean((r) => r.kv_used_frac))} %`, "mean"],
    ["GPU busy", `${number(100 * Math.min(1, mean((r) => r.busy_frac) / page.replicas[run]))} %`, "mean"],
  ];
}

// -- controls

function toggles() {
  const runs = document.getElementById("runs"), focus = document.getElementById("focus");
  if (page.labels.length < 2) return;
  page.labels.forEach((label, i) => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true, value: label });
    box.addEventListener("change", () => {
      state.shown = [...runs.querySelectorAll("input:checked")].map((b) => b.value);
      update();
    });
    const dot = document.createElement("i");
    dot.style.background = page.colors[i % page.colors.length];
    const line = document.createElement("label");
    line.append(box, dot, label);
    runs.append(line);
    focus.append(new Option(label, label, label === state.focus, label === state.focus));
  });
  document.getElementById("focus-label").hidden = false;
  focus.addEventListener("change", () => { state.focus = focus.value; update(); });
}

function setTheme(next) {
  theme = next;
  document.documentElement.classList.toggle("dark", theme === "dark");
}

// What is in sight is drawn first, and then the rest chart by chart, so that the page answers meanwhile.
let drawing = 0;
async function drawAll() {
  const mine = ++drawing; // a change of theme begins anew
  const window_ = [state.t0, state.t1];
  const inSight = (chart) => document.getElementById(`chart-${chart.name}`).getBoundingClientRect().top < innerHeight;
  const first = page.charts.filter(inSight), rest = page.charts.filter((chart) => !first.includes(chart));
  tiles();
  for (const chart of first) {
    if (mine !== drawing) return;
    await draw(chart);
  }
  performance.mark("stepline-in-sight");
  for (const chart of rest) {
    await new Promise((r) => setTimeout(r));
    if (mine !== drawing) return;
    await draw(chart);
  }
  if (window_[0] !== page.params.t0 || window_[1] !== page.params.t1) select(...window_);
  apply();
}

// Select a window as the brush would; also for scripts: stepline.select(t0, t1).
function select(a, b) {
  const view = views.get("overview");
  const scale = view.scale("x");
  view.signal("brush_x", a == null ? [] : [scale(a), scale(b)]);
  return view.runAsync();
}

document.getElementById("theme").addEventListener("click", () => {
  setTheme(theme === "dark" ? "light" : "dark");
  drawAll();
});
wantsDark.addEventListener("change", (event) => { setTheme(event.matches ? "dark" : "light"); drawAll(); });
document.getElementById("reset").addEventListener("click", () => select(null));
for (const input of document.querySelectorAll("input[name=slow_by]")) {
  input.addEventListener("change", () => { state.slow_by = input.value; update(); });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") select(null); });

setTheme(theme);
toggles();
window.stepline = { page, state, views, tables, select };
await drawAll();
document.documentElement.dataset.ready = "yes";
