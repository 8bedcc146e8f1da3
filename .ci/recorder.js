// Runs before a page's own scripts and keeps the texts that were last drawn on each canvas, for `layout.js`.
window.drawnTexts = new Map();
{
  const { fillText, clearRect } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.clearRect = function (...box) {
    drawnTexts.set(this.canvas, []);
    return clearRect.apply(this, box);
  };
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
    const size = this.measureText(text).width;
    const at = this.getTransform().transformPoint({ x, y });
    const start = { center: size / 2, right: size, end: size }[this.textAlign] ?? 0;
    if (!drawnTexts.has(this.canvas)) drawnTexts.set(this.canvas, []);
    if (text) drawnTexts.get(this.canvas).push({ text, left: at.x - start, right: at.x - start + size, y: at.y, baseline: this.textBaseline });
    return fillText.call(this, text, x, y, ...rest);
  };
}
