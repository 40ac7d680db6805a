// A packed model's file in plain JavaScript: bytes -> steps with their numbers, everything checked. docs/format.md is the
// specification; this reader agrees with the one in micronet/packed/file.py.

export class PackedError extends Error {}

const fail = (said) => {
  const text = String(said).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "?");
  throw new PackedError(text.length > 300 ? `${text.slice(0, 299)}…` : text);
};

// ---- limits, micronet/packed/limits.py ----

const MOST = {
  fileBytes: 2 ** 28, headerBytes: 2 ** 22, tableBytes: 2 ** 21, tableBeyondFile: 2 ** 16, depth: 32,
  steps: 4096, networks: 16, classes: 2 ** 15, side: 1024, name: 200, className: 255, entries: 256,
  weights: 2 ** 26, map: 2 ** 24, columns: 2 ** 26, live: 2 ** 26, allMaps: 2 ** 30, operations: 2 ** 36,
  sum: 2 ** 31, requantized: 2 ** 52, shift: 48, block: 9, scale: 1e30,
};
const CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

// ---- JSON as the format requires it: no duplicate keys, no float in place of an integer, no unbounded nesting ----

class Real {
  constructor(value) { this.value = value; }
}

/**
 * The value of a JSON text, and the text that Python's json.dumps(sort_keys=True) writes for it, whose outermost object
 * lacks the key `without`. Floats are `Real`.
 */
function parse(text, without = null) {
  let at = 0;
  const skip = () => { while (" \t\n\r".includes(text[at]) && at < text.length) at += 1; };
  const expect = (letter) => {
    if (text[at] !== letter) fail("its header or table is no JSON");
    at += 1;
  };
  const string = () => {
    const found = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
    found.lastIndex = at;
    const [token] = found.exec(text) ?? [fail("its header or table has no readable text")];
    at += token.length;
    return JSON.parse(token);
  };
  const members = (depth, close, each) => {
    if (depth > MOST.depth) fail("its header or table is nested too deep");
    at += 1;
    skip();
    for (let first = true; text[at] !== close; first = false) {
      if (!first) expect(",");
      each();
      skip();
    }
    at += 1;
  };
  const value = (depth) => {
    skip();
    if (text[at] === "{") {
      const found = new Map();
      members(depth + 1, "}", () => {
        skip();
        const key = string();
        skip();
        expect(":");
        if (found.has(key)) fail("a key is there twice in its header or table");
        found.set(key, value(depth + 1));
      });
      const keys = [...found.keys()].filter((key) => depth > 0 || key !== without).sort(byCodePoints);
      const items = keys.map((key) => `${ascii(key)}: ${found.get(key).text}`);
      return { value: plain([...found].map(([key, inner]) => [key, inner.value])), text: `{${items.join(", ")}}` };
    }
    if (text[at] === "[") {
      const found = [];
      members(depth + 1, "]", () => found.push(value(depth + 1)));
      return { value: found.map((inner) => inner.value), text: `[${found.map((inner) => inner.text).join(", ")}]` };
    }
    if (text[at] === '"') {
      const found = string();
      return { value: found, text: ascii(found) };
    }
    const token = /true|false|null|NaN|-?Infinity|-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
    token.lastIndex = at;
    const [word] = token.exec(text) ?? [fail("its header or table is no JSON")];
    at += word.length;
    const real = /[.NI]|\d[eE]/.test(word);
    return { value: real ? new Real(Number(word)) : JSON.parse(word), text: word };
  };
  const found = value(0);
  skip();
  if (at < text.length) fail("something stands behind its JSON");
  return found;
}

/** An object without inherited names. */
const plain = (entries) => Object.assign(Object.create(null), Object.fromEntries(entries));

const byCodePoints = (one, other) => {
  const [a, b] = [Array.from(one), Array.from(other)];
  for (let i = 0; i < Math.min(a.length, b.length); i += 1) {
    if (a[i] !== b[i]) return a[i].codePointAt(0) - b[i].codePointAt(0);
  }
  return a.length - b.length;
};

const ascii = (text) =>
  JSON.stringify(text).replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);

// ---- checks of the values in the file ----

const isWhole = (value) => Number.isInteger(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Real);
const isPrintable = (text) => !/[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u.test(text);
const characters = (text) => Array.from(text).length;
const either = (row, key, usual) => (key in row ? row[key] : usual);
const product = (numbers) => numbers.reduce((one, other) => one * other, 1);

function whole(value, low, high, what) {
  if (!isWhole(value) || value < low || value > high) fail(`${what}: must be a whole number from ${low} to ${high}`);
  return value;
}

function pairOf(value, what) {
  if (!Array.isArray(value) || value.length !== 2) fail(`${what}: must be two numbers`);
  return value;
}

function wholes(value, most, what) {
  const fits = Array.isArray(value) && value.length >= 1 && value.length <= most && value.every(isWhole);
  return fits ? value : fail(`${what}: must be a list of up to ${most} whole numbers`);
}

const sides = (row, key, low, usual) => {
  const value = either(row, key, usual);
  return pairOf(Array.isArray(value) ? value : [value, value], key).map((side) => whole(side, low, MOST.side, key));
};
const atMost = (most, found, what) => found <= most || fail(`asks for ${found} ${what}, ${most} are the most`);
const sameList = (one, other) => Array.isArray(one) && one.length === other.length && one.every((item, i) => item === other[i]);

// ---- bits ----

class Bits {
  constructor(payload) { Object.assign(this, { payload, at: 0, end: 8 * payload.length }); }

  check(count) {
    if (count > this.end - this.at) fail(`the payload ends at bit ${this.end}, a field needs ${count} bits from ${this.at}`);
  }

  /** `count` numbers of `width` bits, least significant bit first; exact, since no field is wider than 48. */
  numbers(count, width, signed = true) {
    this.check(count * width);
    const found = width <= 8 ? new Int16Array(count) : new Float64Array(count);
    for (let i = 0; i < count; i += 1) {
      let [value, place] = [0, 1];
      for (let left = width; left > 0;) {
        const take = Math.min(left, 8 - (this.at % 8));
        value += ((this.payload[Math.floor(this.at / 8)] >> (this.at % 8)) & ((1 << take) - 1)) * place;
        place *= 2 ** take;
        this.at += take;
        left -= take;
      }
      found[i] = signed && value >= place / 2 ? value - place : value;
    }
    return found;
  }

  /** Where a weight of `size` entries is nonzero: whole blocks first, then the contents of the blocks that are not zero. */
  mask(size, blocks) {
    const lengths = [size];
    for (const block of blocks) lengths.push(Math.ceil(lengths.at(-1) / block));
    let level = this.numbers(lengths.at(-1), 1, false);
    for (let i = blocks.length - 1; i >= 0; i -= 1) {
      const finer = new Int16Array(level.length * blocks[i]);
      for (let place = 0; place < level.length; place += 1) {
        if (!level[place]) continue;
        const inside = this.numbers(blocks[i], 1, false);
        if (!inside.includes(1)) fail("a block that the mask calls non-zero is zero");
        finer.set(inside, place * blocks[i]);
      }
      if (finer.subarray(lengths[i]).includes(1)) fail("a mask goes on behind its weight");
      level = finer.subarray(0, lengths[i]);
    }
    return level;
  }

  /** Weight codes in the order of the weight, Int8Array. */
  weights(size, width, blocks) {
    const mask = blocks === null ? null : this.mask(size, blocks);
    const count = mask === null ? size : mask.reduce((sum, bit) => sum + bit, 0);
    const stored = this.numbers(count, width, width > 1);
    if (width === 1) stored.forEach((bit, i) => { stored[i] = 2 * bit - 1; });
    else if (stored.includes(-(2 ** (width - 1)))) fail(`a weight code is below the lowest of ${width} bits`);
    if (mask === null) return Int8Array.from(stored);
    if (stored.includes(0)) fail("a weight that the mask calls non-zero is zero");
    const codes = new Int8Array(size);
    for (let place = 0, next = 0; place < size; place += 1) if (mask[place]) codes[place] = stored[next++];
    return codes;
  }
}

const MASKS = [[]];
for (let one = 2; one <= MOST.block; one += 1) MASKS.push([one]);
for (let one = 2; one <= 4; one += 1) for (let two = 2; two <= 4; two += 1) if (one * two <= MOST.block) MASKS.push([one, two]);

// ---- windows ----

const extents = ({ kernel, dilation }) => kernel.map((taps, axis) => dilation[axis] * (taps - 1) + 1);
const sizeOver = (shape, where) =>
  extents(where).map((extent, axis) => Math.floor((shape[1 + axis] + 2 * where.padding[axis] - extent) / where.stride[axis]) + 1);
const paddedNumbers = (shape, { padding }) => shape[0] * (shape[1] + 2 * padding[0]) * (shape[2] + 2 * padding[1]);
const isSquare = (where) =>
  [where.kernel, where.stride, where.padding, where.dilation].every(([one, other]) => one === other) && where.dilation[0] === 1;
const liesApart = ({ kernel, stride, padding }) => sameList(stride, kernel) && sameList(padding, [0, 0]);

// ---- what the table alone says: enough to refuse an excessive file before anything is allocated ----

class Plan {
  constructor(payloadBytes) { Object.assign(this, { payloadBytes, outlines: [], first: 0 }); }

  value(index, what) {
    return this.first && index === 0 ? 0 : whole(index, this.first, this.outlines.length - 1, what);
  }

  inputs(row) { return wholes(either(row, "from"), MOST.steps, "from").map((index) => this.value(index, "from")); }

  source(row) {
    const indices = this.inputs(row);
    if (indices.length !== 1) fail(`${row.op} takes one value`);
    return [indices[0], this.outlines[indices[0]].shape];
  }

  weight(row, channels, dimensions) {
    const shape = wholes(either(row, "shape"), 4, "shape");
    if (shape.length !== dimensions || Math.min(...shape) < 1) fail("a weight of another shape");
    const groups = whole(either(row, "groups", 1), 1, channels, "groups");
    const most = MOST.block * 8 * this.payloadBytes;
    if (product(shape) > most || shape[1] * groups !== channels || shape[0] % groups) {
      fail(`a weight of shape ${shape} in ${groups} groups, on ${channels} channels`);
    }
    return shape;
  }

  residual(row, shape) {
    if (!("add" in row)) return null;
    const value = this.value(pairOf(row.add, "add")[0], "add");
    return sameList(this.outlines[value].shape, shape) ? value : fail("adds a map of another shape");
  }

  add(outline) {
    const full = { inputs: [], added: null, weights: 0, operations: 0, columns: 0, largest: 0, ends: false, ...outline };
    full.reads = full.added === null ? full.inputs : [...full.inputs, full.added];
    full.numbers = product(full.shape);
    atMost(MOST.map, Math.max(full.numbers, full.largest), "numbers in a map");
    atMost(MOST.columns, full.columns, "inputs of the dot products of an image");
    this.outlines.push(full);
    if (full.ends) this.first = this.outlines.length;
  }

  check() {
    const total = (each) => this.outlines.reduce((sum, outline) => sum + each(outline), 0);
    atMost(MOST.networks, total((one) => Number(one.ends)), "networks");
    atMost(2 * this.payloadBytes + 4096, total((one) => one.shape[0]), "channels");
    atMost(MOST.weights, total((one) => one.weights), "weights");
    atMost(MOST.allMaps, total((one) => one.numbers + one.largest), "numbers in all maps of an image");
    atMost(MOST.operations, total((one) => one.operations), "operations an image");
    this.lastUse = this.outlines.map((_, index) => index);
    this.outlines.forEach(({ reads }, index) => reads.forEach((value) => { this.lastUse[value] = index; }));
    let live = 0;
    this.outlines.forEach(({ numbers, reads }, index) => {
      live += numbers;
      atMost(MOST.live, live, "numbers in the maps of an image at one time");
      for (const value of new Set([...reads, index])) if (this.lastUse[value] === index) live -= this.outlines[value].numbers;
    });
  }
}

const placedConv = (row) => ({
  stride: sides(row, "stride", 1, 1), padding: sides(row, "padding", 0, 0), dilation: sides(row, "dilation", 1, 1),
});

function outlineWindow(row, plan) {
  const [index, shape] = plan.source(row);
  const where = windowOf(row);
  if (where.padding.some((padding, axis) => 2 * padding > where.kernel[axis])) fail("a padding beyond half of the kernel");
  const made = [shape[0], ...sizeOver(shape, where)];
  if (Math.min(...made) < 1) fail(`a kernel of ${where.kernel} is larger than its map of ${shape.slice(1)}`);
  const operations = Math.max(product(shape), product(made) * product(where.kernel));
  return { shape: made, inputs: [index], operations, largest: sameList(where.padding, [0, 0]) ? 0 : paddedNumbers(shape, where) };
}

function windowOf(row) {
  const kernel = sides(row, "kernel", 1);
  return { kernel, stride: sides(row, "stride", 1, kernel), padding: sides(row, "padding", 0, 0), dilation: [1, 1] };
}

/** The `shape` of vectors: one number per channel, and nothing else. As in Python, where 2 == 2.0 and 1 == true. */
const vectorShape = (row, channels, strict) => {
  const [size, ...more] = Array.isArray(row.shape) ? row.shape : [];
  const found = strict ? size : size instanceof Real ? size.value : size === true ? 1 : size;
  if (found !== channels || more.length) fail(`vectors of another shape on ${channels} channels`);
};

const OUTLINES = {
  input(row) {
    const shape = wholes(either(row, "shape", [3, 32, 32]), 3, "shape");
    const fits = shape.length === 3 && shape.every((size) => size >= 1 && size <= MOST.side);
    return fits ? { shape } : fail(`an image of three numbers from 1 to ${MOST.side} is possible`);
  },
  conv(row, plan) {
    const [index, source] = plan.source(row);
    const shape = plan.weight(row, source[0], 4);
    const kernel = shape.slice(2);
    if (Math.max(...kernel) > MOST.side) fail(`a kernel of ${kernel}, ${MOST.side} are the most`);
    const where = { kernel, ...placedConv(row) };
    const [height, width] = sizeOver(source, where);
    if (Math.min(height, width) < 1) fail("a kernel larger than its map");
    const window = whole(either(row, "window", 1), 1, Math.min(height, width), "window");
    const made = [shape[0], Math.floor(height / window), Math.floor(width / window)];
    return {
      shape: made, inputs: [index], added: plan.residual(row, made), weights: product(shape),
      operations: product(shape) * height * width, columns: source[0] * product(kernel) * height * width,
      largest: Math.max(paddedNumbers(source, where), shape[0] * height * width),
    };
  },
  affine(row, plan) {
    const [index, shape] = plan.source(row);
    vectorShape(row, shape[0], false);
    if (shape[0] % whole(either(row, "order", 1), 1, shape[0], "order")) fail("an order that does not divide its channels");
    return { shape, inputs: [index], added: plan.residual(row, shape), operations: product(shape) };
  },
  pool: outlineWindow,
  maximum: outlineWindow,
  concat(row, plan) {
    const inputs = plan.inputs(row);
    const shapes = inputs.map((index) => plan.outlines[index].shape);
    const size = shapes[0].slice(1);
    if (!shapes.every((shape) => sameList(shape.slice(1), size))) fail("a concatenation of maps of different sizes");
    return { shape: [shapes.reduce((sum, shape) => sum + shape[0], 0), ...size], inputs };
  },
  product(row, plan) {
    const inputs = plan.inputs(row);
    const [shape, other] = inputs.map((index) => plan.outlines[index].shape);
    if (inputs.length !== 2 || !(sameList(other, shape) || sameList(other, [shape[0], 1, 1]))) fail("a product of maps that differ");
    vectorShape(row, shape[0], true);
    return { shape, inputs, added: plan.residual(row, shape), operations: product(shape) };
  },
  table(row, plan) {
    const [index, shape] = plan.source(row);
    return { shape, inputs: [index], operations: product(shape) };
  },
  linear(row, plan) {
    const [index, source] = plan.source(row);
    const rest = source[1] === 1 && source[2] === 1 ? [] : source.slice(1);
    const shape = plan.weight(row, source[0], 2 + rest.length);
    if (!sameList(shape.slice(1), [source[0], ...rest])) fail("a linear step on another map");
    if (shape[0] > MOST.classes) fail(`has ${shape[0]} classes, ${MOST.classes} are the most`);
    return { shape: [shape[0], 1, 1], inputs: [index], weights: product(shape), operations: product(shape), ends: true };
  },
};

function planned(rows, payloadBytes) {
  const plan = new Plan(payloadBytes);
  rows.forEach((row, index) => told(index, row, () => {
    if (!isObject(row)) fail("a row of the table is no object");
    const kind = typeof row.op === "string" && Object.hasOwn(OUTLINES, row.op) ? OUTLINES[row.op] : null;
    const name = either(row, "name", "");
    if (kind === null) fail("there is no such operation in a file of integers");
    if (typeof name !== "string" || characters(name) > MOST.name || !isPrintable(name)) fail("a step has no printable name");
    const last = index + 1 === rows.length;
    if ((row.op === "input") !== (index === 0) || (last && row.op !== "linear")) {
      fail("the first step must be the input, and the last a linear one");
    }
    if (row.op !== "linear" && ("flip" in row || "next" in row)) fail("a margin where there are no two integer logits");
    plan.add(kind(row, plan));
  }));
  plan.check();
  return plan;
}

function told(index, row, work) {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof PackedError)) throw error;
    const name = isObject(row) && typeof row.name === "string" ? ` (${row.name.slice(0, 40)})` : "";
    return fail(`step ${index}${name}: ${error.message}`);
  }
}

// ---- steps with their numbers ----

/** How many bits two's complement needs for every integer in a range within 2**31. */
const signedWidth = (low, high) => 33 - Math.min(Math.clz32(Math.max(high, 0)), Math.clz32(Math.max(-low - 1, 0)));
const reaches = ({ low, high }) => Math.max(0, ...[low, high].map((ends) => ends.reduce((most, end) => Math.max(most, Math.abs(end)), 0)));
const lowest = (numbers) => numbers.reduce((one, other) => Math.min(one, other), Infinity);
const greatest = (numbers) => numbers.reduce((one, other) => Math.max(one, other), -Infinity);
const everywhere = (value, channels) => new Float64Array(channels).fill(value);

/** The nonzero weights of every output row, and the bounds of their sums, in any order of the additions. */
function readWeights(row, place, constantBits) {
  const { bits, source } = place;
  const [rows, perGroup] = row.shape;
  const width = whole(either(row, "weight"), 1, 16, "weight bits");
  const mask = "mask" in row ? MASKS.find((known) => sameList(row.mask, known)) ?? fail("there is no such mask of blocks") : null;
  if (rows * Math.max(1, constantBits) > bits.end - bits.at) fail(`has more channels, ${rows}, than the payload has constants for`);
  if (width > 8) fail(`a weight of ${width} bits`);
  const codes = bits.weights(product(row.shape), width, mask);
  const [stated, factored] = pairOf(either(row, "sum"), "sum");
  whole(stated, 0, 32, "accumulator bits");
  whole(factored, 0, 1, "factored");
  const taps = codes.length / rows;
  const [places, area] = [taps / perGroup, rows / either(row, "groups", 1)];
  const [starts, low, high] = [new Uint32Array(rows + 1), everywhere(0, rows), everywhere(0, rows)];
  const nonzero = codes.reduce((count, code) => count + (code !== 0), 0);
  const [at, values] = [new Uint32Array(nonzero), new Int8Array(nonzero)];
  for (let output = 0, next = 0; output < rows; output += 1) {
    const first = Math.floor(output / area) * perGroup;
    for (let tap = 0; tap < taps; tap += 1) {
      const code = codes[output * taps + tap];
      if (code === 0) continue;
      const channel = first + Math.floor(tap / places);
      const ends = [code * source.low[channel], code * source.high[channel]];
      low[output] += Math.min(...ends);
      high[output] += Math.max(...ends);
      [at[next], values[next]] = [tap, code];
      next += 1;
    }
    starts[output + 1] = next;
  }
  const sums = { low, high };
  if (reaches(sums) >= MOST.sum) fail("an accumulator needs more than 32 bits");
  const needed = low.reduce((most, end, i) => Math.max(most, signedWidth(end, high[i])), 1);
  if (stated !== needed) fail(`its accumulators need ${needed} bits, the table says ${stated}`);
  return { weights: { starts, at, values, taps, rowsOfGroup: area, perGroup }, sums };
}

const readWidths = (row) => {
  const found = wholes(either(row, "bits"), 3, "bits");
  if (found.length !== 3) fail("bits: must be three widths");
  return found.map((bits, i) => whole(bits, 0, [16, 5, 48][i], "bits"));
};

/** (sum x gain + offset + residual x ratio), floored and clamped; all of these terms are multiples of 2**-shift. */
function readScaling(row, { bits, outline, steps }, widths, sums) {
  const channels = outline.shape[0];
  const residualBits = outline.added === null ? 0 : whole(row.add[1], 1, 16, "add");
  const { low, high, ended } = codeRange(row);
  for (const key of ["relu", "norm"]) whole(either(row, key, 0), 0, 1, key);
  if (!widths[0] || !widths[2]) fail("a step without multipliers or biases");
  const multiplier = bits.numbers(channels, widths[0]);
  const exponent = widths[1] ? bits.numbers(channels, widths[1], false) : everywhere(0, channels);
  if (widths[1] && lowest(exponent) > 0) fail("exponents of which none is 0");
  const bias = bits.numbers(channels, widths[2]);
  const [least, fraction, below] = bits.numbers(outline.added === null ? 2 : 3, 6, false);
  if (least + greatest(exponent) > MOST.shift) fail(`a shift above ${MOST.shift}`);
  const [factor] = outline.added === null ? [0] : bits.numbers(1, residualBits);
  if (outline.added !== null && below > least) fail("a residual has more fraction bits than the shift takes away");
  const reach = outline.added === null ? 0 : reaches(steps[outline.added]);
  const [gain, offset] = [new Float64Array(channels), new Float64Array(channels)];
  for (let c = 0; c < channels; c += 1) {
    const shift = least + exponent[c];
    const scaledBias = bias[c] * 2 ** Math.max(0, shift - fraction);
    let most = Math.max(-sums.low[c], sums.high[c]) * Math.abs(multiplier[c]) + Math.abs(scaledBias);
    if (outline.added !== null) most += Math.abs(factor) * reach * 2 ** (shift - below);
    if (most >= MOST.requantized) fail("a requantization needs more than 52 bits");
    [gain[c], offset[c]] = [multiplier[c] * 2 ** -shift, scaledBias * 2 ** -shift];
  }
  const scaling = { gain, offset, lowest: low, highest: high, added: outline.added, ratio: factor * 2 ** -(below ?? 0) };
  return { scaling, low: everywhere(low, channels), high: everywhere(high, channels), since: ended ? 5 : 3 };
}

function codeRange(row) {
  const out = either(row, "out");
  const ended = Array.isArray(out) && out.length === 4;
  const [width, signed] = ended ? out : pairOf(out, "out");
  whole(width, 1, 8, "out");
  whole(signed, 0, 1, "out");
  if (!ended && signed && width < 2) fail(`codes of ${width} bits`);
  const top = 2 ** (width - signed) - 1;
  const edges = ended ? [whole(out[2], -top * signed, 0, "out"), whole(out[3], 0, top, "out")] : [-top * signed, top];
  return { low: edges[0], high: edges[1], ended };
}

const begins = (row, bits) => row.at === bits.at || fail(`its fields begin at bit ${bits.at}, the table says otherwise`);

function readWindow(row, { source, outline }) {
  const where = windowOf(row);
  const since = liesApart(where) && isSquare(where) ? 3 : 5;
  return { where, since, low: source.low, high: source.high, shape: outline.shape };
}

const READERS = {
  input(row, { outline }) {
    const bits = whole(either(row, "bits"), 1, 8, "bits");
    const [half, channels] = [2 ** (bits - 1), outline.shape[0]];
    return { bits, low: everywhere(-half, channels), high: everywhere(half - 1, channels), since: sameList(outline.shape, [3, 32, 32]) ? 3 : 5 };
  },
  conv(row, place) {
    begins(row, place.bits);
    const widths = readWidths(row);
    const { weights, sums } = readWeights(row, place, widths[0] + widths[1] + widths[2]);
    const scaled = readScaling(row, place, widths, sums);
    const where = { kernel: row.shape.slice(2), ...placedConv(row) };
    const since = isSquare(where) && where.padding[0] < where.kernel[0] ? scaled.since : 5;
    return { ...scaled, weights, where, window: either(row, "window", 1), since, positions: product(sizeOver(place.source.shape, where)) };
  },
  affine(row, place) {
    begins(row, place.bits);
    const [groups, channels] = [either(row, "order", 1), place.outline.shape[0]];
    const order = Array.from({ length: channels }, (_, i) => (i % (channels / groups)) * groups + Math.floor((i * groups) / channels));
    const ends = { low: order.map((c) => place.source.low[c]), high: order.map((c) => place.source.high[c]) };
    return { ...readScaling(row, place, readWidths(row), ends), order };
  },
  pool(row, place) {
    const found = readWindow(row, place);
    const area = product(found.where.kernel);
    const fills = found.where.kernel.every((side, axis) => place.source.shape[1 + axis] % side === 0);
    const sums = { low: place.source.low.map((end) => end * area), high: place.source.high.map((end) => end * area) };
    if (reaches(sums) >= MOST.sum) fail("a pool's sums need more than 32 bits");
    return { ...found, ...sums, since: fills ? found.since : 5 };
  },
  maximum: readWindow,
  concat(row, { outline, steps }) {
    const joined = (side) => Float64Array.from(outline.inputs.flatMap((index) => Array.from(steps[index][side])));
    return { low: joined("low"), high: joined("high"), since: 3 };
  },
  product(row, place) {
    begins(row, place.bits);
    const [first, second] = place.outline.inputs.map((index) => place.steps[index]);
    const products = Array.from(first.low, (low, c) =>
      [low, first.high[c]].flatMap((one) => [one * second.low[c], one * second.high[c]]));
    const sums = { low: products.map((each) => Math.min(...each)), high: products.map((each) => Math.max(...each)) };
    if (reaches(sums) >= MOST.sum) fail("a product needs more than 32 bits");
    return { ...readScaling(row, place, readWidths(row), sums), since: 5 };
  },
  table(row, place) {
    begins(row, place.bits);
    const [first, last] = [lowest(place.source.low), greatest(place.source.high)];
    if (last - first >= MOST.entries) fail(`a table on codes from ${first} to ${last}, ${MOST.entries} entries are the most`);
    if (!sameList(row.entries, [first, last - first + 1])) fail(`a table whose input's codes ask for ${[first, last - first + 1]}`);
    const [width, signed] = pairOf(either(row, "out"), "out");
    whole(width, 1, 8, "out");
    whole(signed, 0, 1, "out");
    const entries = place.bits.numbers(last - first + 1, width, signed === 1);
    const [low, high] = [Math.min(lowest(entries), 0), Math.max(greatest(entries), 0)];
    const channels = place.outline.shape[0];
    return { first, entries, low: everywhere(low, channels), high: everywhere(high, channels), since: 5 };
  },
  linear(row, place) {
    if ("next" in row === place.last) fail("a linear step must be the last, or have a margin for the next network");
    begins(row, place.bits);
    const widths = readWidths(row);
    const { weights, sums } = readWeights(row, place, widths[0] + widths[1] + widths[2]);
    if (widths[0] || widths[1]) fail("a linear step has no multipliers");
    if ("add" in row) fail("a linear step adds no value");
    if (!widths[2]) fail("a linear step without biases");
    const bias = Float64Array.from(place.bits.numbers(row.shape[0], widths[2]));
    const logits = { low: sums.low.map((end, i) => end + bias[i]), high: sums.high.map((end, i) => end + bias[i]) };
    if (reaches(logits) >= MOST.sum) fail("a logit needs more than 32 bits");
    return { ...logits, weights, bias, choice: readChoice(row, place), since: row.shape.length === 2 ? 3 : 5, positions: 1 };
  },
};

function readChoice(row, { bits, last }) {
  const key = "flip" in row ? "flip" : "next";
  if (!(key in row)) return null;
  if (row.shape[0] < 2) fail("a margin where there are no two integer logits");
  if (key === "flip" && !last) fail("a margin for mirrored images before the last network");
  const [margin] = bits.numbers(1, whole(row[key], 1, 32, key), false);
  if (margin === 0) fail("a margin of 0");
  return { margin, shift: key === "flip" ? null : bits.numbers(1, 6)[0] };
}

// ---- the file ----

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
const DIGITS = new Map(Array.from(ALPHABET, (letter, digit) => [letter, digit]));

/** RFC 1924's base 85, as Python's b85decode reads it. */
function fromBase85(text) {
  const padding = (5 - (text.length % 5)) % 5;
  const bytes = new Uint8Array(((text.length + padding) / 5) * 4);
  const view = new DataView(bytes.buffer);
  for (let at = 0; at < text.length; at += 5) {
    let value = 0;
    for (let i = at; i < at + 5; i += 1) value = value * 85 + (DIGITS.get(text[i] ?? "~") ?? fail("its table is not readable"));
    if (value >= 2 ** 32) fail("its table is not readable");
    view.setUint32((at / 5) * 4, value);
  }
  return bytes.subarray(0, bytes.length - padding);
}

async function inflated(bytes, most) {
  const parts = [];
  let length = 0;
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(() => fail("its table is not readable"));
    if (done) break;
    length += value.length;
    if (length > most) {
      reader.cancel().catch(() => {});
      fail(`its table is longer than ${most} bytes`);
    }
    parts.push(value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const utf8 = (bytes) => {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return fail("its header or table is no UTF-8");
  }
};

async function opened(data) {
  if (data.length < 10) fail("is truncated, or no packed model");
  if (data.length > MOST.fileBytes) fail(`is larger than ${MOST.fileBytes} bytes, so it is no packed model`);
  const length = Number(new DataView(data.buffer, data.byteOffset, 8).getBigUint64(0, true));
  if (length > data.length - 8) fail("is truncated, or no packed model");
  if (length > MOST.headerBytes) fail(`has a header of ${length} bytes, ${MOST.headerBytes} are the most`);
  const top = parse(utf8(data.subarray(8, 8 + length))).value;
  const text = isObject(top) && isObject(top.__metadata__) ? top.__metadata__.micronet : null;
  if (typeof text !== "string") fail("has no readable header, so it is damaged or no packed model");
  const header = parse(text);
  if (!isObject(header.value) || header.value.format !== "micronet-packed") fail("is no packed model");
  const { version } = header.value;
  if (![3, 4, 5].includes(version)) fail("has a version that this code does not read, it reads 3 to 5");
  const payload = data.subarray(8 + length);
  const tensor = isObject(top.payload) ? top.payload : {};
  const fits = sameList(Object.keys(top).sort(), ["__metadata__", "payload"])
    && sameList(Object.keys(tensor).sort(), ["data_offsets", "dtype", "shape"]) && tensor.dtype === "U8"
    && sameList(tensor.shape, [payload.length]) && sameList(tensor.data_offsets, [0, payload.length]);
  if (!fits) fail(`holds ${payload.length} bytes after its header, and the header states other ones`);
  const checked = await digestFits(text, header.value.digest, payload);
  return { header: header.value, payload, checked };
}

/** Whether the digest was checked: pages served over plain http have no `crypto.subtle`. */
async function digestFits(text, digest, payload) {
  if (!globalThis.crypto?.subtle) return false;
  const body = new TextEncoder().encode(`${parse(text, "digest").text}\n`);
  const both = new Uint8Array(body.length + payload.length);
  both.set(body);
  both.set(payload, body.length);
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", both));
  const hex = Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex === digest || fail("is damaged: its digest does not fit its content");
}

function checkNetworks(steps, { version, model = null }) {
  const ends = steps.filter((step) => step.op === "linear");
  if (version !== 5 && (ends.length > 1) !== (version === 4)) fail(`has ${ends.length} networks, which version ${version} does not hold`);
  const newer = steps.find((step) => step.since > version);
  if (newer) fail(`its ${newer.op} is of version ${newer.since} of the format, the file says ${version}`);
  if (new Set(ends.map((end) => end.shape[0])).size > 1) fail("its networks have different numbers of classes");
  const sums = { low: Array.from(ends[0].low), high: Array.from(ends[0].high) };
  [...ends.slice(1), ends.at(-1)].forEach((end, number) => {
    const shift = shiftBefore(ends, number);
    for (const side of ["low", "high"]) sums[side] = sums[side].map((sum, i) => joined(sum, end[side][i], shift));
    if (ends.length > 1 && reaches(sums) >= MOST.sum) fail("a sum of logits needs more than 32 bits");
  });
  if (model === null) return;
  if (!isObject(model)) fail("its model spec is no object");
  const several = model.name === "cascade";
  const named = several ? model.networks : [model];
  if (!Array.isArray(named) || !named.every(isObject)) fail("its model spec does not name its networks");
  if (named.length !== ends.length || (ends.length > 1) !== several) fail("its model spec names another number of networks");
}

/** The shift with which the logits of pass `number` + 1 join the sum; the mirrored pass weighs like the one before. */
export const shiftBefore = (ends, number) => {
  if (number < ends.length - 1) return ends[number].choice.shift;
  return ends.length > 1 ? Math.min(ends.at(-2).choice.shift, 0) : 0;
};
export const joined = (total, logits, shift) => total * 2 ** Math.max(shift, 0) + logits * 2 ** Math.max(-shift, 0);

function classNames({ classes = [] }, version, count) {
  if (version !== 5) return count === CIFAR10.length ? CIFAR10 : [];
  const fits = Array.isArray(classes) && [0, count].includes(classes.length);
  if (!fits) fail(`classes: must be ${count} names, one a logit, or none`);
  const known = (name) => typeof name === "string" && name !== "" && characters(name) <= MOST.className && isPrintable(name);
  if (!classes.every(known)) fail(`classes: a name must be a text of 1 to ${MOST.className} printable characters`);
  return new Set(classes).size === classes.length ? classes : fail("classes: each needs a name of its own");
}

function logitScale({ logit_scale: stated = null }, version) {
  if (version !== 5 || stated === null) return null;
  const scale = stated instanceof Real ? stated.value : stated;
  const fits = typeof scale === "number" && scale >= 1 / MOST.scale && scale <= MOST.scale;
  return fits ? scale : fail("logit_scale: must be a number above 0");
}

/** The steps of a packed file with their numbers. Rejects other files with a `PackedError` of one line. */
export async function read(data) {
  const { header, payload, checked } = await opened(data);
  if (typeof header.table !== "string") fail("its table is not readable");
  const most = Math.min(data.length + MOST.tableBeyondFile, MOST.tableBytes);
  const table = parse(utf8(await inflated(fromBase85(header.table), most))).value;
  if (!isObject(table) || !Array.isArray(table.steps)) fail("its table has no steps");
  const newer = header.version === 5 ? undefined : ["classes", "logit_scale"].find((key) => key in table);
  if (newer) fail(`its table has ${newer}, which version ${header.version} does not hold`);
  if (table.arithmetic === "half") fail("computes in 16-bit floats, which this runner does not; the ONNX export does");
  if (table.arithmetic !== "integer") fail("its arithmetic is neither integer nor half");
  const { steps: rows } = table;
  if (rows.length < 2 || rows.length > MOST.steps) fail(`has ${rows.length} steps, 2 to ${MOST.steps} are possible`);
  const made = header.made ?? null;
  if (!isObject(made) || !Object.values(made).every((text) => typeof text === "string")) fail("its metadata are no texts");
  const plan = planned(rows, payload.length);
  const [bits, steps] = [new Bits(payload), []];
  rows.forEach((row, index) => told(index, row, () => {
    const outline = plan.outlines[index];
    const place = { bits, steps, outline, source: steps[outline.inputs[0]], last: index + 1 === rows.length };
    steps.push({ op: row.op, name: either(row, "name", `${row.op}${index}`), shape: outline.shape, inputs: outline.inputs, ...READERS[row.op](row, place) });
  }));
  checkNetworks(steps, header);
  const left = bits.end - bits.at;
  if (left > 7 || table.bits !== bits.at || (left && bits.numbers(left, 1, false).includes(1))) {
    fail(`its fields end at bit ${bits.end - left} of ${bits.end}, with zeros to a whole byte expected`);
  }
  const classes = classNames(table, header.version, steps.at(-1).shape[0]);
  return { steps, lastUse: plan.lastUse, classes, made, checked, logitScale: logitScale(table, header.version) };
}
