"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const element = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const wordsOf = (field) => field.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const written = (value, metric, signed) => {
    if (value === null) return "–";
    const text = metric.percent
      ? (100 * value).toFixed(1)
      : value.toFixed(3).replace(/^-(0\.0*)$/, "$1").replace(/^(-?)0\./, "$1.");
    return signed && value > 0 ? `+${text}` : text;
  };

  // A table of lines that can be sorted by any head and filtered by words.
  const SIGNIFICANT = 0.05;
  const table = (id, lines, signed) => {
    const node = byId(id);
    if (!node) return;
    const form = document.querySelector(`form[data-for="${id}"]`);
    const body = node.tBodies[0];
    const buttons = [...node.querySelectorAll("thead button")];
    let sorting = null;
    const cell = (line, metric) => {
      const [value, low, high, p] = line.values[metric.label] ?? [null, null, null, null];
      const td = element("td", {}, written(value, metric, signed));
      if (low !== null) td.append(element("span", { class: "range" },
        `${written(low, metric, signed)} to ${written(high, metric, signed)}`));
      if (signed && p !== null && p < SIGNIFICANT) td.className = "clear";
      return td;
    };
    const rows = lines.map((line) => {
      const row = element("tr", { class: line.mean ? "mean" : "one" });
      line.labels.forEach((label) => row.append(element("th", { scope: "row" }, label)));
      data.metrics.forEach((metric) => row.append(cell(line, metric)));
      return row;
    });
    const value = (line, button) =>
      button.dataset.metric === undefined
        ? line.labels[Number(button.dataset.label)]
        : (line.values[button.dataset.metric] ?? [null])[0];
    const arrange = () => {
      const words = wordsOf(form.querySelector(".filter"));
      const which = form.querySelector(".which").value;
      const order = lines.map((_, k) => k).filter((k) => {
        if (which && lines[k].mean !== (which === "mean")) return false;
        const text = lines[k].labels.join(" ").toLowerCase();
        return words.every((word) => text.includes(word));
      });
      if (sorting) order.sort((a, b) => {
        const [one, other] = [value(lines[a], sorting.button), value(lines[b], sorting.button)];
        if (one === null || other === null) return (one === null) - (other === null) || a - b;
        const by = typeof one === "string"
          ? one.localeCompare(other, undefined, { numeric: true })
          : one - other;
        return sorting.sign * by || a - b;
      });
      body.replaceChildren(...order.map((k) => rows[k]));
      form.querySelector("output").textContent =
        order.length === lines.length ? `${lines.length} lines` : `${order.length} of ${lines.length} lines`;
    };
    buttons.forEach((button) => button.addEventListener("click", () => {
      // Numbers show their best first, labels their first.
      const metric = data.metrics.find((one) => one.label === button.dataset.metric);
      const first = metric && (signed || metric.higher) ? -1 : 1;
      const again = sorting?.button === button;
      sorting = { button, sign: again ? -sorting.sign : first };
      buttons.forEach((one) => one.closest("th").removeAttribute("aria-sort"));
      button.closest("th").setAttribute("aria-sort", sorting.sign > 0 ? "ascending" : "descending");
      arrange();
    }));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", arrange);
    arrange();
  };
  table("scores", data.scores, false);
  table("gains", data.gains, true);

  if (!data.brains.length) return;
  const rows = byId("rows");
  const draw = () => {
    const brain = data.brains[Number(byId("brain").value)];
    const words = wordsOf(byId("search"));
    const runs = wordsOf(byId("runs"));
    const columns = brain.columns
      .map((name, k) => k)
      .filter((k) => !k || runs.every((word) => brain.columns[k].toLowerCase().includes(word)));
    const images = brain.images.filter((image) => {
      const text = `${image.caption} ${image.id}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    rows.replaceChildren(...images.map((image) => {
      const tiles = element("div", { class: "tiles" });
      for (const k of columns) {
        const name = brain.columns[k];
        tiles.append(element("figure", { class: k ? "tile" : "tile seen" },
          element("img", {
            src: `data:image/${data.format};base64,${data.pictures[image.tiles[k]]}`,
            alt: k ? `${name}, for ${image.caption}` : `Seen: ${image.caption}`,
            loading: "lazy", decoding: "async", draggable: "false",
          }),
          element("figcaption", {}, name)));
      }
      return element("article", { class: "row", role: "listitem", tabindex: "0", "aria-label": image.caption },
        element("div", {}, element("h3", {}, image.caption), element("p", { class: "where" }, image.id)),
        tiles);
    }));
    if (!images.length) rows.append(element("p", { class: "more" }, "No image fits."));
    byId("count").textContent = `${images.length} images, ${columns.length - 1} runs`;
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && typing?.type === "search") {
      typing.value = "";
      typing.dispatchEvent(new Event("input", { bubbles: true }));
      typing.blur();
      return;
    }
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); return; }
    const row = event.target.closest(".row");
    if (event.key === "j" || event.key === "k") {
      const all = [...rows.querySelectorAll(".row")];
      const next = row ? all.indexOf(row) + (event.key === "j" ? 1 : -1) : 0;
      if (all[next]) { event.preventDefault(); all[next].focus(); }
    } else if (row && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      event.preventDefault();
      const tiles = row.querySelector(".tiles");
      tiles.scrollLeft += (event.key === "ArrowRight" ? 1 : -1) * (tiles.firstElementChild.offsetWidth + 9);
    }
  });
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("tools").addEventListener("input", (event) => {
    if (event.target.id === "size") rows.style.setProperty("--tile", `${event.target.value}px`);
    else draw();
  });
  rows.style.setProperty("--tile", `${byId("size").value}px`);
  draw();
})();
