"use strict";
const overlays = [...document.querySelectorAll("input[name=ov]")];
const dialog = document.querySelector("dialog");
const stage = dialog.querySelector("div");
let shown = null;

function nextOverlay() {
  const now = overlays.findIndex((input) => input.checked);
  overlays[(now + 1) % overlays.length].checked = true;
}

function enlarge(button) {
  shown = button;
  const copy = button.parentElement.cloneNode(true);
  copy.removeAttribute("id");
  copy.querySelectorAll("details").forEach((part) => (part.open = true));
  copy.querySelectorAll(".pic").forEach((part) => part.setAttribute("tabindex", "-1"));
  copy.querySelectorAll("a").forEach((link) => link.addEventListener("click", () => dialog.close()));
  stage.replaceChildren(copy);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const list = [...shown.closest("ol, .top").querySelectorAll("button.pic")];
  enlarge(list[(list.indexOf(shown) + by + list.length) % list.length]);
}

function jump(by) {
  const articles = [...document.querySelectorAll("article")];
  const bar = document.querySelector(".bar").offsetHeight;
  const tops = articles.map((article) => article.getBoundingClientRect().top - bar);
  const next = by > 0 ? tops.findIndex((top) => top > 20) : tops.findLastIndex((top) => top < -20);
  const target = articles[next];
  // A large report has its prompts on several pages. The last prompt of a page may be too short to
  // reach the top of the window.
  if (!target || target === document.activeElement)
    document.querySelector(by > 0 ? "a[rel=next]" : "a[rel=prev]")?.click();
  target?.scrollIntoView();
  target?.focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.pic");
  if (button && !dialog.contains(button)) enlarge(button);
  if (event.target === dialog) dialog.close();
});
dialog.querySelector(".next").addEventListener("click", nextOverlay);
dialog.addEventListener("close", () => shown?.focus());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "h") nextOverlay();
  else if (dialog.open && event.key === "ArrowRight") step(1);
  else if (dialog.open && event.key === "ArrowLeft") step(-1);
  else if (!dialog.open && event.key === "j") jump(1);
  else if (!dialog.open && event.key === "k") jump(-1);
});

// The page has all replies compressed in one place; textContent never parses them as HTML.
async function fillReplies() {
  const packed = atob(document.getElementById("replies").content.textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const replies = await new Response(stream).json();
  for (const part of document.querySelectorAll("[data-r]")) part.textContent = replies[part.dataset.r];
}
addEventListener("load", () => setTimeout(fillReplies));

// An address such as report.html#r0p4000 leads to the page that has this prompt.
function findPage() {
  if (location.hash.length < 2 || document.getElementById(location.hash.slice(1))) return;
  const links = [...document.querySelectorAll("table a[href*='#']")];
  const link = links.find((one) => one.hash === location.hash && one.pathname !== location.pathname);
  if (link) location.replace(link.href);
}
findPage();
addEventListener("hashchange", findPage);
