"use strict";
// The page is whole without this: it only adds sorting, filtering and opening.
(function () {
  // a filter's number is compared in SI, as data-sort is
  const SIZES = {
    "": 1, "%": 0.01, b: 1, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30, tib: 2 ** 40,
    us: 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600, days: 86400, k: 1e3, m: 1e6,
  };
  const CONDITION = /^([^<>=]*)(<=|>=|<|>|=)([+-]?\d[\d.,]*(?:e[+-]?\d+)?)([a-z%]*)$/;
  const SHOWN = /^([+-]?\d[\d.,]*(?:e[+-]?\d+)?)\s*([a-z%]*)/;
  const LEAST_ROWS = 4; // of a table that gets a filter
  const state = new Map(new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : ""));

  function remember(key, value) {
    value ? state.set(key, value) : state.delete(key);
    const hash = new URLSearchParams(Array.from(state)).toString();
    try {
      history.replaceState(null, "", hash ? "#?" + hash : location.pathname + location.search);
    } catch {
      // a page within another has no address of its own to keep it in
    }
  }

  // what is sorted and filtered: a table's rows, or its groups of rows where it has several
  function unitsOf(table) {
    return Array.from(table.tBodies.length > 1 ? table.tBodies : table.tBodies[0].rows);
  }

  function cellOf(unit, column) {
    return (unit.rows ? unit.rows[0] : unit).cells[column];
  }

  // null: not known. What the cell says it is, else a number read as shown ('1.50 KiB'), else the text
  function valueOf(unit, column) {
    const cell = cellOf(unit, column);
    if (!cell) return null;
    if (cell.dataset.sort !== undefined) return cell.dataset.sort === "" ? null : Number(cell.dataset.sort);
    const text = cell.textContent.trim().toLowerCase();
    if (!text || text === "n/a") return null;
    if (!cell.classList.contains("n")) return text;
    const found = SHOWN.exec(text);
    if (!found) return text === "exact" ? 0 : text;
    return Number(found[1].replace(/,/g, "")) * (SIZES[found[2]] || 1);
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a < b ? -1 : Number(a > b);
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sort(table, units, column, direction) {
    const order = units.map((unit) => ({ unit, value: direction ? valueOf(unit, column) : null }));
    // what is not known goes to the end, whichever way the rest is sorted; without a direction all keep their order
    order.sort((a, b) => (a.value === null) - (b.value === null) || (a.value === null ? 0 : direction * compare(a.value, b.value)));
    const body = units[0].parentNode;
    const end = body === table ? table.tFoot : null;
    order.forEach((entry) => body.insertBefore(entry.unit, end));
  }

  function makeSortable(table) {
    const headings = Array.from(table.tHead.rows[0].cells);
    const units = unitsOf(table);
    const names = { ascending: 1, descending: -1 };

    function show(column, name) {
      headings.forEach((heading, place) => {
        if (place === column && name) heading.setAttribute("aria-sort", name);
        else heading.removeAttribute("aria-sort");
      });
      if (units.length) sort(table, units, column, names[name] || 0);
    }

    headings.forEach((heading, column) => {
      if (heading.hasAttribute("data-unsorted")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "" };
        const name = next[heading.getAttribute("aria-sort")] ?? "ascending";
        show(column, name);
        if (table.id) remember(table.id + ".sort", name && column + "-" + name);
      });
    });
    const [column, name] = (state.get(table.id + ".sort") || "").split("-");
    if (headings[column] && names[name]) show(Number(column), name);
  }

  function headingTexts(table) {
    return Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent.toLowerCase().replace(/\s+/g, ""));
  }

  // the unit in which a filter's bare number is meant: the column's, or % where its cells say so
  function bareUnit(table, column) {
    const unit = (table.tHead.rows[0].cells[column].dataset.unit || "").toLowerCase();
    const percent = unitsOf(table).some((found) => (cellOf(found, column)?.textContent || "").trim().endsWith("%"));
    return SIZES[unit] ? unit : percent ? "%" : "";
  }

  // one word of a filter as a test of a row: 'tp8' (contains), '-tp8' (does not), 'step<10ms', '>10' (any column)
  function testOf(word, table) {
    const found = CONDITION.exec(word);
    const columns = found ? headingTexts(table).flatMap((heading, place) => (heading.includes(found[1]) ? [place] : [])) : [];
    if (!columns.length || SIZES[found[4]] === undefined) {
      const without = word.length > 1 && word.startsWith("-") && Number.isNaN(Number(word));
      const text = without ? word.slice(1) : word;
      return (row) => row.text.includes(text) !== without;
    }
    const limits = columns.map((column) => Number(found[3].replace(/,/g, "")) * SIZES[found[4] || bareUnit(table, column)]);
    const holds = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };
    return (row) =>
      columns.some((column, place) => {
        const value = valueOf(row.unit, column);
        return typeof value === "number" && holds[found[2]](value, limits[place]);
      });
  }

  // `box` is a table, or something around several that share one filter
  function makeFilterable(box) {
    const tables = box.tHead ? [box] : Array.from(box.querySelectorAll("table"));
    const rows = tables.flatMap((table) => unitsOf(table).map((unit) => ({ unit, table, text: unit.textContent.toLowerCase() })));
    if (box.tHead && rows.length < LEAST_ROWS) return;
    const bar = document.createElement("div");
    const label = document.createElement("label");
    const input = document.createElement("input");
    const shown = document.createElement("output");
    bar.className = "filter";
    input.type = "search";
    input.placeholder = box.dataset.filter;
    input.spellcheck = false;
    input.setAttribute("aria-label", "Filter: " + (box.caption ? box.caption.textContent : box.dataset.filter));
    label.append("Filter ", input);
    bar.append(label, shown);
    box.tHead ? box.closest(".scroll").before(bar) : box.prepend(bar);

    function filter() {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const tests = new Map(tables.map((table) => [table, words.map((word) => testOf(word, table))]));
      rows.forEach((row) => (row.unit.hidden = !tests.get(row.table).every((test) => test(row))));
      const left = rows.filter((row) => !row.unit.hidden).length;
      shown.textContent = (words.length ? left + " of " : "") + rows.length + " rows";
      bar.classList.toggle("active", words.length > 0);
    }

    input.value = state.get(box.id + ".filter") || "";
    filter();
    input.addEventListener("input", () => {
      filter();
      if (box.id) remember(box.id + ".filter", input.value.trim());
    });
  }

  function openTarget() {
    const target = /^#[\w.-]+$/.test(location.hash) && document.getElementById(location.hash.slice(1)); // no id has more
    let details = target && target.closest("details");
    const closed = details && !details.open;
    for (; details; details = details.parentElement.closest("details")) details.open = true;
    if (closed) target.scrollIntoView();
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("[data-filter]").forEach(makeFilterable);
  window.addEventListener("hashchange", openTarget);
  // paper shows what is folded; afterwards the screen is as it was
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = Array.from(document.querySelectorAll("details:not([open])"));
    folded.forEach((details) => (details.open = true));
  });
  window.addEventListener("afterprint", () => folded.splice(0).forEach((details) => (details.open = false)));
  openTarget();
})();
