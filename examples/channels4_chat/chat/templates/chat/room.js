"use strict";
const byId = (id) => document.getElementById(id);
const room = JSON.parse(byId("room-name").textContent);
const people = new Map();   // id -> card
const typists = new Map();  // id -> timer
const sentAt = new Map();   // mark -> performance.now()
const echoes = [];
let socket, me, nextMark = 0, lastTyping = -Infinity, delay = 250;

const ADJECTIVES = ["Quiet", "Brave", "Swift", "Gentle", "Curious", "Sunny", "Clever", "Patient"];
const ANIMALS = ["Otter", "Heron", "Lynx", "Badger", "Wren", "Marten", "Hare", "Finch"];
const pick = (list) => list[Math.floor(Math.random() * list.length)];
// Of this tab: two tabs are two people.
let myName = sessionStorage.getItem("name") || `${pick(ADJECTIVES)} ${pick(ANIMALS)}`;
byId("name").value = myName;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
function hueOf(name) {
  let hash = 7;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 360;
  return hash;
}
function avatarOf(card) {
  const initials = card.name.split(/\s+/).map((word) => [...word][0] || "").slice(0, 2).join("");
  const made = element("span", "avatar", initials.toUpperCase());
  made.style.setProperty("--hue", hueOf(card.name));
  made.setAttribute("aria-hidden", "true");
  return made;
}
function add(item) {
  const list = byId("messages");
  const wasAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  list.append(item);
  while (list.children.length > 500) list.firstElementChild.remove();
  if (wasAtEnd) list.scrollTop = list.scrollHeight;
}
function note(text) { add(element("li", "note", text)); }

function showPeople() {
  const cards = [...people.values()].sort((a, b) =>
    (b.id === me) - (a.id === me) || a.name.localeCompare(b.name) || a.id.localeCompare(b.id));
  byId("people").replaceChildren(...cards.map((card) => {
    const line = element("li");
    line.dataset.name = card.name;
    const who = element("span", "who", card.name);
    if (card.id === me) who.append(element("span", "you", " (you)"));
    line.append(avatarOf(card), who, element("span", "place", `process ${card.process}`));
    return line;
  }));
  byId("count").textContent = people.size;
}
function showTyping() {
  const names = [...typists.keys()].map((id) => people.get(id)?.name).filter(Boolean);
  byId("typing").textContent = names.length === 0 ? ""
    : names.length > 2 ? `${names.length} people are typing…`
    : `${names.join(" and ")} ${names.length > 1 ? "are" : "is"} typing…`;
}
function stopTyping(id) {
  clearTimeout(typists.get(id));
  typists.delete(id);
  showTyping();
}
const milliseconds = (value) => value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;

function showMessage({ card, text, mark }) {
  const isMine = card.id === me;
  const item = element("li", isMine ? "message mine" : "message");
  item.style.setProperty("--hue", hueOf(card.name));
  item.dataset.from = card.id;
  if (byId("messages").lastElementChild?.dataset.from === card.id) item.classList.add("follows");
  const meta = element("div", "meta");
  const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  meta.append(element("b", "", card.name), element("span", "", `process ${card.process} · ${time}`));
  const body = element("div", "body");
  if (isMine && sentAt.has(mark)) {
    const took = performance.now() - sentAt.get(mark);
    sentAt.delete(mark);
    echoes.push(took);
    const sorted = [...echoes].sort((a, b) => a - b);
    byId("latency").textContent = milliseconds(took);
    byId("median").textContent = milliseconds(sorted[sorted.length >> 1]);
    byId("echoes").textContent = echoes.length;
    body.append(element("span", "echo", milliseconds(took)));
  }
  body.append(element("span", "bubble", text));
  item.append(avatarOf(card), meta, body);
  add(item);
  stopTyping(card.id);
}

const handlers = {
  welcome({ id, process, pid }) {
    me = id;
    delay = 250;
    people.clear();
    byId("badge").classList.remove("is-off");
    byId("badge-text").textContent = `connected to process ${process}`;
    byId("badge").title = `process id ${pid}`;
    for (const control of byId("composer").elements) control.disabled = false;
    byId("text").focus();
    tell({ kind: "name", name: myName });
  },
  here({ card, new: isNew }) {
    const before = people.get(card.id);
    people.set(card.id, card);
    if (before && before.name !== card.name) note(`${before.name} is now ${card.name}`);
    else if (isNew && card.id !== me) note(`${card.name} joined on process ${card.process}`);
    showPeople();
  },
  left({ id }) {
    const card = people.get(id);
    people.delete(id);
    if (card) note(`${card.name} left`);
    stopTyping(id);
    showPeople();
  },
  said: showMessage,
  typing({ id }) {
    clearTimeout(typists.get(id));
    typists.set(id, setTimeout(() => stopTyping(id), 2500));
    showTyping();
  },
};

function tell(message) { socket.send(JSON.stringify(message)); }

function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  socket = new WebSocket(`${scheme}://${location.host}/ws/${room}/`);
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    handlers[message.kind](message);
  };
  socket.onclose = () => {
    byId("badge").classList.add("is-off");
    byId("badge-text").textContent = "reconnecting…";
    for (const control of byId("composer").elements) control.disabled = true;
    setTimeout(connect, delay);
    delay = Math.min(delay * 2, 4000);
  };
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (!text) return;
  const mark = nextMark++;
  sentAt.set(mark, performance.now());
  tell({ kind: "say", text, mark });
  byId("text").value = "";
  lastTyping = -Infinity;
});
byId("text").addEventListener("input", () => {
  if (performance.now() - lastTyping > 1500 && byId("text").value) {
    lastTyping = performance.now();
    tell({ kind: "typing" });
  }
});
byId("rename").addEventListener("submit", (event) => event.preventDefault());
byId("name").addEventListener("change", () => {
  myName = byId("name").value.trim() || myName;
  byId("name").value = myName;
  sessionStorage.setItem("name", myName);
  if (socket.readyState === WebSocket.OPEN) tell({ kind: "name", name: myName });
});
connect();
