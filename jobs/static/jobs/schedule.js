// A job may have a field for each of its arguments. Choosing it loads the page anew with those fields. A new schedule
// keeps its name, description and timing; one that is there shows otherwise what is stored.
document.addEventListener("DOMContentLoaded", () => {
  const job = document.querySelector("#periodictask_form #id_regtask");
  if (!job) return;
  const kept = location.pathname.endsWith("/add/")
    ? ["name", "description", "interval", "crontab", "solar", "clocked", "regtask"]
    : ["regtask"];
  job.addEventListener("change", () => {
    const page = new URLSearchParams(location.search);
    const filled = new FormData(job.form);
    kept.forEach((name) => page.set(name, filled.get(name) ?? ""));
    location.search = page;
  });
});
