// What viewers of slices share: where a slice lies on its canvas, patient directions, sliders,
// wheel, window and level. A view is one plane with its figure, canvas and (of a volume) slider.
const element = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const short = (value) => Number(value.toPrecision(3)).toString();
const press = (button, on) => button.setAttribute("aria-pressed", on);

const findViews = (data) => all("[data-view]").map((figure) => ({
  figure, plane: data.planes[Number(figure.dataset.view)], canvas: figure.querySelector(".slice"),
  buffer: document.createElement("canvas"), slider: figure.querySelector("input"),
  text: figure.querySelector("figcaption output"),
}));

// Where the slice lies on the canvas, in canvas pixels, at its physical proportions.
function placement(data, { plane, canvas }) {
  const across = data.shape[plane.across] * data.spacing[plane.across];
  const down = data.shape[plane.down] * data.spacing[plane.down];
  const scale = Math.min(canvas.width / across, canvas.height / down);
  return {
    x: scale * data.spacing[plane.across], y: scale * data.spacing[plane.down],
    left: (canvas.width - scale * across) / 2, top: (canvas.height - scale * down) / 2,
  };
}

// Gives the canvas the size it has on the screen, and empties it.
function clear(view) {
  const { canvas } = view, ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  return { context: canvas.getContext("2d"), place: placement(view.data, view), ratio };
}

// Draws a slice, one voxel after another; returns the transform from voxels to the canvas.
function drawSlice({ buffer }, context, image, place) {
  [buffer.width, buffer.height] = [image.width, image.height];
  buffer.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingQuality = "high";
  context.setTransform(place.x, 0, 0, place.y, place.left, place.top);
  context.drawImage(buffer, 0, 0);
  const toCanvas = context.getTransform();
  context.resetTransform();
  return toCanvas;
}

function strokeVoxels(context, voxels, toCanvas, colour, width) {
  const path = new Path2D();
  path.addPath(voxels, toCanvas);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
}

// Thin lines through the cursor that leave the place itself free.
function drawCrosshair({ plane, canvas }, context, place, ratio, cursor) {
  const x = place.left + (cursor[plane.across] + 0.5) * place.x;
  const y = place.top + (cursor[plane.down] + 0.5) * place.y;
  const gap = 14 * ratio;
  context.strokeStyle = "rgba(255, 255, 255, 0.35)";
  context.lineWidth = ratio;
  context.beginPath();
  for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, canvas.width, y],
                                  [x, 0, x, y - gap], [x, y + gap, x, canvas.height]]) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.stroke();
}

function drawText(context, ratio, text, x, y, align = "center") {
  Object.assign(context, {
    fillStyle: "#e9eef3", font: `600 ${13 * ratio}px system-ui, sans-serif`, textAlign: align,
    textBaseline: "middle", shadowColor: "#000", shadowBlur: 4 * ratio,
  });
  context.fillText(text, x, y);
  context.shadowBlur = 0;
}

function drawLetters({ plane, canvas }, context, ratio) {
  const [left, right, top, bottom] = plane.letters, edge = 14 * ratio;
  drawText(context, ratio, left, edge, canvas.height / 2);
  drawText(context, ratio, right, canvas.width - edge, canvas.height / 2);
  drawText(context, ratio, top, canvas.width / 2, edge);
  drawText(context, ratio, bottom, canvas.width / 2, canvas.height - edge);
}

// Text on a dark ground, for places where the picture may be bright.
function drawTag(context, ratio, text, x, y, align) {
  context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 12 * ratio, height = 20 * ratio;
  context.fillStyle = "rgba(0, 0, 0, 0.65)";
  context.beginPath();
  context.roundRect(align === "right" ? x - width : x, y - height / 2, width, height, 5 * ratio);
  context.fill();
  drawText(context, ratio, text, align === "right" ? x - 6 * ratio : x + 6 * ratio, y, align);
}

// The voxel under a pointer, as indices along the screen axes across and down.
function underPointer(view, event) {
  const ratio = view.canvas.width / view.canvas.clientWidth, place = placement(view.data, view);
  return [
    Math.floor((event.offsetX * ratio - place.left) / place.x),
    Math.floor((event.offsetY * ratio - place.top) / place.y),
  ];
}

function worldText(data, cursor) {
  const [x, y, z] = cursor;
  const mm = data.affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
  return `RAS ${mm.map((value) => value.toFixed(0).replace("-", "−")).join(", ")} mm`;
}

// Slider and caption say which slice of the file is shown.
function showPosition(view, cursor) {
  const { data, plane, slider, text } = view;
  if (!slider) return;
  const axis = plane.normal, index = cursor[axis];
  slider.value = index;
  text.textContent = `slice ${data.sourceStart[axis] + data.sourceStep[axis] * index * data.factors[axis]}`;
}

// Window and level after the pointer was dragged with the right button.
function windowed(event, { width, level }, range) {
  return {
    width: clamp(width * (1 + event.movementX / 200), range / 200, range),
    level: level + (event.movementY / 300) * range,
  };
}

function showWindow(state, lowest, range) {
  element("width").value = (200 * state.width) / range;
  element("level").value = (200 * (state.level - lowest)) / range;
  element("width-text").textContent = short(state.width);
  element("level-text").textContent = short(state.level);
}

function listenToWindow(change, lowest, range) {
  onSlider("width", (part) => change({ width: (part / 200) * range }));
  onSlider("level", (part) => change({ level: lowest + (part / 200) * range }));
}

function onSlider(id, act) {
  element(id).addEventListener("input", (event) => act(event.target.valueAsNumber));
}

// A bar in the colours of the map, from 0 to its maximum.
function paintBar(data) {
  const colours = data.colours.filter((_, i) => i % 15 === 0).map((rgb) => `rgb(${rgb.join(",")})`);
  element("bar").style.background = `linear-gradient(to right, ${colours.join(",")})`;
  element("bar-top").textContent = short(data.mapMaximum);
}

function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    if (event.key in keys && !event.ctrlKey && !event.metaKey && !event.altKey) keys[event.key]();
  });
}

// `moveTo(axis, index)` goes to a slice, `drag(event, view)` hears of a pressed pointer, `resized`
// of a new size, and `keys` are those of a focused view, by name; each gets the view.
function listenToView(view, cursor, { moveTo, drag, resized, keys = {} }) {
  const { figure, canvas, plane, slider, data } = view;
  const step = (by) => moveTo(plane.normal, cursor()[plane.normal] + by);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    drag(event, view);
  });
  canvas.addEventListener("pointermove", (event) => drag(event, view));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  new ResizeObserver(() => resized(view)).observe(canvas);
  const steps = slider ? { ArrowUp: -1, ArrowLeft: -1, PageUp: -10, ArrowDown: 1, ArrowRight: 1, PageDown: 10 } : {};
  figure.addEventListener("keydown", (event) => {
    if (event.target !== figure || !(event.key in keys || event.key in steps)) return;
    event.preventDefault();
    if (event.key in keys) keys[event.key](view);
    else step(steps[event.key]);
  });
  if (!slider) return;
  let wheel = 0; // a touchpad sends many small steps
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    wheel += event.deltaMode === 0 ? event.deltaY / 50 : event.deltaY;
    step(Math.trunc(wheel));
    wheel -= Math.trunc(wheel);
  }, { passive: false });
  canvas.addEventListener("dblclick", () => figure.classList.toggle("enlarged"));
  slider.max = data.shape[plane.normal] - 1;
  slider.addEventListener("input", () => moveTo(plane.normal, slider.valueAsNumber));
}

// Calls `paint` once for each frame in which anything changed.
function onNextFrame(paint) {
  let planned = false;
  return () => {
    if (!planned) requestAnimationFrame(() => { planned = false; paint(); });
    planned = true;
  };
}

function failed(error) {
  document.documentElement.dataset.viewer = "failed";
  console.error(error);
  element("viewer").append(`The slices could not be drawn: ${error.message}`);
}
