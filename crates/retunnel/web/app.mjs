// The page: header, filters, list, details, and keyboard shortcuts.

import { render } from "./vendor/preact.mjs";
import { useEffect, useState } from "./vendor/hooks.mjs";
import { post, query, remove } from "./api.mjs";
import { Detail, replay } from "./detail.mjs";
import { bytes, clock, html, remark, status, time, tone } from "./html.mjs";
import * as state from "./state.mjs";

const SHOWN = 200;

function Top() {
  const { paused, connection, reveal, tunnels } = state;
  const shown = connection.value === "lost" ? "Not connected" : paused.value ? "Paused" : "Live";
  return html`<header class="top">
    <h1>ReTunnel <span>inspector</span></h1>
    <span class=${`live ${shown === "Live" ? "on" : "off"}`} role="status">${shown}</span>
    <ul class="tunnels" aria-label="Tunnels">
      ${tunnels.value.map((tunnel) => html`<li key=${tunnel.name}><a href=${tunnel.url} target="_blank" rel="noreferrer">${tunnel.url}</a> <span class="hint">→ ${tunnel.target}</span></li>`)}
    </ul>
    <div class="actions">
      <button aria-pressed=${reveal.value} onClick=${() => (reveal.value = !reveal.value)} title="Show passwords, tokens and cookies">
        ${reveal.value ? "Hide secrets" : "Reveal secrets"}
      </button>
      <button aria-pressed=${paused.value} onClick=${pause}>${paused.value ? "Resume" : "Pause"}</button>
      <button onClick=${clear}>Clear</button>
      <a class="button" href=${`/api/har${query({ reveal: reveal.value })}`} download>Export HAR</a>
    </div>
  </header>`;
}

const pause = () => state.attempt(() => post("/api/pause", { paused: !state.paused.value }));
const clear = () =>
  state.attempt(async () => {
    await remove("/api/requests");
    state.select(null);
  });

function Filters() {
  const { filter, methods } = state;
  const set = (name) => (event) => {
    filter[name].value = event.target.value;
  };
  return html`<form class="filters" role="search" onSubmit=${(event) => event.preventDefault()}>
    <select aria-label="Method" value=${filter.method.value} onChange=${set("method")}>
      <option value="">Method</option>
      ${methods.value.map((method) => html`<option key=${method} value=${method}>${method}</option>`)}
    </select>
    <select aria-label="Status" value=${filter.status.value} onChange=${set("status")}>
      <option value="">Status</option>
      <option value="2">2xx</option><option value="3">3xx</option><option value="4">4xx</option><option value="5">5xx</option>
      <option value="failed">failed</option><option value="open">open</option>
    </select>
    <input aria-label="Path" placeholder="Path" value=${filter.path.value} onInput=${set("path")} />
    <input aria-label="Text" type="search" placeholder="Search everything  /" value=${filter.text.value} onInput=${set("text")} />
  </form>`;
}

function Row({ exchange, isSelected }) {
  return html`<li>
    <button class="row" data-id=${exchange.id} aria-current=${isSelected} onClick=${() => state.select(exchange.id)}>
      <span class=${`status ${tone(exchange)}`}>${status(exchange)}</span>
      <span class="method">${exchange.method}</span>
      <span class="target" title=${exchange.path}>${exchange.path}</span>
      <span class="kind">${remark(exchange)}</span>
      <span class="num">${time(exchange.duration_ms)}</span>
      <span class="num">${bytes(exchange.response_size)}</span>
      <span class="num when">${clock(exchange.started_ms)}</span>
    </button>
  </li>`;
}

function List() {
  const list = state.visible.value;
  const [limit, setLimit] = useState(SHOWN);
  const id = state.selectedId.value;
  const total = state.exchanges.value.size;
  useEffect(() => {
    const row = document.querySelector(`.row[data-id="${id}"]`);
    row?.scrollIntoView({ block: "nearest" });
  }, [id]);
  return html`<section class="list" aria-label="Requests">
    <p class="count hint">${list.length === total ? `${total} request${total === 1 ? "" : "s"}` : `${list.length} of ${total} requests`}</p>
    ${!list.length && html`<p class="empty">${total ? "No request matches the filters." : "No requests yet. Open the public URL to see them here."}</p>`}
    <ol>${list.slice(0, limit).map((exchange) => html`<${Row} key=${exchange.id} exchange=${exchange} isSelected=${exchange.id === id} />`)}</ol>
    ${list.length > limit && html`<button class="more" onClick=${() => setLimit(limit + 1000)}>Show ${list.length - limit} older requests</button>`}
  </section>`;
}

function onKey(event) {
  const isTyping = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (isTyping) event.target.blur();
    else if (state.editing.value) state.editing.value = false;
    else state.select(null);
    return;
  }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const id = state.selectedId.value;
  const keys = {
    j: () => state.step(1),
    k: () => state.step(-1),
    ArrowDown: () => !event.target.closest(".detail") && state.step(1),
    ArrowUp: () => !event.target.closest(".detail") && state.step(-1),
    "/": () => document.querySelector("input[type=search]").focus(),
    r: () => id !== null && replay(id),
    e: () => id !== null && (state.editing.value = !state.editing.value),
    p: pause,
  };
  const act = keys[event.key];
  if (!act || act() === false) return;
  event.preventDefault();
}

function App() {
  const { notice, selectedId } = state;
  return html`<${Top} />
    <${Filters} />
    <main class=${selectedId.value === null ? "" : "open"}><${List} /><${Detail} /></main>
    <footer class="hint"><kbd>j</kbd> <kbd>k</kbd> move · <kbd>/</kbd> search · <kbd>r</kbd> replay · <kbd>e</kbd> edit · <kbd>p</kbd> pause · <kbd>Esc</kbd> back</footer>
    <div class="notice" role="alert">${notice.value && html`<p class=${notice.value.isFailure ? "bad" : ""}>${notice.value.text}</p>`}</div>`;
}

document.addEventListener("keydown", onKey);
const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
state.start();
