// Two clips in step, one above the other, with a divider and a loupe.
// Gradio calls this once with `element`, `props` and `watch`; the template never changes, so that
// the players and their listeners survive every new value. The value: {native, upscaled,
// base_native} as files with a `url`, {labels}, and {fps, frames}; at first the native clip alone.
// What the page begins with has {loupe}, a place for it in widths and heights, and {poster}, a
// picture that is there before the clip.

const find = (name) => element.querySelector(`.uc-${name}`);
const root = element.querySelector(".uc");
const stage = find("stage");
const over = find("over");
const under = find("under");
const divider = find("divider");
const loupe = find("loupe");
const seek = find("seek");
const SPEEDS = [1, 0.5, 0.25];
const LOUPES = [0, 1, 2, 4];
const state = { split: 50, loupe: 0, speed: 0, right: "upscaled", at: [0.5, 0.5], frames: 0, fps: 12 };

// --- divider -----------------------------------------------------------------------------------

function setSplit(percent) {
  state.split = Math.min(100, Math.max(0, percent));
  root.style.setProperty("--split", `${state.split}%`);
  divider.setAttribute("aria-valuenow", Math.round(state.split));
  divider.setAttribute("aria-valuetext", `${Math.round(state.split)} % native`);
}

function place(event) {
  const box = stage.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width;
  const y = (event.clientY - box.top) / box.height;
  return [Math.min(1, Math.max(0, x)), Math.min(1, Math.max(0, y))];
}

let dragging = false;
let lent = false; // the loupe came with the clip that the page began with

stage.addEventListener("pointerdown", (event) => {
  if (root.dataset.state !== "ready" || event.button > 0) return;
  const moveLoupe = state.loupe && event.pointerType !== "mouse" && !divider.contains(event.target);
  dragging = !moveLoupe;
  stage.setPointerCapture(event.pointerId);
  follow(event);
});
stage.addEventListener("pointermove", follow);
stage.addEventListener("pointerup", () => { dragging = false; });
stage.addEventListener("pointercancel", () => { dragging = false; });

function follow(event) {
  if (root.dataset.state !== "ready") return;
  state.at = place(event);
  if (dragging) setSplit(state.at[0] * 100);
  else if (state.loupe) drawLoupe();
}

divider.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 10 : 2;
  const moves = {
    ArrowLeft: state.split - step, ArrowDown: state.split - step,
    ArrowRight: state.split + step, ArrowUp: state.split + step,
    PageDown: state.split - 10, PageUp: state.split + 10, Home: 0, End: 100,
  };
  if (!(event.key in moves)) return;
  event.preventDefault();
  event.stopPropagation();
  setSplit(moves[event.key]);
});

// --- loupe: the same spot of both clips, one clip pixel on one, two or four screen pixels -------

function drawLoupe() {
  if (!state.loupe || root.dataset.state !== "ready" || root.classList.contains("uc-alone")) return;
  const ratio = window.devicePixelRatio || 1;
  const side = Math.round(Math.min(200, Math.max(96, stage.clientWidth * 0.24)));
  for (const [video, name] of [[over, "left"], [under, "right"]]) {
    const canvas = find(`loupe-${name}`);
    const pixels = Math.round(side * ratio);
    if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
    canvas.style.width = canvas.style.height = `${side}px`;
    const span = pixels / state.loupe;
    const x = Math.round(state.at[0] * video.videoWidth - span / 2);
    const y = Math.round(state.at[1] * video.videoHeight - span / 2);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, pixels, pixels);
    pen.drawImage(video, x, y, span, span, 0, 0, pixels, pixels);
  }
  const width = loupe.offsetWidth || side * 2;
  const height = loupe.offsetHeight || side;
  const left = state.at[0] * stage.clientWidth;
  const top = state.at[1] * stage.clientHeight;
  const above = top - height - 18 > 0;
  loupe.style.left = `${Math.min(stage.clientWidth - width - 6, Math.max(6, left - width / 2))}px`;
  loupe.style.top = `${above ? top - height - 18 : Math.min(stage.clientHeight - height - 6, top + 18)}px`;
}

function setLoupe(scale) {
  state.loupe = scale;
  loupe.hidden = !scale;
  const button = find("zoom");
  button.setAttribute("aria-pressed", scale > 0);
  button.textContent = scale ? `Loupe ${scale}:1` : "Loupe off";
  drawLoupe();
}

find("zoom").addEventListener("click", () => {
  lent = false;
  setLoupe(LOUPES[(LOUPES.indexOf(state.loupe) + 1) % LOUPES.length]);
});
stage.addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 0.1 : 0.02;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (event.key === " ") { event.preventDefault(); toggle(); return; }
  if (!state.loupe || !(event.key in moves)) return;
  event.preventDefault();
  state.at = state.at.map((value, axis) => Math.min(1, Math.max(0, value + moves[event.key][axis])));
  drawLoupe();
});

// --- playing in step: the native clip leads ----------------------------------------------------

const frameNow = () => Math.min(state.frames - 1, Math.floor(over.currentTime * state.fps + 0.01));

function showFrame() {
  const frame = Math.max(0, frameNow());
  seek.value = frame;
  find("time").textContent = `${frame + 1} / ${state.frames}`;
}

function tick() {
  if (!element.isConnected) return;
  if (root.dataset.state === "ready") {
    const apart = Math.abs(under.currentTime - over.currentTime);
    const lapped = apart > (over.duration || 1) / 2; // one has begun anew a moment earlier
    if (apart > 0.6 / state.fps && !lapped && !under.seeking) under.currentTime = over.currentTime;
    if (!over.paused && under.paused) under.play().catch(() => {});
    showFrame();
    followClips();
  }
  requestAnimationFrame(tick);
}

let drawn = null; // what the loupe shows; drawing costs more than all else here

function followClips() {
  const now = `${over.currentTime} ${under.currentTime} ${over.src} ${under.src}`;
  if (now === drawn) return;
  drawLoupe();
  const there = [over, under].every((video) => video.readyState >= 2 && !video.seeking);
  drawn = there ? now : null;
}

function playing(on) {
  root.classList.toggle("uc-playing", on);
  find("play").setAttribute("aria-label", on ? "Pause" : "Play");
}

function toggle() {
  if (over.paused) { over.play().catch(() => {}); under.play().catch(() => {}); }
  else { over.pause(); under.pause(); }
}

function toFrame(frame) {
  over.pause();
  under.pause();
  const time = (Math.min(state.frames - 1, Math.max(0, frame)) + 0.5) / state.fps;
  over.currentTime = under.currentTime = time;
}

over.addEventListener("play", () => playing(true));
over.addEventListener("pause", () => { playing(false); under.pause(); });
find("play").addEventListener("click", toggle);
find("back").addEventListener("click", () => toFrame(frameNow() - 1));
find("next").addEventListener("click", () => toFrame(frameNow() + 1));
seek.addEventListener("input", () => toFrame(Number(seek.value)));
find("speed").addEventListener("click", () => {
  state.speed = (state.speed + 1) % SPEEDS.length;
  over.playbackRate = under.playbackRate = SPEEDS[state.speed];
  const name = { 1: "1×", 0.5: "½×", 0.25: "¼×" }[SPEEDS[state.speed]];
  find("speed").textContent = name;
  find("speed").setAttribute("aria-label", `Speed ${name}`);
});
find("full").addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else if (root.requestFullscreen) root.requestFullscreen().catch(() => {});
});

// --- values ------------------------------------------------------------------------------------

for (const video of [over, under]) {
  video.addEventListener("error", () => {
    if (video.getAttribute("src")) { root.dataset.state = "error"; find("error").hidden = false; }
  });
  video.addEventListener("loadedmetadata", () => {
    if (video === over) root.style.setProperty("--shape", `${over.videoWidth} / ${over.videoHeight}`);
  });
}

function showRight() {
  const value = props.value || {};
  const file = value[state.right];
  root.classList.toggle("uc-alone", !file); // the native clip is shown before there is another one
  if (!file) { under.removeAttribute("src"); under.load(); return; }
  under.src = file.url;
  find("tag-right").textContent = (value.labels || {})[state.right] || state.right;
  loupe.querySelectorAll("figcaption")[1].textContent = state.right === "upscaled" ? "upscaled" : "base at full size";
  find("swap").textContent = state.right === "upscaled" ? "right: upscaled" : "right: base model at full size";
  under.playbackRate = SPEEDS[state.speed];
  under.currentTime = over.currentTime;
  if (!over.paused) under.play().catch(() => {});
}

find("swap").addEventListener("click", () => {
  state.right = state.right === "upscaled" ? "base_native" : "upscaled";
  showRight();
});

function load() {
  const value = props.value;
  find("error").hidden = true;
  if (!value || !value.native) {
    root.dataset.state = "empty";
    over.removeAttribute("src");
    under.removeAttribute("src");
    return;
  }
  state.frames = value.frames;
  state.fps = value.fps;
  state.right = "upscaled";
  seek.max = state.frames - 1;
  if (value.poster) over.poster = value.poster.url;
  else over.removeAttribute("poster");
  over.src = value.native.url;
  over.playbackRate = SPEEDS[state.speed];
  find("tag-left").textContent = (value.labels || {}).native || "native";
  find("swap").hidden = !value.base_native;
  root.dataset.state = "ready";
  showRight();
  if (value.loupe) state.at = value.loupe;
  if (value.loupe || lent) setLoupe(value.loupe ? 1 : 0);
  lent = Boolean(value.loupe);
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (!calm) { over.play().catch(() => {}); under.play().catch(() => {}); }
}

setSplit(50);
setLoupe(0);
watch("value", load);
load();
requestAnimationFrame(tick);
