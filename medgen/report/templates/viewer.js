// The views of a detection and everything that can be clicked, dragged, scrolled or typed.
(async () => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const slices = await Slices.load(data);
  const { shape, lowest, highest } = slices;
  const range = highest - lowest;
  const OUTLINE = "#40e0d0", SELECTED = "#ffffff";
  const fresh = () => ({
    cursor: data.start.slice(), selected: null, base: "scan", map: true, outline: true,
    crosshair: true, opacity: 0.65, width: data.window[1] - data.window[0],
    level: (data.window[0] + data.window[1]) / 2,
  });
  let state = fresh();

  // ---- Drawing ----

  function paint(view) {
    const { plane } = view, { context, place, ratio } = clear(view);
    const toCanvas = drawSlice(view, context, slices.image(plane, state), place);
    const outline = (colour, box) => strokeVoxels(
      context, slices.outline(plane, state.cursor[plane.normal], box), toCanvas, colour, 1.4 * ratio);
    if (state.outline) outline(OUTLINE);
    if (state.outline && state.selected !== null) outline(SELECTED, data.findings[state.selected].box);
    if (state.crosshair) drawCrosshair(view, context, place, ratio, state.cursor);
    if (data.anatomical) drawLetters(view, context, ratio);
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

  const update = onNextFrame(paintAll);

  function paintAll() {
    for (const view of views) {
      paint(view);
      showPosition(view, state.cursor);
    }
    for (const button of all("[data-base]")) press(button, button.dataset.base === state.base);
    for (const button of all("[data-toggle]")) press(button, state[button.dataset.toggle]);
    for (const row of all("[data-finding]"))
      row.classList.toggle("selected", Number(row.dataset.finding) === state.selected);
    element("opacity").value = 100 * state.opacity;
    element("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
    showWindow(state, lowest, range);
    element("readout").textContent = readout();
  }

  function readout() {
    const { scan, score } = slices.valuesAt(state.cursor);
    const values = [`anomaly ${short(score)}`];
    if (!Number.isNaN(scan)) values.unshift(`scan ${short(scan)}`);
    if (data.anatomical) values.unshift(worldText(data, state.cursor));
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
    if (event.buttons & 2) change(windowed(event, state, range));
    else if (event.buttons & 1) {
      const [across, down] = underPointer(view, event);
      moveTo(view.plane.across, across);
      moveTo(view.plane.down, down);
    }
  }

  function resized(view) {
    update();
    if (view.slider) paintProfile(view);
  }

  function listenToControls() {
    onSlider("opacity", (percent) => change({ opacity: percent / 100 }));
    listenToWindow(change, lowest, range);
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
    onKeys({
      n: () => select(state.selected === null ? 0 : state.selected + 1),
      p: () => select(state.selected === null ? -1 : state.selected - 1),
      m: () => toggle("map"), o: () => toggle("outline"), x: () => toggle("crosshair"),
      s: () => change({ base: "scan" }), r: () => change({ base: "restored" }),
      d: () => change({ base: "difference" }),
    });
    paintBar(data);
    element("bar").firstElementChild.style.left = `${100 * clamp(data.threshold / data.mapMaximum, 0, 1)}%`;
  }

  const views = findViews(data).map((view) => ({
    ...view, data, profileCanvas: view.figure.querySelector(".profile"),
    profile: slices.profile(view.plane.normal),
  }));
  for (const view of views) listenToView(view, () => state.cursor, { moveTo, drag, resized });
  listenToControls();
  select(0);
  paintAll();
  document.documentElement.dataset.viewer = "ready";
})().catch(failed);
