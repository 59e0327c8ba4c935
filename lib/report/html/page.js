// Puts the page together.
const root = document.documentElement;
const theme = document.getElementById("theme");
const setTheme = (value) => {
  if (value) root.dataset.theme = value;
  else delete root.dataset.theme;
};
const stored = { get: () => { try { return localStorage.getItem("sw-theme") || ""; } catch { return ""; } },
  set: (value) => { try { localStorage.setItem("sw-theme", value); } catch { /* pages of files may have no storage */ } } };
theme.value = ["light", "dark"].includes(stored.get()) ? stored.get() : "";
setTheme(theme.value);
theme.addEventListener("change", () => { setTheme(theme.value); stored.set(theme.value); });

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);  // for the user's own copy command
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

const figuresOf = { trace: traceFigures, model: modelFigures, profile: profileFigures, score: scoreFigures };
for (const host of document.querySelectorAll(".content")) {
  const report = reports[Number(host.dataset.report)];
  figuresOf[report.kind](host, report);
  for (const note of report.notes) host.append(make("p", { class: "note" }, note));
  makeTable(host, report);
}

// Paper shows what a click would.
const opened = [];
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll(".made details:not([open])")) { details.open = true; opened.push(details); }
});
window.addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });

root.dataset.ready = String(Math.round(performance.now()));
