"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const overlays = all("input[name=ov]");
const dialog = one("dialog");
const [stage, swipe] = [one("div", dialog), one(".swipe", dialog)];
let shown = null;

function nextOverlay() {
  const now = overlays.findIndex((input) => input.checked);
  overlays[(now + 1) % overlays.length].checked = true;
}

// An image is enlarged with its caption. Of two that belong together, the second lies over the
// first, and a slider uncovers one or the other.
function enlarge(button) {
  shown = button;
  const copy = button.parentElement.cloneNode(true);
  copy.removeAttribute("id");
  all("details", copy).forEach((part) => (part.open = true));
  all(".pic", copy).forEach((part) => part.setAttribute("tabindex", "-1"));
  all("a", copy).forEach((link) => link.addEventListener("click", () => dialog.close()));
  const group = button.closest(".top, .pair");
  const pair = group ? all("button.pic", group) : [];
  swipe.hidden = pair.length < 2;
  if (pair.length > 1) {
    const right = button === pair[0] ? pair[1] : button;
    const over = document.createElement("span");
    over.className = "over2";
    over.append(...[...right.cloneNode(true).children]);
    one(".pic", copy).replaceChildren(...[...pair[0].cloneNode(true).children], over);
    one(".left", swipe).textContent = one("img", pair[0]).alt;
    one(".right", swipe).textContent = one("img", right).alt;
    all("figcaption, .under, .cap", copy).forEach((part) => part.remove());
  }
  stage.replaceChildren(copy);
  uncover(50);
  if (!dialog.open) dialog.showModal();
}

function uncover(share) {
  one("input", swipe).value = share;
  one(".over2", stage)?.style.setProperty("clip-path", `inset(0 0 0 ${share}%)`);
}

function step(by) {
  const list = all("button.pic", shown.closest("ol, .top"));
  enlarge(list[(list.indexOf(shown) + by + list.length) % list.length]);
}

function jump(by) {
  const articles = all("article:not([hidden])");
  const bar = one(".bar").offsetHeight;
  const tops = articles.map((article) => article.getBoundingClientRect().top - bar);
  const next = by > 0 ? tops.findIndex((top) => top > 20) : tops.findLastIndex((top) => top < -20);
  const target = articles[next];
  // A large report has its prompts on several pages. The last prompt of a page may be too short to
  // reach the top of the window.
  if (!target || target === document.activeElement)
    one(by > 0 ? "a[rel=next]" : "a[rel=prev]")?.click();
  target?.scrollIntoView();
  target?.focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.pic");
  if (button && !dialog.contains(button)) enlarge(button);
  if (event.target === dialog) dialog.close();
});
one(".next", dialog).addEventListener("click", nextOverlay);
one("input", swipe).addEventListener("input", (event) => uncover(event.target.value));
dialog.addEventListener("close", () => shown?.focus());
one("#heat").addEventListener("input", (event) =>
  document.body.style.setProperty("--heat", event.target.value / 100));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("[type=search], select")) return;
  if (event.target.matches("[type=range]") && event.key.startsWith("Arrow")) return;
  if (event.key === "h") nextOverlay();
  else if (dialog.open && event.key === "f" && !swipe.hidden)
    uncover(one("input", swipe).value > 50 ? 0 : 100);
  else if (dialog.open && event.key === "ArrowRight") step(1);
  else if (dialog.open && event.key === "ArrowLeft") step(-1);
  else if (!dialog.open && event.key === "j") jump(1);
  else if (!dialog.open && event.key === "k") jump(-1);
});

// The page has the candidates and the replies compressed in one place, as HTML whose texts are
// escaped. They become elements when somebody opens them.
const fragments = (async () => {
  const packed = atob(one("#fragments").content.textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return (await new Response(stream).text()).split("<hr>");
})();
async function fill(part) {
  const number = part.dataset.f;
  if (number === undefined) return;
  delete part.dataset.f;
  part.insertAdjacentHTML("beforeend", (await fragments)[number]);
  if (part.matches(".index")) arrange();
}
document.addEventListener("toggle", (event) => fill(event.target), true);

// An address such as report.html#r0p4000c2 leads to the page that has this prompt, and opens the
// candidates to show this one.
async function findPlace() {
  const name = location.hash.slice(1);
  const prompt = document.getElementById(name.replace(/c\d+$/, ""));
  if (prompt && !document.getElementById(name)) {
    const list = one("details.all", prompt);
    if (!list) return;
    await fill(list);
    list.open = true;
    if (document.getElementById(name)) location.replace(location.hash);
  }
  if (!name || prompt) return;
  const link = all("table a[href*='#']").find(
    (other) => other.hash === location.hash && other.pathname !== location.pathname);
  if (link) location.replace(link.href);
}
findPlace();
addEventListener("hashchange", findPlace);

// Filter and order: the numbers are those of the prompts' tables.
const form = one(".find");
const articles = all("article");
const numbers = new Map(articles.map((article) => [article, new Map(
  all(".lines tbody tr", article).map((row) => [row.cells[0].textContent, row.cells]))]));
const places = new Map(articles.map((article, i) => [article, i]));
for (const name of new Set([...numbers.values()].flatMap((cells) => [...cells.keys()])))
  for (const [column, word] of [[3, "change"], [2, "of the chosen"], [1, "of the first"]])
    form?.sort.add(new Option(`${name}, ${word}`, `${column} ${name}`));

function arrange() {
  if (!form) return;
  const words = form.q.value.toLowerCase().split(/\s+/);
  const kind = one("input[name=kind]:checked", form)?.value;
  const hide = (part, text) =>
    (part.hidden = !words.every((word) => text.toLowerCase().includes(word)) ||
      (kind !== undefined && kind !== "*" && (part.dataset.c ?? "") !== kind));
  for (const part of all("article, .versus")) hide(part, one("h3", part).textContent);
  for (const row of all(".index tbody tr")) hide(row, row.cells[0].textContent);
  const [column, ...name] = form.sort.value.split(" ");
  const value = (article) => {
    if (!column) return places.get(article);
    const cell = numbers.get(article).get(name.join(" "))?.[column];
    return parseFloat(cell?.textContent) * (form.down.checked ? -1 : 1);
  };
  for (const section of new Set(articles.map((article) => article.parentElement))) {
    const inside = all("article", section).map((article) => [value(article), article]);
    // What has no number comes last.
    inside.sort(([a, one], [b, other]) =>
      isNaN(a) - isNaN(b) || a - b || places.get(one) - places.get(other));
    section.append(...inside.map(([, article]) => article));
  }
  const left = articles.filter((article) => !article.hidden).length;
  one("output", form).value = `${left} of ${articles.length} here`;
}
form?.addEventListener("input", arrange);
form?.addEventListener("submit", (event) => event.preventDefault());

// Values of a chart under the pointer: each series' last one up to there.
const tip = one(".tip");
function say(event) {
  const chart = event.target.closest?.("svg.chart");
  tip.hidden = !chart;
  if (!chart) return;
  const [left, right, top, bottom, x1, x2, y1, y2] = chart.dataset.area.split(" ").map(Number);
  const spot = new DOMPoint(event.clientX, event.clientY);
  const { x } = spot.matrixTransform(chart.getScreenCTM().inverse());
  const inside = Math.min(Math.max(x, left), right);
  const said = all("[data-name]", chart).map((line) => {
    const point = [...line.points].findLast((p) => p.x <= inside + 1);
    const value = point && y2 - ((point.y - top) / (bottom - top)) * (y2 - y1);
    return point ? `${line.dataset.name}: ${+value.toPrecision(3)}` : "";
  });
  const here = x1 + ((inside - left) / (right - left)) * (x2 - x1);
  const lines = [`${chart.dataset.x} ${+here.toPrecision(3)}`, ...said.filter(Boolean)];
  tip.textContent = lines.join("\n");
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
}
addEventListener("pointermove", say);
addEventListener("pointerdown", say);
