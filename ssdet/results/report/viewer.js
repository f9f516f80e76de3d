"use strict";
// Entries that a link points to are opened, so that the link shows something.
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
}
addEventListener("hashchange", openTarget);
openTarget();

(() => {
  const holder = document.getElementById("viewer-data");
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const at = (name) => document.getElementById(`viewer-${name}`);
  const [videoSelect, armSelect, seedSelect, besideSelect] = ["video", "arm", "seed", "beside"].map(at);
  const [canvas, slider, label, axis, now, picture, head, body, legend] =
    ["strips", "frame", "label", "axis", "now", "picture", "head", "scores", "legend"].map(at);
  const LABELS = 130, TRUTH = 9, SCORE = 15, MEMBER = 8, GAP = 9;
  const base = document.createElement("canvas");
  const decoded = new Map();
  let video, strips = [], position = 0, layout;

  const bytes = (text) => {
    if (!decoded.has(text)) decoded.set(text, Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
    return decoded.get(text);
  };
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const steps = () => Math.ceil(video.frames / video.step);
  const value = (row, run) => bytes(video.scores[run])[row * steps() + position] / 255;
  const truth = (row, step) => bytes(video.truth)[row * steps() + step] === 1;

  function fill(select, names, chosen) {
    select.replaceChildren(...names.map((name, place) => new Option(name, place)));
    select.value = String(Math.max(0, chosen));
  }

  function seeds(arm) {
    return data.runs.filter((run) => run.arm === arm).map((run) => run.seed);
  }

  function runOf(arm, seed) {
    const found = data.runs.findIndex((run) => run.arm === arm && run.seed === seed);
    return found >= 0 ? found : data.runs.findIndex((run) => run.arm === arm);
  }

  const chosen = (select) => select.options[select.selectedIndex].text;
  const named = (run) => `${run.arm}, seed ${run.seed}`;

  function choose() {
    const run = runOf(chosen(armSelect), Number(chosen(seedSelect)));
    strips = [{ run, before: 1, height: SCORE, name: named(data.runs[run]) }];
    for (const member of data.runs[run].members) {
      strips.push({ run: member, before: 1, height: MEMBER, name: `member ${named(data.runs[member])}` });
    }
    if (besideSelect.selectedIndex > 0) {
      const other = runOf(chosen(besideSelect), data.runs[run].seed);
      strips.push({ run: other, before: 6, height: SCORE, name: `${named(data.runs[other])}` });
    }
    const order = ["truth", ...strips.map((strip) => strip.name)].join("; ");
    legend.textContent = `From top to bottom: ${order}. The stronger the colour, the higher the score.`;
    const cells = ["class", "truth", ...strips.map((strip) => strip.name)].map((name) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      return cell;
    });
    head.replaceChildren(...cells);
    body.replaceChildren(...video.classes.map((k) => {
      const line = document.createElement("tr");
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = data.classes[k];
      line.append(name, document.createElement("td"));
      strips.forEach(() => line.append(document.createElement("td")));
      return line;
    }));
    draw();
  }

  function draw() {
    const width = canvas.clientWidth, ratio = devicePixelRatio || 1;
    if (!width) return;
    const wide = width >= 480, left = wide ? LABELS : 0, above = wide ? 0 : 15;
    const block = above + TRUTH + strips.reduce((sum, strip) => sum + strip.before + strip.height, 0) + GAP;
    layout = { left, span: width - left - 1, height: block * video.classes.length };
    for (const one of [base, canvas]) {
      one.width = Math.round(width * ratio);
      one.height = Math.round(layout.height * ratio);
    }
    canvas.style.height = `${layout.height}px`;
    axis.style.paddingLeft = `${left}px`;
    axis.replaceChildren(...[0, 0.5, 1].map((share) => {
      const tick = document.createElement("span");
      tick.textContent = `${(share * video.end).toFixed(1)} s`;
      return tick;
    }));
    label.style.width = `${left}px`;
    label.className = wide ? "" : "unseen";
    const pen = base.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    const count = steps(), text = colour("--text"), accent = colour("--accent"), card = colour("--card");
    video.classes.forEach((k, row) => {
      let top = row * block;
      pen.fillStyle = text;
      pen.fillText(shortened(pen, data.classes[k], wide ? LABELS - 8 : width), 0, top + (wide ? 20 : 11));
      top += above;
      pen.fillStyle = card;
      pen.fillRect(left, top, layout.span, block - above - GAP);
      pen.fillStyle = text;
      spans(count, (step) => truth(row, step) ? 1 : 0, (x, w) => pen.fillRect(x, top, w, TRUTH));
      top += TRUTH;
      for (const strip of strips) {
        top += strip.before;
        const scores = bytes(video.scores[strip.run]);
        spans(count, (step) => scores[row * count + step], (x, w, score) => {
          pen.fillStyle = `rgba(${accent}, ${score / 255})`;
          pen.fillRect(x, top, w, strip.height);
        });
        top += strip.height;
      }
    });
    show();
  }

  // Where a step begins on the time axis; frames need not last equally long.
  function place(step) {
    return layout.left + layout.span * (step < steps() ? video.times[step] : video.end) / video.end;
  }

  // Stretches of equal values, so that long videos take few rectangles; zero draws nothing.
  function spans(count, of, paint) {
    for (let start = 0; start < count;) {
      let stop = start + 1;
      while (stop < count && of(stop) === of(start)) stop++;
      if (of(start)) paint(place(start), place(stop) - place(start), of(start));
      start = stop;
    }
  }

  function shortened(pen, text, width) {
    let cut = text;
    while (cut.length > 1 && pen.measureText(cut).width > width) cut = `${cut.slice(0, -2)}…`;
    return cut;
  }

  function show() {
    const pen = canvas.getContext("2d"), ratio = devicePixelRatio || 1;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(base, 0, 0);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const x = (place(position) + place(position + 1)) / 2;
    pen.fillStyle = "#d55e00";
    pen.fillRect(x - 1, 0, 2, layout.height);
    const frame = position * video.step;
    const told = `Frame ${frame + 1} of ${video.frames}, ${video.times[position].toFixed(2)} s`;
    const labels = video.classes.filter((_, row) => truth(row, position)).map((k) => data.classes[k]);
    now.textContent = told;
    slider.value = position;
    slider.setAttribute("aria-valuetext", `${told}; shown: ${labels.join(", ") || "nothing"}`);
    canvas.dataset.frame = frame;
    list();
    showPicture(frame);
  }

  function list() {
    const accent = colour("--accent");
    [...body.rows].forEach((line, row) => {
      const shown = truth(row, position);
      line.className = shown ? "true" : "";
      line.cells[1].textContent = shown ? "●" : "";
      strips.forEach((strip, place) => {
        const score = value(row, strip.run), cell = line.cells[place + 2];
        const share = `${100 * score}%`, tint = `rgba(${accent}, 0.3)`;
        cell.textContent = score.toFixed(2);
        cell.style.backgroundImage = `linear-gradient(to right, ${tint} ${share}, transparent ${share})`;
      });
    });
  }

  function showPicture(frame) {
    const strip = video.pictures;
    picture.hidden = !strip;
    if (!strip) return;
    const place = Math.min(strip.count - 1, Math.floor((frame + 0.5) * strip.count / video.frames));
    const scale = Math.max(1, Math.round(144 / strip.height));
    picture.width = strip.width;
    picture.height = strip.height;
    picture.style.width = `${strip.width * scale}px`;
    if (!strip.image) {
      strip.image = new Image();
      strip.image.onload = show;
      strip.image.src = strip.uri;
    } else if (strip.image.complete) {
      picture.getContext("2d").drawImage(strip.image, -place * strip.width, 0);
    }
  }

  function move(step) {
    position = Math.min(steps() - 1, Math.max(0, step));
    show();
  }

  function drag(event) {
    const x = event.clientX - canvas.getBoundingClientRect().left - layout.left;
    move(video.times.findLastIndex((seconds) => seconds <= x * video.end / layout.span));
  }

  function changeVideo() {
    video = data.videos[videoSelect.selectedIndex];
    slider.max = steps() - 1;
    position = 0;
    choose();
  }

  function changeArm() {
    const former = seedSelect.selectedIndex >= 0 ? Number(chosen(seedSelect)) : 0;
    const found = seeds(chosen(armSelect));
    fill(seedSelect, found, found.indexOf(former));
    choose();
  }

  const keys = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10 };
  slider.addEventListener("keydown", (event) => {
    const far = { Home: 0, End: steps() - 1 }[event.key];
    if (event.key in keys) move(position + keys[event.key]);
    else if (far !== undefined) move(far);
    else return;
    event.preventDefault();
  });
  slider.addEventListener("input", () => move(Number(slider.value)));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    slider.focus({ preventScroll: true });
    drag(event);
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  videoSelect.addEventListener("change", changeVideo);
  armSelect.addEventListener("change", changeArm);
  for (const select of [seedSelect, besideSelect]) select.addEventListener("change", choose);
  addEventListener("resize", () => draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());

  at("video").closest("#viewer").hidden = false;
  const arms = [...new Set(data.runs.map((run) => run.arm))];
  fill(videoSelect, data.videos.map((one) => one.id), 0);
  fill(armSelect, arms, arms.indexOf(data.arm));
  fill(besideSelect, ["nothing", ...arms], data.arm === data.baseline ? 0 : 1 + arms.indexOf(data.baseline));
  video = data.videos[0];
  slider.max = steps() - 1;
  changeArm();
})();
