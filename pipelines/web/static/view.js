"use strict";
// The page of `wsi view`. Everything is in level-0 pixels of the slide; the server names slides by ids.

const by = id => document.getElementById(id);
const COLOURS = [[255, 242, 102, 0], [255, 191, 26, 0.4], [230, 64, 13, 0.62], [158, 0, 26, 0.75]]; // as in preview.png
const DRAWN = 500; // objects in view up to which each is drawn; above, their density over all of them
const MAGNIFICATION = { q: 5, w: 10, e: 20, r: 40 };
const state = { list: [], slide: null, heat: null, density: null, at: -1, viewer: null, loading: 0, wanted: null, ruler: null, selected: null, grid: null };

function colour(score) {
  const place = Math.min(0.99999, Math.max(0, score)) * (COLOURS.length - 1);
  const i = Math.floor(place), t = place - i;
  return COLOURS[i].map((v, k) => v + (COLOURS[i + 1][k] - v) * t);
}

// a folder that wsi view --export wrote needs no server: its data are scripts
const exported = typeof EXPORTED === "undefined" ? null : EXPORTED;

function urlOf(id) {
  return exported ? exported.list.find(line => line.id === id).place : `api/slides/${encodeURIComponent(id)}`;
}

async function fromDisk(id) {
  if (!exported.slides[id]) {
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${urlOf(id)}/data.js`;
      script.onload = resolve;
      script.onerror = () => reject(new Error("a file of this folder is missing; copy all of it"));
      document.head.append(script);
    });
  }
  const { details, heat } = exported.slides[id];
  return { slide: structuredClone(details), scores: heat ? new Float32Array(Uint8Array.from(atob(heat), c => c.charCodeAt(0)).buffer) : null };
}

async function load(id) {
  if (exported) return fromDisk(id);
  const slide = await ask(urlOf(id));
  return { slide, scores: slide.heat ? new Float32Array(await ask(`${urlOf(id)}/heat`, "arrayBuffer")) : null };
}

async function ask(url, kind = "json") {
  const response = await fetch(url).catch(() => { throw new Error("the server does not answer any more; start wsi view again"); });
  if (!response.ok) {
    const said = await response.json().catch(() => ({ error: "the server does not answer" }));
    throw new Error(said.error);
  }
  return response[kind]();
}

function say(text) {
  by("say").textContent = text;
  by("say").hidden = !text;
}

// --- the list

function scoreText(line) {
  if (line.score === null) return line.kind === "slide" ? "" : "not scored";
  return line.kind === "report" ? `${line.word}, ${line.score.toFixed(1)} %` : `${line.score.toFixed(3)} ${line.word}`.trim();
}

function showList() {
  const order = [...state.list];
  const byName = (a, b) => a.id.localeCompare(b.id);
  if (by("sort").value === "name") order.sort(byName);
  else order.sort((a, b) => (b.score ?? -1) - (a.score ?? -1) || byName(a, b));
  by("list").replaceChildren(...order.map(line => {
    const button = document.createElement("button");
    const picture = document.createElement("img");
    picture.loading = "lazy";
    picture.alt = "";
    picture.onerror = () => { picture.style.visibility = "hidden"; };
    picture.src = `${urlOf(line.id)}/thumbnail.jpg`;
    button.append(picture, `${line.id} `, scoreText(line), line.note ? " \u26a0" : "");
    if (line.note) button.title = line.note;
    button.dataset.id = line.id;
    button.setAttribute("aria-current", String(state.wanted === line.id));
    button.onclick = () => open(line.id);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

// --- one slide

async function open(id, place = null) {
  const turn = ++state.loading;
  state.wanted = id;
  say("");
  try {
    const { slide, scores } = await load(id);
    if (turn !== state.loading) return; // another slide was chosen meanwhile
    Object.assign(state, { slide, scores, at: -1, density: null, ruler: null, selected: null });
    by("threshold").value = 0;
    drawHeat();
    describe(slide);
    showList();
    const source = {
      width: slide.width, height: slide.height, tileSize: slide.tile, tileOverlap: 0,
      getTileUrl: (level, x, y) => `${urlOf(id)}/tiles/${level}/${x}_${y}.jpg`,
    };
    if (slide.levels) { // the finest ones were not exported
      const finest = Math.ceil(Math.log2(Math.max(slide.width, slide.height)));
      Object.assign(source, { maxLevel: slide.levels - 1, getLevelScale: level => 2 ** (level - finest) });
    }
    state.viewer.viewport?.setRotation(0, true);
    state.viewer.addOnceHandler("open", () => { if (place) goTo(place.x, place.y, place.zoom); else keepPlace(); tellBeside(); });
    state.viewer.open(source);
    await openReview(slide);
  } catch (error) {
    if (turn !== state.loading) return;
    Object.assign(state, { slide: null, scores: null, heat: null, ruler: null, selected: null, grid: null }); // nothing of another slide stays
    state.viewer.close();
    describeNothing(id);
    showList();
    draw();
    say(`${id}: ${error.message}`);
  }
}

function describeNothing(id) {
  const line = state.list.find(other => other.id === id);
  by("name").textContent = id;
  by("facts").textContent = line ? scoreText(line) : "";
  by("note").textContent = line?.note ?? "";
  by("title").textContent = by("legend").textContent = "";
  by("found").replaceChildren();
  by("heat").hidden = by("review").hidden = true;
}

function gradeText({ percent, interval, positive, negative, fields }) {
  const ends = interval ? ` (${interval[0].toFixed(1)} to ${interval[1].toFixed(1)})` : "";
  return `${percent === null ? "no percentage" : `${percent.toFixed(1)} %${ends}`}: ${positive} of ${positive + negative} in ${fields} fields`;
}

function describe(slide) {
  const line = state.list.find(other => other.id === slide.id);
  by("name").textContent = slide.id;
  const size = `${slide.width} x ${slide.height} px`;
  const facts = [slide.result ? `machine: ${slide.result.grade ?? "not assessable"}` : scoreText(line), slide.result ? gradeText(slide.result) : "", slide.mpp ? `${size}, ${slide.mpp.toFixed(4)} um/px` : `${size}, no spacing in the file: no scale bar, no 5x to 40x`, slide.model ? `model ${slide.model}` : "", slide.demonstration ? "trained on drawings: on real tissue this means nothing" : ""];
  by("note").textContent = line.note;
  by("legend").textContent = slide.capillaries ? "red: C4d-positive; blue: negative; green: evaluated field; grey: field left out" : slide.lesions ? "red: outline from the threshold on; blue: peaks" : "";
  if (slide.truth) by("legend").textContent += "; turquoise, dashed: truth";
  by("facts").textContent = facts.filter(Boolean).join("; ");
  by("heat").hidden = !slide.heat;
  const found = findings();
  by("title").textContent = slide.lesions ? `${found.length} ${found.length === 1 ? "peak" : "peaks"} of ${slide.positive}` : slide.capillaries ? `${found.length} positive ${found.length === 1 ? "capillary" : "capillaries"}, least certain first` : "";
  by("found").replaceChildren(...found.slice(0, 300).map((place, i) => {
    const button = document.createElement("button");
    button.textContent = `${i + 1}. ${place.label}`;
    button.onclick = () => show(i);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function findings() {
  const slide = state.slide;
  if (slide?.lesions) return slide.lesions.map(([x, y, score]) => ({ x, y, label: `score ${score.toFixed(3)}` }));
  const positive = (slide?.objects ?? slide?.capillaries ?? []).filter(box => box[4]);
  const score = box => box[5] ?? 1;
  positive.sort((a, b) => score(a) - score(b)); // the least certain first
  return positive.map(box => ({ x: (box[0] + box[2]) / 2, y: (box[1] + box[3]) / 2, label: box[5] === null ? "drawn by a person" : `score ${score(box).toFixed(2)}` }));
}

function show(i) {
  const found = findings();
  if (!found.length) return;
  state.at = (i + found.length) % found.length;
  [...by("found").querySelectorAll("button")].forEach((button, k) => button.setAttribute("aria-current", String(k === state.at)));
  by("found").querySelectorAll("button")[state.at]?.scrollIntoView({ block: "nearest" });
  const zoom = Math.max(zoomNow(), state.slide.lesions ? 0.25 : 1);
  goTo(found[state.at].x, found[state.at].y, zoom);
}

// --- places: zoom is screen pixels per level-0 pixel

function zoomNow() {
  const image = state.viewer.world.getItemAt(0);
  return image ? image.viewportToImageZoom(state.viewer.viewport.getZoom(true)) : 0;
}

function goTo(x, y, zoom) {
  const image = state.viewer.world.getItemAt(0);
  if (!image) return;
  if (zoom) state.viewer.viewport.zoomTo(image.imageToViewportZoom(zoom), null, true);
  state.viewer.viewport.panTo(image.imageToViewportCoordinates(x, y), true);
  keepPlace();
}

function keepPlace() {
  const image = state.viewer.world.getItemAt(0);
  if (!image || !state.slide) return;
  const middle = image.viewportToImageCoordinates(state.viewer.viewport.getCenter(true));
  const place = new URLSearchParams({ slide: state.slide.id, x: Math.round(middle.x), y: Math.round(middle.y), zoom: zoomNow().toPrecision(4) });
  history.replaceState(null, "", `#${place}`);
}

function placeInAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const number = key => (given.has(key) ? Number(given.get(key)) : NaN);
  const place = { x: number("x"), y: number("y"), zoom: number("zoom") };
  return { slide: given.get("slide"), place: Number.isFinite(place.x + place.y) ? { ...place, zoom: place.zoom > 0 ? place.zoom : 0 } : null };
}

// --- the page beside, which shows another run of the same slides

function here() {
  const image = state.viewer.world.getItemAt(0);
  if (!image || !state.slide) return null;
  const { x, y } = image.viewportToImageCoordinates(state.viewer.viewport.getCenter(true));
  return { slide: state.slide.id, x, y, zoom: zoomNow(), turn: state.viewer.viewport.getRotation(true) };
}

function isSame(a, b) {
  return Boolean(a && b) && a.slide === b.slide && Math.hypot(a.x - b.x, a.y - b.y) * a.zoom < 0.5 && Math.abs(a.zoom / b.zoom - 1) < 0.001 && a.turn === b.turn;
}

function tellBeside() {
  const place = here();
  if (window.parent === window || !place || isSame(place, state.told)) return;
  state.told = place;
  window.parent.postMessage(place, location.origin);
}

async function follow(event) {
  if (event.origin !== location.origin || event.source !== window.parent || window.parent === window) return;
  const place = event.data;
  state.told = place; // else it would be told back
  if (place.slide !== state.wanted && state.list.some(line => line.id === place.slide)) await open(place.slide, place);
  else if (place.slide === state.slide?.id && !isSame(place, here())) {
    state.viewer.viewport.setRotation(place.turn, true);
    goTo(place.x, place.y, place.zoom);
  }
}

// --- what lies over the slide

function drawHeat() {
  const heat = state.slide.heat;
  state.heat = null;
  if (!heat) return;
  const lowest = Number(by("threshold").value);
  by("from").textContent = lowest.toFixed(2);
  const canvas = new OffscreenCanvas(heat.cols, heat.rows);
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(heat.cols, heat.rows);
  state.scores.forEach((score, i) => {
    if (Number.isNaN(score) || score < lowest) return;
    const [r, g, b, a] = colour(score);
    pixels.data.set([r, g, b, 255 * a], 4 * i);
  });
  pen.putImageData(pixels, 0, 0);
  state.heat = canvas;
}

function densityOf(boxes, side) {
  // counts of both classes in squares of so many pixels, over all boxes: a sample would mislead
  const cols = Math.ceil(state.slide.width / side), rows = Math.ceil(state.slide.height / side);
  const counts = [new Uint32Array(cols * rows), new Uint32Array(cols * rows)];
  for (const [x0, y0, x1, y1, positive, , , , group] of boxes) {
    if (group === groups().out) continue;
    const col = Math.floor((x0 + x1) / 2 / side), row = Math.floor((y0 + y1) / 2 / side);
    if (col >= 0 && row >= 0 && col < cols && row < rows) counts[positive][row * cols + col] += 1;
  }
  const canvas = new OffscreenCanvas(cols, rows);
  const pen = canvas.getContext("2d");
  const pixels = pen.createImageData(cols, rows);
  const most = counts[0].reduce((m, n, i) => Math.max(m, n + counts[1][i]), 1);
  counts[0].forEach((negative, i) => {
    const positive = counts[1][i], all = negative + positive;
    if (all) pixels.data.set([30 + (190 * positive) / all, 40, 200 - (190 * positive) / all, 60 + (160 * all) / most], 4 * i);
  });
  pen.putImageData(pixels, 0, 0);
  return { canvas, side };
}

function draw() {
  const canvas = by("over"), box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(box.width * ratio)) canvas.width = Math.round(box.width * ratio);
  if (canvas.height !== Math.round(box.height * ratio)) canvas.height = Math.round(box.height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const image = state.viewer.world.getItemAt(0);
  if (!image || !state.slide) return;
  const at = (x, y) => image.imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
  const o = at(0, 0), i = at(1000, 0), j = at(0, 1000); // turned or not
  const toScreen = [(i.x - o.x) / 1000, (i.y - o.y) / 1000, (j.x - o.x) / 1000, (j.y - o.y) / 1000, o.x, o.y].map(v => v * ratio);
  pen.setTransform(...toScreen);
  pen.imageSmoothingEnabled = false;
  const heat = state.slide.heat;
  if (state.heat) {
    pen.globalAlpha = Number(by("opacity").value);
    pen.drawImage(state.heat, 0, 0, heat.cols * heat.step[0], heat.rows * heat.step[1]);
    pen.globalAlpha = 1;
  }
  const pixel = 1 / (zoomNow() || 1); // level-0 pixels of one on the screen
  if (by("marks").checked) drawMarks(pen, image, pixel);
  drawDrawing(pen, pixel);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  const map = state.picture ? null : state.viewer.navigator?.element.getBoundingClientRect(); // it lies below this canvas
  if (map) pen.clearRect(map.x - box.x - 2, map.y - box.y - 2, map.width + 4, map.height + 4);
  drawScaleBar(pen, box, pixel);
  if (state.ruler) drawRuler(pen, at);
}

function lengthText(um) {
  return um >= 1000 ? `${(um / 1000).toFixed(2)} mm` : `${um.toFixed(um < 10 ? 2 : 1)} µm`;
}

function rulerText() {
  const [a, b] = state.ruler;
  const px = Math.hypot(b.x - a.x, b.y - a.y);
  return state.slide.mpp ? lengthText(px * state.slide.mpp) : `${Math.round(px)} px`;
}

function drawRuler(pen, at) {
  const places = state.ruler.map(p => at(p.x, p.y));
  pen.strokeStyle = "#ffe600"; // seen on nuclei and on glass
  pen.shadowColor = "#000";
  pen.shadowBlur = 4;
  pen.lineWidth = 2.5;
  places.forEach(p => { pen.beginPath(); pen.arc(p.x, p.y, 4, 0, 2 * Math.PI); pen.stroke(); });
  if (places.length < 2) return;
  pen.beginPath();
  pen.moveTo(places[0].x, places[0].y);
  pen.lineTo(places[1].x, places[1].y);
  pen.stroke();
  pen.shadowBlur = 0;
  const text = rulerText();
  pen.font = "600 13px system-ui, sans-serif";
  const width = pen.measureText(text).width;
  pen.fillStyle = "#fffe";
  pen.fillRect(places[1].x + 8, places[1].y - 11, width + 8, 20);
  pen.fillStyle = "#000";
  pen.fillText(text, places[1].x + 12, places[1].y + 4);
}

function measure(event) {
  if (!state.ruler || !event.quick) return; // a drag moves the slide
  const image = state.viewer.world.getItemAt(0);
  if (state.ruler.length > 1) state.ruler = [];
  state.ruler.push(image.viewerElementToImageCoordinates(event.position));
  draw();
}

function drawMarks(pen, image, pixel) {
  const { lesions = [], fields = [], truth = [] } = state.slide;
  pen.lineWidth = 2.5 * pixel;
  pen.strokeStyle = "#00a3a3";
  pen.setLineDash([10 * pixel, 5 * pixel]);
  for (const rings of truth) for (const ring of rings) outline(pen, ring);
  pen.setLineDash([]);
  pen.strokeStyle = "#00307a";
  lesions.forEach(([x, y], i) => {
    pen.beginPath();
    pen.arc(x, y, 9 * pixel, 0, 2 * Math.PI);
    pen.lineWidth = (i === state.at ? 4 : 1.5) * pixel;
    pen.stroke();
  });
  pen.lineWidth = 1.5 * pixel;
  for (const [x, y, side, whyNot] of fields) {
    pen.strokeStyle = whyNot ? "#777a" : "#1d6b3a";
    pen.strokeRect(x, y, side, side);
  }
  const seen = image.viewportToImageRectangle(state.viewer.viewport.getBounds(true));
  const numbers = state.grid?.inside(seen.x, seen.y, seen.x + seen.width, seen.y + seen.height, DRAWN) ?? (state.grid ? null : []);
  if (numbers === null) {
    const side = 2 ** Math.ceil(Math.log2(12 * pixel));
    if (state.density?.side !== side) state.density = densityOf(state.grid.objects, side);
    const { canvas } = state.density;
    pen.drawImage(canvas, 0, 0, canvas.width * side, canvas.height * side);
    return;
  }
  for (const i of numbers) {
    const row = state.grid.objects[i];
    const [x0, y0, x1, y1, positive, , id, , group, rings] = row;
    const isOut = group === groups().out;
    if (isOut && !review.on) continue;
    pen.strokeStyle = isOut ? "#666" : positive ? "#c80000" : "#1e50c8";
    pen.lineWidth = (id === state.selected ? 4 : rings ? 2 : 1.5) * pixel;
    pen.setLineDash(isOut ? [4 * pixel, 4 * pixel] : []);
    if (rings) for (const ring of rings) outline(pen, ring);
    else pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  pen.setLineDash([]);
}

function outline(pen, ring) {
  pen.beginPath();
  ring.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  pen.closePath();
  pen.stroke();
}

function drawScaleBar(pen, box, pixel) {
  const mpp = state.slide.mpp;
  if (!mpp) return;
  const um = pixel * mpp * 120;
  const power = 10 ** Math.floor(Math.log10(um));
  const length = [5, 2, 1].map(n => n * power).find(n => n <= um) ?? power;
  const width = length / (pixel * mpp);
  const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  const magnification = 10 / (pixel * mpp);
  pen.fillStyle = "#fffd";
  pen.fillRect(10, box.height - 38, Math.max(width, 120) + 16, 30);
  pen.fillStyle = "#000";
  pen.fillRect(18, box.height - 16, width, 4);
  pen.font = "12px system-ui, sans-serif";
  pen.fillText(`${text}   ${magnification < 10 ? magnification.toPrecision(2) : Math.round(magnification)}x`, 18, box.height - 22);
}

// the view as a PNG: slide, heatmap, marks, scale bar
async function takePicture() {
  const over = by("over"), picture = document.createElement("canvas"), pen = picture.getContext("2d");
  Object.assign(picture, { width: over.width, height: over.height });
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, picture.width, picture.height);
  state.picture = true;
  draw();
  pen.drawImage(state.viewer.drawer.canvas, 0, 0, picture.width, picture.height);
  pen.drawImage(over, 0, 0);
  state.picture = false;
  draw();
  const words = `${state.slide?.id ?? ""}; for research use only`;
  pen.font = `${12 * (window.devicePixelRatio || 1)}px system-ui, sans-serif`;
  const width = pen.measureText(words).width;
  pen.fillStyle = "#fffd";
  pen.fillRect(picture.width - width - 24, picture.height - 38, width + 16, 30);
  pen.fillStyle = "#000";
  pen.fillText(words, picture.width - width - 16, picture.height - 18);
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await new Promise(done => picture.toBlob(done, "image/png")));
    link.download = `${state.slide?.id ?? "slide"}.png`;
    link.click();
    state.lastPicture = link.href; // kept until the next one
  } catch {
    say("a page that was opened from a disk may not save pictures; take one with your system");
  }
}

function drawBar() {
  const canvas = by("bar"), pen = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    const [r, g, b, a] = colour(x / (canvas.width - 1));
    pen.fillStyle = `rgba(${r}, ${g}, ${b}, ${a})`;
    pen.fillRect(x, 0, 1, canvas.height);
  }
}

// --- keys and start

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || ["SELECT", "TEXTAREA"].includes(event.target.tagName) || event.target.type === "text") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, viewport = state.viewer.viewport;
  if ((by("help").open && key !== "?") || by("sign-dialog").open) return;
  if (key !== "?" && reviewKey(key, event)) { /* done there */ }
  else if (key === "?") by("help").open ? by("help").close() : by("help").showModal();
  else if (key === "n") show(state.at + 1);
  else if (key === "p") show(state.at < 0 ? -1 : state.at - 1);
  else if (key in MAGNIFICATION && state.slide?.mpp) viewport.zoomTo(state.viewer.world.getItemAt(0).imageToViewportZoom((MAGNIFICATION[key] * state.slide.mpp) / 10));
  else if (key === "0") viewport.goHome();
  else if (key === "[") viewport.setRotation(viewport.getRotation() - 90);
  else if (key === "]") viewport.setRotation(viewport.getRotation() + 90);
  else if (key === "h") by("opacity").value = Number(by("opacity").value) ? 0 : 0.6;
  else if (key === "m") by("marks").checked = !by("marks").checked;
  else if (key === "d") {
    state.ruler = state.ruler ? null : [];
    say(state.ruler ? "distance: click two places; d ends it" : "");
    if (state.ruler) setTimeout(() => { if (by("say").textContent.startsWith("distance")) say(""); }, 2500);
  }
  else if (key === "s") takePicture();
  else if (key === "f") document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen();
  else return;
  event.preventDefault();
  draw();
}

async function start() {
  document.body.classList.toggle("framed", window.parent !== window);
  state.viewer = new OpenSeadragon.Viewer({
    element: by("view"), drawer: "canvas", showNavigationControl: false, showNavigator: true, navigatorPosition: "TOP_RIGHT", navigatorAutoFade: false,
    maxZoomPixelRatio: 4, visibilityRatio: 0.5, animationTime: 0.3, gestureSettingsMouse: { clickToZoom: false }, keyboardNavEnabled: true,
  });
  state.viewer.innerTracker.keyHandler = null; // our keys; arrows would need focus twice
  for (const name of ["update-viewport", "resize", "rotate"]) state.viewer.addHandler(name, draw);
  state.viewer.addHandler("animation-finish", keepPlace);
  state.viewer.addHandler("viewport-change", tellBeside);
  window.addEventListener("message", follow);
  state.viewer.addHandler("canvas-click", measure);
  startReview();
  new ResizeObserver(draw).observe(by("over"));
  document.addEventListener("keydown", press);
  by("sort").onchange = showList;
  by("threshold").oninput = () => { drawHeat(); draw(); };
  by("opacity").oninput = draw;
  by("marks").onchange = draw;
  by("close").onclick = () => by("help").close();
  drawBar();
  try {
    state.list = exported ? exported.list : await ask("api/slides");
  } catch (error) {
    return say(error.message);
  }
  showList();
  const { slide, place } = placeInAddress();
  const first = state.list.find(line => line.id === slide) ?? state.list.find(line => line.id === by("list").querySelector("button")?.dataset.id);
  if (slide && first?.id !== slide) return say(`there is no slide ${slide} here; choose one from the list`);
  if (first) await open(first.id, first.id === slide ? place : null);
  window.addEventListener("hashchange", () => {
    const wanted = placeInAddress();
    if (wanted.slide && wanted.slide !== state.slide?.id) open(wanted.slide, wanted.place);
    else if (wanted.place) goTo(wanted.place.x, wanted.place.y, wanted.place.zoom);
  });
}

start();
