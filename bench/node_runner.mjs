// Times the JavaScript runner: node bench/node_runner.mjs FOLDER PIXELS ONE TURNS, where FOLDER holds micronet.mjs,
// the packed file `model`, and `images`, one after the other.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, pixels, one, turns] = process.argv.slice(2);
const { load } = await import(pathToFileURL(`${folder}/micronet.mjs`).href);
const before = process.memoryUsage.rss();
const model = await load(new Uint8Array(readFileSync(`${folder}/model`)));
const bytes = new Uint8Array(readFileSync(`${folder}/images`));
const images = Array.from({ length: bytes.length / pixels }, (_, i) => bytes.subarray(i * pixels, (i + 1) * pixels));
for (const image of images.slice(0, 20)) model.classify(image);
const held = process.memoryUsage.rss() - before;

const ones = images.slice(0, one).map((image) => {
  const began = performance.now();
  model.classify(image);
  return performance.now() - began;
});
ones.sort((a, b) => a - b);
const batches = Array.from({ length: turns }, () => {
  const began = performance.now();
  for (const image of images) model.classify(image);
  return (performance.now() - began) / images.length;
});
console.log(
  JSON.stringify({
    memory_bytes: held,
    milliseconds_one: ones[Math.floor(ones.length / 2)],
    milliseconds_of_batch: Math.min(...batches),
  }),
);
