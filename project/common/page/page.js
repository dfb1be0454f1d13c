"use strict";
// Sorting by column, showing and hiding columns, copying commands. The page is complete without it.

function sortable(table) {
  const body = table.tBodies[0], order = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const keyOf = (row, i) => row.cells[i].dataset.key;
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort by this column; the third time: the order of the table's file";
    button.append(...head.childNodes);
    head.append(button);
    const keys = order.map(row => keyOf(row, i)).filter(key => key !== undefined);
    const numeric = keys.every(key => key !== "" && Number.isFinite(Number(key)));
    const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === "ascending" ? "descending" : now === "descending" ? null : "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      const rows = [...order];
      if (next) {
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        rows.sort((x, y) => {
          const a = keyOf(x, i), b = keyOf(y, i);
          if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
          return sign * compare(a, b);
        });
      }
      body.append(...rows);
    });
  });
}

function columns(table) {
  const details = document.createElement("details"), summary = document.createElement("summary");
  details.className = "columns";
  summary.textContent = "Show or hide columns";
  details.append(summary);
  [...table.tHead.rows[0].cells].slice(1).forEach((head, i) => {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    label.append(box, ` ${head.textContent}`);
    box.addEventListener("change", () => {
      for (const row of table.rows) row.cells[i + 1].hidden = !box.checked;
    });
    details.append(label);
  });
  table.parentElement.before(details);
}

function copying(command) {
  const button = document.createElement("button"), code = command.querySelector("code");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // Ctrl-C copies it
      button.textContent = "Selected";
    }
  });
  command.append(button);
}

for (const table of document.querySelectorAll("table.sortable")) {
  columns(table);
  sortable(table);
}
document.querySelectorAll(".command").forEach(copying);
