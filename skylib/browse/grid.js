// A grid of thumbnails that is driven by mouse or keyboard. What happens is decided in Python: here it is only told.
function render({ model, el }) {
  const grid = document.createElement("div");
  grid.className = "sky-grid";
  grid.tabIndex = 0;
  grid.setAttribute("role", "listbox");
  grid.setAttribute("aria-label", "objects");
  grid.setAttribute("data-lm-suppress-shortcuts", "true"); // the notebook's own keys, such as y, stay out
  el.appendChild(grid);
  let at = 0, asked = "";

  const items = () => model.get("items");
  const cards = () => grid.querySelectorAll(".sky-card");
  const tell = (event, row, more = {}) => model.send({ event, row, ...more });

  function look() {
    const marks = model.get("marks"), targets = model.get("targets");
    cards().forEach((card, i) => {
      const row = Number(card.dataset.row);
      card.classList.toggle("sky-focus", i === at);
      card.classList.toggle("sky-target", targets.includes(row));
      card.dataset.mark = marks[row] || "";
      card.setAttribute("aria-selected", marks[row] === "yes");
    });
  }

  function focus(i, told = true) {
    if (!items().length) return;
    at = Math.max(0, Math.min(items().length - 1, i));
    look();
    cards()[at].scrollIntoView({ block: "nearest" });
    if (told) tell("focus", items()[at].row);
  }

  function button(name, text, title) {
    const b = document.createElement("button");
    b.className = `sky-${name}`;
    b.textContent = text;
    b.title = title;
    b.tabIndex = -1;
    return b;
  }

  function draw() {
    grid.replaceChildren(...items().map(({ row, caption, src }, i) => {
      const card = document.createElement("div");
      card.className = "sky-card";
      card.dataset.row = row;
      card.setAttribute("role", "option");
      const image = document.createElement("img");
      image.src = src;
      image.alt = `object ${row}`;
      image.draggable = false;
      const text = document.createElement("span");
      text.textContent = caption;
      const yes = button("yes", "✓", "yes (key y)"), no = button("no", "✗", "no (key n)");
      const bar = document.createElement("div");
      bar.append(yes, text, no);
      card.append(image, bar);
      image.onclick = () => { focus(i, false); tell("click", row); };
      yes.onclick = () => { focus(i, false); tell("yes", row); };
      no.onclick = () => { focus(i, false); tell("no", row); };
      return card;
    }));
    const question = String(model.get("targets"));
    at = question === asked ? Math.min(at, Math.max(0, items().length - 1)) : 0;
    asked = question;
    grid.style.setProperty("--side", `${model.get("side")}px`);
    look();
    tell("drawn", -1, { serial: model.get("serial") });
  }

  grid.onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !items().length) return;
    const row = items()[at].row;
    const first = cards()[0].offsetTop;
    const columns = [...cards()].filter((card) => card.offsetTop === first).length;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    if (event.key in moves) focus(at + moves[event.key]);
    else if (event.key === "y") { tell("yes", row); focus(at + 1); }
    else if (event.key === "n") { tell("no", row); focus(at + 1); }
    else if (event.key === "Enter") tell("query", row);
    else if (event.key === "Backspace") tell("back", row);
    else return;
    event.preventDefault();
    event.stopPropagation();
  };

  model.on("change:serial", draw);
  model.on("change:marks", look);
  model.on("change:targets", look);
  draw();
  return () => { model.off("change:serial", draw); model.off("change:marks", look); model.off("change:targets", look); };
}

export default { render };
