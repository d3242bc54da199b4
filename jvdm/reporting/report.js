"use strict";
// Without this script the page lacks the numbers under the pointer and the search, nothing else.

for (const plot of document.querySelectorAll(".plot")) {
  const [low, high] = plot.dataset.x.split(" ").map(Number);
  const lines = [...plot.querySelectorAll("[data-points]")].map((path) => ({
    label: path.dataset.label,
    points: path.dataset.points.split(",").map((point) => point.split(" ").map(Number)),
  }));
  const cursor = Object.assign(document.createElement("div"), { className: "cursor", hidden: true });
  const tip = Object.assign(document.createElement("div"), { className: "tip", hidden: true });
  plot.append(cursor, tip);
  const hide = () => { cursor.hidden = tip.hidden = true; };
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = low + ((event.clientX - box.left) / box.width) * (high - low);
    const found = lines.map((line) => ({ label: line.label, point: nearest(line.points, at) }));
    const step = nearest(found.map((each) => each.point), at)[0];
    const shown = found.map(({ label, point }) =>
      `${label}  ${point[1]}` + (point[0] === step ? "" : `  (step ${point[0].toLocaleString("en")})`));
    tip.textContent = [`step ${step.toLocaleString("en")}`, ...shown].join("\n");
    const place = high > low ? (step - low) / (high - low) : 0.5;
    cursor.style.left = `${100 * place}%`;
    cursor.hidden = tip.hidden = false;
    const room = box.width - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, place * box.width + (place > 0.5 ? -tip.offsetWidth - 8 : 8)))}px`;
  });
}

const search = document.getElementById("search");
if (search) {
  search.closest(".search").hidden = false;
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const section of document.querySelectorAll("#fields details")) {
      let any = false;
      for (const row of section.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        count += !row.hidden;
        any ||= !row.hidden;
      }
      section.hidden = !any;
      section.open = words.length > 0 && any;
    }
    document.getElementById("found").textContent = words.length ? `${count} found` : "";
  });
}

addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details:not([open])")) {
    fold.open = true;
    addEventListener("afterprint", () => { fold.open = false; }, { once: true });
  }
});
