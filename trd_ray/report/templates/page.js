// What every page has: the theme, and the values under the pointer.

const root = document.documentElement;

function toggleTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
}

/** An element with classes and children; strings become text, never markup. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const tip = document.getElementById("tip");

function showTip(event, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const right = event.clientX + 16 + tip.offsetWidth > innerWidth;
  const left = right ? event.clientX - tip.offsetWidth - 16 : event.clientX + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 6))}px`;
}

function hideTip() {
  tip.hidden = true;
}

function watchChart(chart) {
  const points = JSON.parse(chart.dataset.readout);
  const cursor = chart.querySelector(".cursor");
  chart.addEventListener("pointerleave", () => { hideTip(); cursor.setAttribute("visibility", "hidden"); });
  chart.addEventListener("pointermove", (event) => {
    if (!points.length) return;
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    const near = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    cursor.setAttribute("transform", `translate(${near[0]} 0)`);
    cursor.setAttribute("visibility", "visible");
    const lines = near[2].map(([css, name, value]) => make("div", "", make("i", css), `${name}: ${value}`));
    showTip(event, make("b", "", near[1]), ...lines);
  });
}

document.getElementById("theme").addEventListener("click", toggleTheme);
document.querySelectorAll(".chart").forEach(watchChart);
