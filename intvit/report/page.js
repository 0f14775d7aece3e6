(function () {
  "use strict";
  const table = document.getElementById("sites");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  const filter = document.getElementById("filter");
  const kind = document.getElementById("kind");
  const count = document.getElementById("count");

  function key(row, column) {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    if (value === undefined) return cell.textContent.trim();
    return value === "" ? null : Number(value);
  }

  function compare(a, b) {
    return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  }

  function sort(column, falling) {
    const sign = falling ? -1 : 1;
    const order = rows.map(function (row, i) { return { row: row, i: i, key: key(row, column) }; });
    order.sort(function (a, b) { // what has no value stands last, whichever the direction
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.i - b.i;
      return sign * compare(a.key, b.key) || a.i - b.i;
    });
    body.append(...order.map(function (each) { return each.row; }));
    headers.forEach(function (header) { header.removeAttribute("aria-sort"); });
    headers[column].setAttribute("aria-sort", falling ? "descending" : "ascending");
  }

  function show() {
    const text = filter.value.trim().toLowerCase();
    let n = 0;
    rows.forEach(function (row) {
      const fits = row.cells[1].textContent.toLowerCase().includes(text) && (!kind.value || row.dataset.kind === kind.value);
      row.hidden = !fits;
      n += fits;
    });
    count.textContent = n + " of " + rows.length + " sites";
  }

  headers.forEach(function (header, column) {
    header.firstElementChild.addEventListener("click", function () {
      sort(column, header.getAttribute("aria-sort") === "ascending");
    });
  });
  filter.addEventListener("input", show);
  kind.addEventListener("input", show);
  document.querySelector(".controls").hidden = false;
  show();
})();
