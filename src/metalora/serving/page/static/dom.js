// Elements of the page. Text always goes in as text, never as HTML.

/** The element with an id. */
export const byId = (id) => document.getElementById(id);

/** Make an element: attributes, `onclick` and the like as functions, and children (elements or text). */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A button with a text. */
export const button = (text, onclick, attributes = {}) =>
  element("button", { type: "button", onclick, ...attributes }, text);

/** Set the children of an element, and leave it alone if they are there already, so that the focus stays. */
export function setChildren(parent, children) {
  const same = parent.childNodes.length === children.length && children.every((node, i) => parent.childNodes[i] === node);
  if (!same) parent.replaceChildren(...children);
}

/** Say a sentence to a screen reader. */
export const announce = (sentence) => {
  byId("live").textContent = sentence;
};

/** Show a message above everything; an empty one hides it. */
export const showBanner = (message) => {
  byId("banner").textContent = message;
  byId("banner").hidden = !message;
};

/** "1 example", "2 examples". */
export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** A share as a whole percentage. */
export const percent = (share) => `${Math.round(100 * share)} %`;
