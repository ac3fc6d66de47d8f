// Tracks that play together, from one clock.

export class Player {
  constructor(tell) {
    this.tell = tell; // called whenever it begins or ends to play
    this.context = null;
    this.tracks = [];
    this.playing = false;
    this.looping = false;
    this.loop = null; // [seconds, seconds]
    this.duration = 0;
    this._at = 0; // where it was when it last stood still
    this._begun = 0; // when it began, by the clock of the context
    this._sources = [];
  }

  /** Fetch and decode tracks; `told(done)` after each. */
  async load(addresses, told, signal) {
    this.pause();
    this.context ??= new AudioContext();
    this.tracks = [];
    this.loop = null;
    this.looping = false;
    this._at = 0;
    const tracks = [];
    for (const [name, address] of addresses) {
      const answer = await fetch(address, {signal});
      if (!answer.ok) throw new Error(`${name} cannot be fetched: it is not kept any more`);
      const buffer = await this.context.decodeAudioData(await answer.arrayBuffer());
      signal.throwIfAborted();
      const gain = this.context.createGain();
      gain.connect(this.context.destination);
      tracks.push({name, buffer, gain, muted: name === "mixture", solo: false, volume: 1});
      told(tracks.length);
    }
    this.tracks = tracks;
    this.duration = Math.max(...tracks.map((track) => track.buffer.duration));
    this.mix();
  }

  /** Set the volumes: those of tracks that are played alone, else of those that are not muted. */
  mix() {
    const some = this.tracks.some((track) => track.solo);
    for (const track of this.tracks) {
      track.heard = some ? track.solo : !track.muted;
      track.gain.gain.value = track.heard ? track.volume : 0;
    }
  }

  get position() {
    if (!this.playing) return this._at;
    const position = this._at + Math.max(0, this.context.currentTime - this._begun);
    const [start, end] = this.loop ?? [0, 0];
    if (this._repeats && position > end) return start + ((position - start) % (end - start));
    return Math.min(position, this.duration);
  }

  get _repeats() { return this.looping && this.loop !== null && this._at < this.loop[1]; }

  async play() {
    if (this.playing || !this.tracks.length) return;
    await this.context.resume();
    if (this._at >= this.duration - 0.01) this._at = 0;
    this._begun = this.context.currentTime + 0.05;
    this._sources = this.tracks.map((track) => {
      const source = this.context.createBufferSource();
      source.buffer = track.buffer;
      source.connect(track.gain);
      if (this._repeats) Object.assign(source, {loop: true, loopStart: this.loop[0], loopEnd: this.loop[1]});
      source.start(this._begun, this._at);
      return source;
    });
    this.playing = true;
    this.tell();
  }

  pause() {
    if (!this.playing) return;
    this._at = this.position;
    this.playing = false;
    for (const source of this._sources) source.stop();
    this._sources = [];
    this.tell();
  }

  /** Change something that sounding sources do not follow: the position, or the loop. */
  change(act) {
    const on = this.playing;
    this.pause();
    act();
    if (on) this.play();
  }

  seek(position) {
    this.change(() => { this._at = Math.min(Math.max(0, position), this.duration); });
  }
}

export function clock(seconds) {
  const tenths = Math.floor(seconds * 10 + 1e-6);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}
