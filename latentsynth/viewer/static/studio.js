"use strict";
// The page of `latentsynth studio`: a mask is drawn, loaded or made; volumes of several seeds stand side by side.

const COLOURS = [[0, 0, 0], [242, 185, 80], [45, 200, 150], [90, 150, 255], [240, 100, 100], [200, 120, 240], [120, 220, 240], [240, 240, 120]];
const $ = (id) => document.getElementById(id);
const model = { labels: [], jobs: [] };
const panes = {};
const shown = { left: null, right: null };
let mask = null; // {mask, volume, host}
let timer = null;

const colour = (index) => COLOURS[index === 0 ? 0 : 1 + (index - 1) % (COLOURS.length - 1)];
const say = (text) => { $("status").textContent = text; };
const number = (id) => Number($(id).value);
const host = () => $("host").value === "" ? null : Number($("host").value);

async function ask(path, body, binary) {
  const options = body === undefined ? {} : { method: "POST", body: binary ? body : JSON.stringify(body) };
  const answer = await fetch(path, options);
  const text = await answer.text();
  let value;
  try { value = JSON.parse(text); } catch { value = { error: `the server answered ${answer.status}` }; }
  if (value.error && !answer.ok) throw new Error(value.error);
  return value;
}

function labelMap() {
  const map = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  model.labels.forEach(([value, name], n) => {
    const [r, g, b] = colour(n);
    map.R.push(r); map.G.push(g); map.B.push(b); map.A.push(n === 0 ? 0 : 255); map.I.push(value); map.labels.push(name);
  });
  return map;
}

async function pane(id) {
  if (panes[id]) return panes[id];
  const nv = new niivue.Niivue({ backColor: [0, 0, 0, 1], crosshairWidth: 0.12, crosshairWidthUnit: "voxels", crosshairGap: 2, crosshairColor: [0.45, 0.6, 0.9, 1], show3Dcrosshair: true, isColorbar: false, loadingText: "", dragMode: 1, multiplanarForceRender: true });
  await nv.attachTo(id);
  panes[id] = nv;
  return nv;
}

async function show(id, one) {
  shown[id] = one;
  $(id).parentElement.hidden = one === null;
  if (one === null) return;
  const nv = await pane(id);
  const volumes = [];
  if (one.images) volumes.push({ url: one.images[Math.min(number("channel"), one.images.length - 1)], colormap: "gray" });
  volumes.push({ url: one.mask, colormap: "gray", opacity: one.images ? 0 : 1 });
  await nv.loadVolumes(volumes);
  nv.volumes[volumes.length - 1].setColormapLabel(labelMap());
  if (one.images) nv.setOpacity(1, number("opacity"));
  nv.updateGLVolume();
  nv.setSliceType(number("view"));
  $(`${id}-name`).textContent = one.name;
  if (panes.left && panes.right && shown.left && shown.right) panes.left.broadcastTo([panes.right], { "2d": true, "3d": true });
}

function row(values) {
  const line = document.createElement("tr");
  const select = document.createElement("select");
  select.append(...model.labels.slice(1).map(([value, name]) => new Option(name, value)));
  select.value = values[0];
  const cells = [select, ...values.slice(1).map((value) => {
    const input = document.createElement("input");
    input.type = "number"; input.step = "any"; input.value = value;
    return input;
  })];
  const away = document.createElement("button");
  away.type = "button"; away.textContent = "\u00d7"; away.title = "remove";
  away.addEventListener("click", () => line.remove());
  line.append(...[...cells, away].map((cell) => { const td = document.createElement("td"); td.append(cell); return td; }));
  $("shapes").tBodies[0].append(line);
}

function shapes() {
  return [...$("shapes").tBodies[0].rows].map((line, n) => {
    const [label, ...rest] = [...line.querySelectorAll("select, input")].map((cell) => Number(cell.value));
    return { label, centre_mm: rest.slice(0, 3), radii_mm: rest.slice(3, 6), roughness: rest[6], seed: n };
  });
}

async function take(request, on) {
  say("making the mask");
  try {
    mask = { ...await request, host: on };
    $("sizes").textContent = Object.entries(mask.ml).map(([name, ml]) => `${name} ${ml.toPrecision(3)} ml`).join(", ");
    $("generate").disabled = false;
    await show("left", { mask: mask.volume, name: `mask ${mask.mask + 1}` });
    await show("right", null);
    say("ready");
  } catch (error) { say(error.message); }
}

function described(job) {
  if (job.state === "failed") return `failed: ${job.error}`;
  const calls = job.state === "running" ? `, ${job.calls} network calls` : "";
  return `${job.state}, ${job.done} of ${job.count}${calls}`;
}

function list() {
  $("jobs").replaceChildren(...model.jobs.map((job) => {
    const item = document.createElement("li"), text = document.createElement("div"), bar = document.createElement("progress");
    text.textContent = `${job.folder}: ${described(job)}`;
    bar.max = job.count; bar.value = job.done;
    item.append(text, bar);
    if (job.state === "queued" || job.state === "running") {
      const stop = document.createElement("button");
      stop.type = "button"; stop.textContent = "cancel";
      stop.addEventListener("click", async () => { await ask(`jobs/${job.job}/cancel`, {}); await look(); });
      item.append(stop);
    }
    for (const one of job.volumes) {
      const look = document.createElement("button");
      look.type = "button"; look.textContent = `seed ${one.seed}`;
      look.addEventListener("click", (event) => place(job, one, event.shiftKey ? "right" : "left"));
      item.append(look);
    }
    return item;
  }).reverse());
}

const volumeOf = (job, one) => ({ images: one.images, mask: model.masks[job.job] ?? mask.volume, name: `${job.folder}, seed ${one.seed}` });

async function place(job, one, side) {
  try { await show(side, volumeOf(job, one)); say("ready"); } catch (error) { say(error.message); }
}

async function look() {
  const before = new Map(model.jobs.map((job) => [job.job, job.done]));
  Object.assign(model, await ask("studio.json"));
  list();
  for (const job of model.jobs) {
    const fresh = job.done > (before.get(job.job) ?? 0);
    if (fresh) await place(job, job.volumes.at(-1), job.done % 2 === 1 ? "left" : "right");
  }
  clearTimeout(timer);
  if (model.jobs.some((job) => job.state === "queued" || job.state === "running")) timer = setTimeout(look, 500);
}

async function generate() {
  try {
    const job = await ask("jobs", { mask: mask.mask, seed: number("seed"), count: number("count"), steps: number("steps"), guidance: number("guidance"), host: mask.host });
    model.masks[job.job] = mask.volume;
    say("generating");
    await look();
  } catch (error) { say(error.message); }
}

async function again() {
  for (const id of ["left", "right"]) if (shown[id]) await show(id, shown[id]);
}

async function start() {
  Object.assign(model, await ask("studio.json"), { masks: {} });
  $("steps").value = model.steps; $("guidance").value = model.guidance; $("count").max = model.most;
  $("new").disabled = !model.new_masks;
  $("host").append(new Option("none: a new volume", ""), ...model.hosts.map((name, n) => new Option(name, n)));
  $("hosting").hidden = model.hosts.length === 0;
  $("channel").append(...model.channels.map((name, n) => new Option(name, n)));
  $("legend").replaceChildren(...model.labels.slice(1).map(([, name], n) => {
    const item = document.createElement("span"), box = document.createElement("i");
    box.style.background = `rgb(${colour(n + 1).join(",")})`;
    item.append(box, name);
    return item;
  }));
  const size = Math.min(...model.size_mm);
  row([model.labels[1][0], 0, 0, 0, ...[0.2, 0.2, 0.2].map((share) => (share * size).toFixed(1)), 0.15]);
  $("add").addEventListener("click", () => row([model.labels[1][0], 0, 0, 0, ...[0.1, 0.1, 0.1].map((share) => (share * size).toFixed(1)), 0.15]));
  $("draw").addEventListener("click", () => take(ask("masks/drawn", { shapes: shapes(), host: host() }), host()));
  $("new").addEventListener("click", () => take(ask("masks/new", { seed: number("new-seed") }), null));
  $("file").addEventListener("change", async () => { const [file] = $("file").files; if (file) await take(ask("masks/loaded", await file.arrayBuffer(), true), null); });
  $("generate").addEventListener("click", generate);
  $("view").addEventListener("change", () => { for (const nv of Object.values(panes)) nv.setSliceType(number("view")); });
  $("opacity").addEventListener("input", () => { for (const [id, nv] of Object.entries(panes)) if (shown[id]?.images) nv.setOpacity(1, number("opacity")); });
  $("channel").addEventListener("change", again);
  await look();
  say("ready");
  const asked = new URLSearchParams(location.search); // for pictures of the page: ?draw=1&generate=1
  if (asked.has("new")) await take(ask("masks/new", { seed: number("new-seed") }), null);
  if (asked.has("draw")) await take(ask("masks/drawn", { shapes: shapes(), host: null }), null);
  if (asked.has("generate")) await generate();
}

start().catch((error) => say(error.message));
