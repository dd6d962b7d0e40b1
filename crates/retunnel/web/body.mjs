// Shows a body as JSON, form fields, text, an image or hex.

import { useMemo, useState } from "./vendor/hooks.mjs";
import { bytes, html } from "./html.mjs";

const HEX_BYTES = 16 * 1024;
const IMAGES = ["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"];

/** Indented JSON. It works on the text, so that large numbers and duplicate names stay as they were sent. */
export function indented(text) {
  JSON.parse(text);
  const out = [];
  let depth = 0;
  let opened = false;
  const line = () => `\n${"  ".repeat(depth)}`;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g)) {
    if (token === "}" || token === "]") {
      depth -= 1;
      out.push(opened ? token : line() + token);
      opened = false;
      continue;
    }
    if (opened) out.push(line());
    opened = token === "{" || token === "[";
    if (opened) depth += 1;
    out.push(token === "," ? `,${line()}` : token === ":" ? ": " : token);
  }
  return out.join("");
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

export function hex(data) {
  const lines = [];
  for (let at = 0; at < Math.min(data.length, HEX_BYTES); at += 16) {
    const row = [...data.subarray(at, at + 16)];
    const digits = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const shown = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${digits.padEnd(47)}  ${shown}`);
  }
  if (data.length > HEX_BYTES) lines.push(`… ${bytes(data.length - HEX_BYTES)} more`);
  return lines.join("\n");
}

/** The name-value pairs of a query or a form. */
export function pairs(text) {
  return [...new URLSearchParams(text)];
}

export function Pairs({ rows, label }) {
  return html`<table class="pairs" aria-label=${label}>
    <tbody>${rows.map(([name, value], at) => html`<tr key=${at}><th scope="row">${name}</th><td>${value}</td></tr>`)}</tbody>
  </table>`;
}

function views(part) {
  if (part.text === null) return IMAGES.includes(part.media_type) ? ["Image", "Hex"] : ["Hex"];
  const known = [];
  if (part.media_type === "application/x-www-form-urlencoded") known.push("Form");
  try {
    indented(part.text);
    known.push("JSON");
  } catch {
    // Not JSON, or incomplete.
  }
  return [...known, "Text", "Hex"];
}

function Content({ part, view }) {
  const data = () => (part.text === null ? fromBase64(part.base64) : new TextEncoder().encode(part.text));
  if (view === "Image") return html`<img class="image" alt="Body" src=${`data:${part.media_type};base64,${part.base64}`} />`;
  if (view === "Form") return html`<${Pairs} rows=${pairs(part.text)} label="Form fields" />`;
  const text = view === "Hex" ? hex(data()) : view === "JSON" ? indented(part.text) : part.text;
  return html`<pre class="body" tabindex="0">${text}</pre>`;
}

export function Body({ part, href }) {
  const [chosen, choose] = useState(null);
  const known = useMemo(() => views(part), [part]);
  if (!part.size) return html`<p class="hint">No body</p>`;
  if (!part.captured) return html`<p class="hint">${bytes(part.size)}, not captured</p>`;
  const view = known.includes(chosen) ? chosen : known[0];
  const notes = [bytes(part.size), part.media_type];
  if (part.decoded.length) notes.push(`decoded from ${part.decoded.join(", ")}`);
  if (part.truncated) notes.push(`only the first ${bytes(part.captured)} captured`);
  if (part.decoded_cut) notes.push("truncated");
  return html`<div class="bar">
      <div class="choice" role="group" aria-label="View of the body">
        ${known.map((name) => html`<button key=${name} aria-pressed=${name === view} onClick=${() => choose(name)}>${name}</button>`)}
      </div>
      <span class="hint">${notes.filter(Boolean).join(" · ")}</span>
      <a class="button" href=${href} download>Save</a>
    </div>
    <${Content} part=${part} view=${view} />`;
}
