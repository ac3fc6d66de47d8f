// Pictures of tracks against one axis of time: waveforms, spectrograms behind them, a ruler, playheads.

const BUCKET = 256; // samples of one step of the overview
const SIZE = 1024; // samples of a spectrum
const LOWEST = 40, HIGHEST = 16000; // Hz of a spectrogram
const DECIBELS = 80; // from its darkest to its brightest

const WINDOW = Float32Array.from({length: SIZE}, (_, index) => 0.5 - 0.5 * Math.cos((2 * Math.PI * index) / SIZE));

export class Timeline {
  constructor() {
    this.rows = [];
    this.duration = 1;
    this.start = 0; // what is seen, in seconds
    this.length = 1;
    this.spectrograms = false;
    this.selected = () => null; // the loop, [seconds, seconds]
    this.onSeek = () => {};
    this.onSelect = () => {};
    this._watch = new ResizeObserver(() => this.draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Show tracks: pairs of a track, null for the ruler, and the element that gets its picture. */
  show(rows, duration) {
    this._watch.disconnect();
    Object.assign(this, {duration, start: 0, length: duration});
    this.rows = rows.map(([track, element]) => {
      const canvas = document.createElement("canvas"), head = document.createElement("div");
      head.className = "playhead";
      element.replaceChildren(canvas, head);
      this._listen(canvas);
      this._watch.observe(element);
      return {track, canvas, head, peaks: track && peaks(track.buffer)};
    });
  }

  /** Show a part of the song, around a position. */
  zoom(factor, centre) {
    const share = Math.min(Math.max(0, (centre - this.start) / this.length), 1);
    this.length = this.duration / factor;
    this._move(centre - share * this.length);
  }

  /** Move the playheads; when the position is not seen, show what is there. */
  point(position) {
    if (position < this.start || position > this.start + this.length) this._move(position - 0.05 * this.length);
    const part = (position - this.start) / this.length;
    for (const row of this.rows) row.head.style.left = `${100 * part}%`;
  }

  draw() {
    for (const row of this.rows) this._draw(row);
  }

  _move(start) {
    this.start = Math.min(Math.max(0, start), this.duration - this.length);
    this.draw();
  }

  _listen(canvas) {
    const seconds = (event) => {
      const box = canvas.getBoundingClientRect();
      const part = Math.min(Math.max(0, (event.clientX - box.left) / box.width), 1);
      return this.start + part * this.length;
    };
    let from = null, begun = 0;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = seconds(event);
      begun = event.clientX;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (from !== null && Math.abs(event.clientX - begun) > 4) this.onSelect(from, seconds(event), false);
    });
    canvas.addEventListener("pointercancel", () => { from = null; });
    canvas.addEventListener("pointerup", (event) => {
      if (from === null) return;
      if (Math.abs(event.clientX - begun) > 4) this.onSelect(from, seconds(event), true);
      else this.onSeek(from);
      from = null;
    });
    canvas.addEventListener("wheel", (event) => {
      if (!event.deltaX && !event.shiftKey) return; // up and down the page scrolls
      event.preventDefault();
      this._move(this.start + ((event.deltaX || event.deltaY) / canvas.clientWidth) * this.length);
    }, {passive: false});
  }

  _draw({track, canvas, peaks}) {
    const scale = devicePixelRatio || 1;
    const width = Math.max(1, Math.round(canvas.clientWidth * scale));
    const height = Math.max(1, Math.round(canvas.clientHeight * scale));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const pen = canvas.getContext("2d"), style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name);
    pen.clearRect(0, 0, width, height);
    if (!track) return this._drawRuler(pen, width, height, scale, colour);
    if (this.spectrograms) drawSpectrogram(pen, track.buffer, this.start, this.length, width, height);
    const loop = this.selected();
    if (loop) {
      pen.globalAlpha = 0.3;
      pen.fillStyle = colour("--loop");
      pen.fillRect(((loop[0] - this.start) / this.length) * width, 0, ((loop[1] - loop[0]) / this.length) * width, height);
    }
    pen.globalAlpha = this.spectrograms ? 0.5 : 1;
    pen.fillStyle = this.spectrograms ? "white" : colour(track.heard ? "--wave" : "--silent");
    const step = (this.length * track.buffer.sampleRate) / width, first = this.start * track.buffer.sampleRate;
    for (let x = 0; x < width; x++) {
      const [low, high] = extremes(track.buffer, peaks, first + x * step, first + (x + 1) * step);
      const top = ((1 - high) / 2) * height;
      pen.fillRect(x, top, 1, Math.max(scale, ((high - low) / 2) * height));
    }
    pen.globalAlpha = 1;
  }

  _drawRuler(pen, width, height, scale, colour) {
    const wanted = (this.length / width) * 70 * scale; // seconds between two labels
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300].find((each) => each >= wanted) ?? 600;
    pen.fillStyle = colour("--hint");
    pen.font = `${12 * scale}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    for (let mark = Math.ceil(this.start / step - 1e-9); mark * step <= this.start + this.length; mark++) {
      const x = ((mark * step - this.start) / this.length) * width;
      pen.fillRect(x, 0, scale, height);
      const places = step < 0.1 ? 2 : step < 1 ? 1 : 0, minutes = Math.floor((mark * step + 1e-6) / 60);
      const seconds = (mark * step - 60 * minutes).toFixed(places).padStart(places ? places + 3 : 2, "0");
      pen.fillText(`${minutes}:${seconds}`, x + 4 * scale, height / 2);
    }
  }
}

/** Return the lowest and the highest sample of each bucket, of all channels. */
function peaks(buffer) {
  const count = Math.ceil(buffer.length / BUCKET);
  const low = new Float32Array(count).fill(1), high = new Float32Array(count).fill(-1);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let index = 0; index < samples.length; index++) {
      const bucket = Math.floor(index / BUCKET), sample = samples[index];
      if (sample < low[bucket]) low[bucket] = sample;
      if (sample > high[bucket]) high[bucket] = sample;
    }
  }
  return {low, high};
}

function extremes(buffer, peaks, from, to) {
  let low = 1, high = -1;
  if (to - from < 2 * BUCKET) {
    const samples = buffer.getChannelData(0);
    const end = Math.min(samples.length, Math.max(Math.floor(from) + 1, Math.ceil(to)));
    for (let index = Math.max(0, Math.floor(from)); index < end; index++) {
      low = Math.min(low, samples[index]);
      high = Math.max(high, samples[index]);
    }
  } else {
    const end = Math.min(peaks.low.length, Math.ceil(to / BUCKET));
    for (let index = Math.max(0, Math.floor(from / BUCKET)); index < end; index++) {
      low = Math.min(low, peaks.low[index]);
      high = Math.max(high, peaks.high[index]);
    }
  }
  return low > high ? [0, 0] : [Math.max(-1, low), Math.min(1, high)];
}

/** Draw the spectrum of the first channel, one column after another, on a logarithmic axis of frequency. */
function drawSpectrogram(pen, buffer, start, length, width, height) {
  const columns = Math.max(1, Math.ceil(width / 2)), rows = Math.max(1, Math.ceil(height / 2));
  const picture = new ImageData(columns, rows), samples = buffer.getChannelData(0), rate = buffer.sampleRate;
  const highest = Math.min(HIGHEST, rate / 2);
  const bins = Array.from({length: rows + 1}, (_, row) => (LOWEST * (highest / LOWEST) ** (1 - row / rows) * SIZE) / rate);
  const real = new Float32Array(SIZE), imaginary = new Float32Array(SIZE), power = new Float32Array(SIZE / 2 + 1);
  for (let column = 0; column < columns; column++) {
    const first = Math.round((start + ((column + 0.5) / columns) * length) * rate) - SIZE / 2;
    for (let index = 0; index < SIZE; index++) real[index] = (samples[first + index] ?? 0) * WINDOW[index];
    imaginary.fill(0);
    transform(real, imaginary);
    for (let bin = 0; bin <= SIZE / 2; bin++) power[bin] = (real[bin] ** 2 + imaginary[bin] ** 2) / (SIZE / 4) ** 2;
    for (let row = 0; row < rows; row++) {
      let loudest = 0;
      const last = Math.min(SIZE / 2, Math.max(Math.floor(bins[row + 1]), Math.ceil(bins[row]) - 1));
      for (let bin = Math.floor(bins[row + 1]); bin <= last; bin++) loudest = Math.max(loudest, power[bin]);
      const light = Math.min(1, Math.max(0, 1 + (10 * Math.log10(loudest + 1e-12)) / DECIBELS));
      // From black by violet and orange to yellow, brighter all the way.
      const colour = [255 * Math.min(1, 1.6 * light), 255 * Math.max(0, 1.8 * light - 0.8), 255 * Math.max(0.1, 0.6 * Math.sin(Math.PI * light)), 255];
      picture.data.set(colour, 4 * (row * columns + column));
    }
  }
  const sheet = new OffscreenCanvas(columns, rows);
  sheet.getContext("2d").putImageData(picture, 0, 0);
  pen.drawImage(sheet, 0, 0, width, height);
}

/** The fast Fourier transform, in place, of a length that is a power of two. */
function transform(real, imaginary) {
  const count = real.length;
  for (let index = 1, other = 0; index < count; index++) {
    let bit = count >> 1;
    for (; other & bit; bit >>= 1) other ^= bit;
    other ^= bit;
    if (index < other) {
      [real[index], real[other]] = [real[other], real[index]];
      [imaginary[index], imaginary[other]] = [imaginary[other], imaginary[index]];
    }
  }
  for (let size = 2; size <= count; size *= 2) {
    for (let turn = 0; turn < size / 2; turn++) {
      const angle = (-2 * Math.PI * turn) / size, cosine = Math.cos(angle), sine = Math.sin(angle);
      for (let even = turn; even < count; even += size) {
        const odd = even + size / 2;
        const x = real[odd] * cosine - imaginary[odd] * sine, y = real[odd] * sine + imaginary[odd] * cosine;
        real[odd] = real[even] - x;
        imaginary[odd] = imaginary[even] - y;
        real[even] += x;
        imaginary[even] += y;
      }
    }
  }
}
