// A packed model in plain JavaScript: its file's bytes in, the class of an image and its logits out. Nothing else is
// needed, and nothing is fetched.
//
//     const model = await load(bytes);
//     const { logits, label } = model.classify(pixels);
//
// All numbers are exact integers. Sums stay below 2**31 in whatever order they are added, so they are kept in Int32Array.
// A requantization stays below 2**52, and a double represents every integer up to 2**53; multiplying by 2**-shift changes
// only the exponent. The reader checks both bounds, as the format requires, so no BigInt is needed.

import { PackedError, joined, read, shiftBefore } from "./reader.mjs";

/** Multiplications and comparisons per image that a page may wait for: some 20 seconds on a desktop of 2026. */
const MOST_WORK = 2 ** 34;

/** The model in a packed file. bytes: Uint8Array. Rejects with a `PackedError`, whose message is one line. */
export async function load(bytes) {
  if (!(bytes instanceof Uint8Array)) throw new PackedError("takes the bytes of a packed file as a Uint8Array");
  return new Model(await read(bytes));
}

class Model {
  constructor({ steps, lastUse, classes, made, checked, logitScale }) {
    Object.assign(this, { steps, lastUse, classes, made, checked });
    /** [channels, height, width] of an image. */
    this.image = steps[0].shape;
    this.ends = steps.filter((step) => step.op === "linear");
    /** The real value of one logit unit, or null. The logits of a cascade have several scales. */
    this.logitScale = this.ends.length > 1 ? null : logitScale;
    /** Multiplications and comparisons of one image in one pass of each network. */
    this.work = steps.reduce((sum, step) => sum + workOf(step), 0);
    if (this.work > MOST_WORK) throw new PackedError(`asks for ${this.work} operations an image, ${MOST_WORK} are the most here`);
  }

  /**
   * Classifies an image.
   *
   * pixels: Uint8Array of channels x height x width, channel by channel and row by row, unnormalised.
   * Returns { logits, label, passes, confidences }: confidences add up to 1; null if the file has no scale.
   */
  classify(pixels) {
    const size = this.image[0] * this.image[1] * this.image[2];
    if (!(pixels instanceof Uint8Array || pixels instanceof Uint8ClampedArray) || pixels.length !== size) {
      throw new PackedError(`takes ${size} pixels of ${this.image.join(" x ")} as a Uint8Array`);
    }
    let logits = this.onePass(pixels, 0);
    let passes = 1;
    // Every second pass sees the mirror image.
    for (const [number, end] of this.ends.entries()) {
      if (end.choice === null || marginOf(logits) >= end.choice.margin) break;
      const seen = passes % 2 ? mirrored(pixels, this.image[2]) : pixels;
      const more = this.onePass(seen, Math.min(passes, this.ends.length - 1));
      logits = logits.map((sum, i) => joined(sum, more[i], shiftBefore(this.ends, number)));
      passes += 1;
    }
    const label = logits.indexOf(Math.max(...logits));
    const confidences = this.logitScale === null ? null : softmax(logits, this.logitScale / passes);
    return { logits, label, passes, confidences };
  }

  /** The logits of one pass of one network, an array. */
  onePass(pixels, network) {
    const values = [compute.input(this.steps[0], pixels)];
    const first = network ? this.steps.indexOf(this.ends[network - 1]) + 1 : 1;
    for (let index = first; ; index += 1) {
      const step = this.steps[index];
      const read = step.inputs.map((value) => ({ numbers: values[value], shape: this.steps[value].shape }));
      values[index] = compute[step.op](step, ...read, step.scaling?.added == null ? null : values[step.scaling.added]);
      if (step.op === "linear") return Array.from(values[index]);
      for (const value of step.inputs) if (value && this.lastUse[value] === index) values[value] = null;
    }
  }
}

const workOf = ({ op, weights, positions, where, shape }) => {
  const numbers = shape[0] * shape[1] * shape[2];
  if (weights) return weights.values.length * positions + numbers;
  return op === "pool" || op === "maximum" ? numbers * where.kernel[0] * where.kernel[1] : numbers;
};

const marginOf = (logits) => {
  const [first, second] = [...logits].sort((one, other) => other - one);
  return first - second;
};

const softmax = (logits, scale) => {
  const most = Math.max(...logits);
  const shares = logits.map((logit) => Math.exp((logit - most) * scale));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return shares.map((share) => share / total);
};

const mirrored = (pixels, width) => pixels.map((_, i) => pixels[i - (i % width) + width - 1 - (i % width)]);

// ---- what each step computes: maps are Int32Array, channel by channel ----

/** A map (C, H, W), padded with code 0 on all sides. */
function padded(numbers, [channels, height, width], [down, right]) {
  if (!down && !right) return numbers;
  const [tall, wide] = [height + 2 * down, width + 2 * right];
  const made = new Int32Array(channels * tall * wide);
  for (let c = 0; c < channels; c += 1) {
    for (let y = 0; y < height; y += 1) {
      const from = (c * height + y) * width;
      made.set(numbers.subarray(from, from + width), (c * tall + y + down) * wide + right);
    }
  }
  return made;
}

/** Where each nonzero weight of a convolution finds its first input in the padded map, and the sizes needed for that. */
function planOf({ weights, where }, shape) {
  const { kernel, stride, padding, dilation } = where;
  const [tall, wide] = [shape[1] + 2 * padding[0], shape[2] + 2 * padding[1]];
  const [height, width] = [tall, wide].map((side, axis) =>
    Math.floor((side - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis]) + 1);
  const from = new Int32Array(weights.at.length);
  const area = kernel[0] * kernel[1];
  for (let row = 0; row + 1 < weights.starts.length; row += 1) {
    const channels = Math.floor(row / weights.rowsOfGroup) * weights.perGroup;
    for (let i = weights.starts[row]; i < weights.starts[row + 1]; i += 1) {
      const inside = weights.at[i] % area;
      const channel = channels + (weights.at[i] - inside) / area;
      const x = inside % kernel[1];
      from[i] = (channel * tall + ((inside - x) / kernel[1]) * dilation[0]) * wide + x * dilation[1];
    }
  }
  // Rows that follow one another without a gap are one long row.
  const flat = stride[0] === 1 && stride[1] === 1 && width === wide;
  const [lines, line] = flat ? [1, height * width] : [height, width];
  return { from, height, width, lines, line, down: stride[0] * wide, right: stride[1] };
}

/** Dot products (O, H', W'): weights that are zero cost no time. */
function dotProducts(step, { numbers, shape }) {
  step.plan ??= planOf(step, shape);
  const { from, height, width, lines, line, down, right } = step.plan;
  const { starts, values } = step.weights;
  const source = padded(numbers, shape, step.where.padding);
  const sums = new Int32Array((starts.length - 1) * height * width);
  for (let row = 0, first = 0; row + 1 < starts.length; row += 1, first += height * width) {
    // Four weights at a time read and write a sum once.
    let i = starts[row];
    for (const end = starts[row + 1]; i < end; i += 4) {
      const [b, c, d] = [i + 1 < end ? i + 1 : i, i + 2 < end ? i + 2 : i, i + 3 < end ? i + 3 : i];
      const each = [values[i], b > i ? values[b] : 0, c > i ? values[c] : 0, d > i ? values[d] : 0];
      addRows(sums, first, source, from[i], from[b], from[c], from[d], ...each, lines, line, down, right);
    }
  }
  return { sums, height, width };
}

function addRows(sums, to, source, a, b, c, d, forA, forB, forC, forD, lines, line, down, right) {
  for (let y = 0; y < lines; y += 1) {
    const start = y * down;
    for (let x = 0, at = start; x < line; x += 1, at += right, to += 1) {
      const more = Math.imul(forA, source[a + at]) + Math.imul(forB, source[b + at]);
      sums[to] = (sums[to] + more + Math.imul(forC, source[c + at]) + Math.imul(forD, source[d + at])) | 0;
    }
  }
}

/** The codes of sums (C, positions). */
function requantized({ gain, offset, lowest, highest, ratio }, sums, positions, residual) {
  const made = new Int32Array(sums.length);
  for (let c = 0, i = 0; c < gain.length; c += 1) {
    for (const end = i + positions; i < end; i += 1) {
      const total = sums[i] * gain[c] + offset[c] + (residual === null ? 0 : residual[i] * ratio);
      made[i] = Math.min(Math.max(Math.floor(total), lowest), highest);
    }
  }
  return made;
}

/** Calls found(value) for every value of the map inside a window, and then done(position of the window). */
function eachWindow({ where, shape }, { numbers, shape: [, height, width] }, found, done) {
  const { kernel, stride, padding } = where;
  for (let c = 0, place = 0; c < shape[0]; c += 1) {
    for (let y = 0; y < shape[1]; y += 1) {
      const [top, bottom] = [Math.max(0, y * stride[0] - padding[0]), Math.min(height, y * stride[0] - padding[0] + kernel[0])];
      for (let x = 0; x < shape[2]; x += 1, place += 1) {
        const [left, right] = [Math.max(0, x * stride[1] - padding[1]), Math.min(width, x * stride[1] - padding[1] + kernel[1])];
        for (let row = top; row < bottom; row += 1) {
          for (let at = (c * height + row) * width + left, end = at + right - left; at < end; at += 1) found(numbers[at]);
        }
        done(place);
      }
    }
  }
}

function greatestOf(windows, source) {
  const made = new Int32Array(windows.shape[0] * windows.shape[1] * windows.shape[2]);
  let most = -Infinity;
  eachWindow(windows, source, (value) => { if (value > most) most = value; }, (place) => { made[place] = most; most = -Infinity; });
  return made;
}

const compute = {
  input: ({ bits }, pixels) => Int32Array.from(pixels, (pixel) => (pixel - 128) >> (8 - bits)),
  conv(step, source, residual) {
    const { sums, height, width } = dotProducts(step, source);
    const side = step.window;
    const windows = { where: { kernel: [side, side], stride: [side, side], padding: [0, 0] }, shape: step.shape };
    const kept = side > 1 ? greatestOf(windows, { numbers: sums, shape: [step.shape[0], height, width] }) : sums;
    return requantized(step.scaling, kept, step.shape[1] * step.shape[2], residual);
  },
  affine({ scaling, order, shape }, { numbers }, residual) {
    const positions = shape[1] * shape[2];
    const chosen = new Int32Array(numbers.length);
    order.forEach((from, to) => chosen.set(numbers.subarray(from * positions, (from + 1) * positions), to * positions));
    return requantized(scaling, chosen, positions, residual);
  },
  product({ scaling, shape }, first, second, residual) {
    const positions = shape[1] * shape[2];
    const whole = second.numbers.length === first.numbers.length;
    const sums = first.numbers.map((code, i) => code * second.numbers[whole ? i : Math.floor(i / positions)]);
    return requantized(scaling, sums, positions, residual);
  },
  table: ({ entries, first }, { numbers }) => numbers.map((code) => entries[code - first]),
  concat({ shape }, ...sources) {
    const made = new Int32Array(shape[0] * shape[1] * shape[2]);
    let at = 0;
    for (const source of sources) {
      if (source === null) continue;
      made.set(source.numbers, at);
      at += source.numbers.length;
    }
    return made;
  },
  pool(step, source) {
    const made = new Int32Array(step.shape[0] * step.shape[1] * step.shape[2]);
    let sum = 0;
    eachWindow(step, source, (value) => { sum += value; }, (place) => { made[place] = sum; sum = 0; });
    return made;
  },
  maximum: greatestOf,
  linear({ weights, bias }, { numbers }) {
    return bias.map((start, row) => {
      let sum = start;
      for (let i = weights.starts[row]; i < weights.starts[row + 1]; i += 1) sum += weights.values[i] * numbers[weights.at[i]];
      return sum;
    });
  },
};
