/* The audit page's own script. Captions, keys and names are hostile: they reach the page as textContent only. */
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const MARKS = ["keep", "mismatch", "unsure"];
  const PAGE = 48; // cards shown at a time
  const SHORT = 140; // characters of a caption before one asks for all
  const LARGEST_FILE = 64 << 20;
  document.documentElement.classList.add("js");

  /** Makes an element: make("p", {class: "quiet", dir: "auto"}, "text", child, …). */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
    element.append(...children); // strings become text nodes
    return element;
  }
  const number = (value) => Math.round(value).toLocaleString("en-US");
  const percent = (share) =>
    !Number.isFinite(share) ? "–" : share > 0 && share < 0.001 ? "under 0.1\u00a0%" : `${(100 * share).toFixed(1)}\u00a0%`;

  // -- what to keep ------------------------------------------------------------------------------------------------

  const STEPS = data.steps;
  const sides = data.keeping.map((entry) => {
    // count[b], p[b], noisy[b]: of bins 1 to b; bin 0 holds the pairs without a score
    const sums = { flags: entry.flags, unscored: 0 };
    for (const name of ["count", "p", "noisy"]) {
      const total = new Float64Array(STEPS + 2);
      (entry[name] || []).forEach((value, i) => {
        if (entry.bin[i]) total[entry.bin[i]] = value;
        else if (name === "count") sums.unscored = value;
      });
      for (let b = 1; b < total.length; b++) total[b] += total[b - 1];
      sums[name] = total;
    }
    return sums;
  });
  const boxes = [...document.querySelectorAll("[data-leave]")];

  /** Pairs kept with p_noise below step / STEPS and none of the flags in the bit set `left`. */
  function keeping(step, left) {
    const found = { over: 0, remain: 0, p: 0, pOver: 0, pAll: 0, noisyOver: 0, noisyAll: 0, noisy: 0, scored: 0 };
    found.flagged = boxes.map(() => 0);
    for (const { flags, count, p, noisy } of sides) {
      const last = STEPS + 1;
      found.scored += count[last];
      found.over += count[last] - count[step];
      found.pAll += p[last];
      found.pOver += p[last] - p[step];
      found.noisyAll += noisy[last];
      found.noisyOver += noisy[last] - noisy[step];
      if (!(flags & left)) {
        found.remain += count[step];
        found.p += p[step];
        found.noisy += noisy[step];
      }
      boxes.forEach((_, i) => {
        const before = left & ((1 << i) - 1); // a pair is counted where it first falls out
        if (flags & (1 << i) && !(flags & before)) found.flagged[i] += count[step];
      });
    }
    return found;
  }

  function showKeeping() {
    const step = Math.round(Number($("threshold").value) * STEPS);
    const threshold = step / STEPS;
    const left = boxes.reduce((bits, box, i) => (box.checked ? bits | (1 << i) : bits), 0);
    const now = keeping(step, left);
    $("below-box").setAttribute("width", String(1000 * threshold));
    $("above-box").setAttribute("x", String(1000 * threshold));
    $("remain").textContent = $("remain-again").textContent = number(now.remain);
    $("remain-share").textContent = `(${percent(now.remain / data.n)})`;
    $("over").textContent = `−${number(now.over)}`;
    boxes.forEach((box, i) => {
      $(`flagged-${i}`).textContent = `${box.checked ? "−" : "would be −"}${number(now.flagged[i])}`;
      box.closest("tr").classList.toggle("off", !box.checked);
    });
    $("threshold").setAttribute("aria-valuetext", `${threshold.toFixed(3)}: ${number(now.remain)} pairs remain`);
    if (now.pAll > 0)
      $("expected").textContent =
        `Of about ${number(now.pAll)} mismatched pairs the threshold leaves out ${number(now.pOver)} ` +
        `(${percent(now.pOver / now.pAll)}), with ${number(now.over - now.pOver)} matched ones. About ` +
        `${number(now.p)} mismatched pairs stay among those that remain (${percent(now.p / now.remain)}).`;
    if ($("real"))
      $("real").textContent =
        `Really, by the column is_noise: precision ${percent(now.noisyOver / now.over)}, recall ` +
        `${percent(now.noisyOver / now.noisyAll)}; ${number(now.noisy)} mismatched pairs stay ` +
        `(${percent(now.noisy / now.remain)}).`;
    const chosen = boxes.flatMap((box, i) => (box.checked ? [data.leave[i].name] : []));
    const usual = data.leave.map(({ name }) => name).filter((name) => data.usual.includes(name));
    const same = chosen.length === usual.length && chosen.every((name) => usual.includes(name));
    const moved = data.leave.some(({ name, grouped }) => !grouped && chosen.includes(name) !== data.leftOut.includes(name));
    const groups = data.leave.filter(({ name, grouped }) => grouped && chosen.includes(name)).length;
    $("about-groups").hidden = !(groups > 1 || (groups && moved));
    const drop = same ? "" : ` --drop ${chosen.join(" ") || "none"}`;
    const uids = $("uids").checked ? " --uids" : "";
    $("keep-command").textContent = `${data.command} --threshold ${threshold}${drop}${uids}`;
  }

  $("threshold").addEventListener("input", () => {
    $("threshold-number").value = $("threshold").value;
    showKeeping();
  });
  $("threshold-number").addEventListener("input", () => {
    const value = $("threshold-number").valueAsNumber;
    if (!(value >= 0 && value <= 1)) return;
    $("threshold").value = String(value);
    showKeeping();
  });
  $("threshold-number").addEventListener("change", () => ($("threshold-number").value = $("threshold").value));
  for (const box of [...boxes, $("uids")]) box.addEventListener("change", showKeeping);

  for (const button of document.querySelectorAll("[data-copy]"))
    button.addEventListener("click", async () => {
      const source = $(button.dataset.copy);
      let copied = true;
      try {
        await navigator.clipboard.writeText(source.textContent);
      } catch {
        getSelection().selectAllChildren(source); // a page opened from a disk may not have the clipboard
        copied = document.execCommand("copy");
      }
      button.textContent = copied ? "Copied" : "Press Ctrl+C";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });

  // -- tables that sort --------------------------------------------------------------------------------------------

  for (const heading of document.querySelectorAll("th[data-sort]")) {
    const button = make("button", { type: "button" }, heading.textContent);
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const table = heading.closest("table");
      const down = heading.getAttribute("aria-sort") !== "descending";
      for (const other of table.querySelectorAll("th[data-sort]")) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[heading.cellIndex].dataset.value;
      const order =
        heading.dataset.sort === "number"
          ? (a, b) => Number(value(a)) - Number(value(b))
          : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
      table.tBodies[0].append(...rows);
    });
  }

  // -- marks: row -> {label, key}; in memory, and where the browser keeps them ---------------------------------------

  const pairs = new Map(data.pairs.map((pair) => [pair.row, pair]));
  const marks = new Map();
  let stored = true;

  function restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(data.storage) || "{}");
      const wrong = Object.entries(kept).filter(([row, [label, key]]) => accept(Number(row), String(key), label));
      const noun = wrong.length === 1 ? "mark that this browser kept does" : "marks that this browser kept do";
      if (wrong.length) $("load-said").textContent = `${number(wrong.length)} ${noun} not fit this audit: left out.`;
    } catch {
      stored = false; // no storage, or not ours: begin anew
    }
  }

  function store() {
    const kept = {};
    for (const [row, { label, key }] of marks) kept[row] = [label, key];
    try {
      localStorage.setItem(data.storage, JSON.stringify(kept));
      stored = true;
    } catch {
      stored = false;
    }
  }

  /** The whole key of a pair of the page; "" where the page does not hold all of it. */
  const keyOf = (pair) => (pair.cutKey ? "" : pair.key || "");

  /** Takes a label from outside; returns what is wrong with it, "" if nothing. */
  function accept(row, key, label) {
    if (!Number.isInteger(row) || row < 0 || row >= data.n) return "no such row";
    if (!MARKS.includes(label)) return "a label is keep, mismatch or unsure";
    const pair = pairs.get(row);
    if (pair && key && !pair.cutKey && key !== (pair.key || "")) return "the key belongs to another row";
    marks.set(row, { label, key: pair ? keyOf(pair) : key });
    return "";
  }

  function mark(row, label) {
    if (!label || (marks.has(row) && marks.get(row).label === label)) marks.delete(row);
    else marks.set(row, { label, key: keyOf(pairs.get(row)) });
    store();
    showMarks();
    for (const card of document.querySelectorAll(`.card[data-row="${row}"]`)) showMark(card);
  }

  function showMark(card) {
    const found = marks.get(Number(card.dataset.row));
    card.dataset.mark = found ? found.label : "";
    for (const button of card.querySelectorAll(".mark button"))
      button.setAttribute("aria-pressed", String(Boolean(found) && button.dataset.mark === found.label));
  }

  function showMarks() {
    const labels = [...marks.values()].map(({ label }) => label);
    const counts = MARKS.map((name) => `${number(labels.filter((label) => label === name).length)} ${name}`);
    $("marks-said").textContent = labels.length
      ? `${number(labels.length)} ${labels.length === 1 ? "pair" : "pairs"} marked: ${counts.join(", ")}.`
      : "No pair is marked yet.";
    $("download").disabled = $("clear").disabled = !labels.length;
    $("kept-where").textContent = stored
      ? "Marks are kept in this browser until you remove them; the file is what lasts."
      : "This browser keeps no marks once the page is closed: download the file before.";
    if (!$("tab-label")) return;
    const done = data.toLabel.filter((row) => marks.has(row)).length;
    $("label-count").textContent = `${number(done)} of ${number(data.toLabel.length)}`;
    $("progress").setAttribute("aria-valuenow", String(done));
    $("progress").firstElementChild.style.width = `${(100 * done) / data.toLabel.length}%`;
  }

  // -- labels.csv --------------------------------------------------------------------------------------------------

  /** A key a spreadsheet would run as a formula is left out; the row alone names the pair. */
  const keyToWrite = (key) => (/^[\s=+\-@\t\r]/.test(key) ? "" : key);
  const field = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

  function labelsFile() {
    const lines = [...marks].sort(([a], [b]) => a - b).map(([row, { label, key }]) => {
      const pair = pairs.get(row) || {};
      return [row, keyToWrite(key), label, pair.p ?? "", pair.stratum ?? ""].map((value) => field(String(value)));
    });
    return [["row", "key", "label", "p_noise", "stratum"], ...lines].map((line) => `${line.join(",")}\r\n`).join("");
  }

  /** Lines of RFC 4180 text as [line number, fields]; spreadsheets may have made semicolons or tabs of the commas. */
  function parsed(text) {
    const heading = text.split(/[\r\n]/, 1)[0];
    const often = (mark) => heading.split(mark).length;
    const comma = [",", ";", "\t"].reduce((best, mark) => (often(mark) > often(best) ? mark : best));
    const lines = [];
    let fields = [];
    let value = "";
    let quoted = false;
    let line = 1;
    let start = 1;
    for (let i = 0; i < text.length; i++) {
      const c = text[i];
      if (c === "\n") line++;
      if (quoted) {
        if (c !== '"') value += c;
        else if (text[i + 1] === '"') value += text[i++];
        else quoted = false;
      } else if (c === '"') quoted = true;
      else if (c === comma) {
        fields.push(value);
        value = "";
      } else if (c === "\n" || (c === "\r" && text[i + 1] !== "\n")) {
        lines.push([start, [...fields, value]]);
        fields = [];
        value = "";
        start = line;
      } else if (c !== "\r") value += c;
    }
    if (value || fields.length) lines.push([start, [...fields, value]]);
    return lines.filter(([, found]) => found.length > 1 || found[0].trim());
  }

  /** Takes the labels of a file; returns the sentence that says how it went. */
  function takeLabels(text) {
    const [heading, ...lines] = parsed(text.replace(/^\uFEFF/, ""));
    const names = heading ? heading[1].map((name) => name.trim().toLowerCase()) : [];
    const [row, key, label] = ["row", "key", "label"].map((name) => names.indexOf(name));
    if (row < 0 || label < 0) return "This is no labels.csv: its first line must be row,key,label.";
    const wrong = [];
    let taken = 0;
    for (const [line, fields] of lines) {
      const [rowText, said] = [fields[row], fields[label]].map((value) => (value || "").trim());
      if (!said) continue; // not judged yet
      const problem = accept(/^\d+$/.test(rowText) ? Number(rowText) : -1, fields[key] || "", said.toLowerCase());
      if (problem) wrong.push(`line ${line}: ${problem}`);
      else taken++;
    }
    const said = `${number(taken)} ${taken === 1 ? "label" : "labels"} taken from the file.`;
    if (!wrong.length) return said;
    return `${said} ${number(wrong.length)} do not fit this audit (${wrong.slice(0, 3).join("; ")}${wrong.length > 3 ? "; …" : ""}).`;
  }

  $("download").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([labelsFile()], { type: "text/csv;charset=utf-8" }));
    make("a", { href: url, download: "labels.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
  $("load").addEventListener("change", async () => {
    const [file] = $("load").files;
    $("load").value = "";
    if (!file) return;
    try {
      $("load-said").textContent = file.size > LARGEST_FILE ? "This file is too large for labels." : takeLabels(await file.text());
    } catch (error) {
      $("load-said").textContent = `The file cannot be read: ${error.message}`;
    }
    store();
    showMarks();
    document.querySelectorAll(".card").forEach(showMark);
  });
  $("clear").addEventListener("click", () => {
    if (!confirm(`Remove all ${number(marks.size)} marks?`)) return;
    marks.clear();
    store();
    showMarks();
    $("load-said").textContent = "";
    document.querySelectorAll(".card").forEach(showMark);
  });

  // -- cards -------------------------------------------------------------------------------------------------------

  const pictures = data.pictures;
  for (const image of document.querySelectorAll("img[data-picture]")) pictures[Number(image.dataset.picture)] = image.src;
  $("static").remove(); // its pictures are taken over

  const title = new Map(data.issues.map(({ name, title }) => [name, title]));
  let labelling = false;
  let shownCards = [];
  let room = PAGE;

  function captionOf(text, pair) {
    const long = text.length > SHORT + 20;
    const element = make("p", { dir: "auto" }, long ? `${text.slice(0, SHORT).replace(/[\uD800-\uDBFF]$/, "")}…` : text);
    if (!long) return [element];
    const more = make("button", { type: "button", class: "link" }, `show all${pair.cut ? "" : ` ${number(text.length)} characters`}`);
    more.addEventListener("click", () => {
      element.textContent = text;
      if (pair.cut) more.replaceWith(make("p", { class: "quiet" }, `${number(pair.cut)} more characters in audit.parquet`));
      else more.remove();
    });
    return [element, more];
  }

  function pictureOf(pair) {
    const picture = data.shapes[pair.row];
    const box = make("div", { class: "picture" });
    if (picture.problem) box.append(make("span", { class: "none" }, `no picture: ${picture.problem}`));
    else
      box.append(
        make("img", {
          src: pictures[picture.at],
          width: picture.width,
          height: picture.height,
          alt: `picture of row ${pair.row}`,
          loading: "lazy",
          decoding: "async",
        }),
      );
    return box;
  }

  function figuresOf(pair, issue) {
    const shown = [];
    if (issue && pair.scores?.[issue] !== undefined && pair.scores[issue] !== pair.p)
      shown.push(["score", pair.scores[issue].toFixed(3)]);
    if (pair.p !== undefined) shown.push(["p_noise", pair.p.toFixed(3)]);
    for (const name of ["cosine", "itm"])
      if (pair.numbers?.[name] !== undefined) shown.push([name, pair.numbers[name].toFixed(3)]);
    return shown.flatMap(([name, value]) => [make("span", {}, `${name} ${value}`), " "]);
  }

  function cardOf(pair, issue) {
    const captions = make("div", { class: "captions" });
    for (const text of pair.captions || []) captions.append(...captionOf(text, pair));
    if (!pair.captions) captions.append(make("p", { class: "quiet" }, "no caption"));
    if (pair.more) captions.append(make("p", { class: "quiet" }, `and ${number(pair.more)} more captions`));
    const figures = make("p", { class: "figures" });
    if (!labelling) figures.append(...figuresOf(pair, issue));
    figures.append(make("span", {}, `row ${pair.row}`), " ");
    const key = pair.key || "";
    if (key) figures.append(make("span", { class: "own" }, "key ", make("bdi", { title: key }, key.length > 40 ? `${key.slice(0, 40)}…` : key)));
    const about = [];
    if (!labelling) {
      if (pair.problem) about.push(make("p", { class: "why" }, pair.problem));
      const flags = (pair.flags || []).filter((name) => name !== issue).map((name) => title.get(name).toLowerCase());
      if (flags.length) about.push(make("p", { class: "why" }, `${issue ? "also " : ""}${flags.join(", ")}`));
      if (pair.truth !== undefined)
        about.push(
          make("p", { class: `verdict ${pair.truth ? "mismatched" : "matched"}` }, pair.truth ? "really mismatched" : "really matched"),
        );
    }
    const buttons = make("div", { class: "mark", role: "group", "aria-label": `mark row ${pair.row}` });
    for (const name of MARKS) {
      const button = make("button", { type: "button", "data-mark": name, tabindex: "-1" }, name);
      button.addEventListener("click", () => mark(pair.row, name));
      buttons.append(button);
    }
    const card = make("li", { class: "card", tabindex: "-1", "data-row": pair.row }, pictureOf(pair), captions, ...about, figures, buttons);
    showMark(card);
    return card;
  }

  /** What is to be shown, in order: [{pair, issue}] or {group, pairs, issue}. */
  function chosen() {
    if (labelling) return data.toLabel.map((row) => ({ pairs: [pairs.get(row)], issue: "" }));
    const issue = $("issue").value;
    const kind = $("kind").value;
    const wanted = $("marked").value;
    const words = $("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const [low, high] = [$("low").valueAsNumber, $("high").valueAsNumber];
    const fits = (pair) => {
      const score = issue ? pair.scores?.[issue] : pair.p;
      if (score !== undefined && (score < low || score > high)) return false;
      if (score === undefined && (low > 0 || high < 1)) return false;
      const label = marks.get(pair.row)?.label;
      if (wanted && (wanted === "none" ? label : label !== wanted)) return false;
      if (!words.length) return true;
      const text = `${pair.row} ${pair.key || ""} ${(pair.captions || []).join(" ")}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    const samples = data.samples.filter((one) => (!issue || one.issue === issue) && (!kind || one.kind === kind));
    const sort = $("sort").value;
    if (issue && !sort)
      return samples
        .flatMap((one) => {
          const found = one.rows.map((row) => pairs.get(row)).filter(fits);
          return one.size ? [{ ...one, pairs: found }] : found.map((pair) => ({ kind: one.kind, issue, pairs: [pair] }));
        })
        .filter((one) => one.pairs.length);
    const rows = [...new Set(samples.flatMap((one) => one.rows))];
    const found = rows.map((row) => pairs.get(row)).filter(fits);
    const p = (pair) => pair.p ?? -1;
    if (sort === "down") found.sort((a, b) => p(b) - p(a) || a.row - b.row);
    if (sort === "up") found.sort((a, b) => p(a) - p(b) || a.row - b.row);
    if (sort === "row") found.sort((a, b) => a.row - b.row);
    return found.map((pair) => ({ pairs: [pair], issue }));
  }

  function groupOf({ size, pairs: members, issue, group }) {
    const rest = members.length < size ? `, ${number(members.length)} of them here` : "";
    const noun = size === 1 ? "pair" : "pairs";
    const words = make("p", { class: "quiet small" }, `Group ${number(group)}: ${number(size)} ${noun}${rest}`);
    return make("li", { class: members.length > 2 ? "group" : "group small-group" }, words, make("ol", {}, ...members.map((pair) => cardOf(pair, issue))));
  }

  function showCards() {
    const found = chosen();
    const total = found.reduce((sum, one) => sum + one.pairs.length, 0);
    const items = [];
    let count = 0;
    for (const one of found) {
      if (count >= room) break;
      count += one.pairs.length;
      items.push(one.size ? groupOf(one) : cardOf(one.pairs[0], one.issue));
    }
    $("cards").replaceChildren(...items);
    shownCards = [...$("cards").querySelectorAll(".card")];
    if (shownCards.length) shownCards[0].tabIndex = 0;
    $("more").hidden = count >= total;
    $("more").textContent = `Show more (${number(total - count)})`;
    const noun = total === 1 ? "pair" : "pairs";
    if (labelling) $("shown").textContent = "";
    else if (!total) $("shown").textContent = "None of the pairs that this page holds fits.";
    else
      $("shown").textContent =
        `${number(total)} ${noun}. The page holds samples, the worst and those nearest to the threshold of each issue; ` +
        `audit.parquet has all ${number(data.n)}.`;
    const issue = $("issue").value;
    $("range-label").textContent = issue ? "score" : "p_noise";
  }

  function refilter() {
    room = PAGE;
    showCards();
  }
  for (const id of ["search", "low", "high"]) $(id).addEventListener("input", refilter);
  for (const id of ["issue", "kind", "marked", "sort"]) $(id).addEventListener("change", refilter);
  const filters = document.querySelector(".filters");
  filters.addEventListener("submit", (event) => event.preventDefault());
  $("clear-filters").addEventListener("click", () => {
    filters.reset();
    refilter();
  });
  $("more").addEventListener("click", () => {
    const next = shownCards.length;
    room += PAGE;
    showCards();
    focusCard(next);
  });
  for (const button of document.querySelectorAll("[data-show]"))
    button.addEventListener("click", () => {
      showTab(false);
      filters.reset();
      $("issue").value = button.dataset.show;
      refilter();
      $("pairs").scrollIntoView();
      focusCard(0, true);
    });

  // -- tabs and keys -----------------------------------------------------------------------------------------------

  function showTab(label) {
    labelling = label && Boolean($("tab-label"));
    for (const [id, on] of [["tab-examples", !labelling], ["tab-label", labelling]]) {
      if (!$(id)) continue;
      $(id).setAttribute("aria-selected", String(on));
      $(id).tabIndex = on ? 0 : -1;
      if (on) $("panel").setAttribute("aria-labelledby", id);
    }
    $("examples-head").hidden = labelling;
    if ($("label-head")) $("label-head").hidden = !labelling;
    refilter();
  }
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.addEventListener("click", () => showTab(tab.id === "tab-label"));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = [...document.querySelectorAll("[role=tab]")].find((one) => one !== tab);
      if (!other) return;
      other.focus();
      other.click();
      event.preventDefault();
    });
  }
  for (const link of document.querySelectorAll("[data-tab=label]"))
    link.addEventListener("click", (event) => {
      event.preventDefault(); // it would take the focus with it
      showTab(true);
      $("pairs").scrollIntoView();
      const next = data.toLabel.findIndex((row) => !marks.has(row));
      if (next >= room) {
        room = next + PAGE;
        showCards();
      }
      focusCard(Math.max(next, 0), true);
    });

  function focusCard(place, still = false) {
    const card = shownCards[Math.min(Math.max(place, 0), shownCards.length - 1)];
    if (!card) return;
    for (const other of shownCards) other.tabIndex = -1;
    card.tabIndex = 0;
    card.focus({ preventScroll: still });
  }

  /** The card above (-1) or below (1) that lies nearest; the same if there is none. */
  function beside(card, way) {
    const box = card.getBoundingClientRect();
    const middle = box.left + box.width / 2;
    let best = card;
    let least = Infinity;
    for (const other of shownCards) {
      const there = other.getBoundingClientRect();
      const away = way * (there.top - box.top);
      if (away < box.height / 2) continue;
      const distance = away * 4 + Math.abs(there.left + there.width / 2 - middle);
      if (distance < least) [best, least] = [other, distance];
    }
    return best;
  }

  $("cards").addEventListener("focusin", (event) => {
    const card = event.target.closest(".card");
    for (const other of shownCards) other.tabIndex = other === card ? 0 : -1;
  });
  $("cards").addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = shownCards.indexOf(card);
    const label = MARKS.find((name) => name[0] === event.key.toLowerCase());
    if (label) {
      if (marks.get(Number(card.dataset.row))?.label !== label) mark(Number(card.dataset.row), label);
      if (place + 1 === shownCards.length && !$("more").hidden) $("more").click();
      focusCard(place + 1);
    } else if (event.key === "Backspace" || event.key === "Delete") mark(Number(card.dataset.row), "");
    else if (event.key === "ArrowLeft") focusCard(place - 1);
    else if (event.key === "ArrowRight") focusCard(place + 1);
    else if (event.key === "ArrowUp") focusCard(shownCards.indexOf(beside(card, -1)));
    else if (event.key === "ArrowDown") focusCard(shownCards.indexOf(beside(card, 1)));
    else return;
    event.preventDefault();
  });

  restore();
  showMarks();
  showKeeping();
  showCards();
})();
