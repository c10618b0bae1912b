"use strict";
// Shows what the harness sends, twice a second. The harness makes the HTML; here it is only put in place.

const $ = (id) => document.getElementById(id);
const ahead = (path) => `${location.pathname}${path}`;

// Make one element like another, and keep what is alike: focus and scrolling stay where they are.
function morph(old, next) {
  if (old.nodeType !== next.nodeType || old.nodeName !== next.nodeName) {
    old.replaceWith(next);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.id !== "rate") morphChildren(old, next);
}

function morphChildren(old, next) {
  const news = [...next.childNodes];
  [...old.childNodes].slice(news.length).forEach((node) => node.remove());
  news.forEach((node, i) => (old.childNodes[i] ? morph(old.childNodes[i], node) : old.append(node)));
}

function put(id, html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  morphChildren($(id), made.content);
}

// --- what the harness says --------------------------------------------------------------------------------

let run = "";
let said = "";

function say(text) {
  if (text !== said) $("say").textContent = said = text;
}

// A bar across the page; it stays for some seconds, or until the harness is back.
let hiding = 0;
function tell(text, seconds) {
  clearTimeout(hiding);
  $("away").textContent = text;
  $("away").hidden = !text;
  if (seconds) hiding = setTimeout(tell, 1000 * seconds, "");
}
const gone = () => tell("The harness is away. This page shows what it showed last, and waits for it.");

let away = false;
const events = new EventSource("events");
events.onmessage = ({ data }) => {
  if (!data) return;
  const now = JSON.parse(data);
  if (run && run !== now.run) tell("The harness was started again: it judges anew.", 10);
  else if (away) tell("");
  [run, away] = [now.run, false];
  for (const [id, html] of Object.entries(now.parts)) if (id !== "hands" || !sliding) put(id, html);
  hint();
  say(now.say);
  document.title = now.say;
  measure();
};
events.onerror = () => {
  away = true;
  gone();
};

// --- hands on ---------------------------------------------------------------------------------------------

let sliding = false;

async function post(path) {
  try {
    const answer = await fetch(ahead(path), { method: "POST" });
    if (!answer.ok) tell(await answer.text(), 10);
  } catch {
    gone();
  }
}

document.addEventListener("click", async ({ target }) => {
  const { press, story, typed } = target.dataset;
  if (press && target.getAttribute("aria-disabled") !== "true") {
    $("typed").textContent = `$ ${typed}`;
    await post(`press/${press}`);
  }
  if (story) {
    $("story").querySelector("pre").textContent = "reading the proxies' logs …";
    $("story").showModal();
    const answer = await fetch(ahead(`story/${encodeURIComponent(story)}`)).catch(() => null);
    $("story").querySelector("pre").textContent = answer ? await answer.text() : "the harness is away";
  }
});
// Show the command of what the mouse or the keyboard is at, unless one is under way.
function hint() {
  const at = document.querySelector("[data-typed]:hover") || document.querySelector("[data-typed]:focus-visible");
  if (!at || document.querySelector("[data-press][aria-disabled]")) return;
  const words = `$ ${at.dataset.typed}${at.id === "rate" ? at.value : ""}`;
  const printed = document.querySelector(".printed");
  if (printed) printed.hidden = $("typed").textContent !== words;
  $("typed").textContent = words;
}
document.addEventListener("focusin", hint);
document.addEventListener("mouseover", hint);
document.addEventListener("input", (event) => {
  if (event.target.id !== "rate") return;
  sliding = true;
  $("rate-now").textContent = `${event.target.value}/s`;
  hint();
});
document.addEventListener("change", async ({ target }) => {
  if (target.id !== "rate") return;
  await post(`rate/${target.value}`);
  sliding = false;
});

// --- what flows: a sample of it, never more than MOST dots --------------------------------------------------

const MOST = 48;
const SPEED = 260; // units of the picture a second
const STILL = matchMedia("(prefers-reduced-motion: reduce)");
const SVG = "http://www.w3.org/2000/svg";
let ways = [];
const dots = [];

function measure() {
  const picture = $("picture").firstElementChild;
  if (!picture || !picture.viewBox) return;
  $("dots").setAttribute("viewBox", picture.getAttribute("viewBox"));
  const known = new Map(ways.map((way) => [way.key, way]));
  ways = [...picture.querySelectorAll(".way")].map((path) => {
    const key = `${path.getAttribute("class")} ${path.getAttribute("d")}`;
    const way = known.get(key) || { key, due: 0, length: path.getTotalLength(), path };
    const kind = ["leak", "copy"].find((name) => path.classList.contains(name)) || "call";
    return Object.assign(way, { path, kind, rate: Math.min(Number(path.dataset.rate), 5) });
  });
}

function start(way) {
  const circle = document.createElementNS(SVG, "circle");
  circle.setAttribute("r", way.kind === "leak" ? 11 : 8);
  circle.setAttribute("class", `dot ${way.kind}`);
  $("dots").append(circle);
  dots.push({ way, circle, at: 0, back: false });
}

let last = 0;
function frame(now) {
  const passed = Math.min((now - last) / 1000, 0.1);
  last = now;
  for (const way of STILL.matches ? [] : ways) {
    way.due += way.rate * passed;
    if (way.due >= 1) {
      way.due %= 1;
      if (dots.length < MOST) start(way);
    }
  }
  for (const dot of [...dots]) {
    dot.at += (dot.back ? -1 : 1) * SPEED * passed;
    if (dot.at >= dot.way.length && dot.way.kind !== "copy" && !dot.back) {
      dot.back = true;
      dot.circle.classList.add("back");
    }
    if (STILL.matches || dot.at < 0 || (dot.at >= dot.way.length && !dot.back) || !dot.way.path.isConnected) {
      dot.circle.remove();
      dots.splice(dots.indexOf(dot), 1);
      continue;
    }
    const { x, y } = dot.way.path.getPointAtLength(dot.at);
    dot.circle.setAttribute("cx", x);
    dot.circle.setAttribute("cy", y);
  }
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
