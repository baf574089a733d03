"use strict";
// The volume inside the report, and slices of it. Axes: 0 runs to the patient's left, 1 to the
// back, 2 to the feet, so each plane is drawn with its first axis across and its second axis down.
class Slices {
  constructor(data, layers) {
    Object.assign(this, { data, layers, shape: data.shape, channels: data.colour ? 3 : 1 });
    this.strides = [1, data.shape[0], data.shape[0] * data.shape[1]];
    this.count = this.strides[2] * data.shape[2];
    [this.lowest, this.highest] = data.range; // scan values of the bytes 0 and 255
  }

  static async load(data) {
    const slices = new Slices(data, {});
    for (const [name, uri] of Object.entries(data.layers)) {
      const grey = name === "map" || name === "mask";
      slices.layers[name] = await slices.unpack(uri, grey ? 1 : slices.channels);
    }
    for (const name of ["map", "mask"]) slices.layers[name] ??= new Uint8Array(slices.count);
    return slices;
  }

  // Cuts a mosaic of axial slices into voxels; colour pictures keep three bytes a voxel.
  async unpack(uri, channels) {
    const image = new Image();
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(new Error("an embedded picture is damaged"));
      image.src = uri;
    });
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const [width, height, depth] = this.shape, columns = this.data.columns;
    const voxels = new Uint8Array(this.count * channels);
    for (let z = 0, at = 0; z < depth; z++) {
      const left = (z % columns) * width, top = Math.floor(z / columns) * height;
      const tile = context.getImageData(left, top, width, height).data;
      for (let i = 0; i < tile.length; i += 4)
        for (let c = 0; c < channels; c++) voxels[at++] = tile[i + c];
    }
    return voxels;
  }

  // The highest anomaly score of each slice, and whether a finding touches it.
  profile(axis) {
    const highest = new Uint8Array(this.shape[axis]), touched = new Uint8Array(this.shape[axis]);
    const { map, mask } = this.layers, stride = this.strides[axis], size = this.shape[axis];
    for (let v = 0; v < this.count; v++) {
      const slice = Math.floor(v / stride) % size;
      if (map[v] > highest[slice]) highest[slice] = map[v];
      if (mask[v]) touched[slice] = 1;
    }
    return { highest, touched };
  }

  // Where a voxel lies in a layer.
  at(cursor) {
    return cursor.reduce((sum, index, axis) => sum + index * this.strides[axis], 0);
  }

  // What is under the cursor: the scan's value (undefined in colour) and the anomaly score.
  valuesAt(cursor) {
    const v = this.at(cursor);
    const byte = this.channels === 1 ? this.layers.scan[v] : undefined;
    return {
      scan: this.lowest + (byte / 255) * (this.highest - this.lowest),
      score: (this.layers.map[v] / 255) * this.data.mapMaximum,
    };
  }

  // Grey of each byte in the window of a view's state.
  greys({ width, level }) {
    const scale = (this.highest - this.lowest) / 255;
    return Uint8ClampedArray.from({ length: 256 }, (_, byte) =>
      255 * ((this.lowest + byte * scale - level) / width + 0.5));
  }

  // Opacity of each map byte: faint below the threshold, so that the scan stays readable.
  opacities({ map, base, opacity }) {
    const threshold = 255 * Math.min(1, this.data.threshold / this.data.mapMaximum) || 255;
    const visible = map && base !== "difference" ? opacity : 0;
    return Float32Array.from({ length: 256 }, (_, byte) => visible * Math.min(1, byte / threshold) ** 2);
  }

  // One slice in its colours, one pixel a voxel.
  image(plane, state) {
    const { layers, strides, channels } = this;
    const width = this.shape[plane.across], height = this.shape[plane.down];
    const image = new ImageData(width, height);
    const greys = this.greys(state), opacities = this.opacities(state);
    const base = state.base === "restored" ? layers.restored : layers.scan;
    const gain = (3 * (this.highest - this.lowest)) / state.width; // a third of the window is full colour
    const brighter = [1, 0.55, 0.1], darker = [0.15, 0.55, 1];
    const first = state.cursor[plane.normal] * strides[plane.normal];
    for (let down = 0, out = 0; down < height; down++) {
      for (let across = 0; across < width; across++, out += 4) {
        const v = first + across * strides[plane.across] + down * strides[plane.down];
        const opacity = opacities[layers.map[v]], colour = this.data.colours[layers.map[v]];
        for (let c = 0; c < 3; c++) {
          const at = v * channels + (channels === 3 ? c : 0);
          let shade = greys[base[at]];
          if (state.base === "difference") {
            const change = (layers.scan[at] - layers.restored[at]) * gain;
            shade = 0.25 * shade + Math.abs(change) * (change > 0 ? brighter : darker)[c];
          }
          image.data[out + c] = shade + (colour[c] - shade) * opacity;
        }
        image.data[out + 3] = 255;
      }
    }
    return image;
  }

  // Lines along the pixel edges between mask and not mask; a box limits them to one finding.
  outline(plane, slice, box) {
    const path = new Path2D(), { mask } = this.layers, { across, down, normal } = plane;
    const [from, to] = box || [[0, 0, 0], this.shape.map((n) => n - 1)];
    if (slice < from[normal] || slice > to[normal]) return path;
    const first = slice * this.strides[normal];
    const inside = (x, y) =>
      x >= 0 && y >= 0 && x < this.shape[across] && y < this.shape[down] &&
      mask[first + x * this.strides[across] + y * this.strides[down]] > 0;
    const line = (x0, y0, x1, y1) => { path.moveTo(x0, y0); path.lineTo(x1, y1); };
    for (let y = from[down]; y <= to[down]; y++) {
      for (let x = from[across]; x <= to[across]; x++) {
        if (!inside(x, y)) continue;
        if (!inside(x - 1, y)) line(x, y, x, y + 1);
        if (!inside(x + 1, y)) line(x + 1, y, x + 1, y + 1);
        if (!inside(x, y - 1)) line(x, y, x + 1, y);
        if (!inside(x, y + 1)) line(x, y + 1, x + 1, y + 1);
      }
    }
    return path;
  }
}
