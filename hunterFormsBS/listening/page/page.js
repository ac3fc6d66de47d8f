// The page: songs sent, their progress, and one song to listen to.

import {Player, clock} from "./player.js";
import {Timeline} from "./timeline.js";

const $ = (id) => document.getElementById(id);
const ENDED = ["done", "failed", "stopped"];
const SECONDS_UNTIL_RETRY = 3;

function element(kind, properties = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Return what the server says is wrong, in a sentence. */
async function sentence(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return text;
  }
}

async function ask(method, path) {
  const answer = await fetch(path, {method});
  if (!answer.ok) throw new Error(await sentence(answer));
  return answer.status === 204 ? null : answer.json();
}

const fail = (text) => { $("error").textContent = text; };
const trying = (act) => act().catch((error) => fail(error.message));

// ---- what can be chosen

async function offer() {
  const {models, formats, limits} = await ask("GET", "/api/options");
  const options = (wanted) => models.filter(({fetched}) => fetched === wanted).map(({id, name}) => element("option", {value: id, textContent: name}));
  const here = element("optgroup", {label: "On this machine"}, ...options(false));
  const elsewhere = element("optgroup", {label: "Fetched when first used"}, ...options(true));
  $("model").replaceChildren(...[here, elsewhere].filter((group) => group.children.length));
  $("format").replaceChildren(...formats.map((format) => element("option", {value: format, textContent: format})));
  $("limits").textContent = `Up to ${limits.bytes / 1e6} MB and ${limits.minutes} minutes each. The newest ${limits.kept} songs are kept for ${limits.hours} hours, at most until the program ends.`;
}

// ---- sending

let chosen = [], waiting = [], sender = null;

function choose(files) {
  chosen = [...files];
  const size = chosen.reduce((sum, file) => sum + file.size, 0) / 1e6;
  const names = chosen.length > 3 ? `${chosen.length} songs` : chosen.map((file) => file.name).join(", ");
  $("chosen").textContent = chosen.length ? `${names} (${size.toFixed(1)} MB)` : "Drop songs here, or press to choose";
}

/** Send one file; the promise is that of the answer's status and sentence. */
function send({file, query}) {
  return new Promise((resolve, reject) => {
    sender = new XMLHttpRequest();
    sender.open("POST", `/api/songs?${query}`);
    sender.upload.onprogress = ({loaded, total}) => { $("sent").value = loaded / total; };
    sender.onload = () => {
      let said = sender.responseText;
      try { said = JSON.parse(said).error; } catch { /* It is a sentence itself. */ }
      resolve([sender.status, said]);
    };
    sender.onerror = () => reject(new Error("The song could not be sent: the program does not answer"));
    sender.onabort = () => resolve([0, ""]);
    sender.send(file);
  });
}

async function sendAll() {
  $("sending").hidden = false;
  while (waiting.length) {
    const {file} = waiting[0], others = waiting.length > 1 ? `, ${waiting.length - 1} more` : "";
    $("sent").value = 0;
    $("sending-text").textContent = `Sending ${file.name}${others}`;
    const [status, said] = await send(waiting[0]);
    if (status === 429 && waiting.length) {
      $("sending-text").textContent = `${said}; trying again`;
      await new Promise((resolve) => setTimeout(resolve, 1000 * SECONDS_UNTIL_RETRY));
      continue;
    }
    waiting.shift();
    if (status && status !== 201) fail(`${file.name}: ${said}`);
  }
  $("sending").hidden = true;
}

$("files").addEventListener("change", () => choose($("files").files));
for (const name of ["dragover", "dragleave", "drop"]) $("drop").addEventListener(name, (event) => {
  event.preventDefault();
  $("drop").classList.toggle("over", name === "dragover");
  if (name === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files);
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  fail("");
  if (!chosen.length) return fail("Choose a song");
  const idle = !waiting.length;
  for (const file of chosen) {
    const query = new URLSearchParams({name: file.name, model: $("model").value, format: $("format").value, overlap: $("overlap").value});
    waiting.push({file, query});
  }
  $("files").value = "";
  choose([]);
  if (idle) trying(sendAll).finally(() => { waiting = []; $("sending").hidden = true; });
});
$("cancel").addEventListener("click", () => { waiting = []; sender?.abort(); });

// ---- songs

const items = new Map(); // by the identity of the song
let songs = [];

function left(seconds) {
  return seconds < 90 ? `about ${Math.ceil(seconds)} s left` : `about ${Math.round(seconds / 60)} min left`;
}

function state(song) {
  if (song.state === "waiting") return song.before ? `waiting, ${song.before} before it` : "waiting";
  if (song.state !== "working") return song.message || song.state;
  const remaining = song.seconds_left === null ? "" : `, ${left(song.seconds_left)}`;
  return `${song.message}${remaining}`;
}

function item(song) {
  const title = element("b", {textContent: song.name}), details = element("span", {className: "details"});
  const bar = element("progress", {"aria-label": `Progress of ${song.name}`}), told = element("span");
  const button = (text, act, kind = "") => element("button", {type: "button", className: kind, textContent: text, "aria-label": `${text}: ${song.name}`, onclick: act});
  const listen = button("Listen", () => trying(() => open(song.id, true)), "main");
  const stop = button("Stop", () => trying(() => ask("POST", `/api/songs/${song.id}/stop`)));
  const remove = button("Remove", () => trying(() => ask("DELETE", `/api/songs/${song.id}`)));
  const warnings = element("div");
  const row = element("div", {className: "row"}, element("div", {className: "title"}, title, " ", details), bar, told, listen, stop, remove);
  return {node: element("li", {}, row, warnings), details, bar, told, listen, stop, remove, warnings, said: ""};
}

function update(shown, song) {
  shown.details.textContent = `${song.model}, ${song.format}`;
  const working = !ENDED.includes(song.state);
  shown.bar.hidden = shown.stop.hidden = !working;
  shown.remove.hidden = working;
  shown.listen.hidden = song.state !== "done";
  if (song.total) Object.assign(shown.bar, {max: song.total, value: song.done});
  else shown.bar.removeAttribute("value");
  shown.bar.setAttribute("aria-valuetext", state(song));
  shown.told.textContent = song.state === "done" ? "" : state(song);
  shown.told.className = song.state === "failed" ? "error" : "";
  const said = song.warnings.join("\n");
  if (shown.said !== said) shown.warnings.replaceChildren(...song.warnings.map((text) => element("p", {className: "warning", textContent: `Warning: ${text}`})));
  shown.said = said;
}

function show(now) {
  const last = songs;
  songs = now;
  for (const song of songs) {
    const before = last.find(({id}) => id === song.id);
    if (before && before.state !== song.state) $("news").textContent = `${song.name}: ${song.state} ${song.message}`;
    if (!items.has(song.id)) {
      items.set(song.id, item(song));
      $("songs").prepend(items.get(song.id).node); // the newest first
    }
    update(items.get(song.id), song);
    if (before && before.state !== "done" && song.state === "done" && !opened) trying(() => open(song.id));
  }
  for (const [id, {node}] of items) if (!songs.some((song) => song.id === id)) {
    const focused = node.contains(document.activeElement);
    node.remove();
    items.delete(id);
    if (opened === id) close();
    if (focused) $("songs-title").focus();
  }
  $("none").hidden = songs.length > 0;
  const wanted = location.hash.slice(1);
  if (wanted && !opened && songs.some((song) => song.id === wanted && song.state === "done")) trying(() => open(wanted));
}

// ---- following what happens, while somebody looks

let events = null;

function follow() {
  events?.close();
  events = null;
  if (document.hidden && !opened) return; // Browsers keep few connections for all tabs together.
  events = new EventSource("/api/events");
  events.addEventListener("songs", (event) => {
    $("connection").textContent = "";
    show(JSON.parse(event.data));
  });
  events.onerror = () => {
    const over = events.readyState === EventSource.CLOSED;
    $("connection").textContent = over ? "This page is too old: open the address that the program prints when it starts." : "The program does not answer: it has ended, or the connection is interrupted.";
  };
}
document.addEventListener("visibilitychange", follow);

// ---- listening

const timeline = new Timeline();
export const player = new Player(() => {
  $("play").textContent = player.playing ? "Pause" : "Play";
  tick();
});
let opened = "", loading = new AbortController();

function close() {
  loading.abort();
  player.pause();
  opened = "";
  $("listen").hidden = true;
  history.replaceState(null, "", location.pathname);
}

async function open(id, focused = false) {
  const song = songs.find((each) => each.id === id);
  close();
  opened = id;
  history.replaceState(null, "", `#${id}`);
  loading = new AbortController();
  const {signal} = loading, path = `/api/songs/${id}`;
  $("listen-title").textContent = `Loading ${song.name}`;
  $("tracks").replaceChildren();
  $("listen").hidden = false;
  try {
    await player.load(song.tracks.map((name) => [name, address(id, name)]), (done) => {
      $("listen-title").textContent = `Loading ${song.name}, ${done} of ${song.tracks.length} tracks`;
    }, signal);
  } catch (error) {
    if (signal.aborted) return;
    close();
    throw error;
  }
  $("listen-title").textContent = song.name;
  Object.assign($("position"), {max: player.duration, value: 0});
  $("zip").href = `${path}/zip`;
  $("more").hidden = !song.pictures.length;
  $("more").open = false;
  if (song.pictures.length) {
    $("masks").alt = `How much of each band each stem of ${song.name} keeps, over its first seconds`;
    $("masks").loading = "lazy";
    $("masks").src = `${path}/pictures/masks`;
  }
  timeline.spectrograms = false;
  for (const name of ["spectrograms", "loop"]) $(name).setAttribute("aria-pressed", "false");
  $("zoom").value = 0;
  const ruler = element("div", {className: "wave", id: "ruler"});
  const rows = player.tracks.map((track) => row(id, track));
  $("tracks").replaceChildren(element("div", {className: "track"}, ruler), ...rows.map(([node]) => node));
  timeline.show([[null, ruler], ...rows.map(([, wave], index) => [player.tracks[index], wave])], player.duration);
  magnify();
  tick();
  if (focused) $("listen-title").focus();
}

const address = (id, name) => `/api/songs/${id}/tracks/${encodeURIComponent(name)}`;

function row(id, track) {
  const toggle = (text, property) => {
    const button = element("button", {type: "button", textContent: text, "aria-label": `${text} ${track.name}`, "aria-pressed": String(track[property])});
    button.onclick = () => {
      track[property] = !track[property];
      button.setAttribute("aria-pressed", String(track[property]));
      player.mix();
      timeline.draw();
    };
    return button;
  };
  const volume = element("input", {type: "range", min: 0, max: 100, value: 100, "aria-label": `Volume of ${track.name}`, "aria-valuetext": "100 %"});
  volume.oninput = () => {
    track.volume = Number(volume.value) / 100;
    volume.setAttribute("aria-valuetext", `${volume.value} %`);
    player.mix();
  };
  const link = element("a", {className: "button", href: address(id, track.name), download: "", textContent: "Download", "aria-label": `Download ${track.name}`});
  const wave = element("div", {className: "wave"});
  const controls = element("div", {className: "row"}, element("span", {className: "name", textContent: track.name}), toggle("Mute", "muted"), toggle("Solo", "solo"), volume, link);
  return [element("div", {className: "track", role: "group", "aria-label": track.name}, controls, wave), wave];
}

function tick() {
  const position = player.position, text = `${clock(position)} of ${clock(player.duration)}`;
  $("clock").textContent = text.replace(" of ", " / ");
  $("position").value = position;
  $("position").setAttribute("aria-valuetext", text);
  timeline.point(position);
  if (player.playing && position >= player.duration && !player.looping) player.pause();
  if (player.playing) requestAnimationFrame(tick);
}

/** Loop between two positions, or not at all. */
function loop(start, end, on) {
  player.change(() => {
    const [first, last] = [Math.min(start, end), Math.max(start, end)];
    player.loop = last - first >= 0.05 ? [first, last] : null;
    player.looping = on;
  });
  showLoop();
}

function showLoop() {
  $("loop").setAttribute("aria-pressed", String(player.looping));
  $("loop-text").textContent = player.loop ? `${clock(player.loop[0])} to ${clock(player.loop[1])}` : "";
  timeline.draw();
}

function magnify() {
  const factor = 2 ** Number($("zoom").value);
  $("zoom").setAttribute("aria-valuetext", `${factor.toFixed(1)} times`);
  timeline.zoom(factor, player.position);
  timeline.point(player.position);
}

const toggle = () => (player.playing ? player.pause() : player.play());
const seek = (position) => { player.seek(position); tick(); };

timeline.selected = () => (player.looping ? player.loop ?? [0, player.duration] : player.loop);
timeline.onSeek = seek;
timeline.onSelect = (start, end, finished) => {
  if (finished) {
    loop(start, end, true);
    seek(Math.min(start, end));
  } else {
    player.loop = [Math.min(start, end), Math.max(start, end)];
    showLoop();
  }
};
$("play").addEventListener("click", toggle);
$("position").addEventListener("input", () => seek(Number($("position").value)));
$("zoom").addEventListener("input", magnify);
$("loop").addEventListener("click", () => {
  const [start, end] = player.loop ?? [0, player.duration];
  loop(start, end, !player.looping);
});
$("loop-start").addEventListener("click", () => loop(player.position, Math.max(player.loop?.[1] ?? player.duration, player.position), true));
$("loop-end").addEventListener("click", () => loop(Math.min(player.loop?.[0] ?? 0, player.position), player.position, true));
$("spectrograms").addEventListener("click", () => {
  timeline.spectrograms = !timeline.spectrograms;
  $("spectrograms").setAttribute("aria-pressed", String(timeline.spectrograms));
  timeline.draw();
});
document.addEventListener("keydown", (event) => {
  const control = event.target.closest("button, a, select, summary, input:not([type=range])");
  if (event.key !== " " || control || $("listen").hidden || !player.tracks.length) return;
  event.preventDefault();
  toggle();
});

trying(offer);
follow();
