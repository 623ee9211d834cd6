// The viewer of the review page. No library, no build step: plain numbers come in, canvases go out.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const viewer = byId("viewer");
  const typing = (target) => target.closest && target.closest("input, select, textarea, dialog");
  const follow = (id) => { const link = byId(id); if (link) link.click(); };
  const letters = byId("letters");
  if (letters) {
    letters.checked = localStorage.getItem("letters") !== "off";
    letters.addEventListener("change", () => localStorage.setItem("letters", letters.checked ? "on" : "off"));
  }
  const general = { n: () => follow("after"), p: () => follow("before"), s: () => {
    const first = document.querySelector(".sign input[type=radio]");
    if (first) first.focus();
  } };
  document.addEventListener("keydown", (event) => {
    if (typing(event.target) || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
    if (event.key.length === 1 && letters && !letters.checked) return;
    const act = general[event.key] || (viewer && keys(event));
    if (act) { event.preventDefault(); act(); }
  });
  if (!viewer) return;

  // The case ------------------------------------------------------------------------------------
  const shown = JSON.parse(viewer.dataset.case);
  const [count, rows, columns] = shown.shape;
  const tall = shown.spacing[1] > 0 ? shown.spacing[0] / shown.spacing[1] : 1; // of a pixel
  const base = `/review/cases/${shown.id}`;
  const panes = ["reference", "candidate", "difference", "map"];
  const view = { slice: shown.worst, centre: 0, width: 1, preset: 0, zoom: 1, x: columns / 2, y: rows / 2, blend: 0, swapped: false, outlines: true, point: null, coarse: false };
  byId("panes").style.setProperty("--aspect", Math.min(2, Math.max(0.6, columns / (rows * tall))));
  const short = (value) => Number(value.toPrecision(3)).toString(); // as the report has distances
  const digits = (value) => value === undefined ? "–" : Number(value.toPrecision(5)).toString();

  // Slices: fetched as needed, neighbours ahead, the last ones kept ------------------------------
  const TYPES = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, float32: Float32Array };
  const KEPT_BYTES = 300e6;
  const cache = new Map();
  let held = 0;
  function fetched(side, slice) {
    const url = side === "map" ? `${base}/maps/${slice}` : `${base}/slices/${side}/${slice}`;
    let one = cache.get(url);
    if (one) { cache.delete(url); cache.set(url, one); return one; }
    one = { pixels: null, failed: "", bytes: 0 };
    one.ready = fetch(url).then(async (response) => {
      if (response.status === 401) { location.assign("/review/sign-in"); }
      if (!response.ok) {
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        throw new Error((page.querySelector("[role=alert]") || page.body).textContent.trim());
      }
      const bytes = await response.arrayBuffer();
      one.pixels = new TYPES[response.headers.get("Medqa-Type")](bytes);
      one.bytes = bytes.byteLength;
      held += one.bytes;
      for (const [key, old] of cache) {
        if (held <= KEPT_BYTES || old === one) break;
        held -= old.bytes;
        cache.delete(key);
      }
    }).catch((error) => { one.failed = error.message; cache.delete(url); });
    cache.set(url, one);
    return one;
  }
  const has = (slice) => Object.hasOwn(shown.maps, slice);
  const wanted = (slice) => ["reference", "candidate"].concat(has(slice) ? ["map"] : []).map((side) => fetched(side, slice));
  let now = { slice: -1, reference: null, candidate: null, map: null };

  async function go(slice) {
    view.slice = Math.min(count - 1, Math.max(0, slice));
    byId("slice").value = view.slice;
    const all = wanted(view.slice), asked = view.slice;
    if (all.some((one) => !one.pixels)) say(`Loading slice ${asked}`);
    await Promise.all(all.map((one) => one.ready));
    if (asked !== view.slice) return; // somebody scrolled on meanwhile
    const failed = all.find((one) => one.failed);
    if (failed) { now = { slice: -1 }; say(failed.failed); draw(); return; }
    const first = now.slice < 0;
    now = { slice: asked, reference: all[0].pixels, candidate: all[1].pixels, map: all[2] ? all[2].pixels : null };
    if (first && !shown.windows.length) fullRange();
    const rank = [...shown.distances].sort((a, b) => b - a).indexOf(shown.distances[asked]) + 1;
    say((count > 1 ? `Slice ${asked} of ${count} (from 0), number ${rank} from the worst: distance ` : "Distance ") + `${short(shown.distances[asked])}`);
    byId("map-note").textContent = has(asked) ? ` (${shown.maps[asked]})` : `: kept for the worst slices: ${Object.keys(shown.maps).join(", ")}`;
    plot();
    draw();
    for (const step of [1, -1, 2, -2, 3]) if (asked + step >= 0 && asked + step < count) wanted(asked + step);
  }
  let sayTimer = 0;
  function say(words) { // not faster than can be listened to
    clearTimeout(sayTimer);
    sayTimer = setTimeout(() => { byId("status").textContent = words; }, 60);
  }
  function fullRange() {
    let low = Infinity, high = -Infinity;
    for (const value of now.reference) { if (value < low) low = value; if (value > high) high = value; }
    setWindow((low + high) / 2, Math.max(high - low, 1e-6));
  }

  // Pictures --------------------------------------------------------------------------------------
  const PLASMA = [[13, 8, 135], [70, 3, 159], [114, 1, 168], [156, 23, 158], [189, 55, 134], [216, 87, 107], [237, 121, 83], [251, 159, 58], [253, 202, 38], [240, 249, 33]];
  function colour(share) { // the report's scale and opacity
    const at = Math.min(Math.max(share, 0), 1) * 9, low = Math.min(Math.floor(at), 8), part = at - low;
    return PLASMA[low].map((value, channel) => value + part * (PLASMA[low + 1][channel] - value));
  }
  const COLOURS = Array.from({ length: 256 }, (_, index) => colour(index / 255));
  const sheets = Object.fromEntries(panes.map((name) => [name, document.createElement("canvas")]));

  function paint(name) {
    const sheet = sheets[name], step = view.coarse ? Math.max(1, Math.ceil(Math.sqrt(rows * columns / 1e6))) : 1;
    const w = Math.ceil(columns / step), h = Math.ceil(rows / step);
    if (sheet.width !== w || sheet.height !== h) { sheet.width = w; sheet.height = h; }
    const context = sheet.getContext("2d");
    const picture = context.createImageData(w, h), out = picture.data;
    const { reference, candidate, map } = now;
    const low = view.centre - view.width / 2, scale = 255 / view.width;
    const mix = name !== "candidate" ? 0 : view.swapped ? 1 : view.blend / 100;
    let to = 0;
    for (let row = 0; row < rows; row += step) {
      for (let at = row * columns, end = at + columns; at < end; at += step, to += 4) {
        let red, green, blue;
        if (name === "difference") {
          red = green = blue = 127.5 + (candidate[at] - reference[at]) * 2 * scale;
        } else {
          const value = name === "candidate" ? candidate[at] + mix * (reference[at] - candidate[at]) : reference[at];
          red = green = blue = Math.min(255, Math.max(0, (value - low) * scale));
          if (name === "map" && map) {
            const share = Math.min(1, Math.max(0, map[at] / shown.top)), over = 0.85 * share, of = COLOURS[Math.round(255 * share)];
            red += over * (of[0] - red); green += over * (of[1] - green); blue += over * (of[2] - blue);
          }
        }
        out[to] = red; out[to + 1] = green; out[to + 2] = blue; out[to + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }
  function place(canvas) { // image pixels to canvas pixels, the same for all panes
    const fit = Math.min(canvas.width / columns, canvas.height / (rows * tall)) * view.zoom;
    return { fit, left: canvas.width / 2 - view.x * fit, top: canvas.height / 2 - view.y * tall * fit };
  }
  let painting = 0;
  function draw() { if (!painting) painting = requestAnimationFrame(drawNow); }
  function drawNow() {
    painting = 0;
    for (const name of panes) {
      const canvas = byId(name), context = canvas.getContext("2d"), density = window.devicePixelRatio || 1;
      const w = Math.round(canvas.clientWidth * density), h = Math.round(canvas.clientHeight * density);
      if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
      context.fillStyle = "#000";
      context.fillRect(0, 0, w, h);
      if (now.slice < 0) continue;
      paint(name);
      const { fit, left, top } = place(canvas);
      context.imageSmoothingEnabled = fit < 1; // single pixels stay visible where there is room
      context.imageSmoothingQuality = "high";
      context.drawImage(sheets[name], left, top, columns * fit, rows * tall * fit);
      if (view.outlines) outline(context, fit, left, top, density);
      if (view.point) cross(context, left + (view.point[0] + 0.5) * fit, top + (view.point[1] + 0.5) * tall * fit, density);
    }
    byId("candidate-note").textContent = view.swapped ? ": the reference is shown" : view.blend > 0 ? `, ${view.blend} % reference` : "";
    for (const name of ["centre", "width"]) { // not while someone types there
      if (document.activeElement !== byId(name)) byId(name).value = digits(view[name]);
    }
  }
  function outline(context, fit, left, top, density) {
    context.font = `${12 * density}px system-ui, sans-serif`;
    for (const one of shown.outlines.filter((region) => region.slice === now.slice)) {
      context.strokeStyle = one.kind === "pathology" ? "#00e5ff" : "#ffffff";
      context.setLineDash(one.kind === "pathology" ? [] : [5 * density, 4 * density]);
      context.lineWidth = 1.5 * density;
      context.beginPath();
      let right = -Infinity, upper = Infinity;
      for (const path of one.paths) {
        for (let at = 0; at < path.length; at += 2) {
          const x = left + (path[at] + 0.5) * fit, y = top + (path[at + 1] + 0.5) * tall * fit;
          context[at ? "lineTo" : "moveTo"](x, y);
          right = Math.max(right, x); upper = Math.min(upper, y);
        }
      }
      context.stroke();
      context.setLineDash([]);
      const wide = context.measureText(one.label).width, x = Math.max(0, Math.min(right + 3 * density, context.canvas.width - wide - 2 * density)), y = Math.max(14 * density, upper);
      context.fillStyle = "rgba(0, 0, 0, 0.75)";
      context.fillRect(x - 2 * density, y - 12 * density, wide + 4 * density, 16 * density);
      context.fillStyle = "#fff";
      context.fillText(one.label, x, y);
    }
  }
  function cross(context, x, y, density) {
    for (const [width, tint] of [[3, "#000"], [1, "#ff0"]]) {
      context.strokeStyle = tint;
      context.lineWidth = width * density;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { context.moveTo(x + 4 * density * dx, y + 4 * density * dy); context.lineTo(x + 10 * density * dx, y + 10 * density * dy); }
      context.stroke();
    }
  }

  // Plot of the slices ----------------------------------------------------------------------------
  function node(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  }
  function plot() {
    const figure = byId("plot").parentElement;
    figure.hidden = count < 2;
    const limits = Object.entries(shown.limits), top = 1.1 * Math.max(...shown.distances, ...limits.map((one) => one[1])) || 1;
    const bars = shown.distances.map((value, slice) => node("rect", { x: `${100 * slice / count}%`, width: `${Math.max(90 / count, 0.05)}%`, y: 118 - 100 * value / top, height: 2 + 100 * value / top, class: slice === view.slice ? "here" : "bar-of" }));
    const lines = limits.flatMap(([name, value]) => [node("line", { x1: 0, x2: "100%", y1: 120 - 100 * value / top, y2: 120 - 100 * value / top, class: "limit" }), node("text", { x: 4, y: 116 - 100 * value / top }, `${name} limit ${value}`)]);
    byId("plot").replaceChildren(...bars, ...lines);
  }
  byId("plot").addEventListener("click", (event) => {
    const box = byId("plot").getBoundingClientRect();
    go(Math.floor(count * (event.clientX - box.left) / box.width));
  });

  // What people do --------------------------------------------------------------------------------
  function setWindow(centre, width, preset = -1) {
    view.centre = centre;
    view.width = Math.max(width, 1e-6);
    view.preset = preset;
    byId("preset").value = preset;
    draw();
  }
  function choose(preset) {
    const one = shown.windows[(preset + shown.windows.length) % shown.windows.length];
    if (one) setWindow((one.low + one.high) / 2, one.high - one.low, shown.windows.indexOf(one));
  }
  function fit() { Object.assign(view, { zoom: 1, x: columns / 2, y: rows / 2 }); draw(); }
  function zoom(times, around) {
    const before = view.zoom;
    view.zoom = Math.min(40, Math.max(0.5, view.zoom * times));
    if (around) { // the pixel under the pointer stays there
      view.x = around[0] + (view.x - around[0]) * before / view.zoom;
      view.y = around[1] + (view.y - around[1]) * before / view.zoom;
    }
    draw();
  }
  let flickering = 0;
  function flicker() { // twice a second: slower than what can harm
    if (flickering) { clearInterval(flickering); flickering = 0; view.swapped = false; } else {
      flickering = setInterval(() => { view.swapped = !view.swapped; draw(); }, 500);
    }
    byId("flicker").setAttribute("aria-pressed", String(Boolean(flickering)));
    draw();
  }
  function blend(share) { view.blend = share; byId("blend").value = share; draw(); }
  function outlines() { view.outlines = !view.outlines; byId("outlines").setAttribute("aria-pressed", String(view.outlines)); draw(); }
  function point(x, y) {
    if (now.slice < 0) return;
    const inside = x >= 0 && y >= 0 && x < columns && y < rows;
    view.point = inside ? [x, y] : null;
    const at = y * columns + x, unit = shown.unit ? ` ${shown.unit}` : "";
    byId("values").textContent = inside
      ? `x ${x}, y ${y}: reference ${digits(now.reference[at])}${unit}, candidate ${digits(now.candidate[at])}${unit}, difference ${digits(now.candidate[at] - now.reference[at])}${unit}, distance ${now.map ? short(now.map[at]) : "not kept here"}`
      : "Outside of the image.";
    draw();
  }
  function keys(event) {
    const arrow = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (arrow && event.altKey) {
      const [x, y] = view.point || [Math.floor(columns / 2), Math.floor(rows / 2)];
      return () => point(Math.min(columns - 1, Math.max(0, x + arrow[0])), Math.min(rows - 1, Math.max(0, y + arrow[1])));
    }
    if (arrow && event.shiftKey) return () => { view.x += arrow[0] * columns / 20 / view.zoom; view.y += arrow[1] * rows / 20 / view.zoom; draw(); };
    if (event.altKey) return null;
    if (arrow) return () => go(view.slice + arrow[0] + arrow[1]);
    return {
      PageUp: () => go(view.slice - 10), PageDown: () => go(view.slice + 10), Home: () => go(0), End: () => go(count - 1),
      x: () => go(shown.worst), w: () => choose(view.preset + 1), l: () => choose(view.preset - 1), f: flicker,
      b: () => blend(view.blend ? 0 : 50), o: outlines, "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), "−": () => zoom(0.8), 0: fit,
      "?": () => byId("keys").showModal(),
    }[event.key];
  }

  // Mouse, pen and finger -------------------------------------------------------------------------
  function under(canvas, event) {
    const box = canvas.getBoundingClientRect(), { fit: scale, left, top } = place(canvas), density = canvas.width / box.width;
    return [((event.clientX - box.left) * density - left) / scale, ((event.clientY - box.top) * density - top) / scale / tall];
  }
  for (const name of panes) {
    const canvas = byId(name);
    let drag = null;
    canvas.addEventListener("pointerdown", (event) => {
      byId("panes").focus({ preventScroll: true });
      drag = { x: event.clientX, y: event.clientY, centre: view.centre, width: view.width, at: [view.x, view.y], moves: event.shiftKey || event.button > 0 };
      canvas.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = under(canvas, event);
      if (!drag) { point(Math.floor(x), Math.floor(y)); return; }
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (drag.moves) {
        const scale = place(canvas).fit / (canvas.width / canvas.clientWidth);
        view.x = drag.at[0] - dx / scale;
        view.y = drag.at[1] - dy / scale / tall;
        draw();
      } else { // across the pane: three times as wide; from bottom to top: one width brighter
        view.coarse = true;
        setWindow(drag.centre + dy / canvas.clientHeight * drag.width, drag.width * 3 ** (dx / canvas.clientWidth));
      }
    });
    const stop = () => { drag = null; if (view.coarse) { view.coarse = false; draw(); } };
    canvas.addEventListener("pointerup", stop);
    canvas.addEventListener("pointercancel", stop);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", fit);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.ctrlKey) zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, under(canvas, event)); else go(view.slice + Math.sign(event.deltaY));
    }, { passive: false });
  }
  byId("slice").addEventListener("input", (event) => go(Number(event.target.value)));
  byId("blend").addEventListener("input", (event) => blend(Number(event.target.value)));
  byId("preset").addEventListener("change", (event) => choose(Number(event.target.value)));
  for (const name of ["centre", "width"]) byId(name).addEventListener("change", () => setWindow(Number(byId("centre").value), Number(byId("width").value)));
  for (const [id, act] of [["worst", () => go(shown.worst)], ["flicker", flicker], ["outlines", outlines], ["fit", fit], ["help", () => byId("keys").showModal()]]) byId(id).addEventListener("click", act);
  for (const button of document.querySelectorAll(".jump")) button.addEventListener("click", () => { go(Number(button.dataset.slice)); viewer.scrollIntoView(); });
  new ResizeObserver(draw).observe(byId("panes"));

  for (const [index, one] of [...shown.windows.entries(), [-1, { name: "own" }]]) byId("preset").append(new Option(one.name, index));
  choose(0);
  go(shown.worst);
})();
