"use strict";
// Hover, touch and arrow keys on the curves; the filter of the configuration. Text goes in as text, never as HTML.
(() => {
  const make = (name, parent) => {
    const node = document.createElement("div");
    node.className = name;
    node.hidden = true;
    parent.append(node);
    return node;
  };
  const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });
  const whole = new Intl.NumberFormat("en");
  const say = (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : exact.format(value));

  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle; else high = middle;
    }
    return step - steps[low] < steps[high] - step ? low : high;
  };

  for (const frame of document.querySelectorAll(".frame")) {
    const data = JSON.parse(frame.querySelector("script").textContent);
    const rule = make("rule", frame);
    const tip = make("tip", frame);
    const dots = data.series.map((_, i) => make(`dot s${i}`, frame));
    const [left, right] = data.x, [bottom, top] = data.y;
    const every = [...new Set(data.series.flatMap((s) => s.steps))].sort((a, b) => a - b);
    let at = every.length - 1;

    const show = (step) => {
      const share = (step - left) / (right - left || 1);
      rule.style.left = `${share * 100}%`;
      rule.hidden = tip.hidden = false;
      tip.replaceChildren();
      const head = document.createElement("b");
      head.textContent = `step ${whole.format(step)}`;
      tip.append(head);
      data.series.forEach((one, i) => {
        const k = nearest(one.steps, step);
        const value = one.values[k];
        const line = document.createElement("div");
        const away = one.steps[k] === step ? "" : ` (at ${whole.format(one.steps[k])})`;
        line.textContent = `${one.name} ${say(value)}${away}`;
        tip.append(line);
        const height = (value - bottom) / (top - bottom || 1);
        dots[i].hidden = height < -0.01 || height > 1.01;
        dots[i].style.left = `${((one.steps[k] - left) / (right - left || 1)) * 100}%`;
        dots[i].style.bottom = `${height * 100}%`;
      });
      const room = frame.clientWidth, wide = tip.offsetWidth, x = share * room;
      tip.style.left = `${Math.max(0, share > 0.5 ? x - wide - 12 : Math.min(x + 12, room - wide))}px`;
    };
    const hide = () => { for (const node of [rule, tip, ...dots]) node.hidden = true; };

    const point = (event) => {
      const box = frame.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      at = nearest(every, left + share * (right - left));
      show(every[at]);
    };
    frame.addEventListener("pointermove", point);
    frame.addEventListener("pointerdown", point);
    frame.addEventListener("pointerleave", hide);
    frame.addEventListener("focus", () => { if (frame.matches(":focus-visible")) show(every[at]); });
    frame.addEventListener("blur", hide);
    frame.addEventListener("keydown", (event) => {
      const stride = Math.max(1, Math.round(every.length / 50));
      const move = { ArrowLeft: -stride, ArrowRight: stride, Home: -every.length, End: every.length }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      at = Math.min(every.length - 1, Math.max(0, at + move));
      show(every[at]);
    });
  }

  const find = document.querySelector(".find");
  if (find) {
    const rows = [...document.querySelectorAll(".config tbody tr")];
    const box = find.querySelector("input"), told = find.querySelector("output");
    find.hidden = false;
    const filter = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let seen = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        seen += !row.hidden;
      }
      told.textContent = `${seen} of ${rows.length}`;
    };
    box.addEventListener("input", filter);
    filter();
  }
})();
