"use strict";
// The page of `latentsynth view`: cases on the left, one or two of them in linked slices and 3D.

const COLOURS = [[0, 0, 0], [242, 185, 80], [45, 200, 150], [90, 150, 255], [240, 100, 100], [200, 120, 240], [120, 220, 240], [240, 240, 120]];
const $ = (id) => document.getElementById(id);
const state = { cases: [], shown: [], at: 0, compare: false, channel: 0, mask: true };
const panes = {};

function colour(index) {
  return COLOURS[index === 0 ? 0 : 1 + (index - 1) % (COLOURS.length - 1)];
}

function labelMap(labels) {
  const map = { R: [], G: [], B: [], A: [], I: [], labels: [] };
  labels.forEach(([value, name], n) => {
    const [r, g, b] = colour(n);
    map.R.push(r); map.G.push(g); map.B.push(b); map.A.push(n === 0 ? 0 : 255); map.I.push(value); map.labels.push(name);
  });
  return map;
}

async function pane(id) {
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1], crosshairWidth: 0.12, crosshairWidthUnit: "voxels", crosshairGap: 2, crosshairColor: [0.45, 0.6, 0.9, 1], show3Dcrosshair: true, isColorbar: false, loadingText: "", dragMode: 1,
    multiplanarForceRender: true,
  });
  await nv.attachTo(id);
  panes[id] = nv;
  return nv;
}

async function show(id, number) {
  const nv = panes[id];
  const one = state.cases[number];
  const channel = Math.min(state.channel, one.images.length - 1);
  const volumes = [{ url: one.images[channel], colormap: "gray" }];
  const overlaid = one.mask !== null && one.mask !== one.images[channel];
  if (overlaid) volumes.push({ url: one.mask, colormap: "gray", opacity: 0 });
  await nv.loadVolumes(volumes);
  if (overlaid) {
    nv.volumes[1].setColormapLabel(labelMap(one.labels));
    nv.setOpacity(1, opacity());
    nv.updateGLVolume();
  }
  nv.setSliceType(Number($("view").value));
  const why = id === "right" && state.cases[state.at].beside === number ? `: ${state.cases[state.at].why}` : "";
  $(`${id}-name`).textContent = `${one.name}${one.synthetic ? ", synthetic" : ""} (${one.group})${why}`;
}

function opacity() {
  return state.mask ? Number($("opacity").value) : 0;
}

function other() {
  const one = state.cases[state.at];
  if (one.beside !== null) return one.beside;
  const of = state.cases.findIndex((c) => c.beside === state.at);
  return of >= 0 ? of : null;
}

async function draw() {
  const one = state.cases[state.at];
  $("status").textContent = "loading";
  $("channel").replaceChildren(...one.channels.map((name, n) => new Option(name, n, n === state.channel, n === state.channel)));
  $("legend").replaceChildren(...one.labels.slice(1).map(([, name], n) => {
    const item = document.createElement("span"), box = document.createElement("i");
    box.style.background = `rgb(${colour(n + 1).join(",")})`;
    item.append(box, name);
    return item;
  }));
  for (const item of $("cases").children) item.setAttribute("aria-selected", String(Number(item.dataset.n) === state.at));
  $("cases").querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  const beside = other();
  $("compare").disabled = beside === null;
  $("compare").textContent = beside === null ? "nothing to compare" : state.compare ? "alone" : "compare";
  const two = state.compare && beside !== null;
  $("right").parentElement.hidden = !two;
  try {
    await show("left", state.at);
    if (two) {
      if (!panes.right) await pane("right");
      await show("right", beside);
      panes.left.broadcastTo([panes.right], { "2d": true, "3d": true });
      panes.right.broadcastTo([panes.left], { "2d": true, "3d": true });
    } else {
      panes.left.broadcastTo([]);
    }
    window.dispatchEvent(new Event("resize"));
    $("status").textContent = "";
    document.body.dataset.shown = one.name;
  } catch (error) {
    $("status").textContent = `${one.name} cannot be shown: ${error.message}`;
  }
}

function list() {
  const wanted = $("filter").value.toLowerCase();
  state.shown = state.cases.map((_, n) => n).filter((n) => state.cases[n].name.toLowerCase().includes(wanted));
  $("cases").replaceChildren(...state.shown.map((n) => {
    const one = state.cases[n], item = document.createElement("li"), below = document.createElement("small");
    item.dataset.n = n;
    below.textContent = `${one.group}, ${one.synthetic ? "synthetic" : "real or unknown"}`;
    item.append(one.name, below);
    item.onclick = () => { state.at = n; draw(); };
    return item;
  }));
}

function step(by) {
  const place = state.shown.indexOf(state.at) + by;
  if (place >= 0 && place < state.shown.length) { state.at = state.shown[place]; draw(); }
}

function toggleCompare() {
  if (other() !== null) { state.compare = !state.compare; draw(); }
}

function fade() {
  for (const nv of Object.values(panes)) if (nv.volumes.length > 1) nv.setOpacity(1, opacity());
}

document.addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT") return;
  const keys = { ArrowDown: () => step(1), ArrowUp: () => step(-1), c: toggleCompare, m: () => { state.mask = !state.mask; fade(); } };
  if (keys[event.key]) { event.preventDefault(); event.stopPropagation(); keys[event.key](); }
}, true);
$("filter").oninput = list;
$("channel").onchange = () => { state.channel = Number($("channel").value); draw(); };
$("view").onchange = () => { for (const nv of Object.values(panes)) nv.setSliceType(Number($("view").value)); };
$("opacity").oninput = () => { state.mask = true; fade(); };
$("compare").onclick = toggleCompare;

(async () => {
  state.cases = await (await fetch("cases.json")).json();
  const asked = new URLSearchParams(location.search);  // ?case=NAME&compare=1
  state.at = Math.max(0, state.cases.findIndex((one) => one.name === asked.get("case")));
  state.compare = asked.get("compare") === "1";
  list();
  try {
    await pane("left");
  } catch (error) {
    $("status").textContent = `this browser cannot draw volumes (WebGL 2 is needed): ${error.message}`;
    return;
  }
  await draw();
})();
