"use strict";
// Draw every chart of the page, narrow the page down, and look up what stands behind a number. Nothing is fetched: charts, raw
// tables, points and logs are embedded. What came from outside becomes text (textContent), never markup.
(async () => {
  const embedded = (id) => JSON.parse(document.getElementById(id).textContent);
  const { config, kinds } = embedded("page-charts");
  const data = embedded("page-data");
  // Errors alone: a filter may leave a scheme without intervals, of which Vega warns.
  const options = { mode: "vega-lite", renderer: "svg", actions: false, logLevel: 1, config };
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const filter = document.getElementById("filter");
  const drawn = [];

  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return Object.assign(made, attributes);
  }

  // --- charts ---------------------------------------------------------------------------------------------------------

  async function draw(root) {
    for (const box of all("[data-chart]", root)) {
      const [kind, datasets] = JSON.parse(box.nextElementSibling.textContent);
      // Vega writes its own role and label on the element it draws into; the box around it keeps the page's text alternative.
      const inside = box.appendChild(document.createElement("div"));
      inside.setAttribute("aria-hidden", "true");
      try {
        const { view } = await vegaEmbed(inside, { ...kinds[kind], datasets }, options);
        view.addEventListener("click", (_, item) => {
          const row = item && item.datum;
          if (row && row.scheme) trace({ ...whereOf(box), ...known({ scheme: row.scheme, layer: row.layer }), ...xOf(box, row) });
        });
        drawn.push({ box, view, rows: datasets.rows });
      } catch (error) {
        box.textContent = "This chart could not be drawn. Its numbers are below.";
        console.error(error);
      }
    }
  }

  const known = (values) => Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined && value !== null));

  function xOf(box, row) {
    const group = box.closest("[data-x]");
    return group ? known({ [group.dataset.x]: row.x }) : {};
  }

  // --- what is embedded -------------------------------------------------------------------------------------------------

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  const parsed = new Map();

  // [{column: text}] of a packed table; [] of one that is too large for the page.
  async function rowsOf(name, text) {
    if (!text) return [];
    if (!parsed.has(name)) {
      const [head, ...rows] = parseCsv(await unpack(text));
      parsed.set(name, rows.map((row) => Object.fromEntries(head.map((column, place) => [column, row[place]]))));
    }
    return parsed.get(name);
  }

  function parseCsv(text) {
    const rows = [];
    let row = [], start = 0;
    while (start < text.length) {
      let field, end;
      if (text[start] === '"') {
        end = start + 1;
        while (text[end] !== '"' || text[end + 1] === '"') end += text[end] === '"' ? 2 : 1;
        field = text.slice(start + 1, end).replaceAll('""', '"');
        end += 1;
      } else {
        const ends = /[,\n]/g;
        ends.lastIndex = start;
        end = ends.exec(text)?.index ?? text.length;
        field = text.slice(start, end);
      }
      row.push(field);
      if (text[end] !== ",") { rows.push(row); row = []; }
      // A comma at the very end of a line: one more, empty field.
      else if (text[end + 1] === "\n") { row.push(""); rows.push(row); row = []; end += 1; }
      start = end + 1;
    }
    return rows;
  }

  const csvField = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function save(name, text) {
    const link = element("a", "", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // --- from a number to its rows ----------------------------------------------------------------------------------------

  // What the elements around a number say of it, the inner ones last.
  function whereOf(inside) {
    const found = {};
    for (let at = inside; at; at = at.parentElement) {
      if (at.dataset.at) Object.assign(found, { ...JSON.parse(at.dataset.at), ...found });
      if (at.dataset.scheme && !("scheme" in found)) found.scheme = at.dataset.scheme;
    }
    return found;
  }

  function whereOfCell(cell) {
    const columns = cell.closest("table").dataset.columns;
    const named = Object.entries(columns ? JSON.parse(columns) : {});
    const cells = cell.parentElement.cells;
    return { ...whereOf(cell), ...Object.fromEntries(named.map(([place, name]) => [name, cells[place].textContent.trim()])) };
  }

  function same(text, value) {
    if (value === null || value === "") return text === "";
    if (text === String(value)) return true;
    const [a, b] = [Number(text), Number(value)];
    // A table shows six digits.
    return text !== "" && Math.abs(a - b) <= 1e-5 * Math.max(Math.abs(a), Math.abs(b));
  }

  const matches = (row, where) =>
    Object.entries(where).every(([name, value]) => name === "table" || !(name in row) || same(row[name], value));

  const said = (where) => Object.entries(where).filter(([name]) => name !== "table").map(([name, value]) => `${name} ${value ?? "–"}`);

  const dialog = document.getElementById("trace");

  async function trace(where) {
    const { table } = where;
    const embeddedTable = data.tables[table];
    const rows = (await rowsOf(table, embeddedTable && embeddedTable.packed)).filter((row) => matches(row, where));
    const points = (await rowsOf("points", data.points)).filter(
      (point) => point.table === table && matches({ ...point, ...JSON.parse(point.columns) }, where));
    const runIds = new Set(rows.map((row) => row.run_id));
    const runs = (await rowsOf("runs", data.tables.runs && data.tables.runs.packed)).filter((run) => runIds.has(run.run_id));
    const logs = await rowsOf("logs", data.logs);
    dialog.querySelector("h2").textContent = `${table}: ${said(where).join(", ")}`;
    const body = dialog.querySelector("div");
    body.replaceChildren();
    showRows(body, where, rows, embeddedTable);
    showPoints(body, points);
    for (const run of runs.slice(0, 5)) showRun(body, run, logs.find((entry) => entry.run_id === run.run_id));
    if (runs.length > 5) body.append(element("p", `And ${runs.length - 5} more runs: table runs.`));
    // Weights that were not quantized have no job to run again.
    if (table !== "checkpoints" || rows.some((row) => row.quantize_s)) showAgain(body, where, runs);
    if (!dialog.open) dialog.showModal();
    dialog.querySelector("h2").focus();
    dialog.scrollTop = 0;
  }

  const MOST_ROWS = 30;

  function showRows(body, where, rows, embeddedTable) {
    if (!embeddedTable || !embeddedTable.packed) {
      const place = `results/${data.study}/tables/${where.table}.csv`;
      body.append(element("p", embeddedTable ? `The rows are too many for this page: ${place}` : "This table has no rows."));
      return;
    }
    const states = new Map();
    for (const row of rows) states.set(row.status ?? "ok", (states.get(row.status ?? "ok") ?? 0) + 1);
    const line = element("p", `${rows.length} row${rows.length === 1 ? "" : "s"} of table ${where.table}: ${[...states].map((s) => s.join(" ")).join(", ")}. `);
    const columns = rows.length ? Object.keys(rows[0]) : [];
    const text = [columns, ...rows.map((row) => columns.map((name) => row[name]))].map((r) => r.map(csvField).join(",")).join("\n");
    line.append(element("button", "Download these rows", { type: "button", onclick: () => save(`${where.table}.csv`, `${text}\n`) }));
    if (where.scheme && where.scheme !== data.baseline && where.table !== "checkpoints") {
      const other = { ...where, scheme: data.baseline };
      line.append(" ", element("button", `Those of ${data.baseline}`, { type: "button", onclick: () => trace(other) }));
    }
    body.append(line);
    // What is the same in all of them stands in the heading, or is told once.
    const varying = columns.filter((name) => new Set(rows.map((row) => row[name])).size > 1);
    const shown = varying.length ? varying : columns.filter((name) => rows[0][name] !== "");
    if (rows.length) body.append(tableOf(shown, rows.slice(0, MOST_ROWS).map((row) => shown.map((name) => shortened(row[name])))));
    if (rows.length > MOST_ROWS) body.append(element("p", `The first ${MOST_ROWS}; the download has all.`, { className: "quiet" }));
  }

  const shortened = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);

  function tableOf(columns, rows) {
    const box = element("div", undefined, { className: "scroll", tabIndex: 0 });
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Rows");
    const table = box.appendChild(element("table"));
    const head = table.createTHead().insertRow();
    for (const column of columns) head.append(element("th", column, { scope: "col" }));
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      for (const value of row) line.append(element("td", value, { className: "num" }));
    }
    return box;
  }

  function showPoints(body, points) {
    if (!points.length) return;
    body.append(element("h3", points.length === 1 ? "Its point in the store" : `Its ${points.length} points in the store`));
    const rows = points.slice(0, MOST_ROWS).map((point) => [point.stage, `points/${point.key.slice(0, 2)}/${point.key}….json`, point.columns]);
    body.append(tableOf(["stage", "file", "parameters"], rows));
  }

  function showRun(body, run, log) {
    body.append(element("h3", `Run ${run.run_id}`));
    const list = body.appendChild(element("dl"));
    for (const [name, value] of Object.entries(run)) {
      if (value !== "" && name !== "run_id") list.append(element("dt", name), element("dd", value));
    }
    if (log && log.log) body.append(element("p", "The end of its log:", { className: "quiet" }), element("pre", log.log));
  }

  function showAgain(body, where, runs) {
    const target = data.jobs[where.table];
    const names = [...(target ?? "").matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
    if (!target || names.some((name) => !where[name])) return;
    const filled = names.reduce((text, name) => text.replace(`{${name}}`, where[name]), target);
    const commit = runs.map((run) => run.commit.replace("+changed", "")).find(Boolean);
    const command = `snakemake ${filled} --configfile config/${data.study}.yaml --config store=results/again`;
    body.append(element("h3", "Measure it again"));
    body.append(element("p", "Into a store of its own, so that it is measured and not read.", { className: "quiet" }));
    body.append(element("pre", (commit ? `git checkout ${commit}\n` : "") + command));
  }

  // --- links, filter, folded parts --------------------------------------------------------------------------------------

  // Make numbers that have rows behind them links that a keyboard reaches, too.
  function prepare(root) {
    for (const head of all("table[data-columns] tbody th[scope=row], td[data-at]", root)) {
      const holder = head.querySelector(".value") ?? head;
      const text = [...holder.childNodes].find((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
      if (!text || !("table" in whereOf(head))) continue;
      const link = element("button", text.textContent, { type: "button", className: "trace", title: "The rows behind it" });
      text.replaceWith(link);
    }
  }

  document.addEventListener("click", (event) => {
    const cell = event.target.closest("button.trace, table[data-columns] tbody td")?.closest("td, th");
    if (cell && "table" in whereOf(cell)) trace(whereOfCell(cell));
    const download = event.target.closest("[data-download]");
    if (download) {
      const name = download.dataset.download;
      unpack(data.tables[name].packed).then((text) => save(`${data.study}-${name}.csv`, text));
    }
  });

  function asked() {
    return filter ? Object.fromEntries(new FormData(filter)) : {};
  }

  async function narrow() {
    const wanted = asked();
    const other = (at, name) => wanted[name] && at[name] && at[name] !== wanted[name];
    for (const part of all(".group-figure[data-at], details.packed[data-at], tbody[data-at]")) {
      const at = JSON.parse(part.dataset.at);
      part.hidden = Boolean(other(at, "gpu") || other(at, "model"));
    }
    for (const row of all("[data-scheme]")) row.hidden = Boolean(other({ scheme: row.dataset.scheme }, "scheme"));
    for (const table of all("table[data-columns]")) {
      if (JSON.parse(table.dataset.columns)[0] !== "scheme") continue;
      for (const row of table.tBodies[0].rows) row.hidden = Boolean(other({ scheme: row.cells[0].textContent.trim() }, "scheme"));
    }
    await Promise.all(drawn.map(({ box, view, rows }) => {
      const left = rows.filter((row) => !other(row, "scheme"));
      box.closest("figure").hidden = left.length === 0;
      return left.length ? view.data("rows", left.map((row) => ({ ...row }))).runAsync() : null;
    }));
    for (const section of all("section")) {
      const packs = all("details.packed:not([hidden])", section);
      if ((wanted.gpu || wanted.model) && packs.length <= 2) packs.forEach((pack) => { pack.open = true; });
    }
    if (filter) filter.querySelector("output").textContent = Object.values(wanted).some(Boolean) ? "Only these are shown." : "";
  }

  for (const pack of all("details.packed")) {
    pack.addEventListener("toggle", async () => {
      const { pack: text } = pack.dataset;
      if (!pack.open || !text) return;
      delete pack.dataset.pack;
      const inside = pack.querySelector("div");
      // The page's own markup, escaped when it was made, as all of the page is.
      inside.innerHTML = await unpack(text);
      prepare(inside);
      await draw(inside);
      if (Object.values(asked()).some(Boolean)) await narrow();
      pack.dataset.drawn = "yes";
    });
  }

  prepare(document);
  all("[data-download]").forEach((button) => { button.disabled = false; });
  await draw(document);
  if (filter) {
    filter.hidden = false;
    filter.reset();
    filter.addEventListener("change", narrow);
  }
  document.documentElement.dataset.drawn = "yes";
})();
