"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);

  // Color theme: as the system, dark, light. A page opened from a file may have no storage.
  const themes = { auto: "as the system", dark: "dark", light: "light" };
  const store = {
    get: () => { try { return localStorage.getItem("amsd-theme"); } catch { return null; } },
    set: (name) => { try { localStorage.setItem("amsd-theme", name); } catch { /* private window */ } },
  };
  let theme = "auto";
  function paint(name) {
    theme = name in themes ? name : "auto";
    if (theme === "auto") root.removeAttribute("data-theme"); else root.dataset.theme = theme;
    one("theme").setAttribute("aria-label", `Color theme: ${themes[theme]}`);
    one("theme").querySelector(".words").textContent = theme[0].toUpperCase() + theme.slice(1);
  }
  one("theme").addEventListener("click", () => {
    const names = Object.keys(themes);
    paint(names[(names.indexOf(theme) + 1) % names.length]);
    store.set(theme);
  });
  paint(store.get() ?? "auto");

  // Guidance modes: hide and show.
  for (const chip of all(".chip")) {
    chip.addEventListener("click", () => {
      const shown = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", String(shown));
      document.body.classList.toggle(`hide-${chip.dataset.mode}`, !shown);
    });
  }

  const raw = one("raw");
  if (raw) {
    const show = () => document.body.classList.toggle("no-raw", !raw.checked);
    raw.addEventListener("change", show);
    show();
  }

  // Follow one run through all figures and tables.
  const runs = new Map();
  for (const item of all("[data-run]")) {
    const key = item.dataset.run;
    if (!runs.has(key)) runs.set(key, []);
    runs.get(key).push(item);
  }
  const several = new Set(all(".chart [data-run]").map((item) => item.dataset.run)).size > 1;
  let followed = null;
  function follow(key) {
    if (!several || key === followed) return;
    for (const item of runs.get(followed) ?? []) item.classList.remove("followed");
    followed = key && all(`.chart [data-run="${CSS.escape(key)}"]`).length ? key : null;
    for (const item of runs.get(followed) ?? []) item.classList.add("followed");
    document.body.classList.toggle("following", followed !== null);
  }
  for (const row of all("tr[data-run]")) {
    row.addEventListener("pointerenter", () => follow(row.dataset.run));
    row.addEventListener("pointerleave", () => follow(null));
  }

  // Words beside the pointer or the focused mark.
  const tip = one("tip");
  function say(words, x, y) {
    tip.textContent = words;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth - 8 ? x - 14 - box.width : x + 14;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.min(Math.max(8, y - box.height - 10), innerHeight - box.height - 8)}px`;
  }
  function hush() { tip.hidden = true; follow(null); }

  // Marks: one tab stop per figure, arrow keys inside.
  for (const chart of all(".chart.points")) {
    const marks = all(".mark", chart);
    if (marks.length) marks[marks.length - 1].setAttribute("tabindex", "0");
    marks.forEach((mark, index) => {
      const tell = () => {
        const box = mark.getBoundingClientRect();
        follow(mark.dataset.run ?? null);
        say(mark.dataset.tip, box.left + box.width / 2, box.top);
      };
      mark.addEventListener("pointerenter", tell);
      mark.addEventListener("pointerleave", hush);
      mark.addEventListener("focus", tell);
      mark.addEventListener("blur", hush);
      mark.addEventListener("keydown", (event) => {
        const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Escape") hush();
        if (!move) return;
        event.preventDefault();
        const next = marks[(index + move + marks.length) % marks.length];
        mark.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
      });
    });
  }

  for (const line of all(".parallel .line")) {
    line.addEventListener("pointermove", (event) => { follow(line.dataset.run); say(line.dataset.label, event.clientX, event.clientY); });
    line.addEventListener("pointerleave", hush);
  }

  // Curves: read the nearest value back from the pixels.
  const warp = { linear: [(v) => v, (v) => v], log: [Math.log10, (v) => 10 ** v], sqrt: [Math.sqrt, (v) => v * v] };
  function inverse(text) {
    const [kind, ...numbers] = text.split(",");
    const [low, high, start, end] = numbers.map(Number);
    const [into, back] = warp[kind];
    return (pixel) => back(into(low) + ((pixel - start) / (end - start)) * (into(high) - into(low)));
  }
  const short = (value) => Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  for (const chart of all(".chart.lines")) {
    const data = chart.querySelector(".data");
    const [x, y] = [inverse(data.dataset.x), inverse(data.dataset.y)];
    const lines = all(".line", data).map((line) => ({
      line, points: line.getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number)),
    }));
    const make = (name, kind) => { const node = document.createElementNS("http://www.w3.org/2000/svg", name); node.setAttribute("class", kind); node.style.display = "none"; data.append(node); return node; };
    const dot = make("circle", "reading");
    dot.setAttribute("r", "4");
    const read = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      let best = null;
      for (const { line, points } of lines) {
        if (getComputedStyle(line).display === "none") continue;
        for (const [px, py] of points) {
          const distance = (px - at.x) ** 2 + (lines.length > 1 ? (py - at.y) ** 2 : 0);
          if (!best || distance < best.distance) best = { distance, line, px, py };
        }
      }
      if (!best) return;
      dot.setAttribute("cx", best.px);
      dot.setAttribute("cy", best.py);
      dot.style.setProperty("--c", getComputedStyle(best.line).stroke);
      dot.style.display = "";
      follow(best.line.dataset.run);
      say(`${several ? `${best.line.dataset.label}\n` : ""}step ${Math.round(x(best.px))}: ${short(y(best.py))}`, event.clientX, event.clientY);
    };
    chart.addEventListener("pointermove", read);
    chart.addEventListener("pointerleave", () => { dot.style.display = "none"; hush(); });
  }

  // Pictures: the slider over checkpoints.
  const reels = JSON.parse(one("reels").textContent);
  const slider = one("step");
  if (reels && slider) {
    const choice = one("reel");
    const prompts = all(".prompt");
    const names = prompts.map((place) => place.querySelector("h3").textContent);
    const fill = (side, shot, who, prompt) => {
      side.querySelector(".score").textContent = shot.score;
      const shots = side.querySelector(".shots");
      const pictures = shot.pictures.map((uri, index) => {
        const image = shots.querySelectorAll("img")[index] ?? new Image();
        image.tabIndex = 0;
        image.src = uri;
        image.alt = `${who}, sample ${index + 1} for “${prompt}”`;
        return image;
      });
      if (pictures.length) { shots.replaceChildren(...pictures); return; }
      const none = document.createElement("span");
      none.className = "none";
      none.textContent = "no picture";
      shots.replaceChildren(none);
    };
    const show = () => {
      const reel = reels[choice ? Number(choice.value) : 0];
      const step = reel.steps[Number(slider.value)];
      one("stepname").textContent = `step ${step}`;
      slider.setAttribute("aria-valuetext", `step ${step}`);
      prompts.forEach((place, index) => {
        fill(place.querySelector(".base"), reel.base[index], "Base model", names[index]);
        fill(place.querySelector(".tuned"), reel.frames[Number(slider.value)][index], `Fine-tuned model, step ${step}`, names[index]);
      });
    };
    slider.addEventListener("input", show);
    choice?.addEventListener("change", () => {
      const last = reels[Number(choice.value)].steps.length - 1;
      slider.max = String(last);
      slider.value = String(last);
      slider.disabled = last === 0;
      show();
    });
    slider.value = slider.max;
    if (choice) choice.value = "0";
    show();
  }

  // Pictures: enlarged, both models side by side.
  const zoom = one("zoom");
  const enlarge = (image) => {
    const place = image.closest(".prompt");
    const index = [...image.parentElement.children].indexOf(image);
    one("zoomed").textContent = place.querySelector("h3").textContent;
    zoom.querySelector(".zoomed").replaceChildren(...all(".side", place).map((side) => {
      const figure = document.createElement("figure");
      const words = document.createElement("figcaption");
      const picture = new Image();
      const source = all(".shots img", side)[index];
      if (source) { picture.src = source.src; picture.alt = source.alt; }
      words.textContent = source ? source.alt : "no picture";
      figure.append(picture, words);
      return figure;
    }));
    zoom.classList.toggle("pixelated", Boolean(image.closest(".pixelated")));
    zoom.showModal();
  };
  for (const place of all(".prompt")) {
    place.addEventListener("click", (event) => { if (event.target.matches(".shots img")) enlarge(event.target); });
    place.addEventListener("keydown", (event) => {
      if (event.target.matches(".shots img") && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); enlarge(event.target); }
    });
  }
  for (const image of all(".shots img")) image.tabIndex = 0;
  zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });

  // Tables: one evaluation setting at a time; sorting.
  const setting = one("setting");
  if (setting) {
    const show = () => { for (const part of all(".tabled[data-setting]")) part.hidden = part.dataset.setting !== setting.value; };
    setting.addEventListener("change", show);
    show();
  }
  for (const button of all(".sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const column = head.cellIndex;
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort;
      const order = (a, b) => {
        const [p, q] = [key(a), key(b)];
        if (p === undefined || q === undefined) return (p === undefined) - (q === undefined);
        const difference = isNaN(p) || isNaN(q) ? p.localeCompare(q) : p - q;
        return up ? difference : -difference;
      };
      body.append(...[...body.rows].sort(order));
    });
  }
})();
