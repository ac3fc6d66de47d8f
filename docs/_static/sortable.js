// Tables of the class "sortable" are sorted by a click on a heading: numbers by value, empty cells last.
document.addEventListener("DOMContentLoaded", () => {
    const tables = document.querySelectorAll("table.sortable, .sortable table");
    for (const table of tables) {
        const headings = [...table.querySelectorAll("thead th")];
        headings.forEach((heading, column) => {
            const button = document.createElement("button");
            button.type = "button";
            button.append(...heading.childNodes);
            heading.append(button);
            button.addEventListener("click", () => {
                const direction = heading.ariaSort === "ascending" ? "descending" : "ascending";
                headings.forEach((other) => other.removeAttribute("aria-sort"));
                heading.ariaSort = direction;
                sort(table.tBodies[0], column, direction === "ascending" ? 1 : -1);
            });
        });
    }

    function sort(body, column, sign) {
        const text = (row) => row.cells[column].textContent.trim();
        const order = new Intl.Collator("en", { numeric: true });
        const compare = (a, b) => {
            if (!text(a) || !text(b)) {
                return !text(a) - !text(b);
            }
            const difference = Number(text(a)) - Number(text(b));
            return sign * (Number.isNaN(difference) ? order.compare(text(a), text(b)) : difference);
        };
        body.append(...[...body.rows].sort(compare));
    }
});
