"use strict";
(() => {
  // Theme: the system's, until the button is used.
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  const follow = () => { if (!chosen) root.dataset.theme = system.matches ? "dark" : "light"; };
  follow();
  system.addEventListener("change", follow);
  document.getElementById("theme").addEventListener("click", () => {
    chosen = true;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  });

  // Values under the pointer.
  const tip = document.getElementById("tip");
  for (const chart of document.querySelectorAll(".chart")) {
    const points = JSON.parse(chart.dataset.readout);
    const cursor = chart.querySelector(".cursor");
    const hide = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("pointermove", (event) => {
      if (!points.length) return;
      const box = chart.getBoundingClientRect();
      const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
      const near = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      cursor.setAttribute("transform", `translate(${near[0]} 0)`);
      cursor.setAttribute("visibility", "visible");
      const title = document.createElement("b");
      title.textContent = near[1];
      tip.replaceChildren(title, ...near[2].map(([css, name, value]) => {
        const line = document.createElement("div");
        const mark = document.createElement("i");
        mark.className = css;
        line.append(mark, `${name}: ${value}`);
        return line;
      }));
      tip.hidden = false;
      const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - tip.offsetWidth - 16 : event.clientX + 16;
      tip.style.left = `${Math.max(4, left)}px`;
      tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 6)}px`;
    });
  }

  // Trajectories: kind, step, page.
  const cards = [...document.querySelectorAll(".card")];
  if (!cards.length) return;
  const perPage = 5;
  const select = document.getElementById("step");
  const buttons = [...document.querySelectorAll(".filters button")];
  const text = document.getElementById("page-text");
  const pageBack = document.getElementById("page-back"), pageOn = document.getElementById("page-on");
  const stepBack = document.getElementById("step-back"), stepOn = document.getElementById("step-on");
  let kind = "", page = 0;
  const show = () => {
    const atStep = cards.filter((card) => !select.value || card.dataset.step === select.value);
    const found = atStep.filter((card) => !kind || card.dataset.kind === kind);
    const last = Math.max(0, Math.ceil(found.length / perPage) - 1);
    page = Math.min(Math.max(page, 0), last);
    const visible = new Set(found.slice(page * perPage, (page + 1) * perPage));
    for (const card of cards) card.hidden = !visible.has(card);
    for (const button of buttons) {
      button.classList.toggle("on", button.dataset.kind === kind);
      button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
      const count = atStep.filter((card) => !button.dataset.kind || card.dataset.kind === button.dataset.kind).length;
      button.querySelector("span").textContent = count;
    }
    text.textContent = found.length
      ? `${page * perPage + 1} to ${page * perPage + visible.size} of ${found.length}` : "no trajectory of this kind here";
    pageBack.disabled = page === 0;
    pageOn.disabled = page === last;
    stepBack.disabled = select.selectedIndex === 0;
    stepOn.disabled = select.selectedIndex === select.options.length - 1;
  };
  const turn = (by) => { page += by; show(); document.getElementById("trajectories").scrollIntoView(); };
  const step = (by) => { select.selectedIndex += by; page = 0; show(); };
  for (const button of buttons) button.addEventListener("click", () => { kind = button.dataset.kind; page = 0; show(); });
  select.addEventListener("change", () => { page = 0; show(); });
  pageBack.addEventListener("click", () => turn(-1));
  pageOn.addEventListener("click", () => turn(1));
  stepBack.addEventListener("click", () => step(-1));
  stepOn.addEventListener("click", () => step(1));
  show();
})();
