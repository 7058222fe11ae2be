for (const box of document.querySelectorAll(".filter")) {
  const rows = [...document.getElementById(box.dataset.table).tBodies[0].rows];
  const field = box.querySelector("input");
  box.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const name = row.cells[0].textContent.toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
    }
    box.querySelector("output").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  });
}
