// Pictures as pixels of the network's size, as micronet/data/pictures.py makes them with Pillow, up to one level where
// Pillow resamples columns before rows and rounds in between. The browser decodes, and rotates a picture by its EXIF;
// transparent parts are put on white, and colour profiles are not applied.

const MOST_PIXELS = 100_000_000;
const ROUNDING = 22; // bits of a resampling weight, as in Pillow
const GAP = 3; // a picture is reduced by integer factors to this many times the target size, then resampled

/** A picture's pixels, Uint8Array of channels x height x width. file: a Blob. fit: stretch, crop, pad. */
export async function pixelsOf(file, [channels, height, width], fit = "crop") {
  if (channels !== 1 && channels !== 3) throw new Error(`The model takes images of ${channels} channels; pictures have 1 or 3.`);
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" })
    .catch(() => { throw new Error("That is no picture that this browser can read."); });
  const [wide, tall] = [bitmap.width, bitmap.height];
  if (wide * tall > MOST_PIXELS) throw new Error(`The picture has ${wide} x ${tall} pixels, ${MOST_PIXELS} are the most.`);
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: wide, height: tall });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, wide, tall);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, wide, tall);
  return fitted(planesOf(data, channels), [tall, wide], [height, width], fit);
}

/** RGBA as planes; grey by ITU-R 601 luma. */
function planesOf(data, channels) {
  const area = data.length / 4;
  const planes = Array.from({ length: channels }, () => new Uint8Array(area));
  for (let i = 0; i < area; i += 1) {
    const [r, g, b] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) planes[0][i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else [planes[0][i], planes[1][i], planes[2][i]] = [r, g, b];
  }
  return planes;
}

function fitted(planes, from, to, fit) {
  const [height, width] = to;
  const made = new Uint8Array(planes.length * height * width);
  let [inside, corner, box] = [to, [0, 0], [[0, from[0]], [0, from[1]]]];
  if (fit === "pad") {
    const scale = Math.min(width / from[1], height / from[0]);
    inside = from.map((side) => Math.max(1, rounded(side * scale)));
    corner = to.map((side, axis) => Math.floor((side - inside[axis]) / 2));
  } else if (fit !== "stretch") {
    const scale = Math.min(from[1] / width, from[0] / height);
    const kept = to.map((goal, axis) => Math.max(1, Math.min(from[axis], rounded(scale * goal))));
    box = kept.map((side, axis) => [Math.floor((from[axis] - side) / 2), Math.floor((from[axis] - side) / 2) + side]);
  }
  planes.forEach((plane, channel) => {
    const small = resized(plane, from, inside, box);
    for (let y = 0; y < inside[0]; y += 1) {
      made.set(small.subarray(y * inside[1], (y + 1) * inside[1]), (channel * height + y + corner[0]) * width + corner[1]);
    }
  });
  return made;
}

/** To the nearest integer, with halves rounded to even, as in Python. */
function rounded(value) {
  const low = Math.floor(value);
  if (value - low !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

/** A box of a plane, ends in whole pixels, in another size: reduced by integers, then resampled by a triangle filter. */
function resized(plane, from, to, box) {
  const factors = box.map(([start, end], axis) => Math.max(1, Math.floor((end - start) / to[axis] / GAP)));
  let [source, size, ends] = [plane, from, box];
  if (factors[0] > 1 || factors[1] > 1) {
    // As much around the box as the triangle reads.
    const safe = box.map(([start, end], axis) => {
      const support = (end - start) / to[axis] / 2;
      return [Math.max(0, Math.trunc(start - support)), Math.min(from[axis], Math.ceil(end + support))];
    });
    source = reduced(plane, from, safe, factors);
    size = safe.map(([start, end], axis) => Math.ceil((end - start) / factors[axis]));
    ends = box.map((edges, axis) => edges.map((edge) => (edge - safe[axis][0]) / factors[axis]));
  }
  const across = resampled(source, [size[0], size[1]], to[1], ends[1]);
  return turned(resampled(turned(across, [size[0], to[1]]), [to[1], size[0]], to[0], ends[0]), [to[1], to[0]]);
}

/** Means over blocks of whole pixels in a box; the last block may be smaller. */
function reduced(plane, [, wide], [[top, bottom], [left, right]], [down, over]) {
  const [height, width] = [Math.ceil((bottom - top) / down), Math.ceil((right - left) / over)];
  const made = new Uint8Array(height * width);
  for (let y = 0; y < height; y += 1) {
    const [first, last] = [top + y * down, Math.min(bottom, top + (y + 1) * down)];
    for (let x = 0; x < width; x += 1) {
      const [start, end] = [left + x * over, Math.min(right, left + (x + 1) * over)];
      const area = (last - first) * (end - start);
      let sum = Math.floor(area / 2);
      for (let row = first; row < last; row += 1) for (let at = start; at < end; at += 1) sum += plane[row * wide + at];
      made[y * width + x] = Math.floor((sum * Math.floor(Math.fround(2 ** 24 / area))) / 2 ** 24);
    }
  }
  return made;
}

/** The part of each row between two ends, resampled to another width. */
function resampled(plane, [tall, wide], width, [start, end]) {
  const scale = (end - start) / width;
  const reach = Math.max(1, scale);
  const made = new Uint8Array(tall * width);
  for (let x = 0; x < width; x += 1) {
    const center = start + (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(wide, Math.trunc(center + reach + 0.5));
    const shares = Array.from({ length: last - first }, (_, i) => Math.max(0, 1 - Math.abs((first + i - center + 0.5) / reach)));
    const total = shares.reduce((sum, share) => sum + share, 0);
    const weights = shares.map((share) => Math.floor((share / total) * 2 ** ROUNDING + 0.5));
    for (let y = 0; y < tall; y += 1) {
      let sum = 2 ** (ROUNDING - 1);
      for (let i = 0; i < weights.length; i += 1) sum += plane[y * wide + first + i] * weights[i];
      made[y * width + x] = Math.min(255, Math.floor(sum / 2 ** ROUNDING));
    }
  }
  return made;
}

/** Rows as columns. */
function turned(plane, [tall, wide]) {
  const made = new Uint8Array(plane.length);
  for (let y = 0; y < tall; y += 1) for (let x = 0; x < wide; x += 1) made[x * tall + y] = plane[y * wide + x];
  return made;
}
