// A hand over a chart shows the numbers of the nearest step. Everything else of the page works without this.
for (const plot of document.querySelectorAll(".plot")) {
  const readings = JSON.parse(plot.dataset.readings);
  const hair = plot.querySelector(".hair"), box = plot.querySelector(".reading");
  const show = (shown) => { hair.style.display = box.style.display = shown ? "block" : "none"; };
  plot.addEventListener("pointerleave", () => show(false));
  plot.addEventListener("pointermove", (event) => {
    const area = plot.getBoundingClientRect();
    const at = 100 * (event.clientX - area.left) / area.width;
    const near = readings.reduce((best, each) => Math.abs(each[0] - at) < Math.abs(best[0] - at) ? each : best);
    box.textContent = near.slice(1).join("\n");
    hair.style.left = near[0] + "%";
    show(true);
    const place = near[0] / 100 * area.width;
    box.style.left = (place > area.width / 2 ? Math.max(place - box.offsetWidth - 10, -40) : place + 10) + "px";
  });
}
