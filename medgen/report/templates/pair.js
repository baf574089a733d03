// Two models side by side: what is done to one view happens in both.
(async () => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  data[1].layers.scan = data[0].layers.scan;
  const slices = await Promise.all(data.map((one) => Slices.load(one)));
  const { shape, lowest, highest } = slices[0];
  const range = highest - lowest;
  const OUTLINE = "#40e0d0", SELECTED = "#ffffff";
  const fresh = () => ({
    cursor: data[0].start.slice(), model: 0, finding: null, base: "scan", map: true, outline: true,
    crosshair: true, opacity: 0.65, width: data[0].window[1] - data[0].window[0],
    level: (data[0].window[0] + data[0].window[1]) / 2,
  });
  let state = fresh();

  // ---- Drawing ----

  function paint(view) {
    const { plane, model } = view, { context, place, ratio } = clear(view);
    const own = slices[model], lacking = state.base !== "scan" && !own.layers.restored;
    const shown = lacking ? { ...state, base: "scan" } : state;
    const toCanvas = drawSlice(view, context, own.image(plane, shown), place);
    const outline = (colour, box) => strokeVoxels(
      context, own.outline(plane, state.cursor[plane.normal], box), toCanvas, colour, 1.4 * ratio);
    if (state.outline) outline(OUTLINE);
    if (state.outline && state.finding !== null && state.model === model)
      outline(SELECTED, data[model].findings[state.finding].box);
    if (state.crosshair) drawCrosshair(view, context, place, ratio, state.cursor);
    if (data[0].anatomical) drawLetters(view, context, ratio);
    if (lacking) drawTag(context, ratio, "restores nothing", view.canvas.width - 8 * ratio, 20 * ratio, "right");
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
      row.classList.toggle("selected",
        Number(row.dataset.finding) === state.finding && Number(row.dataset.model) === state.model);
    element("opacity").value = 100 * state.opacity;
    element("opacity-text").textContent = `${Math.round(100 * state.opacity)} %`;
    showWindow(state, lowest, range);
    element("readout").textContent = readout();
  }

  function readout() {
    const [first, second] = slices.map((one) => one.valuesAt(state.cursor));
    const values = [`anomaly ${short(first.score)} and ${short(second.score)}`];
    if (!Number.isNaN(first.scan)) values.unshift(`scan ${short(first.scan)}`);
    if (data[0].anatomical) values.unshift(worldText(data[0], state.cursor));
    return values.join("  |  ");
  }

  // ---- Acting ----

  function moveTo(axis, index) {
    state.cursor[axis] = clamp(Math.round(index), 0, shape[axis] - 1);
    update();
  }

  function select(model, finding) {
    Object.assign(state, { model, finding, cursor: data[model].findings[finding].at.slice() });
    update();
  }

  function change(values) {
    Object.assign(state, values);
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
      row.addEventListener("click", () => select(Number(row.dataset.model), Number(row.dataset.finding)));
    onKeys({ m: () => toggle("map"), o: () => toggle("outline"), x: () => toggle("crosshair") });
  }

  const views = all("[data-view]").map((figure) => {
    const model = Number(figure.dataset.model);
    return { ...findView(figure, data[model]), model, data: data[model] };
  });
  for (const view of views) listenToView(view, () => state.cursor, { moveTo, drag, resized: update });
  listenToControls();
  const start = data.findIndex((one) => one.findings.length);
  if (start >= 0) select(start, 0);
  paintAll();
  document.documentElement.dataset.viewer = "ready";
})().catch(failed);
