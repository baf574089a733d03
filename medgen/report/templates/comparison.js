// Before and after on the two sides of a line, and everything that can be done with them.
(async () => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const slices = await Slices.load(data);
  // Full resolution of the slices the page opens with, each a volume of one slice of its own.
  const details = await Promise.all(data.details.map((detail) => Slices.load({ ...data, ...detail })));
  const FLAT = { across: 0, down: 1, normal: 2 };
  const { shape, lowest, highest } = slices;
  const range = highest - lowest;
  const OUTLINE = "#40e0d0";
  const fresh = () => ({
    // No split of its own: the line goes through the cursor.
    cursor: data.start.slice(), base: "both", split: null, map: false, outline: true, opacity: 0.75,
    width: data.window[1] - data.window[0], level: (data.window[0] + data.window[1]) / 2,
  });
  let state = fresh(), pressed = null;

  // ---- Drawing ----

  // The slices to draw from: those of full resolution where there are some.
  function source({ plane }) {
    const detail = details[data.planes.indexOf(plane)];
    if (!detail || state.cursor[plane.normal] !== data.start[plane.normal])
      return { from: slices, plane, cursor: state.cursor, fine: [1, 1] };
    const fine = [data.factors[plane.across], data.factors[plane.down]];
    return { from: detail, plane: FLAT, cursor: [0, 0, 0], fine };
  }

  // Where the line stands, as part of a slice's width.
  function split({ plane }) {
    return state.split ?? (state.cursor[plane.across] + 0.5) / shape[plane.across];
  }

  function paint(view) {
    const { context, place, ratio } = clear(view), { canvas } = view;
    const { from, plane, cursor, fine } = source(view);
    const whole = { before: canvas.width, after: 0, difference: 0 }[state.base];
    const x = whole ?? place.left + split(view) * place.x * shape[view.plane.across];
    const finely = { ...place, x: place.x / fine[0], y: place.y / fine[1] };
    const part = (left, right, settings) => {
      context.save();
      context.beginPath();
      context.rect(left, 0, right - left, canvas.height);
      context.clip();
      const toCanvas = drawSlice(view, context, from.image(plane, { ...state, cursor, ...settings }), finely);
      if (state.outline && data.hasMask)
        strokeVoxels(context, from.outline(plane, cursor[plane.normal]), toCanvas, OUTLINE, 1.4 * ratio);
      context.restore();
    };
    const after = state.base === "difference" ? "difference" : "restored";
    if (state.base !== "after" && state.base !== "difference") part(0, x, { base: "scan", map: false });
    if (state.base !== "before") part(x, canvas.width, { base: after });
    if (state.base === "both") paintLine(view, context, x, ratio);
    if (data.anatomical) drawLetters(view, context, ratio);
  }

  function paintLine({ canvas }, context, x, ratio) {
    const end = 24 * ratio; // room for the letters
    context.strokeStyle = context.fillStyle = "#fff";
    context.lineWidth = 1.5 * ratio;
    context.beginPath();
    context.moveTo(x, end);
    context.lineTo(x, canvas.height - end);
    context.stroke();
    context.beginPath();
    context.arc(x, canvas.height / 2, 11 * ratio, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = "#17202a";
    for (const side of [-1, 1]) {
      context.beginPath();
      context.moveTo(x + side * 3 * ratio, canvas.height / 2 - 4.5 * ratio);
      context.lineTo(x + side * 8 * ratio, canvas.height / 2);
      context.lineTo(x + side * 3 * ratio, canvas.height / 2 + 4.5 * ratio);
      context.fill();
    }
    const y = canvas.height - 38 * ratio, edge = 6 * ratio;
    drawTag(context, ratio, "before", x - edge, y, "right");
    drawTag(context, ratio, "after", x + edge, y, "left");
  }

  const update = onNextFrame(paintAll);

  function paintAll() {
    for (const view of views) {
      paint(view);
      showPosition(view, state.cursor);
    }
    for (const button of all("[data-base]")) press(button, button.dataset.base === state.base);
    for (const button of all("[data-toggle]")) press(button, state[button.dataset.toggle]);
    element("split").value = 100 * (1 - (state.split ?? 0.5));
    showWindow(state, lowest, range);
    element("readout").textContent = readout();
  }

  // What lies where the planes cross, or under the pointer.
  function readout(cursor = state.cursor) {
    const at = slices.at(cursor), { scan, restored, map } = slices.layers;
    const value = ([low, high], byte) => short(low + (byte / 255) * (high - low));
    const values = [`before ${value(data.range, scan[at])}`, `after ${value(data.afterRange, restored[at])}`];
    if (data.hasMap) values[1] += ` ± ${value([0, data.mapMaximum], map[at])}`;
    if (data.anatomical) values.unshift(worldText(data, cursor));
    return values.join("  |  ");
  }

  // ---- Acting ----

  function change(values) {
    if (values.base === "difference" && !data.sameUnit) return;
    Object.assign(state, values);
    update();
  }

  function moveTo(axis, index) {
    state.cursor[axis] = clamp(Math.round(index), 0, shape[axis] - 1);
    update();
  }

  const moveLine = (split) => change({ base: "both", split: clamp(split, 0, 1) });

  function under(event, view) {
    const cursor = state.cursor.slice(), { across, down } = view.plane, at = underPointer(view, event);
    cursor[across] = clamp(at[0], 0, shape[across] - 1);
    cursor[down] = clamp(at[1], 0, shape[down] - 1);
    return cursor;
  }

  // A drag moves the line; a click without one goes to the place in the other planes.
  function drag(event, view) {
    if (event.type === "pointerdown") pressed = { x: event.offsetX, y: event.offsetY };
    if (event.buttons & 2) change(windowed(event, state, range));
    else if (event.buttons & 1 && (pressed === null || Math.abs(event.offsetX - pressed.x) > 3)) {
      pressed = null;
      const ratio = view.canvas.width / view.canvas.clientWidth, place = placement(data, view);
      moveLine((event.offsetX * ratio - place.left) / (place.x * shape[view.plane.across]));
    } else if (!event.buttons) element("readout").textContent = readout(under(event, view));
  }

  function clicked(event, view) {
    if (pressed && event.button === 0) change({ cursor: under(event, view) });
    pressed = null;
  }

  function listenToControls() {
    onSlider("split", (percent) => moveLine(1 - percent / 100));
    listenToWindow(change, lowest, range);
    element("reset").addEventListener("click", () => change(fresh()));
    const toggle = (name) => change({ [name]: !state[name] });
    for (const button of all("[data-base]"))
      button.addEventListener("click", () => change({ base: button.dataset.base }));
    for (const button of all("[data-toggle]"))
      button.addEventListener("click", () => toggle(button.dataset.toggle));
    const show = (base) => () => change({ base });
    onKeys({
      b: show("before"), a: show("after"), c: show("both"), d: show("difference"),
      f: () => change({ base: state.base === "before" ? "after" : "before" }),
      u: () => { if (data.hasMap) toggle("map"); },
      o: () => { if (data.hasMask) toggle("outline"); },
    });
    if (data.hasMap) paintBar(data);
  }

  const keys = {
    ArrowLeft: (view) => moveLine(split(view) - 0.02), ArrowRight: (view) => moveLine(split(view) + 0.02),
  };
  const views = findViews(data).map((view) => ({ ...view, data }));
  for (const view of views) {
    listenToView(view, () => state.cursor, { moveTo, drag, resized: update, keys });
    view.canvas.addEventListener("pointerup", (event) => clicked(event, view));
    view.canvas.addEventListener("pointerleave", update);
  }
  listenToControls();
  paintAll();
  document.documentElement.dataset.viewer = "ready";
})().catch(failed);
