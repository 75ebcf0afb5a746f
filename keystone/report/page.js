// Draws every chart in the theme of whoever looks, and again when that changes. `data-drawn` on the root says how many are done.
const root = document.documentElement;
const button = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("figure.chart")];
const specs = figures.map((figure) => JSON.parse(figure.querySelector("script").textContent));
let views = [];
let round = 0;

const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

async function draw() {
  const mine = ++round;
  const name = isDark() ? "dark" : "light";
  const config = JSON.parse(document.getElementById(`theme-${name}`).textContent);
  button.textContent = name === "dark" ? "☀ light" : "☾ dark";
  views.forEach((view) => view.finalize());
  views = [];
  let drawn = 0;
  for (const [at, figure] of figures.entries()) {
    const plot = figure.querySelector(".plot");
    try {
      const view = await window.vegaEmbed(plot, { ...specs[at], config }, { renderer: "svg", actions: false, tooltip: { theme: name } });
      if (mine !== round) {
        view.finalize();
        return;
      }
      views.push(view);
      drawn += 1;
    } catch (error) {
      plot.textContent = `This chart cannot be drawn: ${error.message}`;
      console.error(error);
    }
  }
  root.dataset.drawn = `${drawn}/${figures.length} ${name}`;
}

button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  draw();
});
prefersDark.addEventListener("change", draw);
draw();
