"use strict";
// Correcting what a machine found: each decision goes to the server at once, which keeps the log and counts anew.

const FEASIBLE = "feasible", NOT_FEASIBLE = "not feasible";
const review = { on: false, state: null, machine: [], order: [], may: false, busy: false, drawing: null, ring: [] };

// --- what is reviewed

async function openReview(slide) {
  Object.assign(review, { on: false, state: null, machine: slide.capillaries ?? slide.areas ?? [], drawing: null, ring: [] });
  by("review").hidden = true;
  by("what").textContent = by("comment").value = "";
  apply();
  if (slide.kind === "slide") return;
  try {
    const answer = slide.review ?? await ask(reviewUrl(slide.id));
    if (state.slide !== slide) return;
    review.state = answer;
    review.may = typeof answer.reviewer === "string"; // else the page is only to look at
    by("reviewer").value ||= answer.reviewer || localStorage.getItem("reviewer") || "";
    by("review").hidden = !review.may && !answer.can_undo;
    by("review-on").hidden = !review.may;
    const { yes, no } = answer.groups;
    by("positive").textContent = `${yes} (1)`;
    by("negative").textContent = `${no} (2)`;
    by("not-counted").textContent = `${answer.groups.out} (x)`;
    by("negative").hidden = !no;
    by("draw-as").replaceChildren(...[yes, no].filter(Boolean).map(group => new Option(group)));
    order();
    apply();
    describe(slide);
  } catch (error) {
    if (!/^there is nothing to review/.test(error.message)) say(error.message);
  }
}

function reviewUrl(id) {
  return `${urlOf(id)}/review`;
}

function groups() {
  return review.state?.groups ?? { yes: "positive", no: "negative", out: "left out" };
}

function noun() {
  return state.slide.capillaries ? "capillaries" : "areas";
}

// the objects as they are after all decisions: [x0, y0, x1, y1, positive, score, id, doubt, group, rings]
function apply() {
  const decisions = review.state?.decisions ?? {}, { yes, no } = groups();
  const rows = review.machine.map(row => {
    const group = decisions[row[6]]?.[0] ?? (row[4] ? yes : no);
    return [...row.slice(0, 4), Number(group === yes), row[5], row[6], row[7], group, row[9] ?? null];
  });
  for (const [id, [group, ring]] of Object.entries(decisions)) {
    if (!ring.length) continue;
    const xs = ring.map(p => p[0]), ys = ring.map(p => p[1]);
    rows.push([Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), Number(group === yes), null, id, "drawn by a person", group, [ring]]);
  }
  state.slide.objects = rows;
  state.grid = new Grid(rows, state.slide.width, state.slide.height);
  state.rowOf = new Map(rows.map(row => [row[6], row]));
  for (const field of state.slide.fields ?? []) {
    field[5] ??= field[3]; // what the machine said
    const decided = decisions[field[4]]?.[0];
    field[3] = decided === FEASIBLE ? "" : decided === NOT_FEASIBLE ? field[5] || "left out by a person" : field[5];
  }
  state.density = null;
  showReview();
  draw();
}

// the least certain first: the doubted, then those whose score is nearest to the limit of its class
function order() {
  const limits = state.slide.limits ?? {};
  const { yes, no } = groups();
  const margin = row => (row[7] ? -1 : 0) + (row[5] ?? 1) - (limits[row[4] ? yes : no] ?? 0);
  review.order = review.machine.slice().sort((a, b) => margin(a) - margin(b)).map(row => row[6]);
}

function rowOf(id) {
  return state.slide ? state.rowOf?.get(id) : undefined;
}

function seen(id) {
  return id in (review.state?.decisions ?? {});
}

function showReview() {
  const { state: now } = review;
  if (!now) return;
  by("review-on").textContent = review.on ? "End the review (v)" : "Review (v)";
  by("review-on").setAttribute("aria-pressed", String(review.on));
  by("review-tools").hidden = !review.on;
  by("counts").hidden = by("outside").hidden = !review.on && !now.can_undo;
  by("progress").max = Math.max(1, now.total);
  by("progress").value = now.seen;
  by("progress-text").textContent = `${now.seen} of ${now.total} seen${now.drawn ? `, ${now.drawn} drawn` : ""}`;
  by("counts").replaceChildren(...now.counts.map(text => {
    const p = document.createElement("p");
    p.textContent = text;
    return p;
  }));
  by("outside").textContent = now.note;
  by("undo").disabled = !now.can_undo;
  by("redo").disabled = !now.can_redo;
  const when = now.signed ? `${now.signed.by} at ${now.signed.at.replace("T", " ").replace("+00:00", " UTC")}` : "";
  by("signed").textContent = !when ? (now.can_undo ? "not signed yet" : "") : now.signed.changed ? `changed since it was signed by ${when}` : `signed by ${when}`;
  if (review.on) listForReview();
}

function listForReview() {
  const unseen = review.order.filter(id => !seen(id)).length;
  by("title").textContent = unseen ? `${unseen} to look at, least certain first` : "all are seen";
  const at = review.order.indexOf(state.selected), from = Math.max(0, at - 3);
  by("found").replaceChildren(...review.order.slice(from, from + 60).map((id, i) => {
    const row = rowOf(id), button = document.createElement("button"), item = document.createElement("li");
    button.textContent = `${from + i + 1}. ${seen(id) ? "\u2713 " : ""}${describeRow(row)}`;
    button.setAttribute("aria-current", String(id === state.selected));
    button.onclick = () => select(id, true);
    item.append(button);
    return item;
  }));
}

function describeRow(row) {
  const score = row[5] === null ? "" : ` ${row[5].toFixed(2)}`;
  return `${row[8] || groups().yes}${score}${row[7] ? `, ${row[7]}` : ""}`;
}

// --- one object

function select(id, move = false) {
  state.selected = id;
  const row = rowOf(id);
  by("what").textContent = row ? describeRow(row) : "";
  if (row && move) {
    const fits = 0.6 * Math.min(by("view").clientWidth / (row[2] - row[0]), by("view").clientHeight / (row[3] - row[1]));
    goTo((row[0] + row[2]) / 2, (row[1] + row[3]) / 2, Math.min(Math.max(zoomNow(), 1), fits));
  }
  if (review.on) listForReview();
  draw();
}

function step(by_, unseenOnly) {
  const n = review.order.length, at = review.order.indexOf(state.selected);
  for (let k = 1; k <= n; k += 1) {
    const id = review.order[(((at < 0 && by_ < 0 ? 0 : at) + k * by_) % n + n) % n];
    if (!unseenOnly || !seen(id)) return select(id, true);
  }
}

function pick(point) {
  const inside = (state.grid?.inside(point.x, point.y, point.x, point.y) ?? []).map(i => state.grid.objects[i]);
  inside.sort((a, b) => (a[2] - a[0]) * (a[3] - a[1]) - (b[2] - b[0]) * (b[3] - b[1]));
  if (inside.length) return select(inside[0][6]);
  state.selected = null;
  const field = fieldAt(point);
  by("what").textContent = field ? (field[3] ? `field left out: ${field[3]}` : "evaluated field") : "";
  draw();
}

function fieldAt(point) {
  return (state.slide?.fields ?? []).find(([x, y, side]) => point.x >= x && point.x < x + side && point.y >= y && point.y < y + side);
}

// --- decisions

// one at a time: a key that is pressed before the answer is not taken, as it was meant for what is shown now
async function decide(what, facts = {}) {
  if (review.busy) return null;
  review.busy = true;
  try {
    return await send(what, facts);
  } catch (error) {
    say(error.message);
    return null;
  } finally {
    review.busy = false;
  }
}

async function send(what, facts) {
  const slide = state.slide, name = by("reviewer").value.trim();
  if (!slide || !review.state) return null;
  if (!name) {
    say("whose review is this? Write your name first");
    by("reviewer").focus();
    return null;
  }
  localStorage.setItem("reviewer", name);
  say("");
  const body = JSON.stringify({ what, by: name, subject: review.state.subject, after: review.state.last, ...facts });
  const response = await fetch(reviewUrl(slide.id), { method: "POST", body, headers: { "Content-Type": "application/json" } }).catch(() => null);
  if (!response) throw new Error("the server does not answer any more: this decision is not kept; start wsi view again");
  const answer = await response.json().catch(() => ({ error: "the server failed; its terminal tells more" }));
  if (!response.ok) {
    if (answer.stale && state.slide === slide) await showAgain(slide.id);
    throw new Error(state.slide?.id === slide.id ? answer.error : `${slide.id}: ${answer.error}`);
  }
  if (state.slide !== slide) return null;
  review.state = answer;
  apply();
  return answer;
}

// the slide as it is now, at the same place, with the review as on as it was
async function showAgain(id) {
  const { on } = review, { selected } = state, { x, y } = state.viewer.world.getItemAt(0).viewportToImageCoordinates(state.viewer.viewport.getCenter(true));
  await open(id, { x, y, zoom: zoomNow() });
  if (review.may) review.on = on;
  showReview();
  if (rowOf(selected)) select(selected);
}

async function judge(group) {
  const id = state.selected, row = rowOf(id);
  if (!row || group === "") return say(row ? "" : "click one of the marks, or press u for the next one");
  await decide("decide", { id, group: group ?? row[8] });
  if (seen(id) && state.selected === id && review.order.includes(id)) step(1, true);
}

async function toggleField() {
  const image = state.viewer.world.getItemAt(0);
  const middle = review.pointer ?? image.viewportToImageCoordinates(state.viewer.viewport.getCenter(true));
  const field = fieldAt(middle);
  if (!field) return say(state.slide.fields ? "no field lies there" : "");
  await decide("decide", { id: field[4], group: field[3] ? FEASIBLE : NOT_FEASIBLE });
  pick(middle);
}

async function back(what) {
  await decide(what);
}

async function sign() {
  const comment = by("comment").value;
  by("sign-dialog").close();
  const answer = await decide("sign", { comment, after: review.shown }); // nothing else than what the dialog said
  if (!answer) return;
  by("comment").value = "";
  state.list = await ask("api/slides");
  showList();
  say("");
}

function askToSign() {
  if (review.busy) return;
  const { state: now } = review;
  review.shown = now.last;
  const unseen = now.total - now.seen;
  by("sign-text").textContent = `${by("reviewer").value.trim() || "Nobody yet"} signs ${now.counts.at(-1)}.${unseen ? ` ${unseen} of ${now.total} ${noun()} were not decided one by one; they stay as the machine has them.` : ""}`;
  by("sign-dialog").showModal();
}

// --- drawing: a box by dragging, an outline by clicks and Enter

function beginDrawing(kind) {
  review.drawing = review.drawing === kind ? null : kind;
  review.ring = [];
  by("what").textContent = !review.drawing ? "" : kind === "box" ? "drag a box around it; Escape ends it" : "click around it, Enter closes the outline; Escape ends it";
  draw();
}

async function endDrawing() {
  const ring = review.ring.map(p => [Math.round(p.x * 100) / 100, Math.round(p.y * 100) / 100]);
  Object.assign(review, { drawing: null, ring: [] });
  by("what").textContent = "";
  draw();
  if (ring.length < 3) return;
  const before = new Set(Object.keys(review.state.decisions));
  const answer = await decide("decide", { group: by("draw-as").value, ring });
  const id = Object.keys(answer?.decisions ?? {}).find(key => !before.has(key));
  if (id) select(id);
}

function pointOf(event) {
  return state.viewer.world.getItemAt(0).viewerElementToImageCoordinates(event.position);
}

function pressed(event) {
  if (review.drawing === "box") review.from = pointOf(event);
}

function dragged(event) {
  if (review.drawing !== "box" || !review.from) return;
  event.preventDefaultAction = true;
  const a = review.from, b = pointOf(event);
  review.ring = [a, { x: b.x, y: a.y }, b, { x: a.x, y: b.y }];
  draw();
}

function dragEnd(event) {
  if (review.drawing !== "box" || review.ring.length < 4) return;
  event.preventDefaultAction = true;
  review.from = null;
  endDrawing();
}

function clicked(event) {
  if (!event.quick || state.ruler || !state.slide) return;
  if (review.drawing === "outline") {
    review.ring.push(pointOf(event));
    draw();
  } else if (!review.drawing) pick(pointOf(event));
}

function drawDrawing(pen, pixel) {
  if (!review.ring.length) return;
  pen.strokeStyle = "#ffe600";
  pen.lineWidth = 2.5 * pixel;
  outline(pen, review.ring.map(p => [p.x, p.y]));
}

// --- keys

function toggleReview() {
  if (!review.state || !review.may) return say("there is nothing to review here, or the page is only to look at");
  review.on = !review.on;
  if (!review.on) { review.drawing = null; describe(state.slide); }
  apply();
  if (review.on && !by("reviewer").value.trim()) by("reviewer").focus();
  else if (review.on && !rowOf(state.selected)) step(1, true);
}

function reviewKey(key, event) {
  if (key === "v") toggleReview();
  else if (!review.on) return false;
  else if (event.repeat && !["n", "p", "u"].includes(key)) return true; // a key that is held decides once
  else if (key === "Escape" && review.drawing) beginDrawing(review.drawing);
  else if (key === "Enter" && review.drawing === "outline") endDrawing();
  else if (key === "1") judge(groups().yes);
  else if (key === "2") judge(groups().no);
  else if (key === "x") judge(groups().out);
  else if (key === "a") judge(null);
  else if (key === "u") step(1, true);
  else if (key === "n") step(1, false);
  else if (key === "p") step(-1, false);
  else if (key === "z") back(event.shiftKey ? "redo" : "undo");
  else if (key === "y") back("redo");
  else if (key === "b") beginDrawing("box");
  else if (key === "g") beginDrawing("outline");
  else if (key === "t") toggleField();
  else return false;
  return true;
}

function startReview() {
  state.viewer.addHandler("canvas-press", pressed);
  state.viewer.addHandler("canvas-drag", dragged);
  state.viewer.addHandler("canvas-drag-end", dragEnd);
  state.viewer.addHandler("canvas-click", clicked);
  by("view").addEventListener("pointermove", event => {
    const image = state.viewer.world.getItemAt(0), box = by("view").getBoundingClientRect();
    review.pointer = image ? image.viewerElementToImageCoordinates(new OpenSeadragon.Point(event.clientX - box.x, event.clientY - box.y)) : null;
  });
  by("view").addEventListener("pointerleave", () => { review.pointer = null; });
  by("review-on").onclick = toggleReview;
  const tools = { positive: () => judge(groups().yes), negative: () => judge(groups().no), "not-counted": () => judge(groups().out), accept: () => judge(null), undo: () => back("undo"), redo: () => back("redo"), box: () => beginDrawing("box"), outline: () => beginDrawing("outline"), sign: askToSign, "sign-now": sign, "sign-not": () => by("sign-dialog").close() };
  for (const [id, does] of Object.entries(tools)) by(id).onclick = does;
}
