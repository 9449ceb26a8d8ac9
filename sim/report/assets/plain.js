// A page of charts whose data stand in their specifications: themes, and controls bound to parameters by name.
const page = JSON.parse(document.getElementById("data").textContent);
const state = { ...page.params };
const views = new Map();
const wantsDark = matchMedia("(prefers-color-scheme: dark)");
let theme = wantsDark.matches ? "dark" : "light";

async function draw(chart) {
  const place = document.getElementById(`chart-${chart.name}`);
  const legend = chart.spec.encoding?.color?.legend;
  if (place.clientWidth < 500 && legend?.columns) legend.columns = 1;
  const spec = {
    $schema: page.schema, ...chart.spec, width: "container", autosize: { type: "fit-x", contains: "padding" },
    params: [...(chart.spec.params || []), ...Object.entries(state).map(([name, value]) => ({ name, value }))],
    data: { values: page.tables[chart.table] }, config: page.themes[theme],
  };
  const found = await window.vegaEmbed(place, spec, {
    renderer: "canvas", logLevel: 1, tooltip: { theme }, downloadFileName: `${page.file_name}-${chart.name}`,
    actions: { export: { png: true, svg: true }, source: false, compiled: false, editor: false },
  });
  views.get(chart.name)?.finalize();
  views.set(chart.name, found.view);
}

async function drawAll() {
  document.documentElement.classList.toggle("dark", theme === "dark");
  for (const chart of page.charts) await draw(chart);
}

function set(name, value) {
  state[name] = value;
  for (const view of views.values()) view.signal(name, value).runAsync();
}

for (const control of document.querySelectorAll("select[data-param]")) {
  control.addEventListener("change", () => set(control.dataset.param, control.value));
}
for (const group of document.querySelectorAll("[data-checks]")) {
  group.addEventListener("change", () =>
    set(group.dataset.checks, [...group.querySelectorAll("input:checked")].map((box) => box.value)));
}
document.getElementById("theme").addEventListener("click", () => { theme = theme === "dark" ? "light" : "dark"; drawAll(); });
wantsDark.addEventListener("change", (event) => { theme = event.matches ? "dark" : "light"; drawAll(); });

window.stepline = { page, state, views, set };
await drawAll();
document.documentElement.dataset.ready = "yes";
