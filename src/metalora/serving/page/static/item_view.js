// What is shown of one input and of its prediction.

import { element, percent } from "./dom.js";

const CHANCE = 0.1; // of a mark for an input that is like the examples
export const EXAMPLES_FOR_MARKS = 1 / CHANCE - 1; // with fewer examples no input can be told to be unlike them

/** The picture or the text of an input. */
export const media = (item) =>
  item.picture ? element("img", { src: item.url, alt: "", draggable: "false" }) : element("span", { class: "text" }, item.text);

/** The lines about a prediction: label, probability, a mark if it is unlike the examples, and the nearest of them. */
export function answerLines(answer) {
  if (answer.label === undefined) return [];
  const lines = [element("span", { class: "label" }, answer.label)];
  if (answer.probability !== null) {
    lines.push(element("span", {}, percent(answer.probability)), element("meter", { min: 0, max: 1, value: answer.probability }));
  }
  const all = [element("span", { class: "answer" }, ...lines)];
  if (answer.unlike) all.push(element("span", { class: "unlike" }, "unlike your examples"));
  if (answer.frozen && answer.frozen !== answer.label) {
    all.push(element("span", { class: "hint" }, "frozen network: ", element("span", {}, answer.frozen)));
  }
  if (answer.neighbours?.length) {
    const near = answer.neighbours.map((neighbour) => element("span", { title: neighbour.groupName }, media(neighbour)));
    all.push(element("span", { class: "neighbours" }, element("span", { class: "hint" }, "nearest"), ...near));
  }
  return all;
}

/** The same as a sentence, for screen readers. */
export function describe(item) {
  const parts = [item.text ?? item.name];
  const { answer } = item;
  if (answer?.label !== undefined) {
    const share = answer.probability === null ? "" : `, ${percent(answer.probability)}`;
    parts.push(`predicted ${answer.label}${share}`);
    if (answer.unlike) parts.push("unlike your examples");
    const groups = [...new Set((answer.neighbours ?? []).map((neighbour) => neighbour.groupName))];
    if (groups.length) parts.push(`nearest examples: ${groups.join(", ")}`);
  }
  if (item.error) parts.push(`error: ${item.error}`);
  return parts.join("; ");
}

/** Make a prediction out of a reply of a task of some examples: its label, probability and mark at one place. */
export function answerAt(reply, place, examples) {
  const label = reply.labels[place];
  const probabilities = reply.probabilities?.[place];
  return {
    label: Array.isArray(label) ? label.join(", ") || "none" : String(label),
    probability: probabilities ? Math.max(...probabilities) : null,
    unlike: isUnlike(reply.abstention[place], examples),
  };
}

/**
 * Whether an input is unlike the examples. The abstention is the share of the examples that lie nearer to the others
 * than the input does; an input that is like them has a higher one with the probability below.
 */
const isUnlike = (abstention, examples) => (1 + examples * (1 - abstention)) / (examples + 1) <= CHANCE;
