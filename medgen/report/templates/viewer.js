// The views of what one model or several found in a scan, and everything that can be clicked,
// dragged, scrolled or typed. What is done to a view of one model happens in those of all.
(async () => {
  const models = JSON.parse(document.getElementById("viewer-data").textContent);
  const [data] = models; // all models show the same grid
  for (const other of models) other.layers.scan = data.layers.scan;
  const slices = await Promise.all(models.map((one) => Slices.load(one)));
  const { shape, lowest, highest } = slices[0];
  const restores = slices.map((one) => Boolean(one.layers.restored));
  const findings = models.flatMap((one, model) => one.findings.map((found) => ({ ...found, model })));
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
    const { plane, model } = view, { context, place, ratio } = clear(view);
    const own = slices[model], lacking = state.base !== "scan" && !restores[model];
    const shown = lacking ? { ...state, base: "scan" } : state;
    const toCanvas = drawSlice(view, context, own.image(plane, shown), place);
    const outline = (colour, box) => strokeVoxels(
      context, own.outline(plane, state.cursor[plane.normal], box), toCanvas, colour, 1.4 * ratio);
    const selected = findings[state.selected];
    if (state.outline) outline(OUTLINE);
    if (state.outline && selected && selected.model === model) outline(SELECTED, selected.box);
    if (state.crosshair) drawCrosshair(view, context, place, ratio, state.cursor);
    if (data.anatomical) drawLetters(view, context, ratio);
    if (lacking) drawTag(context, ratio, "restores nothing", view.canvas.width - 8 * ratio, 20 * ratio, "right");
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
    const here = slices.map((one) => one.valuesAt(state.cursor)), [{ scan }] = here;
    const values = [`anomaly ${here.map(({ score }) => short(score)).join(" and ")}`];
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
    if (!findings.length) return;
    state.selected = (index + findings.length) % findings.length;
    state.cursor = findings[state.selected].at.slice();
    const row = document.querySelector(`[data-finding="${state.selected}"]`), list = row.closest(".frame");
    list.scrollTop = row.offsetTop - list.clientHeight / 2;
    update();
  }

  function change(values) {
    if (!values.base || values.base === "scan" || restores.includes(true)) Object.assign(state, values);
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
    if (view.profile) paintProfile(view);
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
    if (!element("bar")) return; // several models have no scale in common
    paintBar(data);
    element("bar").firstElementChild.style.left = `${100 * clamp(data.threshold / data.mapMaximum, 0, 1)}%`;
  }

  const views = findViews(data).map((view) => {
    const model = Number(view.figure.dataset.model), profileCanvas = view.figure.querySelector(".profile");
    const profile = profileCanvas && slices[model].profile(view.plane.normal);
    return { ...view, data: models[model], model, profileCanvas, profile };
  });
  for (const view of views) listenToView(view, () => state.cursor, { moveTo, drag, resized });
  listenToControls();
  select(0);
  paintAll();
  document.documentElement.dataset.viewer = "ready";
})().catch(failed);
