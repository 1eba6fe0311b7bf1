"use strict";
// The page is whole without this: it only adds sorting, filtering and opening.
(function () {
  function key(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.sort === undefined) return cell.textContent.trim().toLowerCase();
    return cell.dataset.sort === "" ? null : Number(cell.dataset.sort);
  }

  function compare(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  }

  function sort(table, column, direction) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => ({ row, key: key(row, column) }));
    // what is not known goes to the end, whichever way the rest is sorted
    rows.sort((a, b) => (a.key === null) - (b.key === null) || (a.key === null ? 0 : direction * compare(a.key, b.key)));
    rows.forEach((entry) => body.append(entry.row));
  }

  function makeSortable(table) {
    const headings = Array.from(table.tHead.rows[0].cells);
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const rising = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
        sort(table, column, rising ? 1 : -1);
      });
    });
  }

  function makeFilterable(box) {
    const bar = document.createElement("div");
    const label = document.createElement("label");
    const input = document.createElement("input");
    const shown = document.createElement("output");
    bar.className = "filter";
    input.type = "search";
    input.placeholder = box.dataset.example;
    label.append(box.dataset.label + " ", input);
    bar.append(label, shown);
    box.prepend(bar);
    const rows = Array.from(box.querySelectorAll("tbody tr"));
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row) => {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      });
      shown.textContent = words.length ? rows.filter((row) => !row.hidden).length + " of " + rows.length : "";
    });
  }

  function openTarget() {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    let details = target && target.closest("details");
    const closed = details && !details.open;
    for (; details; details = details.parentElement.closest("details")) details.open = true;
    if (closed) target.scrollIntoView();
  }

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll(".filterable").forEach(makeFilterable);
  window.addEventListener("hashchange", openTarget);
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((details) => (details.open = true));
  });
  openTarget();
})();
