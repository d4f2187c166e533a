// Requests to the service, and its errors.

import { currentKey } from "./key.js";

/** An error that the service answered; `field` names the input it is about, as in `inputs.images[3]`. */
export class ServiceError extends Error {
  constructor(status, { code, message, field }, retryAfter = null) {
    super(message);
    Object.assign(this, { status, code, field: field ?? null, retryAfter });
  }

  /** The list of the wrong input and its place, as ["inputs", 3]; null if the error is about no single input. */
  get place() {
    const match = /^(inputs|queries)\.(?:images|texts)\[(\d+)\]/.exec(this.field ?? "");
    return match && [match[1], Number(match[2])];
  }
}

/** Send a request and return the reply's Response; a ServiceError if it is refused. */
export async function send(method, path, body = null, { signal = null, headers = {} } = {}) {
  const all = { Authorization: `Bearer ${currentKey()}`, ...headers };
  if (body !== null) all["Content-Type"] = "application/json";
  const content = body === null ? null : JSON.stringify(body);
  const response = await answer(path, { method, headers: all, body: content, signal, cache: "no-store" });
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Send a request and return the JSON of the reply. */
export const ask = async (...request) => (await send(...request)).json();

async function answer(path, request) {
  try {
    return await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(0, { code: "unreachable", message: "The service does not answer. Is it running?" });
  }
}

async function errorOf(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const unknown = { code: "internal", message: `The service answered with status ${response.status}.` };
  const body = await response.json().catch(() => null);
  return new ServiceError(response.status, body?.error ?? unknown, retryAfter);
}
