"use strict";
const byId = (id) => document.getElementById(id);
const SHOWN_MS = 20_000;  // how far the chart looks back
const LOST_MS = 5_000;    // an echo that takes longer was in the hands of a killed worker
const LOWEST_MS = 0.1, HIGHEST_MS = 1000;

const workers = new Map();  // number -> {pid, echoes, restarts, elements}
const waiting = new Map();  // mark -> {sent, text}
const points = [];          // {at, took, worker}: what the chart shows; took is null when lost
const events = [];          // {at, backAt, text, worker}: workers that ended
const recent = [];          // the latest echoes, in milliseconds
let socket, openedAt, opened = 0, echoes = 0, lost = 0, nextMark = 0, ticker, delay = 250;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const tintOf = (number) => `--worker-${(number - 1) % 4}`;
const milliseconds = (value) =>
  value < 9.95 ? `${value.toFixed(2)} ms` : value < 99.5 ? `${value.toFixed(1)} ms`
    : `${Math.round(value)} ms`;
const clock = (ms) => {
  const seconds = Math.floor(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
};
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// -- workers ------------------------------------------------------------------------------

function meet(number, pid) {
  let worker = workers.get(number);
  if (!worker) {
    worker = { number, echoes: 0, restarts: 0, ...cardOf(number) };
    workers.set(number, worker);
    const inOrder = [...workers.values()].sort((a, b) => a.number - b.number);
    byId("workers").replaceChildren(...inOrder.map((one) => one.card));
    byId("legend").replaceChildren(...inOrder.map((one) => {
      const line = element("li", "", `worker ${one.number}`);
      line.style.setProperty("--tint", `var(${tintOf(one.number)})`);
      return line;
    }));
  }
  if (worker.pid !== pid) {
    if (worker.pid) {
      worker.restarts += 1;
      const now = performance.now(), ended = events.findLast((one) => one.worker === number);
      if (ended && ended.backAt === null) ended.backAt = now;
      else events.push({ at: now, backAt: now, text: `worker ${number} replaced`, worker: number });
    }
    worker.pid = pid;
    for (const button of worker.buttons) button.disabled = false;
  }
  return worker;
}
function cardOf(number) {
  const card = element("li");
  card.dataset.worker = number;
  card.style.setProperty("--tint", `var(${tintOf(number)})`);
  const facts = element("span", "facts");
  const buttons = [["stop", "Restart", "SIGTERM: it finishes what it has in hand"],
    ["kill", "Kill", "SIGKILL: what it has in hand is lost"]].map(([name, label, title]) => {
    const button = element("button", name, label);
    button.title = title;
    button.onclick = () => end(number, name, buttons);
    return button;
  });
  card.append(element("b", "", `Worker ${number}`), ...buttons, facts);
  return { card, facts, buttons };
}
function end(number, name, buttons) {
  tell({ kind: "signal", worker: number, name });
  const text = name === "kill" ? `worker ${number} killed` : `worker ${number} restarted`;
  events.push({ at: performance.now(), backAt: null, text, worker: number });
  for (const button of buttons) button.disabled = true;
}

// -- echoes -------------------------------------------------------------------------------

function tell(message) { socket.send(JSON.stringify(message)); }

function ask(text) {
  if (socket.readyState !== WebSocket.OPEN) return;
  const mark = nextMark++;
  waiting.set(mark, { sent: performance.now(), text });
  tell({ kind: "echo", mark, text });
}
function answered({ mark, worker: number, pid }) {
  const now = performance.now(), worker = meet(number, pid), asked = waiting.get(mark);
  if (!asked) return;  // it had been given up
  waiting.delete(mark);
  const took = now - asked.sent;
  echoes += 1;
  worker.echoes += 1;
  points.push({ at: now, took, worker: number });
  recent.push(took);
  if (recent.length > 100) recent.shift();
  if (asked.text !== null) {
    const line = element("li");
    line.append(element("span", "", asked.text),
      element("span", "", `${milliseconds(took)} · worker ${number}`));
    byId("said").prepend(line);
    while (byId("said").children.length > 6) byId("said").lastElementChild.remove();
  }
}
function giveUp(now) {
  for (const [mark, asked] of waiting) {
    if (now - asked.sent < LOST_MS) break;  // the rest were sent later
    waiting.delete(mark);
    lost += 1;
    points.push({ at: now, took: null, worker: 0 });
  }
}
function pace() {
  const rate = Number(byId("rate").value);
  byId("rate-text").textContent = rate ? `${rate} a second` : "paused";
  clearInterval(ticker);
  if (rate) ticker = setInterval(() => ask(null), 1000 / rate);
}

// -- what is shown ------------------------------------------------------------------------

function showFigures(now) {
  if (recent.length) {
    const sorted = [...recent].sort((a, b) => a - b);
    byId("last").textContent = milliseconds(recent[recent.length - 1]);
    byId("median").textContent = milliseconds(sorted[sorted.length >> 1]);
    byId("slowest").textContent = milliseconds(sorted[sorted.length - 1]);
  }
  byId("echoes").textContent = echoes.toLocaleString("en");
  byId("lost").textContent = lost;
  byId("lost").classList.toggle("is-bad", lost > 0);
  for (const worker of workers.values()) {
    const facts = [`pid ${worker.pid}`, `${worker.echoes.toLocaleString("en")} echoes`];
    if (worker.restarts) facts.push(plural(worker.restarts, "restart"));
    worker.facts.textContent = facts.join(" · ");
  }
  if (openedAt === undefined) return;
  const again = opened > 1 ? `, ${plural(opened - 1, "reconnect")}` : ", never reconnected";
  byId("badge-text").textContent = `socket open for ${clock(now - openedAt)}${again}`;
}

const chart = byId("chart"), pen = chart.getContext("2d");
function showChart(now) {
  const ratio = devicePixelRatio, width = chart.clientWidth, height = chart.clientHeight;
  if (chart.width !== Math.round(width * ratio) || chart.height !== Math.round(height * ratio)) {
    chart.width = Math.round(width * ratio);
    chart.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const left = 60, top = 14, right = width - 8, bottom = height - 22;
  const x = (at) => right - (now - at) / SHOWN_MS * (right - left);
  const steps = Math.log10(HIGHEST_MS / LOWEST_MS);
  const y = (took) => bottom
    - Math.log10(Math.min(Math.max(took, LOWEST_MS), HIGHEST_MS) / LOWEST_MS) / steps
    * (bottom - top);

  pen.font = "12px system-ui, sans-serif";
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (let took = LOWEST_MS; took <= HIGHEST_MS * 1.01; took *= 10) {
    const line = Math.round(y(took)) + 0.5;
    pen.strokeStyle = colour("--line");
    pen.beginPath();
    pen.moveTo(left, line);
    pen.lineTo(right, line);
    pen.stroke();
    pen.fillStyle = colour("--soft");
    pen.fillText(took < 999 ? `${Number(took.toPrecision(1))} ms` : "1 s", left - 10, line);
  }
  pen.textBaseline = "alphabetic";
  pen.textAlign = "center";
  for (const ago of width < 500 ? [20, 10] : [20, 15, 10, 5]) {
    pen.fillText(`${ago} s ago`, Math.max(x(now - ago * 1000), left + 14), height - 4);
  }
  pen.textAlign = "right";
  pen.fillText("now", right, height - 4);

  showEvents(now, x, { left, right, top, bottom });
  const tints = new Map([...workers.keys()].map((number) => [number, colour(tintOf(number))]));
  pen.globalAlpha = 0.75;
  for (const { at, took, worker } of points) {
    pen.fillStyle = took === null ? colour("--bad") : tints.get(worker);
    pen.beginPath();
    pen.arc(x(at), took === null ? top : y(took), 2.6, 0, 7);
    pen.fill();
  }
  pen.globalAlpha = 1;
}
function showEvents(now, x, { left, right, top, bottom }) {
  pen.textBaseline = "middle";
  pen.textAlign = "left";
  const latest = new Map(events.map((one) => [one.worker, one]));
  for (const one of events) {
    const { at, backAt, text, worker } = one;
    const from = Math.max(x(at), left), until = x(backAt ?? now);
    pen.fillStyle = colour(tintOf(worker));
    pen.globalAlpha = 0.13;
    pen.fillRect(from, top, Math.max(until - from, 2), bottom - top);
    pen.globalAlpha = 1;
    if (latest.get(worker) !== one) continue;  // its words would lie on one another's
    const label = backAt > at ? `${text}, back after ${milliseconds(backAt - at)}` : text;
    const width = pen.measureText(label).width, row = top + 12 + ((worker - 1) % 4) * 20;
    const start = Math.min(Math.max(x(at), left) + 8, right - width - 6);
    pen.fillStyle = colour("--surface");
    pen.fillRect(start - 4, row - 9, width + 8, 18);
    pen.fillStyle = colour(tintOf(worker));
    pen.fillText(label, start, row + 1);
  }
}
function show() {
  const now = performance.now();
  giveUp(now);
  while (points.length && now - points[0].at > SHOWN_MS) points.shift();
  while (events.length && now - events[0].at > SHOWN_MS) events.shift();
  showFigures(now);
  showChart(now);
  requestAnimationFrame(show);
}

// -- the socket ---------------------------------------------------------------------------

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/`);
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.kind === "echo") answered(message);
    else meet(message.worker, message.pid);
  };
  socket.onopen = () => {
    opened += 1;
    openedAt = performance.now();
    delay = 250;
    byId("badge").classList.remove("is-off");
    for (const control of byId("composer").elements) control.disabled = false;
    pace();
  };
  socket.onclose = () => {
    openedAt = undefined;
    clearInterval(ticker);
    lost += waiting.size;
    waiting.clear();
    byId("badge").classList.add("is-off");
    byId("badge-text").textContent = "reconnecting…";
    for (const control of byId("composer").elements) control.disabled = true;
    setTimeout(connect, delay);
    delay = Math.min(delay * 2, 4000);
  };
}
byId("rate").addEventListener("input", pace);
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (text) ask(text);
  byId("text").value = "";
});
connect();
show();
