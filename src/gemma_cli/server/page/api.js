// Calls to the server that the page came from.

export class ApiError extends Error {
  constructor(status, code, message, retryable) {
    super(message);
    Object.assign(this, { status, code, retryable });
  }
}

/** Tells `locked` where the server wants a token. */
export const events = new EventTarget();

/** The JSON that a call answers with, null for 204. Raises ApiError; `offline` is the code where no server answers. */
async function call(method, path, body) {
  const options = { method, headers: {}, credentials: "same-origin" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["content-type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new ApiError(0, "offline", "The server does not answer.", true);
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // something in between answered; the status is all there is
  }
  const error = new ApiError(
    response.status,
    told.code ?? "failed",
    told.message ?? `The server answered ${response.status}.`,
    told.retryable ?? false,
  );
  if (response.status === 401 && path !== "api/v1/session") events.dispatchEvent(new Event("locked"));
  throw error;
}

const memory = (id) => `api/v1/memories/${encodeURIComponent(id)}`;

export const api = {
  hello: () => call("GET", "api/v1/live/hello"),
  description: () => call("GET", "openapi.json"),
  memories: (filters) => call("GET", `api/v1/memories?${new URLSearchParams(filters)}`),
  memory: (id) => call("GET", memory(id)),
  change: (id, fields) => call("PATCH", memory(id), fields),
  forget: (id) => call("DELETE", memory(id)),
  undo: (token) => call("POST", `api/v1/undo/${encodeURIComponent(token)}`),
  recall: (question) => call("POST", "api/v1/recall", question),
  whyNot: (question) => call("POST", "api/v1/why-not", question),
  forecast: (days) => call("GET", `api/v1/forecast?days=${days}`),
  signIn: (token) => call("POST", "api/v1/session", { token }),
  signOut: () => call("DELETE", "api/v1/session"),
};
