"use strict";
const images = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("images");
const order = document.getElementById("order");
const labels = document.getElementById("labels");
const legend = document.getElementById("legend");
const large = document.getElementById("large");
const names = [...new Set(images.map(image => image.condition).filter(Boolean))];
let chosen = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function nearness(image) {
  if (image.distance === null) return "";
  const rank = image.percentile === null ? "" : ` (${image.percentile} % of unseen real images are as near)`;
  return `nearest training image: ${image.distance.toPrecision(3)}${rank}`;
}

function card(image) {
  const figure = element("figure");
  const button = element("button");
  button.type = "button";
  const picture = element("img");
  picture.src = labels && labels.checked && image.labels ? image.labels : image.picture;
  picture.alt = `synthetic image ${image.index}: ${image.name}`;
  button.append(picture);
  button.onclick = () => {
    large.querySelector("img").src = picture.src;
    large.querySelector("img").alt = picture.alt;
    large.querySelector("p").textContent =
      [`SYNTHETIC ${image.name}`, image.file, image.origin, nearness(image)].filter(Boolean).join(" · ");
    large.showModal();
  };
  const caption = element("figcaption");
  caption.append(element("b", image.name), element("span", image.origin));
  if (image.distance !== null) {
    const close = image.percentile !== null && image.percentile <= 1;
    const line = element("span", `nearest ${image.distance.toPrecision(3)}` +
      (image.percentile === null ? "" : ` · ${image.percentile}\u00a0%`), close ? "close" : "");
    line.title = nearness(image);
    caption.append(line);
  }
  figure.append(button, caption);
  return figure;
}

function show() {
  const shown = images.filter(image => chosen === null || image.condition === chosen);
  const by = order ? order.value : "index";
  if (by !== "index") {
    const sign = by === "near" ? 1 : -1;
    shown.sort((a, b) => sign * ((a.distance ?? Infinity) - (b.distance ?? Infinity)));
  }
  main.replaceChildren(...shown.map(card));
  if (legend) legend.hidden = !(labels && labels.checked);
}

function chip(text, value) {
  const button = element("button", text);
  button.type = "button";
  button.setAttribute("aria-pressed", String(value === chosen));
  button.onclick = () => {
    chosen = value;
    for (const other of button.parentElement.children)
      other.setAttribute("aria-pressed", String(other === button));
    show();
  };
  return button;
}

if (names.length > 1) {
  const count = name => images.filter(image => image.condition === name).length;
  document.getElementById("conditions").append(
    chip(`all ${images.length}`, null), ...names.map(name => chip(`${name} ${count(name)}`, name)));
}
if (order) order.onchange = show;
if (labels) labels.onchange = show;
document.getElementById("size").oninput = event =>
  main.style.setProperty("--size", `${event.target.value}px`);
large.addEventListener("click", event => { if (event.target === large) large.close(); });
show();
