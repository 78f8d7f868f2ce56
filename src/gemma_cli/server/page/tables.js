// The numbers of a picture as a table, for those who ask.

import { h } from "./dom.js";

/** A button that shows and hides the table `read()` gives ({head, rows}) at the end of a figure. */
export function tableToggle(figure, title, read) {
  let room = null;
  const button = h(
    "button",
    {
      type: "button",
      class: "quiet table-toggle",
      "aria-expanded": "false",
      "aria-label": `Table: ${title}`,
      onclick: () => {
        if (room) {
          room.remove();
          room = null;
        } else {
          const { head, rows } = read();
          room = h(
            "div",
            { class: "table", tabindex: "0", role: "region", "aria-label": `${title}, as a table` },
            h(
              "table",
              {},
              h(
                "thead",
                {},
                h(
                  "tr",
                  {},
                  head.map((name) => h("th", { scope: "col" }, name)),
                ),
              ),
              h(
                "tbody",
                {},
                rows.map(([first, ...rest]) =>
                  h(
                    "tr",
                    {},
                    h("th", { scope: "row" }, first),
                    rest.map((cell) => h("td", {}, cell)),
                  ),
                ),
              ),
            ),
          );
          figure.append(room);
        }
        button.setAttribute("aria-expanded", String(room !== null));
      },
    },
    "Table",
  );
  return button;
}
