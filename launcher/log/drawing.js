// What the timeline and the live page draw with: the log's bars and arrows as a diagram, a request's story in words, and
// who asks whom as a picture. A page has one diagram, on the canvas of the id `canvas`, of what it was given last (`take`).

const [LANE, ROW, START, SPAN, KIND, OPERATION, ERROR, REQUEST, OFFSET, LENGTH] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
const COLOURS = { READ: "#3b82c4", WRITE: "#e08a2e", FLUSH: "#4a9d6e", TRIM: "#9068be", WRITE_ZEROES: "#b0609a",
                  CACHE: "#5aa5a5", BLOCK_STATUS: "#8d99a6" };
const [TAIL, LEAVES, HEAD, ARRIVES, REPLY] = [0, 1, 2, 3, 4];
const AXIS = 26, MIN_SPAN = 0.02, LEAST = 15, FOLDED = 15;
let GUTTER = 118, GAP = 10, wallClock = true;
const canvas = document.getElementById("canvas"), paint = canvas.getContext("2d"), tip = document.getElementById("tip");
const OVERVIEW = canvas.hasAttribute("data-overview") ? 46 : 0;  // of all there is, below the diagram
let lanes = [], bars = [], arrows = [], marks = [], origin = 0n, BEGIN = 0, END = 1;
let rows = [], stories = new Map(), longest = [], density = [], busiest = 1;
let view = [0, 1], chosen = null, width = 0, height = 0, tops = [], talls = [], rowHeight = 12, due = false, drawn = [], labels = [];

// -- numbers for people -----------------------------------------------------------------------------------------------
function span(us) {
  const size = Math.abs(us);
  if (size < 1000) return `${+us.toPrecision(4)} µs`;
  return size < 1e6 ? `${+(us / 1000).toPrecision(5)} ms` : `${+(us / 1e6).toPrecision(6)} s`;
}
function clock(us, from = origin) {
  const ns = from + BigInt(Math.round(us * 1000));
  const date = new Date(Number(ns / 1000000n));
  return date.toLocaleTimeString("sv") + "." + String(ns / 1000n % 1000000n).padStart(6, "0");
}
function tick(us, step, shift) {
  const text = clock(Math.round((us + shift) / step) * step - shift), digits = step >= 1e6 ? 0 : Math.min(6, Math.ceil(6 - Math.log10(step)));
  return digits ? text.slice(0, 9 + digits) : text.slice(0, 8);
}
const colour = bar => COLOURS[bar[OPERATION]] || "#8d99a6";
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// -- what belongs together --------------------------------------------------------------------------------------------
function take(data) {
  ({ lanes, bars, arrows, marks } = data);
  origin = BigInt(data.begin);
  END = Math.max(data.end, 1) * 1.01; BEGIN = -Math.max(data.end, 1) * 0.01;
  view = [BEGIN, END];
  rows = lanes.map(lane => Array.from({ length: lane.rows }, () => []));
  bars.forEach((bar, index) => rows[bar[LANE]][bar[ROW]].push(index));
  longest = rows.map(lane => lane.map(row => row.reduce((most, index) => Math.max(most, bars[index][SPAN]), 0)));
  stories = new Map();
  bars.forEach((bar, index) => stories.has(bar[REQUEST]) ? stories.get(bar[REQUEST]).push(index) : stories.set(bar[REQUEST], [index]));
  density = new Array(SLICES).fill(0);
  for (const bar of bars) if (bar[KIND] === "request") density[Math.min(SLICES - 1, Math.floor((bar[START] - BEGIN) / (END - BEGIN) * SLICES))]++;
  busiest = Math.max(1, ...density);
}

function flows() {
  // Who asks whom, and how often.
  const found = new Map(), who = lane => lanes[lane].kind === "client" ? "clients" : lanes[lane].name;
  for (const [cause, , effect, , reply] of arrows) {
    if (reply) continue;
    const from = who(bars[cause][LANE]), to = who(bars[effect][LANE]), key = `${from}>${to}`;
    if (from !== to) found.set(key, [from, to, (found.get(key) || [0, 0, 0])[2] + 1]);
  }
  return [...found.values()];
}

// -- drawing ----------------------------------------------------------------------------------------------------------
function layOut() {
  const box = canvas.parentElement.getBoundingClientRect(), scale = window.devicePixelRatio || 1;
  width = box.width; height = box.height;
  canvas.width = Math.round(width * scale); canvas.height = Math.round(height * scale);
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  GUTTER = width < 700 ? 72 : 118;
  // Lanes in which nothing is carried out are folded; all lanes fit, and none is lower than its name.
  const busy = lanes.filter(lane => lane.rows), all = busy.reduce((sum, lane) => sum + lane.rows, 0);
  const room = height - AXIS - OVERVIEW - 8 - FOLDED * (lanes.length - busy.length);
  GAP = Math.max(2, Math.min(10, room / Math.max(1, busy.length) / 5));
  rowHeight = Math.max(1, Math.min(30, (room - GAP * 2 * busy.length) / Math.max(1, all)));
  const measure = () => lanes.map(lane => lane.rows ? Math.max(LEAST, lane.rows * rowHeight + GAP * 2) : FOLDED);
  talls = measure();
  while (rowHeight > 1 && talls.reduce((sum, tall) => sum + tall, 0) > height - AXIS - OVERVIEW - 8) { rowHeight *= 0.93; talls = measure(); }
  let top = AXIS + 4;
  tops = talls.map(tall => { const here = top; top += tall; return here; });
}
const x = time => GUTTER + (time - view[0]) / (view[1] - view[0]) * (width - GUTTER - 12);
const time = place => view[0] + (place - GUTTER) / (width - GUTTER - 12) * (view[1] - view[0]);
const y = bar => tops[bar[LANE]] + GAP + bar[ROW] * rowHeight;

function draw() {
  due = false;
  const ink = style("--ink"), soft = style("--soft"), line = style("--line");
  paint.clearRect(0, 0, width, height);
  paint.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  lanes.forEach((lane, index) => {
    const tall = talls[index] - (lane.rows ? 4 : 2), top = tops[index] + (lane.rows ? 2 : 1);
    paint.fillStyle = style("--lane"); paint.fillRect(GUTTER, top, width - GUTTER, tall);
    for (const [from, to, planned] of lane.down) {
      paint.fillStyle = style(planned ? "--rest" : "--down");
      paint.fillRect(Math.max(GUTTER, x(from)), top, Math.max(1.5, x(to) - Math.max(GUTTER, x(from))), tall);
    }
  });
  drawAxis(soft, line);
  paint.save(); paint.beginPath(); paint.rect(GUTTER, AXIS, width - GUTTER, height - AXIS - OVERVIEW); paint.clip();
  const drawnArrows = drawArrows();
  const drawnBars = drawBars();
  drawFaults();
  drawMarks();
  paint.restore();
  paint.fillStyle = style("--paper"); paint.fillRect(0, AXIS, GUTTER, height - AXIS - OVERVIEW);
  paint.textBaseline = "middle"; paint.textAlign = "right";
  lanes.forEach((lane, index) => {
    paint.fillStyle = lane.kind === "client" ? soft : ink;
    paint.fillText(lane.host ? `${lane.host}/${lane.name}` : lane.name, GUTTER - 8, tops[index] + talls[index] / 2, GUTTER - 12);
  });
  if (OVERVIEW) drawOverview(soft);
  document.getElementById("range").textContent = `${clock(Math.max(0, view[0]))}  +${span(view[1] - view[0])}`;
  Object.assign(document.body.dataset, { drawnBars, drawnArrows });
}
function visible(bar) { return bar[START] <= view[1] && bar[START] + bar[SPAN] >= view[0]; }
function told(index) { return chosen === null || bars[index][REQUEST] === chosen; }

function drawBars() {
  let drawn = 0;
  const narrow = rowHeight > 6 ? 1 : 0;
  for (let index = 0; index < bars.length; index++) {
    const bar = bars[index];
    if (!visible(bar)) continue;
    drawn++;
    const left = Math.max(GUTTER - 4, x(bar[START])), right = Math.min(width + 4, x(bar[START] + bar[SPAN]));
    const wide = Math.max(1.2, right - left), top = y(bar) + narrow, tall = rowHeight - 2 * narrow;
    paint.globalAlpha = told(index) ? (bar[KIND] === "wait" ? 0.38 : 1) : 0.1;
    paint.fillStyle = colour(bar); paint.fillRect(left, top, wide, tall);
    if (bar[ERROR]) { paint.fillStyle = style("--trouble"); paint.fillRect(left, top, wide, 3); }
    if (wide > 60 && rowHeight > 11) {
      paint.globalAlpha = told(index) ? 1 : 0.1;
      paint.fillStyle = bar[KIND] === "wait" ? style("--ink") : "#fff"; paint.textAlign = "left"; paint.textBaseline = "middle";
      paint.fillText(`${bar[OPERATION]} ${bar[REQUEST]}`, left + 5, top + tall / 2 + 0.5, wide - 8);
    }
  }
  paint.globalAlpha = 1;
  return drawn;
}
function drawArrows() {
  const shown = arrows.filter(arrow => arrow[LEAVES] <= view[1] && arrow[ARRIVES] >= view[0]);
  const faint = Math.max(0.03, Math.min(0.8, 90 / Math.max(1, shown.length)));
  const heads = shown.length < 600;
  drawn = [];
  for (const [tail, leaves, head, arrives, reply] of shown) {
    const one = bars[tail], other = bars[head];
    paint.strokeStyle = paint.fillStyle = style(reply ? "--reply" : "--arrow");
    paint.globalAlpha = chosen === null ? faint : told(head) ? 0.95 : 0.03;
    const down = y(other) > y(one);
    const ends = [x(leaves), y(one) + (down ? rowHeight : 0), x(arrives), y(other) + (down ? 0 : rowHeight)];
    arrow(...ends, heads || told(head) && chosen !== null, reply ? [4, 3] : []);
    drawn.push([one[LANE], leaves, other[LANE], arrives, reply, ...ends]);
  }
  paint.globalAlpha = 1;
  return shown.length;
}
function arrow(fromX, fromY, toX, toY, head, dash) {
  paint.setLineDash(dash); paint.beginPath(); paint.moveTo(fromX, fromY); paint.lineTo(toX, toY); paint.stroke(); paint.setLineDash([]);
  if (!head) return;
  const angle = Math.atan2(toY - fromY, toX - fromX);
  paint.beginPath(); paint.moveTo(toX, toY);
  for (const side of [-0.4, 0.4]) paint.lineTo(toX - 7 * Math.cos(angle + side), toY - 7 * Math.sin(angle + side));
  paint.fill();
}
function drawFaults() {
  paint.textAlign = "left"; paint.textBaseline = "top";
  lanes.forEach((lane, index) => lane.faults.forEach(([from, to, label]) => {
    if (to < view[0] || from > view[1]) return;
    const left = Math.max(GUTTER, x(from)), right = Math.min(width, Math.max(x(to), left + 3)), top = tops[index] + 1, tall = talls[index] - 2;
    paint.globalAlpha = 0.16; paint.fillStyle = style("--fault"); paint.fillRect(left, top, right - left, tall);
    paint.globalAlpha = 1; paint.strokeStyle = style("--fault"); paint.strokeRect(left + 0.5, top + 0.5, right - left - 1, tall - 1);
    const fitting = [label, label.replace(/ (by|for|from) .*/, "")].find(words => paint.measureText(words).width + 10 < right - left);
    if (fitting) { paint.fillStyle = style("--fault"); paint.fillText(fitting, left + 5, top + 2); }
  }));
}
function drawMarks() {
  paint.textAlign = "left"; paint.textBaseline = "top"; paint.lineJoin = "round";
  const shown = marks.filter(mark => mark[1] >= view[0] && mark[1] <= view[1]), taken = new Map();
  const ink = trouble => style(trouble ? "--trouble" : "--soft");
  for (const [lane, at, , , trouble] of shown) {
    const place = x(at), top = tops[lane] + 1, tall = talls[lane] - 2;
    paint.strokeStyle = paint.fillStyle = ink(trouble); paint.lineWidth = trouble ? 2 : 1;
    paint.beginPath(); paint.moveTo(place, top); paint.lineTo(place, top + tall); paint.stroke();
    paint.beginPath(); paint.arc(place, top + 3, trouble ? 4 : 2.5, 0, 7); paint.fill();
  }
  labels = [];  // what means trouble has its name first; a name for which there is no room is left out
  for (const [lane, at, name, detail, trouble] of [...shown.filter(mark => mark[4]), ...shown.filter(mark => !mark[4])]) {
    if (lanes[lane].faults.some(([from]) => from === at)) continue;  // the span has its own name
    const here = taken.get(lane) || [], words = trouble && detail ? [`${name} ${detail}`, name] : [name];
    for (const text of words) {
      const long = paint.measureText(text).width, beyond = x(at) + 6 + long > width - 4;  // at the edge it stands before its event
      const left = beyond ? x(at) - 6 - long : x(at) + 6, right = left + long;
      if (left < GUTTER || here.some(([from, to]) => left < to + 8 && right > from - 8)) continue;
      taken.set(lane, [...here, [left, right]]);
      labels.push([lane, left, right, text]);
      const level = tops[lane] + talls[lane] - 14;
      paint.lineWidth = 4; paint.strokeStyle = style("--lane"); paint.strokeText(text, left, level);  // readable on bars and arrows
      paint.fillStyle = ink(trouble); paint.fillText(text, left, level);
      break;
    }
  }
  paint.lineWidth = 1;
}
function drawAxis(soft, line) {
  const wanted = (view[1] - view[0]) / Math.max(2, (width - GUTTER) / 110);
  const power = 10 ** Math.floor(Math.log10(wanted)), step = power * [1, 2, 5, 10].find(n => n * power >= wanted);
  paint.fillStyle = soft; paint.strokeStyle = line; paint.textAlign = "center"; paint.textBaseline = "middle";
  const shift = wallClock && step >= 1 ? Number(origin / 1000n % BigInt(step)) : 0;  // to round times of day
  for (let at = Math.ceil((view[0] + shift) / step) * step - shift; at <= view[1]; at += step) {
    const place = x(at);
    paint.beginPath(); paint.moveTo(place, AXIS); paint.lineTo(place, height - OVERVIEW); paint.stroke();
    if (place > GUTTER + 40 && place < width - 40) paint.fillText(wallClock ? tick(at, step, shift) : span(Math.round(at / step) * step), place, AXIS / 2 + 1);
  }
}
const SLICES = 400;
const far = at => GUTTER + (at - BEGIN) / (END - BEGIN) * (width - GUTTER - 12);
function drawOverview(soft) {
  const top = height - OVERVIEW + 8, tall = OVERVIEW - 14, each = (width - GUTTER - 12) / SLICES;
  paint.fillStyle = style("--lane"); paint.fillRect(GUTTER, top, width - GUTTER - 12, tall);
  paint.fillStyle = soft;
  density.forEach((count, slice) => { if (count) { const high = Math.max(1, count / busiest * tall); paint.fillRect(GUTTER + slice * each, top + tall - high, Math.max(1, each - 0.3), high); } });
  paint.fillStyle = style("--trouble");
  for (const [, at, , , trouble] of marks) if (trouble) paint.fillRect(far(at) - 1, top, 2, tall);
  paint.fillStyle = soft; paint.strokeStyle = style("--ink"); paint.lineWidth = 1.5;
  paint.strokeRect(far(view[0]), top - 2, Math.max(3, far(view[1]) - far(view[0])), tall + 4);
  paint.lineWidth = 1; paint.textAlign = "right"; paint.textBaseline = "middle";
  paint.fillText("requests", GUTTER - 10, top + tall / 2);
}
function redraw() { if (!due) { due = true; requestAnimationFrame(draw); } }

// -- what is where, and in words ---------------------------------------------------------------------------------------
function find(place, level) {
  const lane = tops.findIndex((top, index) => level >= top && level < top + talls[index]);
  if (lane < 0 || place < GUTTER) return null;
  const slack = 3 / (width - GUTTER) * (view[1] - view[0]), at = time(place);
  const mark = marks.find(mark => mark[0] === lane && Math.abs(mark[1] - at) < slack && (level < tops[lane] + GAP || !barAt(lane, level, at, slack)));
  if (mark) return { mark };
  const bar = barAt(lane, level, at, slack);
  return bar === undefined ? null : { bar };
}
function barAt(lane, level, at, slack) {
  const row = Math.floor((level - tops[lane] - GAP) / rowHeight), list = (rows[lane] || [])[row];
  if (!list) return undefined;
  let low = 0, high = list.length;
  while (low < high) { const middle = (low + high) >> 1; if (bars[list[middle]][START] <= at + slack) low = middle + 1; else high = middle; }
  for (let index = low - 1; index >= 0 && bars[list[index]][START] + longest[lane][row] >= at - slack; index--)
    if (bars[list[index]][START] + bars[list[index]][SPAN] >= at - slack) return list[index];
  return undefined;
}
const WORDS = { request: "request", piece: "piece", map: "read of cluster.json", answer: "is answered" };
function tree(story, lanes) {
  // The lines of a request's story, given as its bars: who did what of it, when after the first, for how long.
  const first = Math.min(...story.map(bar => bar[START]));
  return story.filter(bar => bar[KIND] !== "wait" && bar[KIND] !== "answer").map(bar => ({ piece: bar[KIND] === "piece",
    name: lanes[bar[LANE]].name, after: bar[START] - first, span: bar[SPAN], error: bar[ERROR] }));
}
function bytes(bar) { return `0x${bar[OFFSET].toString(16)} +${bar[LENGTH]}`; }
function describe(index) {
  const bar = bars[index], head = bar[KIND] === "wait" ? `${lanes[bar[LANE]].name} waits` : WORDS[bar[KIND]] || bar[KIND];
  const lines = tree(stories.get(bar[REQUEST]).map(other => bars[other]), lanes).map(line =>
    `${line.piece ? "└ " : ""}${line.name}  +${span(line.after)}  ${span(line.span)}${line.error ? "  " + line.error : ""}`);
  return [`${bar[OPERATION]} ${bar[REQUEST]}, ${head}`,
    `${bytes(bar)} bytes, ${span(bar[SPAN])}${bar[ERROR] ? ", " + bar[ERROR] : ""}\n${clock(bar[START])}\n\n${lines.slice(0, 16).join("\n")}`];
}
function hint(event) {
  const found = find(event.offsetX, event.offsetY);
  if (!found) { tip.style.display = "none"; return; }
  const [title, text] = found.mark ? [`${lanes[found.mark[0]].name} ${found.mark[2]}`, `${found.mark[3]}\n${clock(found.mark[1])}`.trim()] : describe(found.bar);
  tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: title }), "\n" + text);
  tip.style.display = "block";
  tip.style.left = Math.min(event.offsetX + 14, width - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.min(event.offsetY + 16, height - tip.offsetHeight - 8) + "px";
}

// -- who asks whom, as a picture ---------------------------------------------------------------------------------------------
// Boxes in columns: the clients first, whoever is asked one step further. `flows` are [from, to, how many, or null]. Those in
// `answers` answer the clients themselves: the clients stand below all others then, so that no answer meets anybody on its way.
// `turned`, the columns lie below one another. Returns the columns, and the ways by "from>to".
function picture(svg, names, flows, { wide, tall, across, down, answers = [], turned = false, fill = write }) {
  const depth = new Map([["clients", 0]]);
  for (let round = 0; round <= names.length; round++)
    for (const [from, to] of flows) if (depth.has(from) && !depth.has(to)) depth.set(to, depth.get(from) + 1);
  for (const name of names) if (!depth.has(name)) depth.set(name, 2);
  const columns = [];
  for (const name of ["clients", ...names]) (columns[depth.get(name)] ||= []).push(name);
  const most = Math.max(...columns.map(column => (column || []).length)), aside = answers.length > 0;
  const [long, broad] = turned ? [tall, wide] : [wide, tall];  // of a box, from column to column and within one
  const at = new Map(), bend = index => across * 0.4 * (1 + 0.35 * (most - 1 - index));  // the upper ones around the lower ones
  columns.forEach((column, level) => (column || []).forEach((name, index) =>
    at.set(name, [level * across + long / 2 + 4, most * down * (index + 0.5) / column.length])));
  if (aside) at.get("clients")[1] = most * down + down / 2;
  const place = (along, beside) => (turned ? [beside, along] : [along, beside]).map(number => number.toFixed(1)).join(" ");
  const whole = [columns.length * across - across + long + 8 + (aside && most > 1 ? 0.78 * bend(0) : 0), (most + aside) * down];
  if (turned) whole.reverse();
  svg.setAttribute("viewBox", `0 0 ${whole[0]} ${whole[1]}`);
  svg.replaceChildren();
  const ways = new Map(), top = Math.max(1, ...flows.map(flow => flow[2] || 0));
  for (const [from, to, number] of flows) {
    const [start, end] = [at.get(from), at.get(to)], lift = aside && from === "clients" ? -broad / 5 : 0;
    const [here, there] = [start[0] + long / 2, end[0] - long / 2], soft = (across - long) * 0.55;
    const way = element(svg, "path", { class: "way", "stroke-width": (1 + 2.5 * (number || 0) / top).toFixed(1),
      d: `M${place(here, start[1] + lift)} C${place(here + soft, start[1] + lift)} ${place(there - soft, end[1])} ${place(there, end[1])}` });
    ways.set(`${from}>${to}`, way);
    if (number !== null) element(svg, "text", { class: "often", x: there - 3, y: end[1] - 3 }, String(number));
  }
  for (const name of answers) {
    const [along, beside] = at.get(name), [to, below] = [at.get("clients")[0] + long / 2, at.get("clients")[1] + broad / 5];
    const column = columns[depth.get(name)], from = along + long / 2, out = from + bend(column.indexOf(name));
    ways.set(`${name}>clients`, element(svg, "path", { class: "way back", d: column.length === 1
      ? `M${place(along, beside + broad / 2)} C${place(along, below)} ${place(along - long / 2, below)} ${place(to, below)}`
      : `M${place(from, beside)} C${place(out, beside)} ${place(out, below)} ${place(along, below)} L${place(to, below)}` }));
  }
  for (const [name, [along, beside]] of at) {
    const [middleX, middleY] = turned ? [beside, along] : [along, beside];
    const box = element(svg, "g", { class: "box", "data-name": name, transform: `translate(${middleX} ${middleY})` });
    element(box, "rect", { x: -wide / 2, y: -tall / 2, width: wide, height: tall, rx: Math.min(8, tall / 4) });
    fill(box, name);
  }
  return { columns, ways, whole };
}
function write(box, name) { element(box, "text", { y: 4 }, name); }
function element(parent, tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  parent.append(made);
  return made;
}
