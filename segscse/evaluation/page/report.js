"use strict";
// Makes the page interactive. Everything it shows is in the page already; without it the page can still be read.

const byId = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function showPanels(select) {
  const panels = all(".panel", byId(select.dataset.panels));
  const show = () => panels.forEach((panel) => { panel.hidden = panel.dataset.panel !== select.value; });
  select.addEventListener("change", show);
  show();
}

function showTips() {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  document.addEventListener("pointermove", (event) => {
    const point = event.target.closest?.("[data-tip]");
    tip.hidden = !point;
    if (!point) return;
    tip.textContent = point.dataset.tip;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 6)}px`;
    tip.style.top = `${Math.max(event.clientY - tip.offsetHeight - 10, 4)}px`;
  });
}

// A value for sorting: numbers as numbers, the undefined dash as nothing.
function sortKey(text) {
  if (text === "∞") return Infinity;
  const value = Number.parseFloat(text);
  return Number.isNaN(value) || !/^[+-]?[\d.]/.test(text) ? null : value;
}

function compareCells(first, second, numeric) {
  if (!numeric) return first.localeCompare(second, undefined, { numeric: true });
  const [a, b] = [sortKey(first), sortKey(second)];
  if (a === null || b === null) return a === b ? 0 : NaN;
  return a === b ? 0 : a < b ? -1 : 1;
}

function sortable(table) {
  const body = table.tBodies[0];
  all("th", table.tHead).forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      const numeric = !head.classList.contains("text");
      closeDetails(table);
      const rows = [...body.rows].sort((first, second) => {
        const cells = [first, second].map((row) => row.cells[column].textContent.replace("▸", "").trim());
        const order = compareCells(cells[0], cells[1], numeric);
        if (Number.isNaN(order)) return sortKey(cells[0]) === null ? 1 : -1;
        return descending ? -order : order;
      });
      all("th", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...rows);
    });
  });
}

function filterable(table) {
  const [text, kind, count] = [byId("filter"), byId("kind"), byId("count")];
  const rows = all("tr", table.tBodies[0]);
  const texts = rows.map((row) => all("td.text", row).map((cell) => cell.textContent.toLowerCase()).join("\n"));
  const apply = () => {
    closeDetails(table);
    const wanted = text.value.trim().toLowerCase();
    let shown = 0;
    for (const [place, row] of rows.entries()) {
      const matches = texts[place].includes(wanted)
        && (!kind.value || row.dataset.kinds.split(" ").includes(kind.value));
      row.hidden = !matches;
      shown += matches;
    }
    count.textContent = shown === rows.length ? `${rows.length} cases` : `${shown} of ${rows.length} cases`;
  };
  text.addEventListener("input", apply);
  kind.addEventListener("change", apply);
  apply();
  return () => { text.value = ""; kind.value = ""; apply(); };
}

function closeDetails(table) {
  all("tr.details", table).forEach((row) => row.remove());
  all("[aria-expanded=true]", table).forEach((button) => button.setAttribute("aria-expanded", "false"));
}

function withDetails(table) {
  const source = byId("details");
  if (!source) return;
  const known = JSON.parse(source.textContent);
  all("tbody tr", table).forEach((row) => {
    const button = document.createElement("button");
    button.className = "open";
    button.textContent = "▸";
    button.title = "All scores of this case";
    button.setAttribute("aria-label", button.title);
    button.setAttribute("aria-expanded", "false");
    row.cells[0].prepend(button);
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      closeDetails(table);
      if (!open) {
        row.after(detailRow(known, Number(row.id.slice(5)), row.cells.length));
        button.setAttribute("aria-expanded", "true");
      }
    });
  });
}

function detailRow(known, place, span) {
  const row = document.createElement("tr");
  row.className = "details";
  const cell = row.insertCell();
  cell.colSpan = span;
  cell.className = "text";
  const box = document.createElement("div");
  box.className = "scroll";
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  known.columns.forEach((name) => {
    const th = document.createElement("th");
    th.textContent = name;
    head.append(th);
  });
  const body = table.createTBody();
  known.rows[place].forEach((values) => {
    const line = body.insertRow();
    values.forEach((value) => { line.insertCell().textContent = value === null ? "–" : value; });
  });
  box.append(table);
  cell.append(box);
  return row;
}

// A point leads to its row, even where the filter hides it, and is marked itself.
function followPoints(table, clearFilter) {
  const mark = () => {
    const row = location.hash.startsWith("#case-") ? byId(location.hash.slice(1)) : null;
    if (row?.hidden) clearFilter();
    const place = row?.id.slice(5);
    all("a.chosen").forEach((point) => point.classList.remove("chosen"));
    all("tr.target", table).forEach((other) => other.classList.remove("target"));
    if (!row) return;
    row.classList.add("target");
    row.scrollIntoView({ block: "center" });
    all(`a[data-case="${place}"]`).forEach((point) => point.classList.add("chosen"));
  };
  addEventListener("hashchange", mark);
  mark();
}

function enlargePictures() {
  const dialog = byId("large");
  all(".planes img").forEach((picture) => picture.addEventListener("click", () => {
    const large = dialog.querySelector("img");
    large.src = picture.src;
    large.alt = picture.alt;
    dialog.showModal();
  }));
  dialog.addEventListener("click", () => dialog.close());
}

// The viewer: NiiVue is unpacked and run when a case is first opened.
async function loadNiivue() {
  const bytes = Uint8Array.from(atob(byId("niivue").textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const program = new Blob([await new Response(stream).arrayBuffer()], { type: "text/javascript" });
  const script = document.createElement("script");
  script.src = URL.createObjectURL(program);
  await new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = () => reject(new Error("NiiVue could not be run"));
    document.head.append(script);
  });
  const viewer = new niivue.Niivue({
    backColor: [0.082, 0.094, 0.11, 1], isRadiologicalConvention: true, sagittalNoseLeft: true, loadingText: "",
    crosshairColor: [0.56, 0.83, 0.83, 0.8], crosshairWidth: 0.4, crosshairWidthUnit: "percent", dragAndDropEnabled: false,
  });
  await viewer.attachToCanvas(byId("viewer-canvas"));
  viewer.setSliceType(viewer.sliceTypeMultiplanar);
  viewer.setMultiplanarLayout(niivue.MULTIPLANAR_TYPE.AUTO);
  return viewer;
}

function colourMap(colours, names) {
  const parts = colours.map((colour) => [1, 3, 5].map((from) => Number.parseInt(colour.slice(from, from + 2), 16)));
  const channel = (index) => [0, ...parts.map((part) => part[index])];
  return {
    R: channel(0), G: channel(1), B: channel(2),
    A: [0, ...colours.map(() => 255)], I: [0, ...colours.map((_, place) => place + 1)], labels: ["", ...names],
  };
}

function viewing() {
  const box = byId("viewer");
  if (!box) return;
  const [view, opacity, message, note] = ["view", "opacity", "message", "note"].map((name) => byId(`viewer-${name}`));
  message.textContent = "Open a case to scroll through its slices.";
  let starting = null;
  let shown = null;
  let asked = 0; // clicks may come faster than cases load: only the last is shown
  const kinds = ["prediction", "reference", "disagreement"];
  const paint = (viewer) => {
    kinds.forEach((kind, place) => viewer.setOpacity(place + 1, view.value === kind ? Number(opacity.value) : 0));
  };
  const open = async (place) => {
    const turn = ++asked;
    all("[data-open]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.open === place)));
    box.scrollIntoView({ block: "nearest" });
    message.textContent = "Loading ...";
    box.querySelector(".frame").hidden = false;
    starting ??= loadNiivue();
    const viewer = await starting;
    const known = JSON.parse(byId(`volumes-${place}`).textContent);
    const load = (kind, options) => niivue.NVImage.loadFromBase64({ base64: known[kind], name: `${kind}.nii.gz`, ...options });
    const volumes = [await load("image", { colormap: "gray" })];
    for (const kind of kinds) {
      const volume = await load(kind, { opacity: 0 });
      const [colours, names] = kind === "disagreement" ? known.errors : [known.colours, known.names];
      volume.setColormapLabel(colourMap(colours, names));
      volumes.push(volume);
    }
    if (turn !== asked) return;
    viewer.volumes.slice().reverse().forEach((volume) => viewer.removeVolume(volume));
    volumes.forEach((volume) => viewer.addVolume(volume));
    shown = viewer;
    viewer.scene.crosshairPos = viewer.mm2frac(known.centre_mm);
    paint(viewer);
    message.textContent = `${known.case}`;
    note.textContent = known.note;
    box.dataset.ready = place;
  };
  const fail = (error) => { message.textContent = `The viewer cannot start: ${error.message ?? error}`; };
  all("[data-open]").forEach((button) => button.addEventListener("click", () => open(button.dataset.open).catch(fail)));
  [view, opacity].forEach((control) => control.addEventListener("input", () => shown && paint(shown)));
}

all(".needs-script").forEach((element) => { element.hidden = false; });
all("[data-panels]").forEach(showPanels);
showTips();
const cases = byId("cases");
withDetails(cases);
sortable(cases);
followPoints(cases, filterable(cases));
enlargePictures();
viewing();
