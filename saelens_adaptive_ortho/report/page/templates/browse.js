"use strict";
(() => {
  // Text of corpora only ever becomes textContent, never markup.
  const $ = (id) => document.getElementById(id);
  const names = JSON.parse($("saes").textContent);
  const ROW = 52;
  const GROUPS = { f: "forget", r: "retain", s: "shared", i: "inactive" };

  // ---------------------------------------------------------------- files
  const store = new Map();
  const waiting = new Map();
  window.browse = (name, value) => store.set(name, value);

  function load(name) {
    if (store.has(name)) return Promise.resolve(store.get(name));
    if (!waiting.has(name)) {
      waiting.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        const settle = () => {
          script.remove();
          waiting.delete(name);
          if (store.has(name)) resolve(store.get(name));
          else reject(new Error(`latents/${name}.js cannot be read. Is the folder complete?`));
        };
        script.onload = script.onerror = settle;
        script.src = `latents/${name}.js`;
        document.head.append(script);
      }));
    }
    return waiting.get(name);
  }

  const padded = (number) => String(number).padStart(3, "0");

  // ---------------------------------------------------------------- elements
  function el(tag, given, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(given || {})) {
      if (name === "class") node.className = value;
      else if (name === "on") node.onclick = value;
      else node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  }

  function svg(tag, given, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  const visible = (text) => text.replace(/\r?\n/g, "↵").replace(/\t/g, "⇥");
  const figures = (value) => String(Number(value.toPrecision(3)));

  function percent(rate) {
    if (!rate) return "0%";
    return rate < 1e-5 ? `${(100 * rate).toExponential(0)}%` : `${figures(100 * rate)}%`;
  }

  // ---------------------------------------------------------------- the list
  let number = 0; // of the SAE
  let sae = null; // its index
  let order = []; // the latents of the list
  let lower = null; // labels in lower case, for the search
  let shown = -1; // the latent that is open
  let at = 0; // its place in the list

  const n = () => sae.max.length;
  const rate = (corpus, i) => sae.fired[corpus][i] / Math.max(1, sae.corpora[corpus][2]);
  const firing = (i) => sae.corpora.reduce((sum, _, c) => sum + rate(c, i), 0);
  const retained = (i) =>
    sae.corpora.reduce((sum, [, share], c) => (c ? sum + share * rate(c, i) : 0), 0);
  const group = (i) => sae.groups[i] || "";
  const label = (i) => sae.labels[i].split("\n").join(" · ");
  const merged = (i) => (Number(sae.flags[i]) & 1) > 0;
  const changed = (i) => (Number(sae.flags[i]) & 2) > 0;

  // Name, what it shows, by what it sorts (falling), and whether it needs groups.
  const SORTS = {
    forget: ["Most forget-specific", (i) => firing(i) > 0, (i) => sae.lean[i], true],
    retain: ["Most retain-specific", (i) => firing(i) > 0, (i) => -sae.lean[i], true],
    merged: ["Merged candidates", merged, retained, true],
    changed: ["Changed group", changed, firing, true],
    rate: ["Fires most", () => true, firing, false],
    rare: ["Fires least", (i) => firing(i) > 0, (i) => -firing(i), false],
    max: ["Largest activation", () => true, (i) => sae.max[i], false],
    number: ["Number", () => true, (i) => -i, false],
  };

  function found(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return () => true;
    lower = lower || sae.labels.map((text) => text.toLowerCase());
    return (i) => words.every((word) => String(i) === word || lower[i].includes(word));
  }

  function arrange() {
    const [, belongs, key] = SORTS[$("sort").value];
    const wanted = $("group").value;
    const fits = found($("search").value);
    const keys = new Float64Array(n());
    order = [];
    for (let i = 0; i < n(); i++) {
      if (!belongs(i) || (wanted && group(i) !== wanted) || !fits(i)) continue;
      keys[i] = key(i);
      order.push(i);
    }
    order.sort((a, b) => keys[b] - keys[a] || a - b);
    const query = $("search").value.trim();
    if (/^\d+$/.test(query) && Number(query) < n()) { // the latent of this number comes first
      order = [Number(query), ...order.filter((i) => i !== Number(query))];
    }
    at = Math.max(0, order.indexOf(shown));
    const of = order.length === n() ? "" : ` of ${n().toLocaleString("en")}`;
    $("count").textContent = `${order.length.toLocaleString("en")}${of} latents`;
    $("rows").style.height = `${order.length * ROW}px`;
    draw(true);
  }

  // Only the rows in view are in the document.
  let drawn = [-1, -1];
  function draw(anew) {
    const scroller = $("scroller");
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - 5);
    const last = Math.min(order.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / ROW) + 5);
    if (!anew && drawn[0] === first && drawn[1] === last) return;
    drawn = [first, last];
    const rows = [];
    for (let place = first; place < last; place++) rows.push(row(place));
    $("rows").replaceChildren(...rows);
    if (rows.some((node) => node.id === `latent${shown}`)) {
      scroller.setAttribute("aria-activedescendant", `latent${shown}`);
    } else scroller.removeAttribute("aria-activedescendant");
  }

  function row(place) {
    const i = order[place];
    const rates = sae.corpora.slice(0, 2).map(([name], c) => `${name} ${percent(rate(c, i))}`);
    const picked = i === shown;
    const node = el("div", {
      class: `row ${group(i)}${picked ? " picked" : ""}`, role: "option", id: `latent${i}`,
      "aria-selected": String(picked), "aria-setsize": order.length, "aria-posinset": place + 1,
      on: () => go(i, true),
    }, el("b", null, String(i)), el("span", null, label(i) || (firing(i) ? "" : "never fires")),
      el("span", { class: "rates" }, `${rates.join(" · ")} · max ${sae.max[i]}`));
    node.style.top = `${place * ROW}px`;
    return node;
  }

  function reveal() {
    const scroller = $("scroller");
    const top = at * ROW;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    const below = top + ROW - scroller.clientHeight;
    if (below > scroller.scrollTop) scroller.scrollTop = below;
  }

  // ---------------------------------------------------------------- a latent
  const narrow = () => window.matchMedia("(max-width:760px)").matches;

  function go(i, opens) {
    const hash = `#${number}/${i}`;
    if (narrow() && opens && !document.body.classList.contains("open")) location.hash = hash;
    else history.replaceState(null, "", hash);
    show(i, opens || !narrow());
  }

  function step(by) {
    if (!order.length) return;
    // If the search has hidden the open latent, the first step opens the first one.
    const next = order[at] === shown ? at + by : at;
    at = Math.min(order.length - 1, Math.max(0, next));
    go(order[at], document.body.classList.contains("open"));
    reveal();
    draw(true);
  }

  async function show(i, opens) {
    shown = i;
    const place = order.indexOf(i);
    if (place >= 0) at = place;
    draw(true);
    if (!opens) return;
    document.body.classList.add("open");
    const mine = number;
    try {
      const file = await load(`${mine}/${padded(Math.floor(i / sae.perFile))}`);
      const latent = file[i % sae.perFile];
      const places = latent[0].map((passage) => Math.floor(passage[1] / sae.contextsPerFile));
      const texts = {};
      await Promise.all([...new Set(places)].map(async (part) => {
        texts[part] = await load(`${mine}/text${padded(part)}`);
      }));
      if (mine !== number || shown !== i) return; // the reader has gone on
      $("detail").replaceChildren(...detail(i, latent, texts));
      $("detail").scrollTop = 0;
      const next = order[at + 1];
      if (next !== undefined) load(`${mine}/${padded(Math.floor(next / sae.perFile))}`).catch(() => 0);
    } catch (error) {
      $("detail").replaceChildren(el("p", { class: "worse" }, error.message));
    }
  }

  const tone = (corpus) => (sae.groups && ["f", "r"][corpus]) || (corpus % 2 ? "p" : "o");

  function detail(i, [passages, histogram, near, promoted, suppressed], texts) {
    const kind = group(i);
    const parts = [
      el("div", { class: "head" }, el("h2", null, `Latent ${i}`),
        kind ? el("span", { class: `badge ${kind}` }, GROUPS[kind]) : null,
        merged(i) ? el("span", { class: "badge s" }, "merged candidate") : null,
        changed(i) ? el("span", { class: "badge" }, "changed group") : null,
        el("span", { class: "note" }, leaning(i))),
      bars(i),
    ];
    if (!firing(i)) parts.push(el("p", null, "This latent fires on none of the tokens that were read."));
    const lens = [el("h3", null, "Logit lens")];
    if (promoted.length) {
      lens.push(el("div", { class: "note" }, "promotes"), chips(promoted),
        el("div", { class: "note" }, "suppresses"), chips(suppressed));
    } else lens.push(el("p", { class: "note" }, "None: this SAE does not write into the residual stream."));
    const hist = [el("h3", null, "Activations"), histogram.length > 1 && histogram[1].length
      ? bins(histogram) : el("p", { class: "note" }, "None.")];
    parts.push(el("div", { class: "two" }, el("section", null, ...hist), el("section", null, ...lens)));
    sae.corpora.forEach((_, corpus) => parts.push(...section(corpus, passages, texts)));
    if (near.length) parts.push(el("h3", null, "Nearest latents"), neighbours(near));
    return parts;
  }

  // The passages of one corpus; those of a third or later corpus are folded away.
  function section(corpus, passages, texts) {
    const name = el("span", { class: `tone ${tone(corpus)}` }, sae.corpora[corpus][0]);
    const mine = passages.filter((passage) => passage[0] === corpus);
    const list = mine.length
      ? el("ol", { class: `passages ${tone(corpus)}` }, ...mine.map((p) => passage(p, texts)))
      : el("p", { class: "note" }, "It never fires here.");
    if (corpus < 2) return [el("h3", null, "Top passages, ", name), list];
    return [el("details", null, el("summary", null, "Top passages, ", name), list)];
  }

  function leaning(i) {
    const [forget, retain] = [rate(0, i), retained(i)];
    if (!sae.lean.length || !(forget + retain)) return "";
    if (!retain) return "on the forget side only";
    if (!forget) return "on the retain side only";
    const times = 2 ** Math.abs(sae.lean[i]);
    const side = sae.lean[i] >= 0 ? "forget" : "retain";
    return times < 1.15 ? "as often on both sides" : `${figures(times)}× as often on the ${side} side`;
  }

  function bars(i) {
    const rates = sae.corpora.map((_, c) => rate(c, i));
    const most = Math.max(...rates) || 1;
    return el("div", { class: "bars" }, ...sae.corpora.flatMap(([name, , tokens], c) => {
      const inside = el("i");
      inside.style.width = `${(100 * rates[c]) / most}%`;
      const count = sae.fired[c][i].toLocaleString("en");
      return [el("span", { class: `tone ${tone(c)}` }, name),
        el("span", { class: `bar ${tone(c)}` }, inside),
        el("span", { title: `${count} of ${tokens.toLocaleString("en")} tokens` },
          `${percent(rates[c])} of tokens`)];
    }));
  }

  // Stacked bars; the bins are logarithmic.
  function bins([first, ...counts]) {
    const columns = counts[0].length;
    const [width, height, left, bottom] = [420, 150, 34, 18];
    const totals = counts[0].map((_, b) => counts.reduce((sum, c) => sum + c[b], 0));
    const most = Math.max(...totals);
    const image = svg("svg", { class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": "Number of activations by size" });
    const step = (width - left - 14) / Math.max(columns, 6);
    const scale = (height - bottom - 8) / most;
    image.append(svg("line", { x1: left, x2: width - 14, y1: height - bottom, y2: height - bottom }));
    image.append(svg("text", { x: left - 4, y: 14, "text-anchor": "end" }, figures(most)));
    image.append(svg("text", { x: left - 4, y: height - bottom, "text-anchor": "end" }, "0"));
    for (let b = 0; b < columns; b++) {
      let y = height - bottom;
      const bar = svg("g", {});
      const words = sae.corpora.map(([name], c) => `${name} ${counts[c][b]}`).join(", ");
      bar.append(svg("title", {},
        `${sae.edges[first + b]} to ${sae.edges[first + b + 1]}: ${words}`));
      counts.forEach((of, c) => {
        const tall = of[b] * scale;
        y -= tall;
        bar.append(svg("rect", { class: tone(c), x: left + b * step + 0.5, y, height: tall,
          width: Math.max(0.5, step - 1) }));
      });
      image.append(bar);
    }
    const every = Math.max(1, Math.ceil(columns / 8));
    for (let b = 0; b <= columns; b += every) {
      image.append(svg("text", { x: left + b * step, y: height - 5, "text-anchor": "middle" },
        figures(sae.edges[first + b])));
    }
    return image;
  }

  function chips(tokens) {
    return el("ul", { class: "chips" }, ...tokens.map(([token, logit]) =>
      el("li", null, visible(token) || "∅", el("small", null, (logit > 0 ? "+" : "−") + Math.abs(logit).toFixed(2)))));
  }

  function passage([, context, position, ...flat], texts) {
    const [table, rows] = texts[Math.floor(context / sae.contextsPerFile)];
    const tokens = rows[context % sae.contextsPerFile];
    const values = new Map();
    for (let k = 0; k < flat.length; k += 2) values.set(position - sae.width + flat[k], flat[k + 1]);
    const most = Math.max(...values.values());
    const first = Math.max(0, position - sae.width);
    const last = Math.min(tokens.length, position + sae.width + 1);
    const text = el("div", { class: "text" });
    if (first) text.append(el("i", { class: "cut" }, "… "));
    for (let p = first; p < last; p++) {
      const token = visible(table[tokens[p]]);
      const value = values.get(p);
      if (value === undefined) {
        text.append(token);
        continue;
      }
      const span = el("span", { title: String(value) }, token);
      span.style.setProperty("--a", (value / most).toFixed(3));
      if (p === position) span.className = "peak";
      text.append(span);
    }
    if (last < tokens.length) text.append(el("i", { class: "cut" }, " …"));
    return el("li", null, el("span", { class: "value" }, String(values.get(position) ?? "")), text);
  }

  function neighbours(near) {
    const heads = ["latent", "cosine", "lift", "group", "label"];
    const kinds = sae.groups ? heads : heads.filter((head) => head !== "group");
    return el("div", { class: "scroll" }, el("table", { class: "near" },
      el("thead", null, el("tr", null, ...kinds.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", null, ...near.map(([j, cosine, lift]) => el("tr", { on: () => go(j, true) },
        el("td", null, el("a", { href: `#${number}/${j}` }, String(j))),
        el("td", null, cosine.toFixed(2)), el("td", null, lift === null ? "–" : figures(lift)),
        sae.groups ? el("td", { class: `tone ${group(j)}` }, GROUPS[group(j)]) : null,
        el("td", null, label(j)))))));
  }

  // ---------------------------------------------------------------- controls
  function options(select, entries, value) {
    select.replaceChildren(...entries.map(([key, text]) => el("option", { value: key }, text)));
    if (entries.some(([key]) => key === value)) select.value = value;
  }

  async function open(which) {
    number = which;
    sae = null;
    shown = -1;
    const found = await load(`${which}/index`);
    if (number !== which) return;
    [sae, lower] = [found, null];
    $("sae").value = String(which);
    const sorts = Object.entries(SORTS).filter(([, sort]) => sae.groups || !sort[3]);
    options($("sort"), sorts.map(([key, [text]]) => [key, text]), $("sort").value);
    const counts = {};
    for (const letter of sae.groups) counts[letter] = (counts[letter] || 0) + 1;
    options($("group"), [["", "All groups"], ...Object.entries(GROUPS).map(([key, text]) =>
      [key, `${text} (${(counts[key] || 0).toLocaleString("en")})`])], $("group").value);
    $("group").hidden = !sae.groups;
    $("facts").replaceChildren(...sae.facts.flatMap(([name, value]) =>
      [el("dt", null, name), el("dd", null, value)]));
    $("detail").replaceChildren(el("p", { class: "note" }, "Choose a latent."));
    arrange();
  }

  async function follow() {
    const [, which, latent] = location.hash.match(/^#(\d+)(?:\/(\d+))?$/) || [null, "0", undefined];
    const wanted = Math.min(names.length - 1, Number(which));
    try {
      if (sae === null || wanted !== number) await open(wanted);
    } catch (error) {
      $("detail").replaceChildren(el("p", { class: "worse" }, error.message));
      document.body.classList.add("open");
      return;
    }
    if (latent !== undefined && Number(latent) < n()) {
      if (Number(latent) !== shown || !document.body.classList.contains("open")) {
        await show(Number(latent), true);
        reveal();
      }
    } else if (narrow()) document.body.classList.remove("open");
    else if (order.length) await show(order[0], true);
  }

  function back() {
    if (document.activeElement === $("search")) {
      if ($("search").value) {
        $("search").value = "";
        arrange();
      }
      $("search").blur();
    } else if (narrow()) location.hash = `#${number}`;
    else $("scroller").focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || sae === null) return;
    const typing = event.target === $("search");
    const choosing = event.target.tagName === "SELECT";
    const keys = {
      ArrowDown: () => step(1),
      ArrowUp: () => step(-1),
      Escape: back,
      Enter: () => {
        if (!order.length) return;
        if (typing) {
          at = 0;
          $("search").blur();
        }
        go(order[at], true);
        reveal();
      },
    };
    const others = {
      j: () => step(1),
      k: () => step(-1),
      ArrowRight: () => order.length && go(order[at], true),
      ArrowLeft: back,
      Home: () => step(-order.length),
      End: () => step(order.length),
      "/": () => $("search").select(),
      "?": () => $("help").click(),
    };
    if (choosing && event.key !== "Escape") return;
    if (event.key === "Enter" && ["BUTTON", "A", "SUMMARY"].includes(event.target.tagName)) return;
    const act = keys[event.key] || (typing ? undefined : others[event.key]);
    if (!act) return;
    event.preventDefault();
    act();
  });

  $("search").addEventListener("input", () => {
    $("scroller").scrollTop = 0;
    arrange();
  });
  for (const id of ["sort", "group"]) {
    $(id).addEventListener("change", () => {
      $("scroller").scrollTop = 0;
      arrange();
      if (!narrow() && order.length) go(order[0], true);
    });
  }
  $("sae").addEventListener("change", () => { location.hash = `#${$("sae").value}`; });
  $("scroller").addEventListener("scroll", () => requestAnimationFrame(() => draw(false)));
  window.addEventListener("resize", () => sae && draw(true));
  window.addEventListener("hashchange", follow);
  $("back").addEventListener("click", back);
  $("help").addEventListener("click", () => {
    $("terms").hidden = !$("terms").hidden;
    $("help").setAttribute("aria-expanded", String(!$("terms").hidden));
    if (sae) draw(true);
  });
  options($("sae"), names.map((name, which) => [String(which), name]), "0");
  $("sae").hidden = names.length < 2;
  follow();
})();
