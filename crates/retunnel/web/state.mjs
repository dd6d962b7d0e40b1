// The state of the page: exchanges, selection, filters, and the event stream that keeps them up to date.

import { batch, computed, effect, signal } from "./vendor/signals.mjs";
import { getJson, query } from "./api.mjs";

/** Every exchange by its id, in the form of /api/requests. */
export const exchanges = signal(new Map());
export const tunnels = signal([]);
export const paused = signal(false);
/** `live`, or `lost` while the client cannot be reached. */
export const connection = signal("lost");
export const reveal = signal(false);
export const selectedId = signal(null);
/** The details of the selected exchange. */
export const detail = signal(null);
/** The form for an edited replay is open. */
export const editing = signal(false);
export const notice = signal(null);
export const filter = { method: signal(""), status: signal(""), path: signal(""), text: signal("") };
/** Ids that a search for text found; null without one. */
const found = signal(null);

const NOTICE_MS = 5000;
const SEARCH_MS = 200;

export function notify(text, isFailure = false) {
  const shown = { text, isFailure };
  notice.value = shown;
  setTimeout(() => {
    if (notice.peek() === shown) notice.value = null;
  }, NOTICE_MS);
}

/** Runs an action and shows a notice if it fails. */
export async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    notify(error.message, true);
    return undefined;
  }
}

function hasStatus(exchange, wanted) {
  if (!wanted) return true;
  if (wanted === "open") return exchange.state === "open";
  if (wanted === "failed") return exchange.status >= 400 || exchange.state === "cut" || exchange.state === "failed";
  return Math.floor(exchange.status / 100) === Number(wanted);
}

/** The exchanges that match the filters, newest first. */
export const visible = computed(() => {
  const [method, status] = [filter.method.value, filter.status.value];
  const path = filter.path.value.trim().toLowerCase();
  const ids = found.value;
  const all = [...exchanges.value.values()].filter(
    (exchange) =>
      (!method || exchange.method === method) &&
      hasStatus(exchange, status) &&
      (!path || exchange.path.toLowerCase().includes(path)) &&
      (!ids || ids.has(exchange.id)),
  );
  return all.sort((a, b) => b.id - a.id);
});

export const methods = computed(() => [...new Set([...exchanges.value.values()].map((e) => e.method))].sort());

export function select(id) {
  batch(() => {
    selectedId.value = id;
    editing.value = false;
  });
}

/** Selects the neighbour of the selected exchange in the list. */
export function step(by) {
  const list = visible.value;
  if (!list.length) return;
  const at = list.findIndex((exchange) => exchange.id === selectedId.value);
  const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), list.length - 1);
  select(list[next].id);
}

export async function load() {
  await attempt(async () => {
    const [list, status] = await Promise.all([
      getJson(`/api/requests${query({ reveal: reveal.peek() })}`),
      getJson("/api/status"),
    ]);
    batch(() => {
      exchanges.value = new Map(list.requests.map((exchange) => [exchange.id, exchange]));
      paused.value = list.paused;
      tunnels.value = status.tunnels;
    });
  });
}

async function loadDetail(id) {
  if (id === null) {
    detail.value = null;
    return;
  }
  try {
    const loaded = await getJson(`/api/requests/${id}${query({ reveal: reveal.peek() })}`);
    if (selectedId.peek() === id) detail.value = loaded;
  } catch (error) {
    if (selectedId.peek() !== id) return;
    detail.value = null;
    selectedId.value = null;
    notify(error.message, true);
  }
}

let searches = 0;
async function search(text) {
  const number = ++searches;
  const list = await attempt(() => getJson(`/api/requests${query({ text, reveal: reveal.peek() })}`));
  if (list && number === searches && filter.text.peek().trim() === text) {
    found.value = new Set(list.requests.map((exchange) => exchange.id));
    if (!list.complete) notify("Too much to search: the bodies of the oldest requests were left out.");
  }
}

let isPending = false;
let isStale = false;
/** Searches after a short delay, even while changes keep coming, but never twice at a time: a search may take long. */
function searchSoon() {
  if (!filter.text.peek().trim()) found.value = null;
  isStale = true;
  if (isPending) return;
  isPending = true;
  setTimeout(async () => {
    isStale = false;
    const text = filter.text.peek().trim();
    if (text) await search(text);
    isPending = false;
    if (isStale) searchSoon();
  }, SEARCH_MS);
}

function take(change) {
  batch(() => {
    if (change.paused !== undefined) paused.value = change.paused;
    if (!change.exchanges.length) return;
    const next = new Map(exchanges.peek());
    for (const exchange of change.exchanges) next.set(exchange.id, exchange);
    // The client keeps 1,000; it has dropped older ones.
    const surplus = next.size - 1000;
    if (surplus > 0) for (const id of [...next.keys()].sort((a, b) => a - b).slice(0, surplus)) next.delete(id);
    exchanges.value = next;
  });
  if (change.reload) load();
  if (change.exchanges.length) searchSoon();
  if (change.exchanges.some((exchange) => exchange.id === selectedId.peek())) loadDetail(selectedId.peek());
}

/** Starts to keep everything up to date. */
export function start() {
  effect(() => {
    const source = new EventSource(`/api/events${query({ reveal: reveal.value })}`);
    source.onopen = () => {
      connection.value = "live";
      load();
      loadDetail(selectedId.peek());
    };
    source.onmessage = (message) => take(JSON.parse(message.data));
    source.onerror = () => {
      connection.value = "lost";
    };
    return () => source.close();
  });
  effect(() => {
    const id = selectedId.value;
    loadDetail(id);
  });
  effect(() => {
    filter.text.value;
    searchSoon();
  });
}
