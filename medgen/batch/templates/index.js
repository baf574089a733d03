"use strict";
// The list of cases. Text from the data only ever becomes text: nodes are made one by one.
(() => {
  const CHUNK = 100; // rows drawn at once; more follow as the reader scrolls
  const DOTS = 60; // up to so many cases are plotted one by one
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("cohort").textContent);
  const rows = data.rows;
  const stateLabels = Object.fromEntries(data.states.map((s) => [s.state, s.label]));
  const stateRank = Object.fromEntries(data.states.map((s, i) => [s.state, i]));
  const main = data.columns.find((c) => rows.some((row) => typeof row.values?.[c.key] === "number"));

  function make(tag, properties, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function show(value, format = "") {
    if (typeof value !== "number") return value ?? "";
    if (format === "d") return value.toFixed(0);
    if (format.endsWith("f")) return value.toFixed(Number(format[1]));
    const digits = format.endsWith("g") ? Math.max(1, Number(format[1])) : 4;
    return Number.isInteger(value) && !format ? String(value) : String(Number(value.toPrecision(digits)));
  }

  function time(seconds) {
    if (seconds === undefined) return "";
    if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    return seconds < 3600 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
  }

  function standsOut(value, column) {
    const limit = column.marks?.[0]?.value;
    if (typeof value !== "number" || limit === undefined) return false;
    return column.attention === "high" ? value >= limit : column.attention === "low" && value <= limit;
  }

  // ---- Columns: a key, a heading, what to sort by, and the contents of a cell ----

  const numeric = (key) => rows.some((row) => typeof row.values?.[key] === "number");
  const columns = [
    { key: "case", label: "Case", of: (row) => row.case, draw: drawCase },
    { key: "state", label: "State", of: (row) => stateRank[row.state], draw: drawState },
    ...data.columns.map((column) => ({
      key: column.key, label: column.label + (column.unit ? ` (${column.unit})` : ""), title: column.meaning,
      number: numeric(column.key), of: (row) => row.values?.[column.key],
      draw: (row) => {
        const value = row.values?.[column.key];
        const text = show(value, column.format);
        return [standsOut(value, column) ? make("b", { className: "stands-out" }, text) : text];
      },
    })),
    { key: "notes", label: "Flags and reasons", of: (row) => (row.flags?.length || 0) + (row.reason ? 1000 : 0) || undefined,
      largest: true, draw: drawNotes },
    { key: "seconds", label: "Time", number: true, of: (row) => row.seconds, draw: (row) => [time(row.seconds)] },
  ].filter((column) => column.key === "case" || rows.some((row) => column.of(row) !== undefined));
  const pictures = rows.some((row) => row.thumbnail);

  function drawCase(row) {
    const parts = row.case.split(/(?<=\/)/); // a line may end at a slash
    const name = make("span", {}, ...parts.map((part) => make("span", { className: "part" }, part)));
    const below = make("div", { className: "more" });
    if (row.folder) below.append(make("a", { href: `${row.folder}/` }, "files"));
    if (row.chosen) below.append(make("details", {}, make("summary", {}, "Why this series"), row.chosen));
    return [row.report ? make("a", { href: row.report }, name) : name, below.hasChildNodes() ? below : null];
  }

  function drawState(row) {
    return [stateLabels[row.state], row.attempts ? make("small", {}, `${row.attempts} attempts`) : null];
  }

  function drawNotes(row) {
    const flags = (row.flags || []).map((flag) => make("li", {}, flag));
    return [
      row.reason ? make("p", { className: "reason" }, row.reason) : null,
      row.hint ? make("p", { className: "hint" }, row.hint) : null,
      flags.length ? make("ul", {}, ...flags) : null,
    ];
  }

  function drawRow(row) {
    const line = make("tr", {});
    line.dataset.case = row.case;
    if (pictures) {
      const cell = make("td", { className: "picture" });
      if (row.thumbnail) {
        const image = make("img", { loading: "lazy", decoding: "async", alt: `Slice of ${row.case}`, src: row.thumbnail });
        cell.append(row.report ? make("a", { href: row.report, tabIndex: -1 }, image) : image);
      }
      line.append(cell);
    }
    for (const column of columns) {
      const cell = make("td", { className: column.number ? "number" : column.key === "state" ? `state ${row.state}` : column.key });
      cell.append(...column.draw(row).filter((part) => part !== null && part !== ""));
      if (column.title !== undefined || column.number) cell.dataset.label = column.label;
      line.append(cell);
    }
    return line;
  }

  // ---- What is shown: kept in the address, so that a view can be bookmarked and sent ----

  const first = main ? `-${main.key}` : "case";
  const fresh = () => ({ state: "", topic: "", search: "", sort: first });
  let view = fresh(), fitting = [], drawn = 0;

  function fromAddress() {
    const values = new URLSearchParams(location.hash.slice(1));
    view = fresh();
    for (const key of Object.keys(view)) if (values.has(key)) view[key] = values.get(key);
    if (!columns.some((column) => column.key === view.sort.replace(/^-/, ""))) view.sort = first;
    update();
  }

  function toAddress() {
    const base = fresh();
    const changed = Object.entries(view).filter(([key, value]) => value !== base[key]);
    const hash = new URLSearchParams(changed).toString();
    if (hash !== location.hash.slice(1)) history.replaceState(null, "", `#${hash}`);
  }

  function change(values) {
    Object.assign(view, values);
    update();
    toAddress();
  }

  const topicKey = (kind, topic) => `${kind}: ${topic}`;
  const words = new Map(); // searchable text, made when first needed
  function haystack(row) {
    if (!words.has(row)) {
      const values = Object.values(row.values || {}).filter((value) => typeof value === "string");
      const parts = [row.case, stateLabels[row.state], row.reason, row.hint, row.chosen, ...(row.flags || []), ...values];
      words.set(row, parts.filter(Boolean).join("\n").toLowerCase());
    }
    return words.get(row);
  }

  function fits(row, needles) {
    if (view.state && row.state !== view.state) return false;
    if (view.topic && !(row.topics || []).some(([kind, topic]) => topicKey(kind, topic) === view.topic)) return false;
    return needles.every((needle) => haystack(row).includes(needle));
  }

  // Position of each case by name, once: comparing names is slow, comparing numbers is not.
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const ranks = new Map();
  function rank(column) {
    if (!ranks.has(column.key)) {
      const texts = [...new Set(rows.map(column.of))].filter((value) => value !== undefined).map(String);
      const order = new Map(texts.sort(collator.compare).map((text, index) => [text, index]));
      ranks.set(column.key, (row) => (column.of(row) === undefined ? undefined : order.get(String(column.of(row)))));
    }
    return ranks.get(column.key);
  }

  function sorted(list) {
    const down = view.sort.startsWith("-"), key = view.sort.replace(/^-/, "");
    const column = columns.find((candidate) => candidate.key === key);
    const mixed = rows.some((row) => typeof column.of(row) === "string");
    const of = mixed ? rank(column) : column.of, name = rank(columns[0]);
    const keyed = list.map((row) => [of(row), name(row), row]);
    keyed.sort(([a, nameA], [b, nameB]) => {
      // What is missing stands last in either direction.
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined) || nameA - nameB;
      return (down ? b - a : a - b) || nameA - nameB;
    });
    return keyed.map(([, , row]) => row);
  }

  // ---- Drawing ----

  const body = element("cases").tBodies[0];

  function update() {
    const needles = view.search.toLowerCase().split(/\s+/).filter(Boolean);
    fitting = sorted(rows.filter((row) => fits(row, needles)));
    drawn = 0;
    body.replaceChildren();
    more();
    const set = (id, value) => { if (element(id).value !== value) element(id).value = value; };
    set("search", view.search);
    set("topic", view.topic);
    set("sort", view.sort);
    for (const tile of document.querySelectorAll("[data-state]"))
      tile.setAttribute("aria-pressed", String(tile.dataset.state === view.state));
    for (const heading of element("cases").tHead.querySelectorAll("th[data-key]")) {
      heading.removeAttribute("aria-sort");
      if (heading.dataset.key === view.sort.replace(/^-/, ""))
        heading.setAttribute("aria-sort", view.sort.startsWith("-") ? "descending" : "ascending");
    }
    const all = fitting.length === rows.length;
    const cases = `${rows.length.toLocaleString("en")} ${rows.length === 1 ? "case" : "cases"}`;
    element("status").textContent = all ? cases : `${fitting.length.toLocaleString("en")} of ${cases}`;
    element("reset").disabled = all;
    element("cases").hidden = !fitting.length;
    element("nothing").hidden = Boolean(fitting.length);
    fitWidth();
    plot();
  }

  // The headings stay in sight while the page scrolls, unless the table must scroll sideways.
  function fitWidth() {
    const list = element("cases").parentElement;
    list.classList.toggle("scrolls", element("cases").offsetWidth > list.clientWidth);
  }

  function more(count = CHUNK) {
    const lines = document.createDocumentFragment();
    lines.append(...fitting.slice(drawn, drawn + count).map(drawRow));
    drawn = Math.min(drawn + count, fitting.length);
    body.append(lines);
    element("more").hidden = drawn === fitting.length;
    element("more").textContent = `Show more (${(fitting.length - drawn).toLocaleString("en")} left)`;
  }

  function svg(tag, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.append(text);
    return node;
  }

  // Steps of 1, 2 or 5 times a power of ten.
  function niceStep(span, parts) {
    const raw = span / parts, power = 10 ** Math.floor(Math.log10(raw));
    return power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  }

  // Where the cases lie in the main column; those that fit the filters stand out.
  function plot() {
    if (!main) return;
    const figure = element("plot"), picture = figure.querySelector("svg");
    figure.hidden = false;
    const chosen = new Set(fitting);
    const points = rows.filter((row) => typeof row.values?.[main.key] === "number")
      .map((row) => ({ row, value: row.values[main.key], fits: chosen.has(row) }));
    const width = Math.max(240, picture.clientWidth), height = 170, top = 34, bottom = height - 22, side = 12;
    const marks = (main.marks || []).map((mark) => mark.value);
    let low = Math.min(...marks, ...points.map((point) => point.value));
    let high = Math.max(...marks, ...points.map((point) => point.value));
    if (high === low) { low -= 0.5; high += 0.5; }
    const tick = niceStep(high - low, Math.max(3, Math.floor(width / 110)));
    low = Math.floor(low / tick) * tick; high = Math.ceil(high / tick) * tick;
    const x = (value) => side + ((value - low) / (high - low)) * (width - 2 * side);
    const bins = Math.round((high - low) / tick) * 10;
    const stacks = Array.from({ length: bins }, () => []);
    for (const point of points)
      stacks[Math.min(bins - 1, Math.max(0, Math.floor(((point.value - low) / (high - low)) * bins)))].push(point);
    const parts = points.length > DOTS ? bars(stacks, width - 2 * side, side, top, bottom) : dots(stacks, x, top, bottom);
    parts.push(svg("line", { class: "axis", x1: side, x2: width - side, y1: bottom + 0.5, y2: bottom + 0.5 }));
    const decimals = Math.max(0, -Math.floor(Math.log10(tick) + 1e-9));
    for (let n = 0; n <= Math.round((high - low) / tick); n++) {
      const value = low + n * tick;
      const anchor = x(value) < 24 ? "start" : x(value) > width - 24 ? "end" : "middle";
      parts.push(svg("text", { x: anchor === "start" ? 0 : anchor === "end" ? width : x(value), y: height - 6, "text-anchor": anchor }, value.toFixed(decimals)));
    }
    (main.marks || []).forEach((mark, n) => {
      const at = x(mark.value), left = at > width * 0.6, y = 12 + 14 * (n % 2);
      parts.push(svg("line", { class: "mark", x1: at, x2: at, y1: y - 9, y2: bottom }));
      parts.push(svg("text", { class: "named", x: at + (left ? -5 : 5), y, "text-anchor": left ? "end" : "start" }, mark.label));
    });
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("aria-label", `${main.label} of ${points.length} cases, from ${show(low)} to ${show(high)}`);
    picture.replaceChildren(...parts);
    const heading = make("b", {}, main.label + (main.unit ? ` (${main.unit})` : ""));
    figure.querySelector("figcaption").replaceChildren(heading, main.meaning ? ` · ${main.meaning}` : "");
  }

  function bars(stacks, width, side, top, bottom) {
    const step = width / stacks.length, tallest = Math.max(...stacks.map((stack) => stack.length));
    return stacks.flatMap((stack, n) => {
      const bar = (count, name) => {
        const size = Math.max(2, (count / tallest) * (bottom - top)), inset = step > 4 ? 0.5 : 0;
        const node = svg("rect", { class: name, x: side + n * step + inset, y: bottom - size, width: step - 2 * inset, height: size });
        node.append(svg("title", {}, `${stack.length} ${stack.length === 1 ? "case" : "cases"}`));
        return count ? [node] : [];
      };
      return [...bar(stack.length, "other"), ...bar(stack.filter((point) => point.fits).length, "fits")];
    });
  }

  function dots(stacks, x, top, bottom) {
    const tallest = Math.max(1, ...stacks.map((stack) => stack.length));
    const step = Math.min(12, (bottom - top) / tallest), radius = Math.min(5, step / 2);
    return stacks.flatMap((stack) => stack.sort((a, b) => b.fits - a.fits).map((point, n) => {
      const dot = svg("circle", { class: point.fits ? "fits" : "other", cx: x(point.value), cy: bottom - radius - 1 - n * step, r: radius });
      dot.append(svg("title", {}, `${point.row.case}: ${show(point.value, main.format)}`));
      return dot;
    }));
  }

  // ---- Controls ----

  function toggleSort(column) {
    const largestFirst = column.number || column.largest;
    const [one, other] = largestFirst ? [`-${column.key}`, column.key] : [column.key, `-${column.key}`];
    change({ sort: view.sort === one ? other : one });
  }

  function fillHead() {
    const line = make("tr", {});
    if (pictures) line.append(make("th", { scope: "col", ariaLabel: "Picture" }));
    for (const column of columns) {
      const button = make("button", { type: "button", title: column.title || "" }, column.label);
      button.addEventListener("click", () => toggleSort(column));
      const heading = make("th", { scope: "col", className: column.number ? "number" : "" }, button);
      heading.dataset.key = column.key;
      line.append(heading);
      const option = (key, direction) => element("sort").append(make("option", { value: key }, `${column.label}, ${direction}`));
      const names = column.number || column.largest ? ["largest first", "smallest first"] : ["A to Z", "Z to A"];
      const keys = column.number || column.largest ? [`-${column.key}`, column.key] : [column.key, `-${column.key}`];
      keys.forEach((key, n) => option(key, names[n]));
    }
    element("cases").tHead.append(line);
  }

  function fillTopics() {
    const select = element("topic");
    select.append(make("option", { value: "" }, "any or none"));
    const titles = { flag: "Flags", failed: "Failed because", interrupted: "Interrupted because", skipped: "Skipped because" };
    for (const [kind, label] of Object.entries(titles)) {
      const found = data.topics.filter((topic) => topic.kind === kind);
      const options = found.map((topic) => {
        const text = topic.text.length > 70 ? `${topic.text.slice(0, 69)}…` : topic.text;
        return make("option", { value: topicKey(kind, topic.topic) }, `${text} (${topic.count.toLocaleString("en")})`);
      });
      if (options.length) select.append(make("optgroup", { label }, ...options));
    }
    select.parentElement.hidden = !data.topics.length;
  }

  function listen() {
    element("search").addEventListener("input", (event) => change({ search: event.target.value }));
    element("topic").addEventListener("change", (event) => change({ topic: event.target.value }));
    element("sort").addEventListener("change", (event) => change({ sort: event.target.value }));
    element("reset").addEventListener("click", () => change({ ...fresh(), sort: view.sort }));
    element("more").addEventListener("click", () => more());
    for (const tile of document.querySelectorAll("[data-state]"))
      tile.addEventListener("click", () => change({ state: view.state === tile.dataset.state ? "" : tile.dataset.state }));
    for (const button of document.querySelectorAll("[data-topic]"))
      button.addEventListener("click", () => {
        change({ ...fresh(), topic: topicKey(button.dataset.kind, button.dataset.topic), sort: "case" });
        element("status").scrollIntoView();
      });
    new IntersectionObserver(([entry]) => { if (entry.isIntersecting) more(); }, { rootMargin: "800px" }).observe(element("more"));
    addEventListener("hashchange", fromAddress);
    addEventListener("resize", () => { fitWidth(); plot(); });
    addEventListener("beforeprint", () => more(fitting.length));
  }

  fillHead();
  fillTopics();
  document.querySelector(".tools").hidden = false;
  fromAddress();
  listen();
  document.documentElement.dataset.summary = "ready";
})();
