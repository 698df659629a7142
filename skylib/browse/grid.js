// A grid of thumbnails that is driven by mouse or keyboard. What happens is decided in Python: this only sends events.
function render({ model, el }) {
  const element = (tag, className, text = "") => {
    const e = document.createElement(tag);
    e.className = className;
    e.textContent = text; // never innerHTML: captions, tags and names come from files
    return e;
  };
  const grid = element("div", "sky-grid");
  grid.tabIndex = 0;
  grid.setAttribute("role", "listbox");
  grid.setAttribute("aria-multiselectable", "true");
  grid.setAttribute("aria-label", "Objects. Arrow keys move, y and n mark, question mark lists all keys.");
  grid.setAttribute("data-lm-suppress-shortcuts", "true"); // the notebook's own keys, such as y, stay out
  const help = element("div", "sky-keys");
  help.setAttribute("role", "note");
  help.setAttribute("aria-label", "keys");
  for (const [key, what] of Object.entries(model.get("key_list"))) {
    help.append(element("b", "", key), element("span", "", what));
  }
  el.append(help, grid);
  const id = `sky-${Math.random().toString(36).slice(2)}`;
  let at = 0, asked = "";

  const items = () => model.get("items");
  const cards = () => grid.querySelectorAll(".sky-card");
  const send = (event, row, more = {}) => model.send({ event, row, ...more });

  function look() {
    const marks = model.get("marks"), tags = model.get("tags"), targets = model.get("targets");
    help.hidden = !model.get("key_help");
    cards().forEach((card, i) => {
      const item = items()[i];
      if (!item) return;
      const mark = marks[item.row] || "", own = tags[item.row] || [];
      card.classList.toggle("sky-focus", i === at);
      card.classList.toggle("sky-target", targets.includes(item.row) || item.row < 0);
      card.dataset.mark = mark;
      card.setAttribute("aria-selected", mark === "yes");
      card.setAttribute("aria-label", [
        item.row < 0 ? "your image" : `object ${item.row}`, item.label,
        mark && `marked ${mark}`, own.length && `tags ${own.join(", ")}`,
      ].filter(Boolean).join(", "));
      card.querySelector(".sky-tags").replaceChildren(...own.map((tag) => element("span", "", tag)));
    });
    if (items().length) grid.setAttribute("aria-activedescendant", `${id}-${at}`);
  }

  function focus(i, report = true) {
    if (!items().length) return;
    at = Math.max(0, Math.min(items().length - 1, i));
    look();
    cards()[at].scrollIntoView({ block: "nearest" });
    if (report) send("focus", items()[at].row);
  }

  function button(name, text, label) {
    const b = element("button", `sky-${name}`, text);
    b.title = label;
    b.setAttribute("aria-label", label);
    b.tabIndex = -1;
    return b;
  }

  function draw() {
    grid.replaceChildren(...items().map(({ row, caption, label, src }, i) => {
      const card = element("div", "sky-card");
      card.id = `${id}-${i}`;
      card.dataset.row = row;
      card.setAttribute("role", "option");
      const image = document.createElement("img");
      image.src = src;
      image.alt = "";
      image.title = label;
      image.draggable = false;
      const yes = button("yes", "✓", "mark yes (key y)"), no = button("no", "✗", "mark no (key n)");
      const bar = element("div", "sky-bar");
      bar.append(yes, element("span", "sky-caption", caption), no);
      card.append(image, element("div", "sky-tags"), bar);
      image.onclick = () => { focus(i, false); send("click", row); };
      yes.onclick = () => { focus(i, false); send("yes", row); };
      no.onclick = () => { focus(i, false); send("no", row); };
      return card;
    }));
    const question = String(model.get("targets"));
    const kept = items().findIndex((item) => item.row === model.get("focused"));
    at = kept >= 0 ? kept : question === asked ? Math.min(at, Math.max(0, items().length - 1)) : 0;
    asked = question;
    resize();
    look();
    describe();
    send("drawn", -1, { serial: model.get("serial") });
  }

  // Jupyter and Voila say which theme they have; what no widget labels is labelled here, for screen readers.
  const dark = () => document.body.dataset.jpThemeLight === "false";
  function tellTheme() {
    if (model.get("dark") !== dark()) { model.set("dark", dark()); model.save_changes(); }
  }
  const theme = new MutationObserver(tellTheme);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  function describe() {
    const root = el.closest(".sky-browser");
    if (!root) return;
    const label = (selector, text) => root.querySelectorAll(selector).forEach((e) => e.setAttribute("aria-label", text));
    root.setAttribute("role", "region");
    label(":scope", "browser of look-alikes");
    label("canvas", "map of the embeddings; its tools choose objects by a lasso");
    label(".sky-order", "order of the objects");
    label(".sky-click", "what a click on a picture means");
    root.querySelectorAll(".sky-order, .sky-click").forEach((e) => e.setAttribute("role", "group"));
    root.querySelectorAll(".sky-order button, .sky-click button").forEach((e) =>
      e.setAttribute("aria-pressed", e.classList.contains("mod-active")));
    root.querySelectorAll("img.sky-picture").forEach((e) => { e.alt = `object ${model.get("focused")}: in colour, and in each band`; });
    root.querySelectorAll(".noUi-handle").forEach((e) => {
      const name = e.closest(".jupyter-widgets")?.querySelector(".widget-label");
      if (name) e.setAttribute("aria-label", name.textContent);
    });
  }

  const resize = () => grid.style.setProperty("--side", `${model.get("side")}px`);

  grid.onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const simple = { Backspace: "back", u: "undo", r: "redo", PageUp: "previous", PageDown: "next" };
    if (event.key === "?") { model.set("key_help", !model.get("key_help")); model.save_changes(); }
    else if (event.key in simple) send(simple[event.key], -1);
    else if (items().length) {
      const row = items()[at].row;
      const first = cards()[0].offsetTop;
      const columns = [...cards()].filter((card) => card.offsetTop === first).length;
      const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
      const acts = { t: "tag", Enter: "query", "+": "add" };
      if (event.key in moves) focus(at + moves[event.key]);
      else if (event.key === "y") { send("yes", row); focus(at + 1); }
      else if (event.key === "n") { send("no", row); focus(at + 1); }
      else if (event.key in acts) send(acts[event.key], row);
      else return;
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };

  const watched = { serial: draw, marks: look, tags: look, targets: look, key_help: look, side: resize };
  for (const [name, act] of Object.entries(watched)) model.on(`change:${name}`, act);
  draw();
  tellTheme();
  setTimeout(describe, 1500); // when the widgets around it stand, too
  return () => { theme.disconnect(); for (const [name, act] of Object.entries(watched)) model.off(`change:${name}`, act); };
}

export default { render };
