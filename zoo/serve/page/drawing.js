// What is drawn of an answer. Texts get into the page as text alone (textContent): nothing of theirs is ever read as HTML.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(Boolean));
  return element;
}

const UNITS = { seconds: "s", loudness: "dB", "loudness variation": "dB", pitch: "Hz", "pitch variation": "Hz", rate: "syllables/s", "longest pause": "s" };
const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function seconds(value) {
  if (value == null) return "";
  const minutes = Math.floor(value / 60);
  return `${minutes}:${(value - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

export function bars(scores) {
  const list = make("div", { class: "bars" });
  for (const [label, p] of Object.entries(scores)) {
    const fill = make("i");
    fill.style.width = `${Math.round(1000 * p) / 10}%`;
    list.append(make("span", { text: label }), make("span", { class: "bar", "aria-hidden": "true" }, fill),
      make("span", { class: "number", text: p.toFixed(2) }));
  }
  return list;
}

export function voiceCurve(loudness, speech) {
  if (!loudness || loudness.times.length < 2) return null;
  const end = loudness.times.at(-1), low = Math.min(...loudness.decibels), high = Math.max(...loudness.decibels, low + 1);
  const x = (t) => (1000 * t) / end, y = (d) => 95 - (90 * (d - low)) / (high - low);
  const picture = svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img",
    "aria-label": `Loudness over ${end.toFixed(1)} seconds; speech is shaded` });
  for (const [from, to] of speech) picture.append(svg("rect", { class: "speech", x: x(from), y: 0, width: x(to) - x(from), height: 100 }));
  const points = loudness.times.map((t, i) => `${x(t).toFixed(1)},${y(loudness.decibels[i]).toFixed(1)}`);
  picture.append(svg("polyline", { class: "curve", points: points.join(" ") }));
  const note = `${low.toFixed(0)} to ${high.toFixed(0)} dB over ${end.toFixed(1)} s; shaded: somebody speaks`;
  return make("figure", {}, picture, make("figcaption", { class: "note", text: note }));
}

const best = (probabilities) => Object.entries(probabilities).reduce((a, b) => (b[1] > a[1] ? b : a));

// The faces that were found, cut out of the film that lies in the browser.
export function faceStrip(faces, start, source) {
  const list = make("ul", { class: "faces" });
  const shown = faces.filter((face) => face.described);
  const step = Math.max(1, Math.ceil(shown.length / 6));
  const cut = [];
  shown.forEach((face, i) => {
    if (i % step) return;
    const canvas = make("canvas", { width: 144, height: 144 });
    const [label, p] = best(face.probabilities);
    list.append(make("li", {}, canvas, make("span", { text: `${seconds(start + face.time)} ${label} ${p.toFixed(2)}` })));
    cut.push([canvas, face]);
  });
  if (source) cutOut(cut, start, source);
  return shown.length ? list : null;
}

async function cutOut(cut, start, source) {
  const picture = source.picture ? await loaded(make("img"), source.url, "load") : await loaded(make("video", { muted: true }), source.url, "loadeddata");
  if (!picture) return;
  for (const [canvas, face] of cut) {
    if (!source.picture) await seek(picture, start + face.time);
    const width = picture.videoWidth || picture.naturalWidth, height = picture.videoHeight || picture.naturalHeight;
    const [left, top, right, bottom] = face.box;
    canvas.getContext("2d").drawImage(picture, left * width, top * height, (right - left) * width, (bottom - top) * height, 0, 0, 144, 144);
  }
}

const loaded = (element, url, event) => new Promise((resolve) => {
  element.addEventListener(event, () => resolve(element), { once: true });
  element.addEventListener("error", () => resolve(null), { once: true });
  element.src = url;
});

const seek = (video, time) => new Promise((resolve) => {
  video.addEventListener("seeked", resolve, { once: true });
  setTimeout(resolve, 1500); // a film that cannot be searched
  video.currentTime = Math.min(time, Number.isFinite(video.duration) ? Math.max(0, video.duration - 0.05) : time);
});

// Boxes over the film that plays: the faces that were looked at within a quarter of a second.
export function drawBoxes(canvas, video, faces) {
  const width = (canvas.width = canvas.clientWidth), height = (canvas.height = canvas.clientHeight);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  if (!video.videoWidth) return;
  const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
  const w = video.videoWidth * scale, h = video.videoHeight * scale, dx = (width - w) / 2, dy = (height - h) / 2;
  const near = faces.filter((face) => Math.abs(face.at - video.currentTime) < 0.25);
  const nearest = Math.min(...near.map((face) => Math.abs(face.at - video.currentTime)));
  context.font = "13px system-ui, sans-serif";
  for (const face of near.filter((f) => Math.abs(f.at - video.currentTime) === nearest)) {
    const [left, top, right, bottom] = face.box;
    context.lineWidth = face.described ? 3 : 1.5;
    context.strokeStyle = face.described ? "#ffd166" : "#ffffff";
    context.strokeRect(dx + left * w, dy + top * h, (right - left) * w, (bottom - top) * h);
    if (!face.described) continue;
    const [label, p] = best(face.probabilities);
    context.fillStyle = "#ffd166";
    context.fillText(`${label} ${p.toFixed(2)}`, dx + left * w, Math.max(14, dy + top * h - 6));
  }
}

function partCard(name, title, part, extra) {
  const card = make("section", { class: part.used ? "card" : "card off", "aria-label": title }, make("h3", { text: title }));
  if (!part.used) {
    card.append(make("p", { text: `Not used: ${part.why}.` }));
    const words = part.seen || part.heard;
    if (words) card.append(make("p", { class: "note", text: words }));
    return card;
  }
  if (part.label) card.append(make("p", { class: "says", text: part.label }));
  else if (part.why_no_label) card.append(make("p", { class: "note", text: `No label: ${part.why_no_label}.` }));
  if (part.scores) card.append(bars(part.scores));
  for (const words of [part.said && `“${part.said}”`, part.seen, part.heard]) if (words) card.append(make("p", { text: words }));
  card.append(...extra.filter(Boolean));
  if (part.measures) {
    const list = make("dl");
    for (const [measure, value] of Object.entries(part.measures)) list.append(make("dt", { text: measure }), make("dd", { text: `${Math.round(100 * value) / 100} ${UNITS[measure] || ""}` }));
    card.append(list);
  }
  if (part.system) {
    const m = part.measured;
    const score = m ? `, ${m.metric.replace("_", " ")} ${m.value} on ${m.corpus}${m.split ? ` ${m.split}` : ""}${m.n ? `, n = ${m.n}` : ""}` : "";
    card.append(make("p", { class: "note", text: `${part.system}${score}` }));
  }
  return card;
}

// One system's answer about one utterance.
export function answerCards(name, row, start, source) {
  const box = make("section", { "aria-label": `Answer of ${name}` }, make("h2", { text: name === "parts" ? "Words, face, voice" : name }));
  if (row.error) box.append(make("p", { class: "card off", text: row.error }));
  for (const damage of row.damaged || []) box.append(make("p", { class: "note", text: `A part of it was used: ${damage}` }));
  if (!row.parts) {
    if (row.error) return box;
    const card = make("div", { class: "card" }, make("p", { class: "says", text: row.label || "no label" }));
    if (row.scores) card.append(bars(row.scores));
    if (row.text && row.text !== row.label) card.append(make("p", { text: `It wrote: “${row.text}”` }));
    card.append(make("p", { class: "note", text: `read: ${row.used.join(", ") || "nothing"}` }));
    for (const [part, why] of Object.entries(row.unused)) if (why !== "not given") card.append(make("p", { class: "note", text: `not read: ${part}, ${why}` }));
    box.append(card);
    return box;
  }
  const description = row.description;
  const overall = row.label ? `${row.label} ` : "no label ";
  box.append(make("p", { class: "says" }, overall, make("small", { text: row.label ? `from the words, the one part whose answers were tested` : row.why_no_label || "" })));
  const cards = make("div", { class: "systems" });
  const { text, face, voice } = row.parts;
  if (text) cards.append(partCard("text", "Words", text, []));
  if (face) cards.append(partCard("face", "Face", face, [description && faceStrip(description.faces, start, source)]));
  if (voice) cards.append(partCard("voice", "Voice", voice, [description && voiceCurve(description.loudness, description.speech)]));
  box.append(cards);
  return box;
}
