"use strict";
// Draws each .plot from its JSON: axes to choose, log or linear, hover, touch, arrow keys. Text goes in as text.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const svg = (name, attributes, parent) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    parent.append(node);
    return node;
  };
  const html = (name, className, parent, text) => {
    const node = document.createElement(name);
    node.className = className;
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };
  const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]];
  const power = (value, digits) => value.toExponential(digits).replace(/\.?0*e/, "e").replace("e+", "e");
  // As the tables say them: 1.2M tokens, 3e18 FLOPs, 5.4 days.
  const say = (value, axis, digits = 4) => {
    const round = (x) => String(Number(x.toPrecision(digits)));
    if (axis === "seconds") {
      for (const [size, name] of [[86400, "days"], [3600, "h"], [60, "min"]]) if (value >= 2 * size) return `${round(value / size)} ${name}`;
      return `${round(value)} s`;
    }
    if (value === 0) return "0";
    if (axis === "flops" || value >= 1e15 || Math.abs(value) < 1e-3) return power(value, digits - 1);
    for (const [size, letter] of UNITS) if (value >= size) return round(value / size) + letter;
    return round(value);
  };
  const nice = (low, high, count) => {
    const raw = (high - low) / count || 1, size = 10 ** Math.floor(Math.log10(raw));
    const gap = [1, 2, 2.5, 5, 10].map((m) => m * size).find((g) => g >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / gap - 1e-9); i * gap <= high + 1e-9 * gap; i++) found.push(Number((i * gap).toPrecision(12)));
    return found;
  };
  const decades = (low, high, count) => {
    const from = Math.log10(low), to = Math.log10(high);
    if (to - from < 0.7) return nice(low, high, count).filter((t) => t > 0);
    const steps = to - from < 1.5 ? [1, 2, 5] : to - from < 3 ? [1, 3] : [1];
    const all = [];
    for (let e = Math.floor(from); e <= Math.ceil(to); e++) for (const m of steps) all.push(m * 10 ** e);
    const inside = all.filter((t) => t >= low * 0.999 && t <= high * 1.001);
    const every = Math.ceil(inside.length / count);
    return inside.filter((_, i) => i % every === 0);
  };

  const plot = (figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const state = { axis: data.axes[0][0], logX: true, logY: data.log_y, hidden: new Set() };
    const header = figure.querySelector("header");
    const controls = html("div", "controls", figure);
    const stage = html("div", "stage", figure);
    const legend = html("div", "legend", figure);
    header.after(controls, legend);
    const canvas = svg("svg", { role: "img" }, stage);
    const tip = html("div", "tip", stage);
    tip.hidden = true;
    stage.tabIndex = 0;
    stage.setAttribute("role", "group");
    stage.setAttribute("aria-label", `${data.title}. Arrow keys read single points.`);
    let scale = null, at = null;

    const choice = (label, options, get, set) => {
      if (options.length < 2) { if (options.length) html("span", "choice", controls, `${label} ${options[0][1]}`); return; }
      const group = html("div", "choice", controls);
      group.setAttribute("role", "group");
      group.setAttribute("aria-label", label);
      html("span", "", group, label);
      const buttons = options.map(([value, name]) => {
        const button = html("button", "", group, name);
        button.type = "button";
        button.addEventListener("click", () => { set(value); for (const b of buttons) b[1].setAttribute("aria-pressed", b[0] === get()); draw(); });
        return [value, button];
      });
      for (const [value, button] of buttons) button.setAttribute("aria-pressed", value === get());
    };
    choice("over", data.axes, () => state.axis, (v) => { state.axis = v; });
    choice("x", [[true, "log"], [false, "linear"]], () => state.logX, (v) => { state.logX = v; });
    choice("y", [[true, "log"], [false, "linear"]], () => state.logY, (v) => { state.logY = v; });
    const groups = new Map();
    for (const one of data.series) groups.set(one.group || one.name, one);
    for (const [group, one] of groups) {
      const button = html("button", `${one.style} ${one.color < 0 ? "law" : `c${one.color % 8}`}`, legend, group);
      button.type = "button";
      button.setAttribute("aria-pressed", true);
      button.addEventListener("click", () => {
        state.hidden.has(group) ? state.hidden.delete(group) : state.hidden.add(group);
        button.setAttribute("aria-pressed", !state.hidden.has(group));
        draw();
      });
    }

    // Of each series what the chosen axes can show.
    const visible = () => data.series.map((one) => {
      const xs = one.x[state.axis];
      if (!xs || state.hidden.has(one.group || one.name)) return null;
      const points = xs.map((x, k) => [x, one.y[k], one.high[k]])
        .filter(([x, y]) => x !== null && y !== null && (!state.logX || x > 0) && (!state.logY || y > 0));
      return points.length ? { one, points } : null;
    }).filter(Boolean);

    const draw = () => {
      hide();
      canvas.replaceChildren();
      stage.querySelector(".empty")?.remove();
      const shown = visible(), wide = stage.clientWidth, tall = stage.clientHeight;
      scale = null;
      if (!shown.length) { html("div", "empty", stage, "Nothing to show on these axes."); return; }
      const fx = state.logX ? Math.log10 : (v) => v, fy = state.logY ? Math.log10 : (v) => v;
      const xs = shown.flatMap((s) => s.points.map((p) => p[0]));
      const firm = shown.filter((s) => s.one.style !== "band").flatMap((s) => s.points.map((p) => p[1]));
      const bands = shown.filter((s) => s.one.style === "band").flatMap((s) => s.points.flatMap((p) => [p[1], p[2]]));
      const span = (values, f, room) => {
        let low = Infinity, high = -Infinity;
        for (const v of values) { const t = f(v); if (t < low) low = t; if (t > high) high = t; }
        const more = (high - low) * room || Math.abs(high) * 0.1 || 1;
        return [low - more, high + more];
      };
      const points = shown.some((s) => s.one.style === "points");
      let [left, right] = span(xs, fx, points ? 0.04 : 0.01);
      let [bottom, top] = span(firm.length ? firm : bands, fy, 0.05);
      if (firm.length && bands.length) {  // a band that says nothing must not squeeze what does
        const [low, high] = span(bands.filter((v) => !state.logY || v > 0), fy, 0.02), room = 1.5 * (top - bottom);
        [bottom, top] = [Math.min(bottom, Math.max(low, bottom - room)), Math.max(top, Math.min(high, top + room))];
      }
      if (!state.logX && left > 0 && left < 0.5 * right) left = 0;
      const back = (t, log) => (log ? 10 ** t : t);
      const yTicks = (state.logY ? decades : nice)(back(bottom, state.logY), back(top, state.logY), Math.max(3, tall / 55));
      const labels = yTicks.map((t) => say(t, "", 3));
      const margin = { left: 14 + 7 * Math.max(3, ...labels.map((l) => l.length)), right: 12, top: 8, bottom: 38 };
      const X = (v) => margin.left + (fx(v) - left) / (right - left) * (wide - margin.left - margin.right);
      const Y = (v) => tall - margin.bottom - (fy(v) - bottom) / (top - bottom) * (tall - margin.top - margin.bottom);
      const xTicks = (state.logX ? decades : nice)(back(left, state.logX), back(right, state.logX), Math.max(2, wide / 95))
        .filter((t) => X(t) >= margin.left - 1 && X(t) <= wide - margin.right + 1);
      yTicks.forEach((t, i) => {
        svg("path", { class: "grid", d: `M${margin.left} ${Y(t)}H${wide - margin.right}` }, canvas);
        svg("text", { x: margin.left - 8, y: Y(t) + 4, "text-anchor": "end" }, canvas).textContent = labels[i];
      });
      xTicks.forEach((t) => {
        svg("path", { class: "grid", d: `M${X(t)} ${tall - margin.bottom}v5` }, canvas);
        const label = say(t, state.axis, 3), half = label.length * 3.5;
        const x = Math.min(Math.max(X(t), half), wide - half);
        svg("text", { x, y: tall - margin.bottom + 18, "text-anchor": "middle" }, canvas).textContent = label;
      });
      const name = data.axes.find((a) => a[0] === state.axis)[1];
      svg("text", { x: (margin.left + wide - margin.right) / 2, y: tall - 4, "text-anchor": "middle" }, canvas).textContent = name;
      const inside = svg("svg", { x: margin.left - 7, y: 0, width: wide - margin.left - margin.right + 14, height: tall - margin.bottom + 7,
        viewBox: `${margin.left - 7} 0 ${wide - margin.left - margin.right + 14} ${tall - margin.bottom + 7}`, class: "inside" }, canvas);
      for (const { one, points } of shown) {
        const color = one.color < 0 ? "law" : `c${one.color % 8}`;
        const path = (list, at) => list.map((p) => `${X(p[0]).toFixed(1)} ${Math.max(-1e5, Math.min(1e5, Y(p[at]))).toFixed(1)}`).join("L");
        if (one.style === "band") {
          const edge = points.filter((p) => !state.logY || p[2] > 0);
          svg("path", { class: `band ${color}`, d: `M${path(edge, 1)}L${path([...edge].reverse(), 2)}Z` }, inside);
        } else if (one.style === "points" || points.length === 1) {
          for (const p of points) svg("circle", { class: `mark ${color}`, cx: X(p[0]), cy: Y(p[1]), r: 5.5 }, inside);
        } else svg("path", { class: `${one.style} ${color}`, d: `M${path(points, 1)}` }, inside);
      }
      canvas.setAttribute("aria-label", `${data.title}, ${data.unit}, over ${name}: ` + shown.map(({ one, points }) =>
        `${one.name} ${say(points[0][1], "")} at ${say(points[0][0], state.axis)} to ${say(points.at(-1)[1], "")} at ${say(points.at(-1)[0], state.axis)}`).join("; "));
      scale = { X, Y, shown, margin, wide, tall, all: [...new Set(xs)].sort((a, b) => a - b) };
    };

    let rule = null, dots = [];
    const hide = () => { tip.hidden = true; rule?.remove(); for (const d of dots) d.remove(); rule = null; dots = []; };
    const show = (x) => {
      hide();
      if (!scale) return;
      const { X, Y, shown, margin, wide, tall } = scale;
      rule = svg("path", { class: "rule-line", d: `M${X(x)} ${margin.top}V${tall - margin.bottom}` }, canvas);
      tip.replaceChildren();
      html("b", "", tip, `${say(x, state.axis)} ${state.axis === "seconds" ? "" : data.axes.find((a) => a[0] === state.axis)[1]}`);
      for (const { one, points } of shown) {
        const p = points.reduce((a, b) => (Math.abs(X(b[0]) - X(x)) < Math.abs(X(a[0]) - X(x)) ? b : a));
        if (Math.abs(X(p[0]) - X(x)) > Math.max(24, 0.06 * wide)) continue;
        const color = one.color < 0 ? "law" : `c${one.color % 8}`;
        const line = html("div", color, tip);
        html("span", "", line, one.name);
        const there = p[0] === x ? "" : ` at ${say(p[0], state.axis, 3)}`;
        html("span", "", line, (p[2] === undefined ? say(p[1], "", 5) : `${say(p[1], "")} to ${say(p[2], "")}`) + there);
        if (p[2] === undefined) dots.push(svg("circle", { class: `mark ${color}`, cx: X(p[0]), cy: Y(p[1]), r: 4.5 }, canvas));
      }
      tip.hidden = false;
      const width = tip.offsetWidth, px = X(x);
      tip.style.left = `${Math.max(0, Math.min(px > wide / 2 ? px - width - 12 : px + 12, wide - width))}px`;
    };
    const near = (px) => scale.all.reduce((best, x, i) => (Math.abs(scale.X(x) - px) < Math.abs(scale.X(scale.all[best]) - px) ? i : best), 0);
    const point = (event) => {
      if (!scale) return;
      at = near(event.clientX - stage.getBoundingClientRect().left);
      show(scale.all[at]);
    };
    stage.addEventListener("pointermove", point);
    stage.addEventListener("pointerdown", point);
    stage.addEventListener("pointerleave", hide);
    stage.addEventListener("blur", hide);
    stage.addEventListener("keydown", (event) => {
      if (!scale) return;
      const last = scale.all.length - 1, stride = Math.max(1, Math.round(last / 60));
      const from = at === null ? last : Math.min(at, last);
      const next = { ArrowLeft: Math.max(0, from - stride), ArrowRight: Math.min(last, from + stride), Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      at = next;
      show(scale.all[at]);
    });
    new ResizeObserver(draw).observe(stage);
  };
  for (const figure of document.querySelectorAll(".plot")) plot(figure);
})();
