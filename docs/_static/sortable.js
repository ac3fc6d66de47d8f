// Tables of the class "sortable" are sorted by a click on a heading: numbers by value, empty cells last.
document.addEventListener("DOMContentLoaded", () => {
    const tables = document.querySelectorAll("table.sortable, .sortable table");
    for (const table of tables) {
        const headings = [...table.querySelectorAll("thead th")];
        headings.forEach((heading, column) => {
            const button = document.createElement("button");
            button.type = "button";
            // Sphinx has a paragraph in each heading, which a button must not hold.
            button.append(...(heading.querySelector("p") ?? heading).childNodes);
            heading.replaceChildren(button);
            button.addEventListener("click", () => {
                const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
                headings.forEach((other) => other.removeAttribute("aria-sort"));
                heading.setAttribute("aria-sort", direction);
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
