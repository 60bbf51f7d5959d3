"use strict";
/* Sorting, filtering and printing. Without a script the page says the same, unsorted. */
(() => {
  const number = (text) => /^[<+]?-?\d/.test(text) ? parseFloat(text.replace(/^[<+]/, "")) : NaN;
  const compare = (a, b, direction) => {
    const [x, y] = [number(a), number(b)];
    /* What has no number comes last, whatever the direction. */
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
    return direction * (isNaN(x) || x === y ? a.localeCompare(b, "en", { numeric: true }) : x - y);
  };

  const sortable = (table) => {
    const body = table.tBodies[0], original = [...body.rows], heads = [...table.tHead.rows[0].cells];
    if (original.length < 2) return;
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const order = before === "ascending" ? "descending" : before === "descending" ? "none" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        const text = new Map(original.map((row) => [row, row.cells[column].textContent.trim()]));
        const rows = [...original];
        if (order !== "none") {
          head.setAttribute("aria-sort", order);
          const direction = order === "ascending" ? 1 : -1;
          rows.sort((a, b) => compare(text.get(a), text.get(b), direction));
        }
        body.append(...rows);
      });
    });
  };

  const filterable = (table) => {
    const rows = [...table.tBodies[0].rows], input = document.createElement("input");
    input.type = "search";
    input.className = "filter";
    input.placeholder = "Filter by name";
    input.setAttribute("aria-label", "Filter the table by name");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
    table.parentNode.before(input);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    sortable(table);
    if (table.closest("details") && table.tBodies[0].rows.length > 20) filterable(table);
  }

  /* On paper nothing can be unfolded. */
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
