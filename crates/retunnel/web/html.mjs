// Elements as template literals. Text is always text: nothing here sets markup.

import { h } from "./vendor/preact.mjs";
import htm from "./vendor/htm.mjs";
import "./vendor/signals.mjs";

export const html = htm.bind(h);

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function bytes(count) {
  let [value, unit] = [count, 0];
  while (value >= 1000 && unit < UNITS.length - 1) [value, unit] = [value / 1000, unit + 1];
  return unit === 0 ? `${count} B` : `${value.toFixed(1)} ${UNITS[unit]}`;
}

export function time(ms) {
  if (ms === null || ms === undefined) return "…";
  if (ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

export const clock = (unixMs) => new Date(unixMs).toLocaleTimeString([], { hour12: false });

/** The status to show. */
export function status(exchange) {
  if (exchange.state === "retried") return "retry";
  if (exchange.state === "cut") return exchange.status || "cut";
  return exchange.status || "…";
}

/** Why the status does not tell everything; empty if it does. */
export function remark(exchange) {
  if (exchange.state === "failed") return "not reached";
  if (exchange.state === "cut") return "cut";
  if (exchange.retry_of) return "retry";
  if (exchange.replay_of) return "replay";
  if (exchange.kind === "http") return "";
  return `${exchange.kind === "events" ? "events" : "ws"} ${exchange.messages}`;
}

/** The CSS class for the colour of a status. */
export function tone(exchange) {
  if (exchange.state === "retried") return "warn";
  if (exchange.state === "cut" || exchange.state === "failed") return "bad";
  if (!exchange.status) return "open";
  if (exchange.status < 300) return "good";
  return exchange.status < 400 ? "moved" : exchange.status < 500 ? "warn" : "bad";
}
