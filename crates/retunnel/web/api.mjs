// Calls the local API. Requests that change something carry the page's token.

const token = document.querySelector("meta[name=token]").content;

/** A failed call, with the program's message. */
export class Failure extends Error {}

async function call(method, path, body) {
  const headers = method === "GET" ? {} : { "X-Retunnel-Token": token };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Failure("Cannot reach the client. It may have exited.");
  }
  if (!response.ok) {
    const failure = await response.json().catch(() => null);
    throw new Failure(failure?.detail ?? `The client answered ${response.status}.`);
  }
  return response;
}

/** A query string of the values that are set. */
export function query(values) {
  const set = Object.entries(values).filter(([, value]) => value !== "" && value !== false && value != null);
  const text = new URLSearchParams(set.map(([name, value]) => [name, value === true ? "1" : String(value)])).toString();
  return text && `?${text}`;
}

export const getJson = async (path) => (await call("GET", path)).json();
export const getText = async (path) => (await call("GET", path)).text();
export const post = async (path, body) => (await call("POST", path, body)).json();
export const remove = (path) => call("DELETE", path);
