// Uses the inspector's pages as a person would, in the system's Chromium.
//
// INSPECTOR: its address. EDGE and HOST: where visitors go. MODULES: folder with playwright-core and har-validator.
// PROFILE: an empty folder. SCREENSHOTS: where to put pictures, if anywhere.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { createRequire } from "node:module";
import { join } from "node:path";

const { INSPECTOR, EDGE, HOST, MODULES, PROFILE, SCREENSHOTS } = process.env;
const require = createRequire(join(MODULES, "x.js"));
const { chromium } = require("playwright-core");
const validate = require("har-validator/lib/promise.js");
const TIMEOUT = 20_000;
const BODY = '{"user":"ada","password":"body-secret","big":12345678901234567890}';
const SCRIPT = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>";

function visit(method, path, headers = {}, body = "") {
  const [host, port] = EDGE.split(":");
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, method, path, headers: { Host: HOST, ...headers } }, (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("end", () => resolve({ status: response.statusCode, text: Buffer.concat(pieces).toString() }));
    });
    request.on("error", reject);
    request.end(body);
  });
}

const browser = await chromium.launchPersistentContext(PROFILE, {
  executablePath: "/usr/bin/chromium",
  viewport: { width: 1280, height: 800 },
  acceptDownloads: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = browser.pages()[0] ?? (await browser.newPage());
page.setDefaultTimeout(TIMEOUT);
const troubles = [];
const foreign = [];
page.on("pageerror", (error) => troubles.push(error.stack));
page.on("console", (message) => message.type() === "error" && troubles.push(message.text()));
page.on("request", (request) => {
  if (!request.url().startsWith(INSPECTOR) && !request.url().startsWith("data:")) foreign.push(request.url());
});

async function picture(name) {
  if (SCREENSHOTS) await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`) });
}

const rows = page.locator(".row");
const row = (text) => rows.filter({ hasText: text }).first();
const panel = page.getByRole("tabpanel");
const tab = (name) => page.getByRole("tab", { name }).click();
const text = (locator) => locator.innerText();

await page.goto(INSPECTOR);
await page.getByText("No requests yet").waitFor();
await page.getByRole("status").getByText("Live").waitFor();

// A request appears while the page is open.
await visit("POST", "/echo/login?next=%2Fhome&token=query-secret", {
  "Content-Type": "application/json", Authorization: "Bearer header-secret", Cookie: "session=cookie-secret", "X-Shown": "plain",
}, BODY);
await row("/echo/login").waitFor();
assert.match(await text(row("/echo/login")), /200\s+POST/);
await visit("GET", "/status/404");
await visit("GET", "/status/500");
await visit("GET", "/cookies");
await row("/cookies").waitFor();

// Filters: method, status, path, text.
const count = async (expected) => page.waitForFunction((n) => document.querySelectorAll(".row").length === n, expected);
await page.getByLabel("Method").selectOption("POST");
await count(1);
await page.getByLabel("Method").selectOption("");
await page.getByLabel("Status").selectOption("5");
await row("/status/500").waitFor();
await count(1);
await page.getByLabel("Status").selectOption("failed");
await count(2);
await page.getByLabel("Status").selectOption("");
await page.getByLabel("Path").fill("COOK");
await count(1);
await page.getByLabel("Path").fill("");
await page.keyboard.press("Escape");
await page.keyboard.press("/");
await page.keyboard.type("x-shown");
await count(1);
await page.getByLabel("Text", { exact: true }).fill("nothing has this");
await page.getByText("No request matches").waitFor();
await page.getByLabel("Text", { exact: true }).fill("");
await count(4);

// Detail: secrets are masked until they are revealed.
await row("/echo/login").click();
await tab("Request");
await panel.getByText("X-Shown").waitFor();
const masked = await text(page.locator(".detail"));
assert.ok(masked.includes("[masked]") && masked.includes("ada") && masked.includes("12345678901234567890"), masked);
assert.match(masked, /next\s+\/home/);
assert.ok(!/(header|cookie|body|query)-secret/.test(await page.content()), "a secret is in the page");
await picture("detail");
await page.getByRole("button", { name: "Reveal secrets" }).click();
await panel.getByText("Bearer header-secret").waitFor();
const revealed = await text(page.locator(".detail"));
for (const secret of ["cookie-secret", "body-secret", "query-secret"]) assert.ok(revealed.includes(secret), secret);
await page.getByRole("button", { name: "Hide secrets" }).click();
await panel.getByText("[masked]").first().waitFor();
await tab("Timing");
await panel.getByText("Waiting for the response").waitFor();
await row("/cookies").click();
await tab("Response");
await panel.getByText("set-cookie").first().waitFor();
assert.ok(!(await text(panel)).includes("b=2"));
await page.getByRole("button", { name: "Hex" }).click();
await panel.getByText("63 72 75 6d 62 73").waitFor();

// Replay unchanged and edited: both reach the local service with their secrets.
await row("/echo/login").click();
await tab("Response");
await panel.getByText(`"length": ${BODY.length}`).waitFor();
await page.getByRole("button", { name: "Replay", exact: true }).click();
await page.getByText("Sent again").waitFor();
await page.getByRole("button", { name: /replay of #/ }).waitFor();
const answer = () => page.evaluate(async () => {
  const { requests } = await (await fetch("/api/requests?reveal=1")).json();
  const last = requests.at(-1);
  const full = await (await fetch(`/api/requests/${last.id}?reveal=1`)).json();
  return { last, echo: JSON.parse(full.response.text) };
});
let { last, echo } = await answer();
assert.equal(echo.target, "/echo/login?next=%2Fhome&token=query-secret");
assert.ok(echo.headers.some(([name, value]) => name === "authorization" && value === "Bearer header-secret"));
assert.equal(echo.length, BODY.length);
await row("/echo/login").click();
await page.keyboard.press("e");
await page.locator("input[name=path]").fill("/echo/edited");
const headers = page.locator("textarea[name=headers]");
await headers.fill((await headers.inputValue()) + "\nX-Edited: yes");
await page.locator("textarea[name=body]").fill("new body");
await page.locator("input[name=times]").fill("3");
await picture("edit");
await page.getByRole("button", { name: "Send", exact: true }).click();
await page.getByText("Sent 3 times").waitFor();
({ last, echo } = await answer());
assert.equal(echo.target, "/echo/edited");
assert.equal(echo.length, 8);
assert.ok(echo.headers.some(([name, value]) => name === "x-edited" && value === "yes"));
assert.ok(echo.headers.some(([name, value]) => name === "authorization" && value === "Bearer header-secret"));
assert.ok(last.replay_of > 0);
await row("/echo/edited").waitFor();

// Text from visitors stays text.
await visit("POST", `/echo?q=${encodeURIComponent(SCRIPT)}&${SCRIPT.replaceAll(" ", "+")}`, { "Content-Type": "text/html", "X-Script": SCRIPT }, SCRIPT);
await row("<script>").click();
await tab("Request");
await panel.getByText(SCRIPT).first().waitFor();
await page.waitForFunction((script) => document.querySelector(".panel pre")?.textContent === script, SCRIPT);
assert.equal(await page.evaluate(() => window.pwned), undefined);
assert.equal(await page.locator(".detail script, .list script, .detail img").count(), 0);

// Events and messages appear while they pass.
visit("GET", "/events/1000").catch(() => {});
await row("/events/1000").click();
await page.getByRole("tab", { name: /Messages/ }).click();
await panel.getByText("data: 5").waitFor();
await row("open").or(row("…")).first().waitFor();

// A WebSocket opens on its messages.
const [host, port] = EDGE.split(":");
const handshake = { Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==" };
const socket = await new Promise((resolve, reject) => {
  const request = http.request({ host, port, path: "/ws", headers: { Host: HOST, ...handshake } });
  request.on("upgrade", (_, socket) => resolve(socket)).on("error", reject).end();
});
socket.write(Buffer.from([0x81, 0x85, 0, 0, 0, 0, ...Buffer.from("knock")]));
await row("/ws").click();
await page.getByRole("tab", { name: /Messages/, selected: true }).waitFor();
await panel.getByText("knock").first().waitFor();
socket.destroy();

// Copy as curl, with masked secrets.
await browser.grantPermissions(["clipboard-read", "clipboard-write"], { origin: INSPECTOR });
await row("/echo/login").click();
await page.getByRole("button", { name: "Copy as curl" }).click();
await page.getByText("Copied, with secrets masked").waitFor();
const command = await page.evaluate(() => navigator.clipboard.readText());
assert.ok(command.startsWith(`curl 'http://${HOST}/echo/login?`) && command.includes("Authorization: [masked]"), command);

// Export as HAR.
const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Export HAR" }).click()]);
const har = JSON.parse(await readFile(await download.path(), "utf8"));
await validate.har(har);
assert.ok(har.log.entries.length >= 9);
// Only requests: the responses of the echo service repeat the secrets under other names.
assert.ok(!JSON.stringify(har.log.entries.map((entry) => entry.request)).includes("-secret"));
assert.equal(har.log.entries[0].request.url, `http://${HOST}/echo/login?next=%2Fhome&token=[masked]`);

// Keys, pause, clear.
await page.keyboard.press("Escape");
await page.keyboard.press("j");
await page.locator(".row[aria-current=true]").waitFor();
await page.keyboard.press("p");
await page.getByRole("status").getByText("Paused").waitFor();
await visit("GET", "/echo/unseen");
await page.keyboard.press("p");
await page.getByRole("status").getByText("Live").waitFor();
await visit("GET", "/echo/seen");
await row("/echo/seen").waitFor();
assert.equal(await row("/echo/unseen").count(), 0);

// Four layouts, none wider than the window.
for (const [width, height] of [[1280, 800], [400, 800]]) {
  for (const colorScheme of ["light", "dark"]) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme });
    for (const selected of [false, true]) {
      if (selected) await row("/echo/login").click();
      else await page.keyboard.press("Escape");
      await page.locator(selected ? ".detail h2" : ".row").first().waitFor();
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
      assert.ok(!wide, `the page is wider than ${width}`);
      await picture(`${width}-${colorScheme}-${selected ? "detail" : "list"}`);
    }
    await page.keyboard.press("Escape");
  }
}
await page.setViewportSize({ width: 1280, height: 800 });
await page.getByRole("button", { name: "Clear" }).click();
await page.getByText("No requests yet").waitFor();

// Another site can neither read nor change anything, nor show the page in a frame.
const evil = http.createServer((_, response) => response.setHeader("Content-Type", "text/html").end("<title>evil</title>"));
await new Promise((resolve) => evil.listen(0, "127.0.0.1", resolve));
const attacker = await browser.newPage();
await attacker.goto(`http://localhost:${evil.address().port}/`);
const outcome = await attacker.evaluate(async (inspector) => {
  const attempt = async (path, options) => {
    try {
      return (await fetch(inspector + path, options)).status;
    } catch {
      return "blocked";
    }
  };
  const simple = { method: "POST", mode: "no-cors", headers: { "Content-Type": "text/plain" }, body: '{"paused":true}' };
  await attempt("/api/pause", simple);
  return [
    await attempt("/api/requests", {}),
    await attempt("/api/pause", { method: "POST", headers: { "Content-Type": "application/json" }, body: '{"paused":true}' }),
    await attempt("/api/requests", { method: "DELETE" }),
  ];
}, INSPECTOR);
assert.deepEqual(outcome, ["blocked", "blocked", "blocked"]);
evil.close();
assert.equal(await page.evaluate(async () => (await (await fetch("/api/status")).json()).paused), false);

assert.deepEqual(foreign, [], "the pages asked other hosts");
assert.deepEqual(troubles, [], "the pages had errors");
await browser.close();
console.log("all seen");
// An event stream is still open.
process.exit(0);
