// The page: a picture becomes pixels of the network's size, and the classes become bars. No text from the file or
// a picture is ever treated as markup. There is one place for pictures, and for each packed file an element of class
// `model`, which contains the file and the parts that show its answer.

import { load } from "./micronet.mjs";
import { pixelsOf } from "./pictures.mjs";

const MOST_BARS = 10;
const MOST_WARM_UP = 2 ** 25; // operations per image
const WARM_UPS = 3;
const find = (id) => document.getElementById(id);
const partOf = (root, name) => root.querySelector(`.${name}`);

function say(root, text, wrong = false) {
  partOf(root, "said").textContent = text;
  partOf(root, "said").classList.toggle("wrong", wrong);
}

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

/** The length of each bar, 0 to 1, and the text beside it: a confidence, or the logit if the file has no scale. */
function bars(logits, confidences) {
  if (confidences !== null) return confidences.map((share) => [share, `${(100 * share).toFixed(1)} %`]);
  const [least, most] = [Math.min(...logits), Math.max(...logits)];
  return logits.map((logit) => [(logit - least) / Math.max(1, most - least), String(logit)]);
}

function show(root, { logits, confidences }, name) {
  const order = logits.map((_, i) => i).sort((one, other) => logits[other] - logits[one] || one - other);
  const each = bars(logits, confidences);
  partOf(root, "bars").replaceChildren(...order.slice(0, MOST_BARS).map((label) => {
    const row = document.createElement("li");
    const track = element("div", "track");
    track.setAttribute("aria-hidden", "true");
    track.append(element("div", "bar"));
    track.firstChild.style.width = `${100 * each[label][0]}%`;
    row.append(element("span", "name", name(label)), track, element("span", "share", each[label][1]));
    return row;
  }));
  const how = confidences === null ? "their logits" : "the network's confidence";
  partOf(root, "classes").textContent = `Classes, with ${how}`;
}

/** The pixels as a picture. */
function showSeen(root, pixels, [channels, height, width]) {
  const canvas = partOf(root, "seen");
  Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  const area = width * height;
  for (let i = 0; i < area; i += 1) {
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = pixels[Math.min(c, channels - 1) * area + i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A function that classifies a picture's file with one packed file. */
async function answering(root) {
  const encoded = atob(partOf(root, "packed").textContent);
  const model = await load(Uint8Array.from(encoded, (letter) => letter.charCodeAt(0)));
  const [channels, height, width] = model.image;
  const name = (label) => model.classes[label] ?? `class ${label}`;
  const kind = channels === 1 ? "grey" : "colour";
  partOf(root, "about").textContent = `${model.ends[0].shape[0]} classes, ${kind} images of ${height} x ${width}, `
    + `${encoded.length.toLocaleString("en")} bytes; computed here, in whole numbers.`;
  // The first images of a page take several times as long, until the engine has compiled the code for it.
  if (model.work < MOST_WARM_UP) {
    const black = new Uint8Array(channels * height * width);
    for (let round = 0; round < WARM_UPS; round += 1) model.ends.forEach((_, network) => model.onePass(black, network));
  }
  let newest = 0;
  const look = async (file) => {
    const turn = (newest += 1);
    say(root, "Looking…");
    try {
      const pixels = await pixelsOf(file, model.image, model.made.image_fit);
      if (turn !== newest) return;
      const start = performance.now();
      const found = model.classify(pixels);
      const milliseconds = performance.now() - start;
      showSeen(root, pixels, model.image);
      show(root, found, name);
      partOf(root, "answer").hidden = false;
      const sure = found.confidences === null ? "" : `, ${(100 * found.confidences[found.label]).toFixed(1)} %`;
      const again = found.passes > 1 ? `, ${found.passes} passes` : "";
      say(root, `${name(found.label)}${sure}: ${milliseconds.toFixed(1)} ms${again}.`);
    } catch (error) {
      if (turn !== newest) return;
      partOf(root, "answer").hidden = true;
      say(root, error.message, true);
    }
  };
  return look;
}

async function main(roots) {
  const ready = new Map();
  for (const root of roots) {
    await answering(root).then((look) => ready.set(root, look), (error) => say(root, error.message, true));
  }
  const refuse = (text) => ready.forEach((_, root) => say(root, text, true));
  if (ready.size) listen(async (file) => { for (const look of ready.values()) await look(file); }, refuse);
  ready.forEach((_, root) => say(root, "Ready."));
}

function listen(look, refuse) {
  const [place, input] = [find("place"), find("picture")];
  const first = (items) => Array.from(items?.files ?? []).find(({ type }) => type.startsWith("image/") || type === "");
  const take = (event, items) => {
    event.preventDefault();
    const file = first(items);
    if (file) look(file);
    else refuse("That is no picture.");
  };
  input.addEventListener("change", () => input.files.length && look(input.files[0]));
  for (const over of ["dragenter", "dragover"]) {
    document.addEventListener(over, (event) => {
      event.preventDefault();
      place.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && place.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    place.classList.remove("over");
    take(event, event.dataTransfer);
  });
  document.addEventListener("paste", (event) => event.clipboardData.files.length && take(event, event.clipboardData));
}

main(Array.from(document.querySelectorAll(".model")));
