"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const rows = byId("rows");
  const n = data.images.length;

  const element = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") node.className = value;
      else node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  };
  const written = (value, metric) => {
    if (value === null) return "–";
    if (metric.percent) return (100 * value).toFixed(1);
    return value.toFixed(3).replace(/^-(0\.0*)$/, "$1").replace(/^(-?)0\./, "$1.");
  };

  // One column of the table of images: seen, then each row of reconstructions with its samples.
  const captionOf = (column, sample) =>
    column.samples > 1 ? `${column.label} ${sample + 1}` : column.label;
  const altOf = (image, column, sample) => {
    if (column.kind === "seen") return `Seen: ${image.caption}`;
    const which = column.samples > 1 ? `, sample ${sample + 1} of ${column.samples}` : "";
    return `${column.label}${which}, for ${image.caption}`;
  };
  const tilesOf = (image, { all = false } = {}) => {
    const fragment = document.createDocumentFragment();
    let position = 0;
    data.columns.forEach((column, index) => {
      for (let sample = 0; sample < column.samples; sample += 1, position += 1) {
        if (!all && hidden.has(index)) continue;
        const bytes = data.pictures[image.tiles[position]];
        const picture = bytes
          ? element("img", {
              src: `data:image/${data.format};base64,${bytes}`,
              alt: altOf(image, column, sample),
              decoding: "async",
              draggable: "false",
            })
          : element("span", { class: "withheld" }, "withheld");
        fragment.append(
          element("figure", { class: `tile ${column.kind}` }, picture,
            element("figcaption", {}, captionOf(column, sample))),
        );
      }
    });
    return fragment;
  };

  const hidden = new Set();
  let metricShown = data.ranking;

  const numbers = (index) => {
    const image = data.images[index];
    const line = element("p", { class: "numbers" });
    line.append("rank ", element("b", {}, `${image.rank}`), ` of ${n}`);
    const shown = new Set([data.ranking, metricShown]);
    for (const k of shown) {
      const metric = data.metrics[k];
      line.append(element("br"), `${metric.group}, ${metric.label} `,
        element("span", { class: k === metricShown ? "now" : "" }, written(image.scores[k], metric)));
    }
    return line;
  };

  const build = (index) => {
    const image = data.images[index];
    const node = element("article", {
      class: "row", role: "listitem", tabindex: "0", "data-index": index,
      "aria-label": `${image.caption}, rank ${image.rank} of ${n}`,
    });
    const about = element("div", { class: "about" }, element("h3", {}, image.caption));
    const where = [image.group, image.id].filter(Boolean).join(" · ");
    if (where) about.append(element("p", { class: "where" }, where));
    about.append(numbers(index));
    node.append(about, element("div", { class: "tiles" }));
    return node;
  };

  // Pictures are made when their row comes near the window, so a thousand rows open at once.
  const fill = (node) => {
    if (node.dataset.filled) return;
    node.dataset.filled = "1";
    node.lastElementChild.replaceChildren(tilesOf(data.images[Number(node.dataset.index)]));
  };
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { fill(entry.target); observer.unobserve(entry.target); }
    }
  }, { rootMargin: "900px 0px" });

  const nodes = data.images.map((_, index) => build(index));
  let order = nodes.map((_, index) => index);

  const missingLast = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a - b);
  };
  const sorters = {
    rank: (a, b) => data.images[a].rank - data.images[b].rank,
    "rank-": (a, b) => data.images[b].rank - data.images[a].rank,
    order: (a, b) => a - b,
    caption: (a, b) => data.images[a].caption.localeCompare(data.images[b].caption),
  };
  const sorter = (key) => sorters[key] ?? ((a, b) => {
    const metric = data.metrics[key];
    const value = (i) => data.images[i].scores[key];
    return missingLast(value(a), value(b), metric.higher ? -1 : 1) || sorters.rank(a, b);
  });

  const arrange = () => {
    const key = byId("sort").value;
    metricShown = key in sorters ? data.ranking : Number(key);
    const category = byId("category")?.value ?? "";
    const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    order = nodes.map((_, index) => index).sort(sorter(key)).filter((index) => {
      const image = data.images[index];
      if (category && image.group !== category) return false;
      const text = `${image.caption} ${image.group} ${image.id}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const fragment = document.createDocumentFragment();
    for (const index of order) {
      nodes[index].querySelector(".numbers").replaceWith(numbers(index));
      fragment.append(nodes[index]);
      if (!nodes[index].dataset.filled) observer.observe(nodes[index]);
    }
    rows.replaceChildren(fragment);
    if (!order.length) rows.append(element("p", { class: "more" }, "No image fits."));
    byId("count").textContent = order.length === n ? `${n} images` : `${order.length} of ${n} images`;
  };

  const redraw = () => {
    for (const node of nodes) {
      delete node.dataset.filled;
      node.lastElementChild.replaceChildren();
      observer.unobserve(node);
      if (node.isConnected) observer.observe(node);
    }
  };

  // The large view.
  const large = byId("large");
  let current = -1;
  const show = (index) => {
    current = index;
    const image = data.images[index];
    byId("large-title").textContent = `${image.caption} · rank ${image.rank} of ${n}`;
    byId("large-tiles").replaceChildren(tilesOf(image, { all: true }));
    const head = element("tr", {}, element("th", { scope: "col" }, "score of this image"));
    for (const metric of data.metrics) {
      head.append(element("th", { scope: "col" }, `${metric.group}, ${metric.label} ${metric.higher ? "↑" : "↓"}`));
    }
    const body = element("tbody");
    for (const row of data.rows) {
      const line = element("tr", {}, element("th", { scope: "row", class: row.system ? "now" : "" }, row.name));
      row.scores[index].forEach((value, k) => {
        line.append(element("td", { class: row.system ? "now" : "" }, written(value, data.metrics[k])));
      });
      body.append(line);
    }
    byId("large-scores").replaceChildren(element("thead", {}, head), body);
    if (!large.open) large.showModal();
  };
  const step = (by) => {
    const at = order.indexOf(current);
    if (order.length) show(order[(at + by + order.length) % order.length]);
  };
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => large.close());
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  large.addEventListener("close", () => {
    const node = nodes[current];
    if (node?.isConnected) node.focus();
  });

  rows.addEventListener("click", (event) => {
    const node = event.target.closest(".row");
    if (node) show(Number(node.dataset.index));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (large.open) {
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else return;
      event.preventDefault();
      return;
    }
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && typing?.id === "search") { typing.value = ""; arrange(); typing.blur(); return; }
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); return; }
    const row = event.target.closest(".row");
    if (event.key === "Enter" && row) { event.preventDefault(); show(Number(row.dataset.index)); return; }
    if (event.key === "j" || event.key === "k") {
      const here = row ? order.indexOf(Number(row.dataset.index)) : -1;
      const next = row ? here + (event.key === "j" ? 1 : -1) : 0;
      if (order[next] !== undefined) { event.preventDefault(); nodes[order[next]].focus(); }
    }
  });

  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("sort").addEventListener("change", arrange);
  byId("category")?.addEventListener("change", arrange);
  byId("search").addEventListener("input", arrange);
  byId("size").addEventListener("input", (event) =>
    rows.style.setProperty("--tile", `${event.target.value}px`));
  byId("columns").addEventListener("change", (event) => {
    const index = Number(event.target.value);
    if (event.target.checked) hidden.delete(index); else hidden.add(index);
    redraw();
  });
  rows.style.setProperty("--tile", `${byId("size").value}px`);
  arrange();
})();
