
(() => {
  const cards = [...document.querySelectorAll(".card")];
  const search = document.getElementById("search");
  const only = document.getElementById("only");
  const count = document.getElementById("count");
  const texts = new Map();

  const textOf = (card) => {
    if (!texts.has(card)) texts.set(card, card.querySelector(".details").textContent.toLowerCase());
    return texts.get(card);
  };

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits = (!only.value || card.dataset.kinds.split(" ").includes(only.value))
        && words.every((word) => textOf(card).includes(word));
      card.hidden = !fits;
      shown += fits;
    }
    for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector(".card:not([hidden])");
    document.getElementById("none").hidden = shown > 0;
    count.textContent = shown === cards.length ? `${shown} images` : `${shown} of ${cards.length} images`;
  };

  // "#only=crop" and "#find=blue" are links to a part of the images
  const follow = () => {
    const [name, value] = decodeURIComponent(location.hash.slice(1)).split("=");
    if (value === undefined) {
      const card = document.getElementById(name);
      if (card && card.hidden) {
        search.value = only.value = "";
        filter();
        card.scrollIntoView();
      }
      return;
    }
    if (name === "only") only.value = value;
    if (name === "find") search.value = value;
    filter();
    document.getElementById("images").scrollIntoView();
  };

  const sortBy = (table, column, button) => {
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const down = button.parentElement.getAttribute("aria-sort") !== "descending";
    const compare = new Intl.Collator(undefined, { numeric: true }).compare;
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1));
    for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
    button.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      button.addEventListener("click", () => sortBy(table, column, button));
      head.replaceChildren(button);
    });
  }

  for (const link of document.querySelectorAll("a.only")) {
    link.hidden = false;
    const title = link.closest("details").querySelector("summary").textContent.trim();
    only.append(new Option(title, link.hash.split("=")[1]));
  }
  document.querySelector(".controls").hidden = false;
  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, 150);
  });
  only.addEventListener("change", filter);
  window.addEventListener("hashchange", follow);
  filter();
  follow();
})();
