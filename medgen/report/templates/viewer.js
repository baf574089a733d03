"use strict";
// Slices through the embedded volume. Axes: 0 to the patient's left, 1 to the back, 2 to the feet,
// so each plane is drawn with its first axis across and its second axis down.
(async () => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const shape = data.shape;
  const strides = [1, shape[0], shape[0] * shape[1]];
  const voxelCount = strides[2] * shape[2];
  const [lowest, highest] = data.range;
  const OUTLINE = "#40e0d0", SELECTED = "#ffffff";
  const fresh = () => ({
    cursor: data.start.slice(), base: "scan", map: true, outline: true, crosshair: true,
    opacity: 0.65, width: data.window[1] - data.window[0],
    level: (data.window[0] + data.window[1]) / 2, selected: null,
  });
  let state = fresh();
  const element = (id) => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const short = (value) => Number(value.toPrecision(3)).toString();

  // ---- The volume ----

  // Cuts a mosaic of axial slices into voxels; colour pictures keep three bytes a voxel.
  async function unpack(uri, channels) {
    const image = new Image();
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(new Error("an embedded picture is damaged"));
      image.src = uri;
    });
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const voxels = new Uint8Array(voxelCount * channels);
    let at = 0;
    for (let z = 0; z < shape[2]; z++) {
      const left = (z % data.columns) * shape[0];
      const top = Math.floor(z / data.columns) * shape[1];
      const tile = context.getImageData(left, top, shape[0], shape[1]).data;
      for (let i = 0; i < tile.length; i += 4) {
        for (let c = 0; c < channels; c++) voxels[at++] = tile[i + c];
      }
    }
    return voxels;
  }

  // The highest anomaly score of each slice, and whether a finding touches it.
  function profileOf(axis, layers) {
    const highestScore = new Uint8Array(shape[axis]), touched = new Uint8Array(shape[axis]);
    for (let v = 0; v < voxelCount; v++) {
      const slice = Math.floor(v / strides[axis]) % shape[axis];
      if (layers.map[v] > highestScore[slice]) highestScore[slice] = layers.map[v];
      if (layers.mask[v]) touched[slice] = 1;
    }
    return { highestScore, touched };
  }

  // ---- Drawing one view ----

  function greyTable() {
    const table = new Uint8ClampedArray(256);
    for (let byte = 0; byte < 256; byte++) {
      const value = lowest + (byte / 255) * (highest - lowest);
      table[byte] = 255 * ((value - state.level) / state.width + 0.5);
    }
    return table;
  }

  // Fades the map out below the threshold, so that the scan stays readable.
  function alphaTable() {
    const full = 255 * Math.min(1, data.threshold / data.mapMaximum) || 255;
    return Float32Array.from({ length: 256 }, (_, b) => state.opacity * Math.min(1, b / full) ** 2);
  }

  function sliceImage(plane, grey, alpha) {
    const width = shape[plane.across], height = shape[plane.down];
    const image = new ImageData(width, height);
    const base = state.base === "restored" ? layers.restored : layers.scan;
    const difference = state.base === "difference";
    const gain = 255 / Math.max(1, (state.width / (highest - lowest)) * 127);
    const first = state.cursor[plane.normal] * strides[plane.normal];
    for (let down = 0, out = 0; down < height; down++) {
      for (let across = 0; across < width; across++, out += 4) {
        const v = first + across * strides[plane.across] + down * strides[plane.down];
        const opacity = state.map && !difference ? alpha[layers.map[v]] : 0;
        const colour = data.colours[layers.map[v]];
        for (let c = 0; c < 3; c++) {
          const at = v * channels + (channels === 3 ? c : 0);
          let shade = grey[base[at]];
          if (difference) {
            const change = (layers.scan[at] - layers.restored[at]) * gain;
            shade = 16 + (change > 0 ? change * [1, 0.55, 0.1][c] : -change * [0.15, 0.55, 1][c]);
          }
          image.data[out + c] = shade + (colour[c] - shade) * opacity;
        }
        image.data[out + 3] = 255;
      }
    }
    return image;
  }

  // Lines along the pixel edges between mask and not mask; `box` limits them to one finding.
  function outlinePath(plane, box) {
    const path = new Path2D();
    const first = state.cursor[plane.normal] * strides[plane.normal];
    const [from, to] = box || [[0, 0, 0], shape.map((n) => n - 1)];
    const slice = state.cursor[plane.normal];
    if (slice < from[plane.normal] || slice > to[plane.normal]) return path;
    const inside = (across, down) =>
      across >= 0 && down >= 0 && across < shape[plane.across] && down < shape[plane.down] &&
      layers.mask[first + across * strides[plane.across] + down * strides[plane.down]] > 0;
    const line = (x0, y0, x1, y1) => { path.moveTo(x0, y0); path.lineTo(x1, y1); };
    for (let y = from[plane.down]; y <= to[plane.down]; y++) {
      for (let x = from[plane.across]; x <= to[plane.across]; x++) {
        if (!inside(x, y)) continue;
        if (!inside(x - 1, y)) line(x, y, x, y + 1);
        if (!inside(x + 1, y)) line(x + 1, y, x + 1, y + 1);
        if (!inside(x, y - 1)) line(x, y, x + 1, y);
        if (!inside(x, y + 1)) line(x, y + 1, x + 1, y + 1);
      }
    }
    return path;
  }

  // Where the slice lies on the canvas, in canvas pixels, at its physical proportions.
  function placement(view) {
    const { plane, canvas } = view;
    const across = shape[plane.across] * data.spacing[plane.across];
    const down = shape[plane.down] * data.spacing[plane.down];
    const scale = Math.min(canvas.width / across, canvas.height / down);
    const x = scale * data.spacing[plane.across], y = scale * data.spacing[plane.down];
    return { x, y, left: (canvas.width - scale * across) / 2, top: (canvas.height - scale * down) / 2 };
  }

  function paint(view, grey, alpha) {
    const { plane, canvas, buffer } = view;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const context = canvas.getContext("2d");
    const place = placement(view);
    buffer.width = shape[plane.across];
    buffer.height = shape[plane.down];
    buffer.getContext("2d").putImageData(sliceImage(plane, grey, alpha), 0, 0);
    context.imageSmoothingQuality = "high";
    context.setTransform(place.x, 0, 0, place.y, place.left, place.top);
    context.drawImage(buffer, 0, 0);
    const finding = state.selected === null ? null : data.findings[state.selected];
    const paths = state.outline ? [[outlinePath(plane), OUTLINE]] : [];
    if (state.outline && finding) paths.push([outlinePath(plane, finding.box), SELECTED]);
    for (const [path, colour] of paths) {
      const onCanvas = new Path2D();
      onCanvas.addPath(path, context.getTransform());
      context.resetTransform();
      context.strokeStyle = colour;
      context.lineWidth = 1.4 * ratio;
      context.stroke(onCanvas);
      context.setTransform(place.x, 0, 0, place.y, place.left, place.top);
    }
    context.resetTransform();
    drawMarks(view, context, place, ratio);
  }

  function drawMarks({ plane, canvas }, context, place, ratio) {
    if (state.crosshair) {
      const x = place.left + (state.cursor[plane.across] + 0.5) * place.x;
      const y = place.top + (state.cursor[plane.down] + 0.5) * place.y;
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
    if (!data.anatomical) return;
    const [left, right, top, bottom] = plane.letters;
    const edge = 14 * ratio;
    context.fillStyle = "#e9eef3";
    context.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.shadowColor = "#000";
    context.shadowBlur = 4 * ratio;
    context.fillText(left, edge, canvas.height / 2);
    context.fillText(right, canvas.width - edge, canvas.height / 2);
    context.fillText(top, canvas.width / 2, edge);
    context.fillText(bottom, canvas.width / 2, canvas.height - edge);
    context.shadowBlur = 0;
  }

  function paintProfile(view) {
    const canvas = view.profileCanvas, count = shape[view.plane.normal];
    const width = (canvas.width = Math.max(1, canvas.clientWidth));
    const height = (canvas.height = Math.max(1, canvas.clientHeight));
    const context = canvas.getContext("2d"), thumb = 16; // the slider's knob never passes its ends
    for (let i = 0; i < count; i++) {
      const x = thumb / 2 + ((width - thumb) * i) / Math.max(1, count - 1);
      const tall = (view.profile.highestScore[i] / 255) * height;
      context.fillStyle = view.profile.touched[i] ? OUTLINE : "#3a4a5c";
      context.fillRect(x - 0.5, height - tall, Math.max(1, (width - thumb) / count), tall);
    }
  }

  // ---- The page ----

  let planned = false;
  function update() {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => { planned = false; paintAll(); });
  }

  function paintAll() {
    const grey = greyTable(), alpha = alphaTable();
    for (const view of views) {
      paint(view, grey, alpha);
      if (!view.slider) continue;
      const axis = view.plane.normal, index = state.cursor[axis];
      const source = data.sourceStart[axis] + data.sourceStep[axis] * index * data.factors[axis];
      view.slider.value = index;
      view.text.textContent = `slice ${source}`;
    }
    for (const button of document.querySelectorAll("[data-base]"))
      button.setAttribute("aria-pressed", button.dataset.base === state.base);
    for (const button of document.querySelectorAll("[data-toggle]"))
      button.setAttribute("aria-pressed", state[button.dataset.toggle]);
    for (const row of document.querySelectorAll("[data-finding]"))
      row.classList.toggle("selected", Number(row.dataset.finding) === state.selected);
    element("opacity").value = 100 * state.opacity;
    element("width").value = (200 * state.width) / (highest - lowest);
    element("level").value = (200 * (state.level - lowest)) / (highest - lowest);
    element("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
    element("width-text").textContent = short(state.width);
    element("level-text").textContent = short(state.level);
    element("readout").textContent = readout();
  }

  function readout() {
    const v = state.cursor.reduce((sum, index, axis) => sum + index * strides[axis], 0);
    const parts = [`anomaly ${short((layers.map[v] / 255) * data.mapMaximum)}`];
    if (channels === 1) parts.unshift(`scan ${short(lowest + (layers.scan[v] / 255) * (highest - lowest))}`);
    if (data.anatomical) {
      const mm = data.affine.slice(0, 3).map((row) => row[3] + row[0] * state.cursor[0] + row[1] * state.cursor[1] + row[2] * state.cursor[2]);
      parts.unshift(mm.map((value, axis) => `${["LR", "PA", "IS"][axis][Number(value >= 0)]} ${Math.abs(value).toFixed(0)}`).join(" · ") + " mm");
    }
    return parts.join("  |  ");
  }

  function moveTo(axis, index) {
    state.cursor[axis] = clamp(Math.round(index), 0, shape[axis] - 1);
    update();
  }

  function select(index) {
    if (!data.findings.length) return;
    state.selected = (index + data.findings.length) % data.findings.length;
    state.cursor = data.findings[state.selected].at.slice();
    document.querySelector(`[data-finding="${state.selected}"]`).scrollIntoView({ block: "nearest" });
    update();
  }

  function setBase(base) { if (base === "scan" || layers.restored) state.base = base; update(); }
  function toggle(name) { state[name] = !state[name]; update(); }

  function listen(view) {
    const { figure, canvas, plane } = view;
    const step = (by) => moveTo(plane.normal, state.cursor[plane.normal] + by);
    let wheel = 0;
    if (view.slider) {
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        wheel += event.deltaMode === 0 ? event.deltaY / 50 : event.deltaY;
        step(Math.trunc(wheel));
        wheel -= Math.trunc(wheel);
      }, { passive: false });
      view.slider.addEventListener("input", () => moveTo(plane.normal, Number(view.slider.value)));
      canvas.addEventListener("dblclick", () => figure.classList.toggle("enlarged"));
    }
    const drag = (event) => {
      if (event.buttons & 2) {
        state.width = Math.max((highest - lowest) / 200, state.width * (1 + event.movementX / 200));
        state.level += (event.movementY / 300) * (highest - lowest);
        return update();
      }
      if (!(event.buttons & 1)) return;
      const ratio = canvas.width / canvas.clientWidth, place = placement(view);
      moveTo(plane.across, Math.floor((event.offsetX * ratio - place.left) / place.x));
      moveTo(plane.down, Math.floor((event.offsetY * ratio - place.top) / place.y));
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); drag(event); });
    canvas.addEventListener("pointermove", drag);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    figure.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowLeft: -1, PageUp: -10, ArrowDown: 1, ArrowRight: 1, PageDown: 10 }[event.key];
      if (by === undefined || event.target !== figure) return;
      event.preventDefault();
      step(by);
    });
    new ResizeObserver(() => { update(); if (view.slider) paintProfile(view); }).observe(canvas);
  }

  function listenToControls() {
    element("opacity").addEventListener("input", (event) => { state.opacity = event.target.value / 100; update(); });
    element("width").addEventListener("input", (event) => { state.width = (event.target.value / 200) * (highest - lowest); update(); });
    element("level").addEventListener("input", (event) => { state.level = lowest + (event.target.value / 200) * (highest - lowest); update(); });
    element("reset").addEventListener("click", () => { state = fresh(); update(); });
    for (const button of document.querySelectorAll("[data-base]"))
      button.addEventListener("click", () => setBase(button.dataset.base));
    for (const button of document.querySelectorAll("[data-toggle]"))
      button.addEventListener("click", () => toggle(button.dataset.toggle));
    for (const row of document.querySelectorAll("[data-finding]"))
      row.addEventListener("click", () => select(Number(row.dataset.finding)));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const next = state.selected === null ? 0 : state.selected + 1;
      const previous = state.selected === null ? -1 : state.selected - 1;
      const actions = {
        n: () => select(next), p: () => select(previous), m: () => toggle("map"), o: () => toggle("outline"),
        s: () => setBase("scan"), r: () => setBase("restored"), d: () => setBase("difference"),
      };
      if (actions[event.key]) actions[event.key]();
    });
    const stops = data.colours.filter((_, i) => i % 15 === 0).map((c) => `rgb(${c.join(",")})`);
    element("bar").style.background = `linear-gradient(to right, ${stops.join(",")})`;
    element("bar").firstElementChild.style.left = `${100 * clamp(data.threshold / data.mapMaximum, 0, 1)}%`;
    element("bar-top").textContent = short(data.mapMaximum);
  }

  const channels = data.colour ? 3 : 1;
  const layers = {
    scan: await unpack(data.layers.scan, channels),
    map: await unpack(data.layers.map, 1),
    mask: await unpack(data.layers.mask, 1),
    restored: data.layers.restored ? await unpack(data.layers.restored, channels) : null,
  };
  const views = [...document.querySelectorAll("[data-view]")].map((figure) => {
    const plane = data.planes[Number(figure.dataset.view)];
    const view = {
      figure, plane, canvas: figure.querySelector(".slice"), buffer: document.createElement("canvas"),
      slider: figure.querySelector("input"), text: figure.querySelector("output"),
      profileCanvas: figure.querySelector(".profile"), profile: profileOf(plane.normal, layers),
    };
    if (view.slider) view.slider.max = shape[plane.normal] - 1;
    return view;
  });
  views.forEach(listen);
  listenToControls();
  if (data.findings.length) select(0);
  paintAll();
  document.documentElement.dataset.viewer = "ready";
})().catch((error) => {
  document.documentElement.dataset.viewer = "failed";
  console.error(error);
  document.getElementById("viewer").append(`The slices could not be drawn: ${error.message}`);
});
