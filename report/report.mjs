// Charts out of the tables that stand below them: a chart's numbers are on the page once.

const config = JSON.parse(document.getElementById("config").textContent);

/** The rows of a table as objects: cells under a numeric heading are numbers, empty ones null. */
function rowsOf(table) {
  const columns = Array.from(table.tHead.rows[0].cells, (cell) => [cell.dataset.field, cell.classList.contains("number")]);
  return Array.from(table.tBodies[0].rows, (row) => Object.fromEntries(columns.map(([field, isNumber], place) => {
    const text = row.cells[place].textContent;
    if (!isNumber) return [field, text];
    return [field, text === "" ? null : Number(text.replaceAll(",", ""))];
  })));
}

const NARROW = 520; // pixels of a chart's place, below which a legend has two columns
const isNarrow = (place) => place.clientWidth < NARROW;
const drawn = new Map(); // place of a chart -> what Vega gave for it, and whether it was narrow

async function draw(figure) {
  const spec = JSON.parse(document.getElementById(figure.dataset.spec).textContent);
  spec.datasets = { ...spec.datasets, table: rowsOf(figure.querySelector("table")) };
  spec.data = { name: "table" };
  const place = figure.querySelector(".chart");
  const narrow = isNarrow(place);
  const before = drawn.get(place)?.result;
  const chosen = (spec.params ?? []).map(({ name }) => [name, before?.view.signal(name)]);
  before?.finalize();
  const suited = { ...config, legend: { ...config.legend, columns: narrow ? 2 : 6 } };
  // The interpreter stands in for compiled expressions, which the page's policy does not let run.
  const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: suited };
  const result = await window.vegaEmbed(place, spec, options);
  drawn.set(place, { result, narrow });
  if (before) {
    for (const [name, value] of chosen) result.view.signal(name, value);
    await result.view.runAsync();
  }
}

const figures = Array.from(document.querySelectorAll("figure.plot"));
for (const figure of figures) {
  try {
    await draw(figure);
  } catch (error) {
    figure.querySelector(".chart").textContent = `This chart cannot be drawn (${error.message}); its numbers are below.`;
  }
}
// Vega fits a chart to a new width, but not the rows of its legend.
const observer = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const known = drawn.get(target);
    if (!known || known.narrow === isNarrow(target)) continue;
    known.narrow = isNarrow(target);
    draw(target.closest("figure"));
  }
});
for (const place of drawn.keys()) observer.observe(place);
document.documentElement.dataset.drawn = "yes";
