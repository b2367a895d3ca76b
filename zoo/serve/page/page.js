import { answerCards, drawBoxes, make, seconds } from "/drawing.js";

const $ = (id) => document.getElementById(id);
const PICTURES = [".jpg", ".jpeg", ".png"];
// asked: the file that the answer is about, which is not drawn upon another one
const state = { file: null, url: null, answer: null, asked: null, chosen: 0, request: null, recorder: null, settings: null };

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

// ---- what is asked
function kind() {
  return document.querySelector("input[name=kind]:checked").value;
}

function showKind() {
  $("clip-part").hidden = kind() !== "clip";
  $("lines-part").hidden = kind() !== "lines";
}

function ending(name) {
  return name.includes(".") ? name.slice(name.lastIndexOf(".")).toLowerCase() : "";
}

function setFile(file) {
  if (state.url) URL.revokeObjectURL(state.url);
  state.file = file;
  state.url = file && URL.createObjectURL(file);
  $("preview").hidden = !file;
  $("file-name").textContent = file ? `${file.name}, ${(file.size / 2 ** 20).toFixed(1)} MB` : "";
  const picture = file && PICTURES.includes(ending(file.name));
  if (file && picture) { $("video").removeAttribute("src"); $("video").poster = state.url; $("video").load(); }
  else if (file) { $("video").removeAttribute("poster"); $("video").src = state.url; }
  else { $("video").removeAttribute("src"); $("video").load(); }
  if (state.answer) showDetail();
}

function source() {
  return state.asked && state.asked === state.file && { url: state.url, picture: PICTURES.includes(ending(state.file.name)) };
}

async function record() {
  if (state.recorder) { state.recorder.stop(); return; }
  let stream;
  $("record").disabled = true; // while the browser asks: a second recorder would never be stopped
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: true });
  } catch (error) {
    say(`The camera or microphone cannot be used (${error.name}); allow it for this page, or choose a file.`, true);
    return;
  } finally {
    $("record").disabled = false;
  }
  const pieces = [];
  const type = ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"].find((t) => MediaRecorder.isTypeSupported(t));
  state.recorder = new MediaRecorder(stream, { mimeType: type });
  state.recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
  state.recorder.addEventListener("stop", () => {
    stream.getTracks().forEach((track) => track.stop());
    state.recorder = null;
    $("record").textContent = "Record with camera and microphone";
    setFile(new File(pieces, `recording.${type.includes("mp4") ? "mp4" : "webm"}`, { type }));
    say("Recorded. Press Answer.");
  });
  state.recorder.start();
  $("record").textContent = "Stop recording";
  say("Recording …");
}

function lines() {
  if (kind() === "clip") return $("text").value.trim() ? [["", $("text").value]] : [];
  return $("lines").value.split("\n").filter((line) => line.trim()).map((line) => {
    const named = /^\s*([^:]{1,40}):\s+(.*)$/.exec(line);
    return named ? [named[1], named[2]] : ["", line];
  });
}

function form() {
  const data = new FormData();
  const systems = [$("system").value, $("other").value].filter((name, i, all) => name && all.indexOf(name) === i);
  const parts = [...document.querySelectorAll("#parts input:checked")].map((box) => box.value);
  const clip = kind() === "clip";
  const subtitles = clip && $("subtitles").files[0];
  data.append("question", JSON.stringify({ systems, parts, lines: lines(), segments: clip && $("segments").checked }));
  if (clip && state.file) data.append("clip", state.file, state.file.name);
  if (subtitles) data.append("subtitles", subtitles, subtitles.name);
  return data;
}

async function ask(event) {
  event.preventDefault();
  if (state.request || !state.settings) return;
  const asked = kind() === "clip" ? state.file : null; // another may be chosen before the answer is there
  if (kind() === "clip" && !asked && !lines().length && !$("subtitles").files[0]) return say("Choose a clip, record one, or write what is said.", true);
  if (kind() === "lines" && !lines().length) return say("Write at least one line.", true);
  if (asked && asked.size > state.settings.megabytes * 2 ** 20) {
    return say(`The file has ${(asked.size / 2 ** 20).toFixed(0)} MB; this server takes ${state.settings.megabytes} MB at most.`, true);
  }
  if (!document.querySelector("#parts input:checked")) return say("Choose at least one part: words, face or voice.", true);
  state.request = new AbortController();
  $("go").disabled = true;
  $("cancel").hidden = false;
  say("Working on it …");
  const started = performance.now();
  try {
    const response = await fetch("/api/label", { method: "POST", body: form(), signal: state.request.signal });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error || `the server says ${response.status}`);
    state.answer = { ...answer, file: asked ? asked.name : null };
    state.asked = asked;
    state.chosen = 0;
    showAnswer();
    const out = answer.left_out.length ? ` Left out of the subtitles: ${answer.left_out.join("; ")}.` : "";
    say(`Answered in ${((performance.now() - started) / 1000).toFixed(1)} s.${out}`);
    $("answer").focus({ preventScroll: false });
  } catch (error) {
    say(error.name === "AbortError" ? "Cancelled." : error.message, error.name !== "AbortError");
  } finally {
    state.request = null;
    $("go").disabled = false;
    $("cancel").hidden = true;
  }
}

// ---- the answer
function showAnswer() {
  const { utterances, systems } = state.answer;
  $("result").hidden = false;
  $("timeline-part").hidden = utterances.length < 2;
  $("timeline").replaceChildren(...utterances.map((utterance, i) => {
    const labels = systems.map((system) => system.rows[i].label || "–").join(" / ");
    const when = utterance.start == null ? utterance.id : `${seconds(utterance.start)}–${seconds(utterance.end)}`;
    const words = (utterance.speaker ? `${utterance.speaker}: ` : "") + (utterance.text || "");
    return make("li", {}, make("button", { type: "button", "aria-current": String(i === state.chosen), onclick: () => choose(i) },
      make("span", { class: "when", text: when }), make("span", { class: "words", text: words }), make("span", { class: "label", text: labels })));
  }));
  showDetail();
}

function choose(i) {
  state.chosen = i;
  [...$("timeline").querySelectorAll("button")].forEach((button, k) => button.setAttribute("aria-current", String(k === i)));
  const start = state.answer.utterances[i].start;
  if (start != null && source()) $("video").currentTime = start;
  showDetail();
}

function showDetail() {
  const { utterances, systems } = state.answer, i = state.chosen, start = utterances[i].start || 0;
  $("detail").replaceChildren(...systems.map((system) => answerCards(system.name, system.rows[i], start, source())));
  boxes();
}

function boxes() {
  const faces = [];
  if (state.answer && source()) {
    for (const system of state.answer.systems) {
      system.rows.forEach((row, i) => {
        const start = state.answer.utterances[i].start || 0;
        for (const face of row.description ? row.description.faces : []) faces.push({ ...face, at: start + face.time });
      });
    }
  }
  drawBoxes($("boxes"), $("video"), faces);
}

function download() {
  const blob = new Blob([JSON.stringify(state.answer, null, 1)], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(blob), download: "answer.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- the beginning
async function got(path) {
  const reply = await fetch(path);
  const content = await reply.json();
  if (!reply.ok) throw new Error(content.error);
  return content;
}

async function begin() {
  try {
    state.settings = await got("/api/systems");
  } catch (error) {
    return say(error.name === "TypeError" ? "The server does not answer. Is zoo serve still running?" : error.message, true);
  }
  for (const { name, what } of state.settings.systems) {
    for (const list of [$("system"), $("other")]) list.append(make("option", { value: name, text: name === "parts" ? "words, face, voice" : name, title: what }));
  }
  const names = { text: "words", face: "face", voice: "voice" };
  $("parts").replaceChildren(...state.settings.parts.map((part) => make("label", {}, make("input", { type: "checkbox", value: part, checked: true }), ` ${names[part]}`)));
  $("file").accept = state.settings.endings.join(",");
  about();
}

function about() {
  const chosen = [$("system").value, $("other").value].filter(Boolean);
  $("about").textContent = state.settings.systems.filter((system) => chosen.includes(system.name)).map((system) => system.what).join(" · ");
  $("parts").hidden = !chosen.includes("parts");
}

async function showExamples() {
  if (!$("examples-part").open || $("examples").children.length) return;
  let rows;
  try {
    rows = await got("/api/examples");
  } catch (error) {
    return say(`The examples cannot be shown: ${error.message}`, true);
  }
  $("examples").replaceChildren(...rows.map((row) => make("li", {}, make("button", {
    type: "button",
    text: `${row.speaker}: ${row.text} (${row.label})`,
    onclick: async () => {
      const blob = await (await fetch(`/api/examples/${row.number}`)).blob();
      document.querySelector("input[name=kind][value=clip]").checked = true;
      showKind();
      setFile(new File([blob], `example-${row.number}.mp4`, { type: "video/mp4" }));
      $("text").value = row.text;
      say("An example is chosen. Press Answer.");
    },
  }))));
}

$("form").addEventListener("submit", ask);
$("cancel").addEventListener("click", () => state.request && state.request.abort());
$("record").addEventListener("click", record);
$("forget").addEventListener("click", () => { $("file").value = ""; setFile(null); });
$("file").addEventListener("change", () => $("file").files[0] && setFile($("file").files[0]));
$("download").addEventListener("click", download);
$("examples-part").addEventListener("toggle", showExamples);
for (const radio of document.querySelectorAll("input[name=kind]")) radio.addEventListener("change", showKind);
for (const id of ["system", "other"]) $(id).addEventListener("change", about);
for (const event of ["timeupdate", "seeked", "loadeddata"]) $("video").addEventListener(event, boxes);
addEventListener("resize", boxes);
for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  $("drop").addEventListener(event, (e) => { e.preventDefault(); $("drop").classList.toggle("over", over); });
}
$("drop").addEventListener("drop", (event) => event.dataTransfer.files[0] && setFile(event.dataTransfer.files[0]));
begin();
