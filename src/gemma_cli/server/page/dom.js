// Nodes are made, never parsed: what memories hold stays text.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "vars") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element. `on…` are listeners, `data` the dataset, `vars` style properties; all else are attributes. */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** An SVG element, likewise. */
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

export const byId = (id) => document.getElementById(id);

/** Sets a text only where it differs: an unchanged live region stays silent, and layout is spared. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const ICONS = {
  stored: "M8 1.800c2.300 2.800 4.200 5.100 4.200 7.600a4.200 4.200 0 0 1-8.400 0C3.800 6.900 5.700 4.600 8 1.800z",
  moved: "M8 13.500v-11M3.500 7 8 2.500 12.500 7",
  lowered: "M8 2.500v11M3.500 9 8 13.500 12.500 9",
  faded: "M4 13.500c-2-3 2-4 0-7M8 13.500c-2.500-4 2.500-6 0-11M12 13.500c-2-3 2-4 0-7",
  evicted:
    "M2.500 6v5.500a2 2 0 0 0 2 2h5a2 2 0 0 0 2-2V6M2.500 6c1.500-1 3-1 4.500 0s3 1 4.500 0c1.800-1 3-.200 3 2v3.500",
  updated: "M2 6c2-1.600 4-1.600 6 0s4 1.600 6 0M2 10.500c2-1.600 4-1.600 6 0s4 1.600 6 0",
  forgotten: "M8 2a6 6 0 1 0 .01 0zM4 12 12 4",
  pin: "M5.500 2h5M6.500 2v4.500L4 9.500h8L9.500 6.500V2M8 9.500V14",
  close: "M3.500 3.500l9 9M12.500 3.500l-9 9",
};

/** A small drawing beside words, which say the same. */
export const icon = (name) =>
  s("svg", { class: "glyph", viewBox: "0 0 16 16", "aria-hidden": "true" }, s("path", { d: ICONS[name] }));

export const still = matchMedia("(prefers-reduced-motion: reduce)");
