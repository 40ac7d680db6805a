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

async function draw(figure) {
  const spec = JSON.parse(document.getElementById(figure.dataset.spec).textContent);
  spec.datasets = { ...spec.datasets, table: rowsOf(figure.querySelector("table")) };
  spec.data = { name: "table" };
  const place = figure.querySelector(".chart");
  // The interpreter stands in for compiled expressions, which the page's policy does not let run.
  await window.vegaEmbed(place, spec, { mode: "vega-lite", renderer: "svg", actions: false, ast: true, config });
}

for (const figure of document.querySelectorAll("figure.plot")) {
  try {
    await draw(figure);
  } catch (error) {
    figure.querySelector(".chart").textContent = `This chart cannot be drawn (${error.message}); its numbers are below.`;
  }
}
document.documentElement.dataset.drawn = "yes";
