"use strict";
// Where objects lie: their numbers by squares of the slide, so that neither a click nor a frame looks at all of them.

const PER_SQUARE = 8; // objects in the mean; half or twice as many are as fast
const MOST_SQUARES = 64; // an object that covers more is asked each time

class Grid {
  constructor(objects, width, height) {
    this.objects = objects;
    this.side = Math.max(1, Math.sqrt((width * height * PER_SQUARE) / Math.max(1, objects.length)));
    this.cols = Math.ceil(width / this.side) + 1;
    this.rows = Math.ceil(height / this.side) + 1;
    this.large = [];
    this.starts = new Uint32Array(this.cols * this.rows + 1);
    const spans = objects.map(object => this.span(object));
    spans.forEach((span, i) => { // counted first, then filled: no array for each square
      if ((span[2] - span[0] + 1) * (span[3] - span[1] + 1) > MOST_SQUARES) this.large.push(i);
      else this.each(span, square => { this.starts[square + 1] += 1; });
    });
    for (let i = 0; i < this.cols * this.rows; i += 1) this.starts[i + 1] += this.starts[i];
    this.numbers = new Uint32Array(this.starts.at(-1));
    const next = this.starts.slice(), isLarge = new Set(this.large);
    spans.forEach((span, i) => { if (!isLarge.has(i)) this.each(span, square => { this.numbers[next[square]++] = i; }); });
  }

  span([x0, y0, x1, y1]) {
    const col = x => Math.min(this.cols - 1, Math.max(0, Math.floor(x / this.side)));
    const row = y => Math.min(this.rows - 1, Math.max(0, Math.floor(y / this.side)));
    return [col(x0), row(y0), col(x1), row(y1)];
  }

  each([c0, r0, c1, r1], does) {
    for (let r = r0; r <= r1; r += 1) for (let c = c0; c <= c1; c += 1) if (does(r * this.cols + c) === false) return;
  }

  // numbers of the objects that share a place with a box, in order; null where there are more than `most`
  inside(x0, y0, x1, y1, most = Infinity) {
    const found = new Set();
    const take = i => {
      const [a0, b0, a1, b1] = this.objects[i];
      if (a1 >= x0 && b1 >= y0 && a0 <= x1 && b0 <= y1) found.add(i);
    };
    this.large.forEach(take);
    this.each(this.span([x0, y0, x1, y1]), square => {
      for (let k = this.starts[square]; k < this.starts[square + 1]; k += 1) take(this.numbers[k]);
      return found.size <= most;
    });
    return found.size > most ? null : [...found].sort((a, b) => a - b);
  }
}
