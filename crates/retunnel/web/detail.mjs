// The details of one exchange, and its actions.

import { useState } from "./vendor/hooks.mjs";
import { getText, post, query } from "./api.mjs";
import { Body, Pairs, fromBase64, hex, pairs } from "./body.mjs";
import { bytes, clock, html, status, time, tone } from "./html.mjs";
import { attempt, detail, editing, notify, reveal, select, selectedId } from "./state.mjs";

export async function replay(id, edits = {}) {
  const sent = await attempt(() => post(`/api/requests/${id}/replay`, edits));
  if (!sent) return;
  notify(sent.ids.length === 1 ? "Sent again" : `Sent ${sent.ids.length} times`);
  if (sent.ids.length) select(sent.ids.at(-1));
}

async function copyCurl(id) {
  const command = await attempt(() => getText(`/api/requests/${id}/curl${query({ reveal: reveal.value })}`));
  if (command === undefined) return;
  try {
    await navigator.clipboard.writeText(command);
    notify(reveal.value ? "Copied" : "Copied, with secrets masked");
  } catch {
    // Browsers give the clipboard only to pages on a loopback address or with HTTPS.
    window.prompt("Copy this command", command);
  }
}

function Part({ part, side, exchange }) {
  if (!part && exchange.error) return html`<p class="trouble">Cannot connect to the local service: ${exchange.error}</p>`;
  if (!part && exchange.retried_as) return html`<p class="hint">The kept connection was closed. The server repeated the request as #${exchange.retried_as}.</p>`;
  if (!part) return html`<p class="hint">${exchange.state === "open" ? "No response yet" : "The connection closed without a response"}</p>`;
  const search = side === "request" ? exchange.path.split("?").slice(1).join("?") : "";
  const href = `/api/requests/${exchange.id}/body/${side}${query({ reveal: reveal.value })}`;
  return html`<p class="first-line">${part.first_line}</p>
    ${search && html`<h3>Query</h3><${Pairs} rows=${pairs(search)} label="Query" />`}
    <h3>Headers</h3>
    <${Pairs} rows=${part.headers} label="Headers" />
    <h3>Body</h3>
    <${Body} part=${part} href=${href} />`;
}

function Messages({ exchange }) {
  // Newest first, so that new messages stay in view.
  const list = [...(exchange.message_list ?? [])].reverse();
  const dropped = exchange.messages - list.length;
  return html`<ol class="messages" aria-label="Messages">
      ${list.map(
        (message) => html`<li key=${message.number} class=${message.from}>
          <span class="hint">${message.from === "visitor" ? "↑ visitor" : "↓ service"} · ${message.kind} · ${bytes(message.size)} · ${time(message.at_ms)}</span>
          <pre class="body">${message.text ?? hex(fromBase64(message.base64))}${message.truncated ? "\n…" : ""}</pre>
        </li>`,
      )}
    </ol>
    ${!list.length && html`<p class="hint">No messages yet</p>`}
    ${dropped > 0 && html`<p class="hint">${dropped} earlier messages dropped</p>`}`;
}

function Timing({ exchange }) {
  const { request_ms: sent, wait_ms: waited, response_ms: done } = exchange.timings;
  const total = exchange.duration_ms ?? done ?? waited ?? 0;
  const rows = [
    ["Request sent", 0, sent],
    ["Waiting for the response", sent ?? 0, waited],
    ["Response received", waited ?? 0, done],
  ];
  return html`<table class="pairs" aria-label="Timing">
      <tbody>
        ${rows.map(
          ([name, from, to]) => html`<tr key=${name}>
            <th scope="row">${name}</th>
            <td>${to === null ? "…" : time(Math.max(to - from, 0))}</td>
            <td class="wide"><progress max=${total || 1} value=${to === null ? 0 : Math.max(to - from, 0)} aria-label=${name}></progress></td>
          </tr>`,
        )}
        <tr><th scope="row">In all</th><td>${time(exchange.duration_ms)}</td><td class="wide hint">began ${clock(exchange.started_ms)}</td></tr>
      </tbody>
    </table>
    <p class="hint">Measured at this client, between it and the local service.</p>`;
}

function Editor({ exchange, close }) {
  const { request } = exchange;
  const original = request.headers.map(([name, value]) => `${name}: ${value}`).join("\n");
  const [method, setMethod] = useState(exchange.method);
  const [path, setPath] = useState(exchange.path);
  const [headers, setHeaders] = useState(original);
  const [body, setBody] = useState(request.text ?? "");
  const [times, setTimes] = useState(1);
  const keepsBody = request.text === null && request.size > 0;
  const send = (event) => {
    event.preventDefault();
    const edits = { method, path, times: Number(times) };
    if (headers !== original) {
      edits.headers = headers
        .split("\n")
        .filter((line) => line.trim())
        .map((line) => [line.slice(0, line.indexOf(":")).trim(), line.slice(line.indexOf(":") + 1).trim()]);
    }
    // An unchanged body is sent as it was, even if it was masked or encoded.
    if (body !== (request.text ?? "")) edits.body = body;
    replay(exchange.id, edits).then(close);
  };
  return html`<form class="editor" onSubmit=${send} aria-label="Edit and replay">
    <div class="line">
      <label>Method <input name="method" value=${method} onInput=${(e) => setMethod(e.target.value)} size="8" required /></label>
      <label class="grow">Path <input name="path" value=${path} onInput=${(e) => setPath(e.target.value)} required /></label>
    </div>
    <label>Headers <textarea name="headers" rows="8" spellcheck="false" value=${headers} onInput=${(e) => setHeaders(e.target.value)}></textarea></label>
    <label>Body ${keepsBody && html`<span class="hint">(the original ${bytes(request.size)} are sent unless you enter a new body)</span>`}
      <textarea name="body" rows="8" spellcheck="false" value=${body} onInput=${(e) => setBody(e.target.value)}></textarea></label>
    <div class="line">
      <label>Times <input name="times" type="number" min="1" max="100" value=${times} onInput=${(e) => setTimes(e.target.value)} /></label>
      <button class="primary">Send</button>
      <button type="button" onClick=${close}>Cancel</button>
      <span class="hint">Masked values are sent with their original content.</span>
    </div>
  </form>`;
}

export function Detail() {
  const exchange = detail.value;
  const id = selectedId.value;
  const [tab, setTab] = useState({ name: "Response", id: null });
  if (id === null) return html`<section class="detail none" aria-label="Exchange"><p class="empty">Select a request to see its details.</p></section>`;
  if (!exchange || exchange.id !== id) return html`<section class="detail" aria-label="Exchange"><p class="empty">Loading…</p></section>`;
  const hasMessages = exchange.kind !== "http";
  const tabs = ["Request", "Response", ...(hasMessages ? ["Messages"] : []), "Timing"];
  // A WebSocket opens on its messages, everything else where the last one was read.
  const wanted = exchange.kind === "websocket" && tab.id !== id ? "Messages" : tab.name;
  const shown = tabs.includes(wanted) ? wanted : "Response";
  const close = () => {
    editing.value = false;
  };
  return html`<section class="detail" aria-label="Exchange">
    <header>
      <button class="back" onClick=${() => select(null)} aria-label="Back to the list">←</button>
      <h2><span class="method">${exchange.method}</span> <span class="target">${exchange.path}</span></h2>
      <p class="facts">
        <span class=${`status ${tone(exchange)}`}>${status(exchange)}</span>
        <span>${time(exchange.duration_ms)}</span><span>${bytes(exchange.response_size)}</span><span>${exchange.tunnel}</span>
        ${exchange.replay_of && html`<button class="link" onClick=${() => select(exchange.replay_of)}>replay of #${exchange.replay_of}</button>`}
        ${exchange.retry_of && html`<button class="link" onClick=${() => select(exchange.retry_of)}>retry of #${exchange.retry_of}</button>`}
        ${exchange.retried_as && html`<button class="link" onClick=${() => select(exchange.retried_as)}>repeated as #${exchange.retried_as}</button>`}
        ${exchange.error_code && html`<span class="trouble">${exchange.error_code}</span>`}
      </p>
      <div class="actions">
        <button class="primary" onClick=${() => replay(id)} disabled=${exchange.kind === "websocket"}>Replay</button>
        <button onClick=${() => (editing.value = !editing.value)} aria-expanded=${editing.value} disabled=${exchange.kind === "websocket"}>Edit and replay</button>
        <button onClick=${() => copyCurl(id)}>Copy as curl</button>
        <a class="button" href=${`/api/har${query({ id, reveal: reveal.value })}`} download>Save as HAR</a>
      </div>
    </header>
    ${editing.value && html`<${Editor} key=${`${id} ${reveal.value}`} exchange=${exchange} close=${close} />`}
    <div class="tabs" role="tablist">
      ${tabs.map(
        (name) => html`<button key=${name} role="tab" aria-selected=${name === shown} onClick=${() => setTab({ name, id })}>
          ${name}${name === "Messages" ? ` (${exchange.messages})` : ""}
        </button>`,
      )}
    </div>
    <div class="panel" role="tabpanel" aria-label=${shown}>
      ${shown === "Request" && html`<${Part} key=${`${id}q`} part=${exchange.request} side="request" exchange=${exchange} />`}
      ${shown === "Response" && html`<${Part} key=${`${id}s`} part=${exchange.response} side="response" exchange=${exchange} />`}
      ${shown === "Messages" && html`<${Messages} exchange=${exchange} />`}
      ${shown === "Timing" && html`<${Timing} exchange=${exchange} />`}
    </div>
  </section>`;
}
