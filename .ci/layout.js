// What is wrong with the layout of the page that is open: a list of sentences. Needs the record of `recorder.js`.
const wrong = [];
const width = document.documentElement.clientWidth;
const name = (node) => `<${node.tagName.toLowerCase()}${node.id ? "#" + node.id : ""}${node.className?.baseVal ?? node.className ? "." + (node.className.baseVal ?? node.className) : ""}>`
  + ` "${(node.textContent || "").trim().slice(0, 40)}"`;
const seen = (node) => node.getClientRects().length > 0 && getComputedStyle(node).visibility !== "hidden" && !node.closest(".skip");

// Only these may be wider than what they show, and they must say so.
const isScroller = (node) => node.matches(".scroll, .command code");

if (document.documentElement.scrollWidth > width) wrong.push(`the page is ${document.documentElement.scrollWidth} px wide on a screen of ${width}`);

const all = [...document.querySelectorAll("body *")].filter((node) => seen(node) && !node.matches("script, style, noscript, option"));
for (const node of all) {
  const style = getComputedStyle(node);
  const inScroller = node.closest(".scroll, .command code");
  const box = node.getBoundingClientRect();
  if (!inScroller && (box.left < -0.5 || box.right > width + 0.5)) wrong.push(`${name(node)} reaches from ${box.left} to ${box.right} on a screen of ${width}`);
  const hidden = node.scrollWidth - node.clientWidth;
  if (node.clientWidth && hidden > 1 && !node.closest(".uplot") && style.display !== "inline" && !(inScroller && node !== inScroller)) {
    if (!isScroller(node)) wrong.push(`${hidden} px of ${name(node)} are cut off or stick out`);
    else if (node.matches(".scroll") && (node.tabIndex !== 0 || !node.previousElementSibling?.matches(".hint") || !seen(node.previousElementSibling))) {
      wrong.push(`${name(node)} scrolls and does not say so`);
    }
  }
}

// What a node shows of itself: of a table in a scroller only what the scroller shows.
function shown(node) {
  const { left, top, right, bottom } = node.getBoundingClientRect();
  const clip = node.parentElement?.closest(".scroll, .command code")?.getBoundingClientRect();
  return clip ? [Math.max(left, clip.left), Math.max(top, clip.top), Math.min(right, clip.right), Math.min(bottom, clip.bottom)] : [left, top, right, bottom];
}

function overlaps(nodes) {
  const boxes = nodes.map((node) => [node, ...shown(node)]).filter(([, l, t, r, b]) => r - l > 0 && b - t > 0).sort((a, b) => a[2] - b[2]);
  boxes.forEach(([one, l, t, r, b], i) => {
    for (let j = i + 1; j < boxes.length && boxes[j][2] < b - 1.5; j += 1) {
      const [other, ol, , or] = boxes[j];
      if (Math.min(r, or) - Math.max(l, ol) > 1.5 && !one.contains(other) && !other.contains(one)) wrong.push(`${name(one)} and ${name(other)} lie over one another`);
    }
  });
}
overlaps(all.filter((node) => node.matches(".card, .panel, figure, .grid > *, .uplot, h1, h2, h3, header, footer, details, .live, table")));
// Text, pictures and charts. A chart's own layers lie over its canvas; a wrapped line of inline text has no box of its own.
overlaps(all.filter((node) => (node.matches("svg, img, canvas, progress")
  || (!node.children.length && node.textContent.trim() && getComputedStyle(node).display !== "inline")) && !node.closest(".u-over, .u-under, svg *")));
for (const chart of document.querySelectorAll(".uplot")) {
  if (!seen(chart)) continue;
  const [box, place] = [chart, chart.parentElement.closest(".card, .panel")].map((node) => node.getBoundingClientRect());
  if (box.left < place.left || box.right > place.right + 0.5 || box.top < place.top || box.bottom > place.bottom + 0.5) wrong.push(`${name(chart)} sticks out of its panel`);
}

// Texts of the axes.
for (const canvas of document.querySelectorAll("canvas")) {
  if (!seen(canvas)) continue;
  const where = (canvas.closest(".card, .panel").querySelector("h2")?.textContent ?? "a chart") + ": ";
  const texts = window.drawnTexts.get(canvas) ?? [];
  for (const { text, left, right } of texts) if (left < 0 || right > canvas.width) wrong.push(`${where}"${text}" is cut off`);
  const rows = new Map();
  for (const text of texts.filter(({ baseline }) => baseline === "top")) rows.set(text.y, [...rows.get(text.y) ?? [], text]);
  const sorted = [...rows.entries()].sort(([a], [b]) => a - b).map(([, row]) => row.sort((a, b) => a.left - b.left));
  const ticks = sorted[0] ?? [];
  if (!ticks.length) wrong.push(`${where}the axis below has no ticks`);
  if (!sorted[1]?.some(({ text }) => /round|bytes|time/i.test(text))) wrong.push(`${where}the axis below does not say what it shows`);
  ticks.forEach(({ text, left }, i) => {
    if (/^[\d.,]+$/.test(text) && !/^[\d,]+$/.test(text)) wrong.push(`${where}a tick of the rounds at ${text}`);
    if (i && left < ticks[i - 1].right + 2) wrong.push(`${where}the ticks ${ticks[i - 1].text} and ${text} touch`);
  });
  const beside = texts.filter(({ baseline }) => baseline === "middle").map(({ text }) => text);
  if (beside.length < 2 || new Set(beside).size < beside.length) wrong.push(`${where}the ticks beside are ${beside.join(", ")}`);
}
return wrong;
