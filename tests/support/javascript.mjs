// Classifies images in node: `node javascript.mjs CASES`, a JSON list of {file, pixels}; prints a JSON list of answers.
// pixels: a file of as many images as it has bytes for; empty or missing: the file is only read.

import { readFileSync } from "node:fs";
import { load } from "../../micronet/export/page/micronet.mjs";
import { PackedError } from "../../micronet/export/page/reader.mjs";

async function answer({ file, pixels }) {
  const model = await load(new Uint8Array(readFileSync(file)));
  const bytes = new Uint8Array(pixels ? readFileSync(pixels) : 0);
  const size = model.image[0] * model.image[1] * model.image[2];
  const found = { classes: model.classes, checked: model.checked, logits: [], labels: [], passes: [], confidences: [] };
  const start = performance.now();
  for (let at = 0; at < bytes.length; at += size) {
    const { logits, label, passes, confidences } = model.classify(bytes.subarray(at, at + size));
    found.logits.push(logits);
    found.labels.push(label);
    found.passes.push(passes);
    found.confidences.push(confidences);
  }
  return { ...found, milliseconds: performance.now() - start };
}

const answers = [];
for (const one of JSON.parse(readFileSync(process.argv[2], "utf-8"))) {
  try {
    answers.push(await answer(one));
  } catch (error) {
    answers.push(error instanceof PackedError ? { refused: error.message } : { crashed: String(error.stack) });
  }
}
process.stdout.write(JSON.stringify(answers));
