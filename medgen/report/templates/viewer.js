// The views of the slices and everything that can be clicked, dragged, scrolled or typed.
(async () => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const slices = await Slices.load(data);
  const { shape, lowest, highest } = slices;
  const range = highest - lowest;
  const OUTLINE = "#40e0d0", SELECTED = "#ffffff";
  const element = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const short = (value) => Number(value.toPrecision(3)).toString();
  const fresh = () => ({
    cursor: data.start.slice(), selected: null, base: "scan", map: true, outline: true,
    crosshair: true, opacity: 0.65, width: data.window[1] - data.window[0],
    level: (data.window[0] + data.window[1]) / 2,
  });
  let state = fresh();

  // ---- Drawing ----

  // Where the slice lies on the canvas, in canvas pixels, at its physical proportions.
  function placement({ plane, canvas }) {
    const across = shape[plane.across] * data.spacing[plane.across];
    const down = shape[plane.down] * data.spacing[plane.down];
    const scale = Math.min(canvas.width / across, canvas.height / down);
    return {
      x: scale * data.spacing[plane.across], y: scale * data.spacing[plane.down],
      left: (canvas.width - scale * across) / 2, top: (canvas.height - scale * down) / 2,
    };
  }

  function paint(view) {
    const { plane, canvas, buffer } = view;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    [buffer.width, buffer.height] = [shape[plane.across], shape[plane.down]];
    buffer.getContext("2d").putImageData(slices.image(plane, state), 0, 0);
    const context = canvas.getContext("2d"), place = placement(view);
    context.imageSmoothingQuality = "high";
    context.setTransform(place.x, 0, 0, place.y, place.left, place.top);
    context.drawImage(buffer, 0, 0);
    const toCanvas = context.getTransform();
    context.resetTransform();
    const outline = (colour, box) => {
      const path = new Path2D();
      path.addPath(slices.outline(plane, state.cursor[plane.normal], box), toCanvas);
      context.strokeStyle = colour;
      context.lineWidth = 1.4 * ratio;
      context.stroke(path);
    };
    if (state.outline) outline(OUTLINE);
    if (state.outline && state.selected !== null) outline(SELECTED, data.findings[state.selected].box);
    if (state.crosshair) paintCrosshair(view, context, place, ratio);
    if (data.anatomical) paintLetters(view, context, ratio);
  }

  function paintCrosshair({ plane, canvas }, context, place, ratio) {
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

  function paintLetters({ plane, canvas }, context, ratio) {
    const [left, right, top, bottom] = plane.letters, edge = 14 * ratio;
    Object.assign(context, {
      fillStyle: "#e9eef3", font: `600 ${13 * ratio}px system-ui, sans-serif`, textAlign: "center",
      textBaseline: "middle", shadowColor: "#000", shadowBlur: 4 * ratio,
    });
    context.fillText(left, edge, canvas.height / 2);
    context.fillText(right, canvas.width - edge, canvas.height / 2);
    context.fillText(top, canvas.width / 2, edge);
    context.fillText(bottom, canvas.width / 2, canvas.height - edge);
    context.shadowBlur = 0;
  }

  // Above each slider: where along the axis the map is high, and where the findings are.
  function paintProfile({ plane, profile, profileCanvas: canvas }) {
    const count = shape[plane.normal], knob = 16; // the knob's centre never reaches the ends
    [canvas.width, canvas.height] = [canvas.clientWidth || 1, canvas.clientHeight || 1];
    const context = canvas.getContext("2d"), step = (canvas.width - knob) / Math.max(1, count - 1);
    for (let i = 0; i < count; i++) {
      const tall = (profile.highest[i] / 255) * canvas.height;
      context.fillStyle = profile.touched[i] ? OUTLINE : "#3a4a5c";
      context.fillRect(knob / 2 + (i - 0.5) * step, canvas.height - tall, Math.max(1, step), tall);
    }
  }

  let planned = false;
  function update() {
    if (!planned) requestAnimationFrame(() => { planned = false; paintAll(); });
    planned = true;
  }

  function paintAll() {
    for (const view of views) {
      paint(view);
      if (!view.slider) continue;
      const axis = view.plane.normal, index = state.cursor[axis];
      const source = data.sourceStart[axis] + data.sourceStep[axis] * index * data.factors[axis];
      view.slider.value = index;
      view.text.textContent = `slice ${source}`;
    }
    const press = (button, on) => button.setAttribute("aria-pressed", on);
    for (const button of all("[data-base]")) press(button, button.dataset.base === state.base);
    for (const button of all("[data-toggle]")) press(button, state[button.dataset.toggle]);
    for (const row of all("[data-finding]"))
      row.classList.toggle("selected", Number(row.dataset.finding) === state.selected);
    element("opacity").value = 100 * state.opacity;
    element("width").value = (200 * state.width) / range;
    element("level").value = (200 * (state.level - lowest)) / range;
    element("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
    element("width-text").textContent = short(state.width);
    element("level-text").textContent = short(state.level);
    element("readout").textContent = readout();
  }

  function readout() {
    const { scan, score } = slices.valuesAt(state.cursor);
    const values = [`anomaly ${short(score)}`];
    if (!Number.isNaN(scan)) values.unshift(`scan ${short(scan)}`);
    if (data.anatomical) {
      const [x, y, z] = state.cursor;
      const mm = data.affine.slice(0, 3).map((row) => row[0] * x + row[1] * y + row[2] * z + row[3]);
      values.unshift(`RAS ${mm.map((value) => value.toFixed(0).replace("-", "−")).join(", ")} mm`);
    }
    return values.join("  |  ");
  }

  // ---- Acting ----

  function moveTo(axis, index) {
    state.cursor[axis] = clamp(Math.round(index), 0, shape[axis] - 1);
    update();
  }

  function select(index) {
    if (!data.findings.length) return;
    state.selected = (index + data.findings.length) % data.findings.length;
    state.cursor = data.findings[state.selected].at.slice();
    const row = document.querySelector(`[data-finding="${state.selected}"]`), list = row.closest(".frame");
    list.scrollTop = row.offsetTop - list.clientHeight / 2;
    update();
  }

  function change(values) {
    if (!values.base || values.base === "scan" || slices.layers.restored) Object.assign(state, values);
    update();
  }

  function drag(event, view) {
    if (event.buttons & 2) {
      const width = clamp(state.width * (1 + event.movementX / 200), range / 200, range);
      change({ width, level: state.level + (event.movementY / 300) * range });
    } else if (event.buttons & 1) {
      const ratio = view.canvas.width / view.canvas.clientWidth, place = placement(view);
      moveTo(view.plane.across, Math.floor((event.offsetX * ratio - place.left) / place.x));
      moveTo(view.plane.down, Math.floor((event.offsetY * ratio - place.top) / place.y));
    }
  }

  function listen(view) {
    const { figure, canvas, plane, slider } = view;
    const step = (by) => moveTo(plane.normal, state.cursor[plane.normal] + by);
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      drag(event, view);
    });
    canvas.addEventListener("pointermove", (event) => drag(event, view));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    new ResizeObserver(() => { update(); if (slider) paintProfile(view); }).observe(canvas);
    if (!slider) return;
    let wheel = 0; // a touchpad sends many small steps
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      wheel += event.deltaMode === 0 ? event.deltaY / 50 : event.deltaY;
      step(Math.trunc(wheel));
      wheel -= Math.trunc(wheel);
    }, { passive: false });
    canvas.addEventListener("dblclick", () => figure.classList.toggle("enlarged"));
    slider.max = shape[plane.normal] - 1;
    slider.addEventListener("input", () => moveTo(plane.normal, slider.valueAsNumber));
    const keys = { ArrowUp: -1, ArrowLeft: -1, PageUp: -10, ArrowDown: 1, ArrowRight: 1, PageDown: 10 };
    figure.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.target !== figure) return;
      event.preventDefault();
      step(keys[event.key]);
    });
  }

  function listenToControls() {
    const onSlider = (id, act) => element(id).addEventListener("input", (event) => act(event.target.valueAsNumber));
    onSlider("opacity", (percent) => change({ opacity: percent / 100 }));
    onSlider("width", (part) => change({ width: (part / 200) * range }));
    onSlider("level", (part) => change({ level: lowest + (part / 200) * range }));
    element("reset").addEventListener("click", () => change(fresh()));
    const toggle = (name) => change({ [name]: !state[name] });
    for (const button of all("[data-base]"))
      button.addEventListener("click", () => change({ base: button.dataset.base }));
    for (const button of all("[data-toggle]"))
      button.addEventListener("click", () => toggle(button.dataset.toggle));
    for (const row of all("[data-finding]"))
      row.addEventListener("click", () => {
        select(Number(row.dataset.finding));
        // On a small screen the list stands below the slices.
        if (matchMedia("(max-width: 1180px)").matches) element("viewer").scrollIntoView();
      });
    const keys = {
      n: () => select(state.selected === null ? 0 : state.selected + 1),
      p: () => select(state.selected === null ? -1 : state.selected - 1),
      m: () => toggle("map"), o: () => toggle("outline"), x: () => toggle("crosshair"),
      s: () => change({ base: "scan" }), r: () => change({ base: "restored" }),
      d: () => change({ base: "difference" }),
    };
    document.addEventListener("keydown", (event) => {
      if (event.key in keys && !event.ctrlKey && !event.metaKey && !event.altKey) keys[event.key]();
    });
    const colours = data.colours.filter((_, i) => i % 15 === 0).map((rgb) => `rgb(${rgb.join(",")})`);
    const mark = 100 * clamp(data.threshold / data.mapMaximum, 0, 1);
    element("bar").style.background = `linear-gradient(to right, ${colours.join(",")})`;
    element("bar").firstElementChild.style.left = `${mark}%`;
    element("bar-top").textContent = short(data.mapMaximum);
  }

  const views = all("[data-view]").map((figure) => {
    const plane = data.planes[Number(figure.dataset.view)];
    return {
      figure, plane, canvas: figure.querySelector(".slice"), buffer: document.createElement("canvas"),
      slider: figure.querySelector("input"), text: figure.querySelector("output"),
      profileCanvas: figure.querySelector(".profile"), profile: slices.profile(plane.normal),
    };
  });
  views.forEach(listen);
  listenToControls();
  select(0);
  paintAll();
  document.documentElement.dataset.viewer = "ready";
})().catch((error) => {
  document.documentElement.dataset.viewer = "failed";
  console.error(error);
  document.getElementById("viewer").append(`The slices could not be drawn: ${error.message}`);
});
